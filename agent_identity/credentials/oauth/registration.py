# SPDX-License-Identifier: Apache-2.0
"""Registers an agent instance as a client of its authority: dynamic registration with an initial token (RFC 7591 §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import orjson

from agent_identity import jose
from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.oauth.client import (
    Client,
    NoProof,
    PrivateKeyJwt,
    SecretBasic,
    SecretPost,
)
from agent_identity.credentials.oauth.responses import Fields, failure_of, send
from agent_identity.credentials.oauth.token_types import REFRESH
from agent_identity.errors import CredentialRejectedError, VerificationError
from agent_identity.flow import Flow, HttpRequest, HttpResponse, Shared, pure, shared
from agent_identity.keys.signing import public_signing_jwk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.oauth.client import Authentication
    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.metadata import Endpoints
    from agent_identity.keys.signing import SigningKey
    from agent_identity.values import JSON, Secret

_ANSWERED: Final = frozenset({200, 201})
_LIFE: Final = 12 * 3600.0
_REDIRECT: Final = "http://127.0.0.1/callback"
"""The port is a free one at the time of the sign-in (RFC 8252 §7.3)."""
_METHODS: Final = ("private_key_jwt", "client_secret_post", "client_secret_basic", "none")
"""How a registered client can authenticate, in order of preference. MCP's servers offer `client_secret_basic`, and refuse it without
a `client_id` in the form, and at their revocation endpoint."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The client of a registered instance. Times are Unix seconds."""

    client: Client
    issued_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class Registration:
    """How an agent instance registers as a client (RFC 7591 §2).

    `grant_types` and `scopes` are those that it will use. `redirect_uri` is where a sign-in in a browser comes back; None is any port on
    loopback. `assertion_audience` is the audience of its client assertions.
    """

    name: str
    agent: str
    owner: str | None
    key: SigningKey
    grant_types: Sequence[str] = ()
    scopes: frozenset[str] = frozenset()
    redirect_uri: str | None = None
    assertion_audience: Literal["issuer", "token-endpoint"] = "issuer"


def register(
    endpoints: Endpoints,
    registration: Registration,
    *,
    initial_token: Secret | None,
    clock: Callable[[], float],
) -> Flow[Registered]:
    """Register an agent instance, by the methods and grant types that the issuer supports, and as its answer says (§3.2.1).

    Raises:
        CredentialRejectedError: the authority offers no registration that suits the agent, or refused it.
        CredentialUnavailableError: it could not be reached.
    """
    if endpoints.registration is None:
        raise CredentialRejectedError(
            "registration_unsupported",
            f"{endpoints.issuer} registers no clients",
            remedy="configure a client_id for it",
        )
    document = _request(endpoints, registration)
    request = HttpRequest(
        "POST",
        endpoints.registration,
        _headers(initial_token),
        orjson.dumps(document),
        discovered=endpoints.discovered,
    )
    response = yield from send(request, endpoints.issuer)
    if response.status not in _ANSWERED:
        raise failure_of(response, endpoints.issuer, "a registration", clock())
    return _read_registered(response, endpoints, registration, clock())


def _request(endpoints: Endpoints, registration: Registration) -> dict[str, JSON]:
    document = instance_metadata(
        registration.name, registration.agent, registration.owner, registration.key
    )
    document["token_endpoint_auth_method"] = _choose_method(endpoints)
    if registration.grant_types:
        document |= _usage(
            _supported(registration.grant_types, endpoints), registration.redirect_uri
        )
    if registration.scopes:
        document["scope"] = " ".join(sorted(registration.scopes | _openid(endpoints)))
    return document


def _openid(endpoints: Endpoints) -> frozenset[str]:
    """The scope that shows who signs in, where the issuer offers it."""
    return frozenset({"openid"}) & (endpoints.scopes or frozenset())


def _choose_method(endpoints: Endpoints) -> str:
    """The first method that both sides know. An issuer that lists none is asked for the safest one."""
    offered = endpoints.auth_methods
    if offered is None:
        return _METHODS[0]
    method = next((method for method in _METHODS if method in offered), None)
    if method is None:
        raise CredentialRejectedError(
            "registration_unsupported",
            f"{endpoints.issuer} offers no authentication method that a registered agent can use",
            remedy="configure a client_id for it, and how the client authenticates",
        )
    return method


def _supported(grant_types: Sequence[str], endpoints: Endpoints) -> list[str]:
    """The grant types without `refresh_token` where the issuer doesn't list that: a client can do without."""
    offered = endpoints.grant_types
    return [
        each for each in grant_types if each != REFRESH or offered is None or REFRESH in offered
    ]


