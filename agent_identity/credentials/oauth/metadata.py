# SPDX-License-Identifier: Apache-2.0
"""What an issuer says of itself: its metadata and its keys (RFC 8414, OpenID Discovery, RFC 7517)."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from agent_identity import jose
from agent_identity.credentials.oauth.responses import Fields, asked, failure_of, json_object
from agent_identity.errors import CredentialRejectedError, DeniedError, VerificationError
from agent_identity.flow import Flow, HttpRequest, read
from agent_identity.jose.public_keys import candidates, checker
from agent_identity.keys.algorithms import KEY_TYPES
from agent_identity.uris import origin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.values import JSON, Secret

__all__ = ["Endpoints", "KeySet", "discover", "read_keys"]

_LIFE: Final = 300.0
_KEY_LIMIT: Final = 64
_NOT_THERE: Final = frozenset({400, 401, 403, 404, 405, 410})
"""How servers say that they have nothing in a place; each of an issuer's places is looked at."""

_ALIASED: Final = {
    "token": "token_endpoint",
    "revocation": "revocation_endpoint",
    "introspection": "introspection_endpoint",
    "pushed_authorization": "pushed_authorization_request_endpoint",
    "device_authorization": "device_authorization_endpoint",
    "backchannel_authentication": "backchannel_authentication_endpoint",
}


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What an issuer's metadata says of itself (RFC 8414); `issuer` is the very string it was asked under.

    `aliases` are the endpoints for clients that show a certificate (RFC 8705 §5), by the names that the fields have here;
    `origins` are where they may be. `takes_metadata_documents` is None where the issuer says nothing of it.
    """

    issuer: str
    token: str
    registration: str | None
    revocation: str | None
    introspection: str | None
    jwks: str | None
    issued_at: float
    expires_at: float
    authorization: str | None = None
    pushed_authorization: str | None = None
    device_authorization: str | None = None
    backchannel_authentication: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    challenge_methods: frozenset[str] | None = None
    names_itself_in_response: bool = False
    requires_pushed: bool = False
    takes_metadata_documents: bool | None = None
    origins: frozenset[str] = frozenset()
    revocations: str | None = None

    def at(self, name: str, *, certificate: bool = False) -> str:
        """The URL of an endpoint, its alias for a client with a certificate.

        Raises:
            CredentialRejectedError: `endpoint_missing`, the issuer has no such endpoint; `endpoint_origin`, its alias is at an
                origin that nobody allowed.
        """
        if certificate and name in self.aliases:
            if _origin_of(self.aliases[name]) not in self.origins:
                raise _elsewhere(self.issuer, _ALIASED.get(name, name))
            return self.aliases[name]
        found = getattr(self, name)
        if not isinstance(found, str):
            raise CredentialRejectedError(
                "endpoint_missing",
                f"{self.issuer} names no {_ALIASED.get(name, name)}",
                remedy="choose a source that this issuer offers",
            )
        return found


def discover(
    issuer: str, clock: Callable[[], float], origins: frozenset[str] = frozenset()
) -> Flow[Endpoints]:
    """Read an issuer's metadata (RFC 8414 §3, OpenID Discovery §4), and hold it to naming itself exactly as it was asked.

    `origins` are further origins that its endpoints may have; without them every endpoint is at the issuer's own.

    Raises:
        CredentialRejectedError: `issuer_mismatch`, `endpoint_origin`, or no metadata where it could be.
        CredentialUnavailableError: the issuer could not be reached.
    """
    for url in _places(issuer):
        response = yield from asked(HttpRequest("GET", url, {"Accept": "application/json"}), issuer)
        if response.status in _NOT_THERE:
            continue
        if response.status != 200:  # noqa: PLR2004 - a status of HTTP
            raise failure_of(response, issuer, "its metadata", clock())
        return _read(json_object(response, issuer), issuer, clock(), origins)
    raise CredentialRejectedError(
        "metadata_missing",
        f"{issuer} publishes no metadata",
        remedy="check the issuer's URL, letter by letter; a trailing slash counts",
    )


def _places(issuer: str) -> tuple[str, ...]:
    """Where the metadata may be: each form once, RFC 8414's first."""
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    host = f"{parts.scheme}://{parts.netloc}"
    return tuple(
        dict.fromkeys(
            (
                f"{host}/.well-known/oauth-authorization-server{path}",
                f"{host}/.well-known/openid-configuration{path}",
                f"{host}{path}/.well-known/openid-configuration",
            )
        )
    )


