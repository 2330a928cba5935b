# SPDX-License-Identifier: Apache-2.0
"""What a token may be for: resources and scopes as they were asked for, or a refusal. Nothing is narrowed in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.authority.answers import OAuthError
from agent_identity.values import LOCAL

if TYPE_CHECKING:
    from collections.abc import Collection

    from agent_identity.authority.requests import Form
    from agent_identity.authority.clients import ClientRecord
    from agent_identity.values import JSON

__all__ = ["allowed_scopes", "one_resource", "resources", "scope_member"]


def resources(form: Form, client: ClientRecord) -> tuple[str, ...]:
    """The resources that a grant is for; at least one."""
    if not form.resources:
        raise OAuthError("invalid_target", "resource_missing")
    for resource in form.resources:
        _check_resource(resource, client)
    return form.resources


def one_resource(form: Form, client: ClientRecord) -> str:
    """The one resource that an access token is for (RFC 8707 §2)."""
    if len(form.resources) != 1:
        raise OAuthError("invalid_target", "resource_missing")
    resource = form.resources[0]
    if resource == LOCAL:
        raise OAuthError("invalid_target", "resource_local")
    _check_resource(resource, client)
    return resource


def _check_resource(resource: str, client: ClientRecord) -> None:
    """An absolute URI without fragment, compared as it was sent, and one that the client may reach."""
    scheme, colon, rest = resource.partition(":")
    plain = resource.isascii() and resource.isprintable() and not set(' "#<>\\') & set(resource)
    if not (colon and rest and plain and scheme[:1].isalpha() and len(resource) <= 2048):  # noqa: PLR2004 - longer than any URI that a client or proxy carries
        raise OAuthError("invalid_target", "resource_malformed")
    allowed = client.terms.resources
    if allowed is not None and resource != LOCAL and resource not in allowed:
        raise OAuthError("invalid_target", "resource_not_allowed")


def allowed_scopes(asked: frozenset[str], *limits: Collection[str] | None) -> frozenset[str]:
    """The scopes as asked, if every limit has them all; a limit of None is none."""
    if any(limit is not None and not asked.issubset(limit) for limit in limits):
        raise OAuthError("invalid_scope", "scope_widened")
    return asked


def scope_member(scopes: frozenset[str]) -> dict[str, JSON]:
    """The `scope` of an answer; no scope, no member."""
    return {"scope": " ".join(sorted(scopes))} if scopes else {}