def _read_registered(
    response: HttpResponse, endpoints: Endpoints, registration: Registration, now: float
) -> Registered:
    """Read what was registered, which may differ from what was requested (RFC 7591 §3.2.1)."""
    answer = _fields(response)
    client_id = answer.text("client_id")
    if client_id is None:
        raise CredentialRejectedError(
            "malformed_answer", f"the registration response of {endpoints.issuer} has no client_id"
        )
    secret = answer.secret("client_secret")
    method = answer.text("token_endpoint_auth_method") or (
        "client_secret_basic" if secret is not None else _choose_method(endpoints)
    )
    authentication: Authentication
    if method == "private_key_jwt":
        authentication = PrivateKeyJwt(registration.key, audience=registration.assertion_audience)
    elif method == "client_secret_basic" and secret is not None:
        authentication = SecretBasic(lambda: pure(secret))
    elif method == "client_secret_post" and secret is not None:
        authentication = SecretPost(lambda: pure(secret))
    elif method == "none":
        authentication = NoProof()
    else:
        raise CredentialRejectedError(
            "registration_unusable",
            f"{endpoints.issuer} registered a client with a method or without a secret, so that it can't authenticate",
            remedy="configure a client_id for it, and how the client authenticates",
        )
    ends = now + _LIFE
    secret_ends = answer.number("client_secret_expires_at")
    if secret is not None and secret_ends:  # 0 is never
        ends = min(ends, secret_ends)
    return Registered(Client(client_id, authentication), issued_at=now, expires_at=ends)


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


class FoundClient:
    """The client at an issuer that a resource named: `known` where the issuer can know it, otherwise it registers.

    An issuer reads the metadata document of a client whose id is an https URL only if its metadata says so.
    """

    def __init__(self, known: Client | None, registration: InstanceRegistration) -> None:
        self._known = known
        self._registration = registration

    def client(self, issuer: Issuer, /) -> Flow[Client]:
        known = self._known
        if known is not None and not known.client_id.startswith("https://"):
            return known
        endpoints = yield from issuer.endpoints()
        if known is not None and endpoints.takes_metadata_documents:
            return known
        return (yield from self._registration.client(issuer))


def _usage(grant_types: Sequence[str], redirect_uri: str | None = None) -> dict[str, JSON]:
    """The metadata about grant types, in full: the defaults mean a web application that signs people in (RFC 7591 §2)."""
    signs_in = "authorization_code" in grant_types
    return {
        "application_type": "native",
        "grant_types": [*grant_types],
        "redirect_uris": [redirect_uri or _REDIRECT] if signs_in else [],
        "response_types": ["code"] if signs_in else [],
    }


def _headers(initial_token: Secret | None) -> dict[str, str]:
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if initial_token is not None:
        headers["Authorization"] = f"Bearer {initial_token.reveal()}"
    return headers


def _fields(response: HttpResponse) -> Fields:
    try:
        return Fields(jose.loads_object(response.body))
    except VerificationError:
        return Fields({})


class InstanceRegistration:
    """The client of this agent instance: it registers with the agent's own key.

    `initial_token` is fetched when the instance registers. `recorded` writes the registration to the ledger. `scopes` may be a
    function, for scopes that are known only then.
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
        scopes: frozenset[str] | Callable[[], frozenset[str]] = frozenset(),
        assertion_audience: Literal["issuer", "token-endpoint"] = "issuer",
    ) -> None:
        self._name = name
        self._agent = agent
        self._owner = owner
        self._initial_token = initial_token
        self._record = recorded
        self._grant_types = grant_types
        self._scopes = scopes
        self._assertion_audience: Literal["issuer", "token-endpoint"] = assertion_audience

    def client(self, issuer: Issuer, /) -> Flow[Client]:
        key = digest_of(("registration", issuer.id, self._agent.key.thumbprint))
        registered = yield from shared(Shared(key, lambda: self._register(issuer)))
        return registered.client

    def _register(self, issuer: Issuer) -> Flow[Registered]:
        endpoints = yield from issuer.endpoints()
        token = None if self._initial_token is None else (yield from self._initial_token())
        registration = Registration(
            self._name,
            self._agent.uri,
            self._owner,
            self._agent.key,
            self._grant_types,
            self._scopes() if callable(self._scopes) else self._scopes,
            redirect_uri=issuer.redirect_uri,
            assertion_audience=self._assertion_audience,
        )
        registered = yield from register(
            endpoints, registration, initial_token=token, clock=issuer.clock
        )
        yield from self._record()
        return registered
