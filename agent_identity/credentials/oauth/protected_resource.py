# SPDX-License-Identifier: Apache-2.0
"""Reads a resource's own metadata (RFC 9728): which issuers it accepts, and how their tokens must be bound.

The URLs in it are the resource's word. They may lead to a private address only where the resource itself is: at its own origin, or
on loopback if the resource is there too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from agent_identity.credentials.oauth.responses import failure_of, json_object, send
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Flow, HttpRequest
from agent_identity.uris import covers, is_loopback, is_safe_link, origin, origin_or_none

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.oauth.responses import Fields
    from agent_identity.flow import HttpResponse

_PLACE: Final = "/.well-known/oauth-protected-resource"
_NOT_FOUND: Final = 404
_LIFE: Final = 300.0


@dataclass(frozen=True, slots=True)
class ProtectedResource:
    """A resource's metadata. `resource` is its own name for itself, `scopes` is None where it lists none. Times are Unix seconds."""

    resource: str
    issuers: frozenset[str]
    scopes: frozenset[str] | None
    wants_dpop: bool
    wants_certificate: bool
    issued_at: float = field(default=0.0, compare=False)
    expires_at: float = field(default=0.0, compare=False)


def discover_resource(
    resource: str, clock: Callable[[], float], *, places: Sequence[str] = ()
) -> Flow[ProtectedResource | None]:
    """Read a resource's metadata; None where it publishes none (RFC 9728 §3).

    `places` are the URLs where it may be, by default the resource's own place.

    Raises:
        CredentialRejectedError: `resource_mismatch`, the metadata describes another resource; or it is malformed.
        CredentialUnavailableError: the resource could not be reached.
    """
    for url in places or (_place_of(resource),):
        request = HttpRequest(
            "GET", url, {"Accept": "application/json"}, discovered=is_foreign(url, resource)
        )
        response = yield from send(request, resource)
        if response.status == _NOT_FOUND:
            continue
        return _read(response, resource, url, clock())
    return None


def places_of(resource: str, named: str | None) -> tuple[str, ...]:
    """The URLs where the metadata may be: the one that a challenge of the resource named, otherwise the standard ones.

    Raises:
        CredentialRejectedError: `malformed_answer`, the named one isn't an https URL.
    """
    if named is None:
        parts = urlsplit(resource)
        root = f"{parts.scheme}://{parts.netloc}{_PLACE}"
        return tuple(dict.fromkeys((_place_of(resource), root)))
    if not is_safe_link(named):
        raise CredentialRejectedError(
            "malformed_answer", f"{resource} names a URL of its metadata that can't be read"
        )
    return (named,)


def is_foreign(url: str, resource: str) -> bool:
    """Whether a URL that a resource named is elsewhere than the resource, so that it must not lead to a private address."""
    is_near = origin_or_none(url) == origin(resource)
    return not is_near and not (is_loopback(url) and is_loopback(resource))


def _place_of(resource: str) -> str:
    parts = urlsplit(resource)
    return f"{parts.scheme}://{parts.netloc}{_PLACE}{parts.path.rstrip('/')}"


def _read(response: HttpResponse, resource: str, url: str, now: float) -> ProtectedResource:
    if response.status != 200:  # noqa: PLR2004 - a status of HTTP
        raise failure_of(response, resource, "its metadata", now)
    metadata = json_object(response, resource)
    return ProtectedResource(
        resource=_check_name(metadata, resource, url),
        issuers=metadata.texts("authorization_servers") or frozenset(),
        scopes=metadata.texts("scopes_supported"),
        wants_dpop=metadata.get("dpop_bound_access_tokens_required") is True,
        wants_certificate=metadata.get("tls_client_certificate_bound_access_tokens") is True,
        issued_at=now,
        expires_at=now + _LIFE,
    )


def _check_name(metadata: Fields, resource: str, url: str) -> str:
    """Return the name that the metadata has for the resource: the same one, or that of a resource above it, at its own place.

    A resource above has its metadata where only that resource can publish it, so that no resource can speak for its neighbours.
    """
    name = metadata.text("resource")
    is_own = name is not None and covers(name, resource)
    if name is not None and is_own and (covers(resource, name) or url == _place_of(name)):
        return name
    raise CredentialRejectedError(
        "resource_mismatch",
        f"the metadata at {resource} describes another resource",
        remedy="write the resource exactly as its metadata does",
    )
