# SPDX-License-Identifier: Apache-2.0
"""The form members that say what a token is for: resource, audience, scope, authorization details (RFC 8707, 8693, 6749, 9396)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.credentials.source import Wanted
    from agent_identity.values import JSON


def target(
    wanted: Wanted,
    *,
    audience: str | None = None,
    details: Sequence[JSON] = (),
    names_resource: bool = True,
) -> list[tuple[str, str]]:
    """Return the form members for a request.

    `resource` is sent even if an issuer ignores it; `names_resource=False` is for issuers that refuse it.
    """
    form = [("resource", wanted.resource)] if names_resource else []
    if audience is not None:
        form.append(("audience", audience))
    if wanted.scopes:
        form.append(("scope", " ".join(sorted(wanted.scopes))))
    if details:
        form.append(("authorization_details", details_text(details)))
    if wanted.step_up is not None and wanted.step_up.acr_values:
        form.append(("acr_values", " ".join(wanted.step_up.acr_values)))
    if wanted.step_up is not None and wanted.step_up.max_age is not None:
        form.append(("max_age", str(wanted.step_up.max_age)))
    return form


def details_text(details: Sequence[JSON]) -> str:
    """Authorization details as JSON text, for the wire and the cache key; empty for none."""
    return orjson.dumps([*details], option=orjson.OPT_SORT_KEYS).decode() if details else ""
