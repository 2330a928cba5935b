# SPDX-License-Identifier: Apache-2.0
"""What a resource says of itself: which issuers it takes tokens of, and what they have to be bound to (RFC 9728).

It is advice, never authority: a credential goes where the configuration says, and a resource that names another issuer gets
nothing from that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from agent_identity.credentials.oauth.responses import asked, failure_of, json_object
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Flow, HttpRequest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ProtectedResource", "discover_resource"]

_PLACE: Final = "/.well-known/oauth-protected-resource"
_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class ProtectedResource:
    """A resource's metadata; `scopes` is None where it doesn't list any."""

    resource: str
    issuers: frozenset[str]
    scopes: frozenset[str] | None
    wants_dpop: bool
    wants_certificate: bool


def discover_resource(resource: str, clock: Callable[[], float]) -> Flow[ProtectedResource | None]:
    """Read what a resource publishes of itself; None where it publishes nothing (RFC 9728 §3).

    Raises:
        CredentialRejectedError: `resource_mismatch`, what is there describes another resource; or it is malformed.
        CredentialUnavailableError: the resource could not be reached.
    """
    parts = urlsplit(resource)
    url = f"{parts.scheme}://{parts.netloc}{_PLACE}{parts.path.rstrip('/')}"
    response = yield from asked(HttpRequest("GET", url, {"Accept": "application/json"}), resource)
    if response.status == _NOT_FOUND:
        return None
    if response.status != 200:  # noqa: PLR2004 - a status of HTTP
        raise failure_of(response, resource, "its metadata", clock())
    found = json_object(response, resource)
    if found.text("resource") != resource:
        raise CredentialRejectedError(
            "resource_mismatch",
            f"the metadata found at {resource} describes another resource",
            remedy="name the resource as it names itself, letter by letter",
        )
    return ProtectedResource(
        resource=resource,
        issuers=found.texts("authorization_servers") or frozenset(),
        scopes=found.texts("scopes_supported"),
        wants_dpop=found.get("dpop_bound_access_tokens_required") is True,
        wants_certificate=found.get("tls_client_certificate_bound_access_tokens") is True,
    )
