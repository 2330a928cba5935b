# SPDX-License-Identifier: Apache-2.0
"""Registers an agent instance as a client of its authority: dynamic registration with an initial token (RFC 7591 §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from agent_identity import jose
from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.oauth.client import Client, PrivateKeyJwt
from agent_identity.credentials.oauth.responses import Fields, failure_of, send
from agent_identity.errors import CredentialRejectedError, VerificationError
from agent_identity.flow import Flow, HttpRequest, HttpResponse, Shared, shared
from agent_identity.keys.signing import public_signing_jwk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.metadata import Endpoints
    from agent_identity.keys.signing import SigningKey
    from agent_identity.values import JSON, Secret

_CREATED: Final = 201
_LIFE: Final = 12 * 3600.0
_REDIRECT: Final = "http://127.0.0.1/callback"
"""The port is a free one at the time of the sign-in (RFC 8252 §7.3)."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The client of a registered instance. Times are Unix seconds."""

    client: Client
    issued_at: float
    expires_at: float


def register(
    endpoints: Endpoints,
    *,
    name: str,
    agent: str,
    owner: str | None,
    key: SigningKey,
    initial_token: Secret | None,
    clock: Callable[[], float],
    grant_types: Sequence[str] = (),
) -> Flow[Registered]:
    """Register an agent instance with its public key. `grant_types` are those that it will use.

    Raises:
        CredentialRejectedError: the authority offers no registration, or refused it.
        CredentialUnavailableError: it could not be reached.
    """
    if endpoints.registration is None:
        raise CredentialRejectedError(
            "registration_unsupported",
            f"{endpoints.issuer} registers no clients",
            remedy="configure a client_id for it",
        )
    document = instance_metadata(name, agent, owner, key)
    if grant_types:
        document |= _usage(grant_types)
    request = HttpRequest(
        "POST", endpoints.registration, _headers(initial_token), orjson.dumps(document)
    )
    response = yield from send(request, endpoints.issuer)
    if response.status != _CREATED:
        raise failure_of(response, endpoints.issuer, "a registration", clock())
    client_id = _client_id(response)
    if client_id is None:
        raise CredentialRejectedError(
            "malformed_answer", f"the registration response of {endpoints.issuer} has no client_id"
        )
    now = clock()
    client = Client(client_id, PrivateKeyJwt(key))
    return Registered(client, issued_at=now, expires_at=now + _LIFE)


def instance_metadata(name: str, agent: str, owner: str | None, key: SigningKey) -> dict[str, JSON]:
    """Return the metadata by which an agent instance registers as a client."""
    metadata: dict[str, JSON] = {
        "client_name": name,
        "agent_id": agent,
        "jwks": {"keys": [public_signing_jwk(key)]},
        "token_endpoint_auth_method": "private_key_jwt",
    }
    return metadata | ({"owner": owner} if owner else {})


def metadata_document(
    client_id: str,
    *,
    name: str,
    method: str,
    key: SigningKey | None,
    grant_types: Sequence[str],
    kid: str | None = None,
) -> dict[str, JSON]:
    """Return the document that a client publishes at its `client_id` (draft-ietf-oauth-client-id-metadata-document).

    `method` is its authentication method, `key` the key that it signs with, `kid` the key's name (default: its thumbprint).
    """
    document: dict[str, JSON] = {
        "client_id": client_id,
        "client_name": name,
        "token_endpoint_auth_method": method,
        **_usage(grant_types),
    }
    if key is not None:
        jwk = public_signing_jwk(key)
        document["jwks"] = {"keys": [jwk if kid is None else jwk | {"kid": kid}]}
    return document


class DocumentedClient:
    """A client whose metadata an issuer reads at its `client_id`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def client(self, issuer: Issuer, /) -> Flow[Client]:
        """Return the client.

        Raises:
            CredentialRejectedError: `metadata_document_unsupported`, the issuer's metadata says that it reads none.
        """
        endpoints = yield from issuer.endpoints()
        if endpoints.takes_metadata_documents is False:
            raise CredentialRejectedError(
                "metadata_document_unsupported",
                f"{issuer.url} doesn't read a client's metadata document",
                remedy="register the client at the issuer, and set its client_id and registration",
            )
        return self._client


def _usage(grant_types: Sequence[str]) -> dict[str, JSON]:
    """The metadata about grant types, in full: the defaults mean a web application that signs people in (RFC 7591 §2)."""
    signs_in = "authorization_code" in grant_types
    return {
        "application_type": "native",
        "grant_types": [*grant_types],
        "redirect_uris": [_REDIRECT] if signs_in else [],
        "response_types": ["code"] if signs_in else [],
    }


def _headers(initial_token: Secret | None) -> dict[str, str]:
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if initial_token is not None:
        headers["Authorization"] = f"Bearer {initial_token.reveal()}"
    return headers


def _client_id(response: HttpResponse) -> str | None:
    try:
        return Fields(jose.loads_object(response.body)).text("client_id")
    except VerificationError:
        return None


class InstanceRegistration:
    """The client of this agent instance: it registers with the agent's own key.

    `initial_token` is fetched when the instance registers. `recorded` writes the registration to the ledger.
    """

    def __init__(
        self,
        name: str,
        agent: Agent,
        *,
        owner: str | None,
        initial_token: Callable[[], Flow[Secret]] | None,
        recorded: Callable[[], Flow[None]],
        grant_types: Sequence[str] = (),
    ) -> None:
        self._name = name
        self._agent = agent
        self._owner = owner
        self._initial_token = initial_token
        self._record = recorded
        self._grant_types = grant_types

    def client(self, issuer: Issuer, /) -> Flow[Client]:
        key = digest_of(("registration", issuer.id, self._agent.key.thumbprint))
        registered = yield from shared(Shared(key, lambda: self._register(issuer)))
        return registered.client

    def _register(self, issuer: Issuer) -> Flow[Registered]:
        endpoints = yield from issuer.endpoints()
        token = None if self._initial_token is None else (yield from self._initial_token())
        registered = yield from register(
            endpoints,
            name=self._name,
            agent=self._agent.uri,
            owner=self._owner,
            key=self._agent.key,
            initial_token=token,
            clock=issuer.clock,
            grant_types=self._grant_types,
        )
        yield from self._record()
        return registered
