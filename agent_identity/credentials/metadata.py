# SPDX-License-Identifier: Apache-2.0
"""What an issuer says of itself: its metadata and its keys (RFC 8414, RFC 7517), read once and kept while they last."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from agent_identity.credentials.answers import (
    Fields,
    asked,
    failure_of,
    json_object,
)
from agent_identity.errors import (
    CredentialRejectedError,
    DeniedError,
)
from agent_identity.flow import Flow, HttpRequest
from agent_identity.uris import origin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.values import JSON

__all__ = ["Endpoints", "KeySet", "discover", "read_keys"]

_METADATA_LIFE: Final = 300.0
_KEY_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What an issuer's metadata says of itself (RFC 8414); `issuer` is the very string it was asked under."""

    issuer: str
    token: str
    registration: str | None
    revocation: str | None
    introspection: str | None
    jwks: str | None
    issued_at: float
    expires_at: float


def discover(issuer: str, clock: Callable[[], float]) -> Flow[Endpoints]:
    """Read an issuer's metadata (RFC 8414 §3), and hold it to naming itself exactly as it was asked for.

    Raises:
        CredentialRejectedError: `issuer_mismatch`, or an endpoint at another origin.
        CredentialUnavailableError: the issuer could not be reached.
    """
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    url = f"{parts.scheme}://{parts.netloc}/.well-known/oauth-authorization-server{path}"
    response = yield from asked(HttpRequest("GET", url, {"Accept": "application/json"}), issuer)
    if response.status != 200:  # noqa: PLR2004 - a status of HTTP
        raise failure_of(response, issuer, "its metadata")
    document = json_object(response, issuer)
    if document.text("issuer") != issuer:
        raise CredentialRejectedError(
            "issuer_mismatch", f"the metadata found at {issuer} names another issuer"
        )
    now = clock()

    def endpoint(name: str) -> str | None:
        if not document.has(name):
            return None
        if not _same_origin(document.text(name), issuer):
            raise CredentialRejectedError(
                "endpoint_origin", f"{issuer} names a {name} at another origin"
            )
        return document.text(name)

    token = endpoint("token_endpoint")
    if token is None:
        raise CredentialRejectedError("metadata_incomplete", f"{issuer} names no token_endpoint")
    return Endpoints(
        issuer=issuer,
        token=token,
        registration=endpoint("registration_endpoint"),
        revocation=endpoint("revocation_endpoint"),
        introspection=endpoint("introspection_endpoint"),
        jwks=endpoint("jwks_uri"),
        issued_at=now,
        expires_at=now + _METADATA_LIFE,
    )


def _same_origin(url: str | None, issuer: str) -> bool:
    try:
        return url is not None and origin(url) == origin(issuer)
    except DeniedError:
        return False


@dataclass(frozen=True, slots=True)
class KeySet:
    """An issuer's public keys by `kid`, at most 64 of them."""

    keys: Mapping[str, dict[str, JSON]]
    issued_at: float
    expires_at: float

    def get(self, kid: str) -> dict[str, JSON] | None:
        return self.keys.get(kid)


def read_keys(endpoints: Endpoints, clock: Callable[[], float]) -> Flow[KeySet]:
    """Read an issuer's JWK set (RFC 7517 §5); keys without a `kid`, or with one that stands twice, are left out.

    Raises:
        CredentialRejectedError: it publishes none, or something that is no key set.
        CredentialUnavailableError: it could not be reached.
    """
    if endpoints.jwks is None:
        raise CredentialRejectedError(
            "metadata_incomplete", f"{endpoints.issuer} names no jwks_uri"
        )
    request = HttpRequest("GET", endpoints.jwks, {"Accept": "application/json"})
    response = yield from asked(request, endpoints.issuer)
    if response.status != 200:  # noqa: PLR2004 - a status of HTTP
        raise failure_of(response, endpoints.issuer, "its keys")
    keys = _named_keys(json_object(response, endpoints.issuer))
    if keys is None:
        raise CredentialRejectedError("malformed_keys", f"{endpoints.issuer} publishes no key set")
    now = clock()
    return KeySet(keys, issued_at=now, expires_at=now + _METADATA_LIFE)


def _named_keys(document: Fields) -> dict[str, dict[str, JSON]] | None:
    found = document.get("keys")
    if not isinstance(found, list) or len(found) > _KEY_LIMIT:
        return None
    named = [(key.get("kid"), key) for key in found if isinstance(key, dict)]
    counts = Counter(kid for kid, _ in named if isinstance(kid, str))
    return {kid: key for kid, key in named if isinstance(kid, str) and counts[kid] == 1}