def _read(document: Fields, issuer: str, now: float, origins: frozenset[str]) -> Endpoints:
    if document.text("issuer") != issuer:
        raise CredentialRejectedError(
            "issuer_mismatch", f"the metadata found at {issuer} names another issuer"
        )
    allowed = origins | {origin(issuer)}
    aliases = document.nested("mtls_endpoint_aliases")

    def endpoint(name: str) -> str | None:
        if not document.has(name):
            return None
        url = document.text(name)
        if url is None or _origin_of(url) not in allowed:
            raise _elsewhere(issuer, name)
        return url

    token = endpoint("token_endpoint")
    if token is None:
        raise CredentialRejectedError("metadata_incomplete", f"{issuer} names no token_endpoint")
    found = {name: aliases.text(member) for name, member in _ALIASED.items()} if aliases else {}
    return Endpoints(
        issuer=issuer,
        token=token,
        registration=endpoint("registration_endpoint"),
        revocation=endpoint("revocation_endpoint"),
        introspection=endpoint("introspection_endpoint"),
        jwks=endpoint("jwks_uri"),
        issued_at=now,
        expires_at=now + _LIFE,
        authorization=endpoint("authorization_endpoint"),
        pushed_authorization=endpoint("pushed_authorization_request_endpoint"),
        device_authorization=endpoint("device_authorization_endpoint"),
        backchannel_authentication=endpoint("backchannel_authentication_endpoint"),
        aliases={name: url for name, url in found.items() if url is not None},
        origins=frozenset(allowed),
        challenge_methods=document.texts("code_challenge_methods_supported"),
        names_itself_in_response=document.get("authorization_response_iss_parameter_supported")
        is True,
        requires_pushed=document.get("require_pushed_authorization_requests") is True,
        revocations=endpoint("agent_identity_revocations_uri"),
        takes_metadata_documents=_flag(document, "client_id_metadata_document_supported"),
    )


def _elsewhere(issuer: str, name: str) -> CredentialRejectedError:
    return CredentialRejectedError(
        "endpoint_origin",
        f"{issuer} names a {name} at another origin",
        remedy="if that is right, list the origin in the issuer's endpoint_origins",
    )


def _flag(document: Fields, name: str) -> bool | None:
    found = document.get(name)
    return found if isinstance(found, bool) else None


def _origin_of(url: str) -> str | None:
    try:
        return origin(url)
    except DeniedError:
        return None


@dataclass(frozen=True, slots=True)
class KeySet:
    """An issuer's public keys by `kid`, at most 64 of them."""

    keys: Mapping[str, dict[str, JSON]]
    issued_at: float
    expires_at: float

    def get(self, kid: str) -> dict[str, JSON] | None:
        return self.keys.get(kid)


def read_keys(
    issuer: str,
    jwks: str | None,
    clock: Callable[[], float],
    *,
    discovered: bool = False,
    use: str = "sig",
) -> Flow[KeySet]:
    """Read an issuer's JWK set (RFC 7517 §5); keys without a `kid`, or with one that stands twice, are left out.

    `jwks` is a URL, or `file:` and a path. `use` is what signing keys say there that they are for: `jwt-svid` in the bundle of
    a SPIFFE trust domain.

    Raises:
        CredentialRejectedError: it publishes none, or something that is no key set.
        CredentialUnavailableError: it could not be reached.
    """
    if jwks is None:
        raise CredentialRejectedError("metadata_incomplete", f"{issuer} names no jwks_uri")
    if jwks.startswith("file:"):
        return (yield from _keys_in_file(issuer, jwks, clock, use))
    request = HttpRequest("GET", jwks, {"Accept": "application/json"}, discovered=discovered)
    response = yield from asked(request, issuer)
    now = clock()
    if response.status != 200:  # noqa: PLR2004 - a status of HTTP
        raise failure_of(response, issuer, "its keys", now)
    keys = named_keys(json_object(response, issuer, kinds=_JWKS_KINDS), use)
    if keys is None:
        raise CredentialRejectedError("malformed_keys", f"{issuer} publishes no key set")
    return KeySet(keys, issued_at=now, expires_at=now + _LIFE)


def _keys_in_file(
    issuer: str, reference: str, clock: Callable[[], float], use: str
) -> Flow[KeySet]:
    found = yield from read(reference)
    keys = None if found is None else named_keys(_file_fields(found), use)
    if keys is None:
        raise CredentialRejectedError(
            "malformed_keys",
            f"the file that jwks of {issuer} names holds no key set",
            remedy="put the issuer's JWK set there",
        )
    now = clock()
    return KeySet(keys, issued_at=now, expires_at=now + _LIFE)


def _file_fields(found: Secret) -> Fields:
    try:
        return Fields(jose.loads_object(found.reveal().encode()))
    except VerificationError:
        return Fields({})


_JWKS_KINDS: Final = frozenset({"application/json", "application/jwk-set+json"})


def named_keys(document: Fields, use: str = "sig") -> dict[str, dict[str, JSON]] | None:
    """The usable keys of a JWK set by `kid`; None where it is no such set, or holds more than anybody has."""
    found = document.get("keys")
    if not isinstance(found, list) or len(found) > _KEY_LIMIT:
        return None
    keys = [
        {**key, "use": "sig"} if key.get("use") == use else key
        for key in found
        if isinstance(key, dict)
    ]
    named = [(key.get("kid"), key) for key in keys if _is_usable(key)]
    counts = Counter(kid for kid, _ in named if isinstance(kid, str))
    return {kid: key for kid, key in named if isinstance(kid, str) and counts[kid] == 1}


def _is_usable(key: dict[str, JSON]) -> bool:
    """Whether a key can check any signature: a public one that is made for signatures, and not weak."""
    for alg in KEY_TYPES:
        with suppress(VerificationError):
            checker(alg, *candidates([key], alg, None))
            return True
    return False
