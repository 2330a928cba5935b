# SPDX-License-Identifier: Apache-2.0
"""A resource's own metadata: which issuers it accepts, and how their tokens must be bound (RFC 9728).

The metadata is a hint only: the configuration decides which issuer is asked, whatever issuer a resource names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from agent_identity.credentials.oauth.responses import failure_of, json_object, send
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Flow, HttpRequest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ProtectedResource", "discover_resource"]

_PLACE: Final = "/.well-known/oauth-protected-resource"
_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class ProtectedResource:
    """A resource's metadata. `scopes` is None where it lists none."""

    resource: str
    issuers: frozenset[str]
    scopes: frozenset[str] | None
    wants_dpop: bool
    wants_certificate: bool


def discover_resource(resource: str, clock: Callable[[], float]) -> Flow[ProtectedResource | None]:
    """Read a resource's metadata; None where it publishes none (RFC 9728 §3).

    Raises:
        CredentialRejectedError: `resource_mismatch`, the metadata describes another resource; or it is malformed.
        CredentialUnavailableError: the resource could not be reached.
    """
    parts = urlsplit(resource)
    url = f"{parts.scheme}://{parts.netloc}{_PLACE}{parts.path.rstrip('/')}"
    response = yield from send(HttpRequest("GET", url, {"Accept": "application/json"}), resource)
    if response.status == _NOT_FOUND:
        return None
    if response.status != 200:  # noqa: PLR2004 - a status of HTTP
        raise failure_of(response, resource, "its metadata", clock())
    metadata = json_object(response, resource)
    if metadata.text("resource") != resource:
        raise CredentialRejectedError(
            "resource_mismatch",
            f"the metadata at {resource} describes another resource",
            remedy="write the resource exactly as its metadata does",
        )
    return ProtectedResource(
        resource=resource,
        issuers=metadata.texts("authorization_servers") or frozenset(),
        scopes=metadata.texts("scopes_supported"),
        wants_dpop=metadata.get("dpop_bound_access_tokens_required") is True,
        wants_certificate=metadata.get("tls_client_certificate_bound_access_tokens") is True,
    )
