# SPDX-License-Identifier: Apache-2.0
"""Dynamic registration of an agent instance, with an initial access token (RFC 7591 §3).

The body is `{client_name, agent_id, owner?, jwks: {keys: [public JWK, …]}, token_endpoint_auth_method: "private_key_jwt",
grant_types?}`. `agent_id` is the agent's URI, which becomes `act.sub` of each grant to this client. The authority's terms limit
the client, and the body can't change them. Unknown metadata is ignored, and is missing in the response.
"""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.authority.clients import GRANT_TYPES, ClientRecord, json_key
from agent_identity.authority.requests import OAuthError, json_response
from agent_identity.delegation.claims import Claims
from agent_identity.errors import ConfigurationError, VerificationError
from agent_identity.jose.public_keys import refuse_private
from agent_identity.keys.signing import thumbprint
from agent_identity.values import JSON, is_agent, is_line, new_id

if TYPE_CHECKING:
    from collections.abc import Collection

    from agent_identity.authority.clients import Terms
    from agent_identity.authority.requests import ParsedRequest
    from agent_identity.flow import HttpResponse
    from agent_identity.keys.signing import JWK
    from agent_identity.values import Secret

_AUTH_METHOD: Final = "private_key_jwt"
_KEYS: Final = 10
_PUBLIC_MEMBERS: Final = ("kty", "crv", "x", "y", "n", "e", "alg", "kid")
_AGENT: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]{1,500}")
_NAME_LIMIT: Final = 200
_MEMBER_LIMIT: Final = 2048


def read_registration(request: ParsedRequest, initial_token: Secret) -> dict[str, JSON]:
    """Return the client metadata of a registration request.

    Raises:
        OAuthError: the initial access token is wrong, or the body isn't a JSON object.
    """
    _check_token(request, initial_token)
    if request.content_type != "application/json":
        raise _metadata_error("not_json")
    try:
        return jose.loads_object(request.body)
    except VerificationError as error:
        raise _metadata_error(error.code) from None


def new_client(
    metadata: dict[str, JSON], *, terms: Terms, issuers: Collection[str], registrar: str, now: int
) -> ClientRecord:
    """Make a client from its metadata. An agent can't have the name of one of the `issuers`.

    Raises:
        OAuthError: the metadata is refused.
    """
    try:
        client = _read_client(metadata, terms, registrar, now)
    except VerificationError as error:
        raise _metadata_error(error.code) from None
    if client.agent in issuers:
        raise _metadata_error("agent_id")
    return client


def _check_token(request: ParsedRequest, initial_token: Secret) -> None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    expected = initial_token.reveal().encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(
        token.encode("utf-8", "surrogatepass"), expected
    ):
        raise OAuthError(
            "invalid_token",
            "initial_access_token",
            status=401,
            headers={"www-authenticate": 'Bearer error="invalid_token"'},
        )


def _read_client(metadata: dict[str, JSON], terms: Terms, registrar: str, now: int) -> ClientRecord:
    claims = Claims(metadata, VerificationError)
    if claims.has("token_endpoint_auth_method") and (
        claims.text("token_endpoint_auth_method") != _AUTH_METHOD
    ):
        raise _metadata_error("token_endpoint_auth_method")
    grant_types = (
        frozenset(claims.texts("grant_types"))
        if claims.has("grant_types")
        else frozenset(GRANT_TYPES)
    )
    if not grant_types <= frozenset(GRANT_TYPES):
        raise _metadata_error("grant_types")
    agent = claims.text("agent_id")
    if not _AGENT.fullmatch(agent) or not is_agent(agent):
        raise _metadata_error("agent_id")
    return ClientRecord(
        client_id=new_id("cli_"),
        agent=agent,
        keys=_read_keys(claims.mapping("jwks").get("keys")),
        issued_at=now,
        expires_at=now + terms.lease,
        name=_read_phrase(claims, "client_name"),
        owner=_read_phrase(claims, "owner"),
        grant_types=grant_types,
        terms=terms,
        registrar=registrar,
    )


def _read_keys(value: JSON) -> tuple[JWK, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= _KEYS:
        raise _metadata_error("jwks")
    return tuple(_read_key(key) for key in value)


def _read_key(value: JSON) -> JWK:
    """Read the public members of a key; a missing `kid` becomes the thumbprint. A private key is refused."""
    if not isinstance(value, dict):
        raise _metadata_error("jwks")
    refuse_private(value)
    key = {
        name: text
        for name in _PUBLIC_MEMBERS
        if isinstance(text := value.get(name), str) and len(text) <= _MEMBER_LIMIT
    }
    try:
        return {"kid": thumbprint(key), **key, "use": "sig"}
    except ConfigurationError:
        raise _metadata_error("jwks") from None


def _read_phrase(claims: Claims, name: str) -> str | None:
    value = claims.optional_text(name)
    if value is not None and (len(value) > _NAME_LIMIT or not is_line(value)):
        raise _metadata_error(name)
    return value


def registration_response(client: ClientRecord) -> HttpResponse:
    """The response to a registration."""
    body: dict[str, JSON] = {
        "client_id": client.client_id,
        "client_id_issued_at": client.issued_at,
        "client_name": client.name,
        "agent_id": client.agent,
        "owner": client.owner,
        "jwks": {"keys": [json_key(key) for key in client.keys]},
        "token_endpoint_auth_method": _AUTH_METHOD,
        "grant_types": [name for name in GRANT_TYPES if name in client.grant_types],
    }
    return json_response({k: v for k, v in body.items() if v is not None}, status=201)


def _metadata_error(reason: str) -> OAuthError:
    return OAuthError("invalid_client_metadata", reason)
