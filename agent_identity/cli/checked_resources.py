# SPDX-License-Identifier: Apache-2.0
"""What `doctor` asks resources: whether what they publish of themselves (RFC 9728) fits what the configuration says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.cli.findings import OK, WARNING, Finding, failed_by
from agent_identity.config.model import OAUTH_SOURCES
from agent_identity.credentials.oauth.protected_resource import discover_resource
from agent_identity.errors import AgentIdentityError
from agent_identity.flow import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_identity.cli.doctor.local import Looked
    from agent_identity.config import Configuration
    from agent_identity.config.model import ResourceTable
    from agent_identity.credentials.oauth.protected_resource import ProtectedResource

__all__ = ["check_resource", "resources_with_issuers"]


def resources_with_issuers(configuration: Configuration) -> Iterator[tuple[str, ResourceTable]]:
    """The resources that take an issuer's tokens, and are reached over HTTP."""
    for uri, table in configuration.resources.items():
        if table.source in OAUTH_SOURCES and uri.startswith(("https://", "http://")):
            yield uri, table


def check_resource(uri: str, table: ResourceTable, looked: Looked) -> list[Finding]:
    """Whether a resource names our issuer, and takes tokens that are bound as ours; most resources publish nothing."""
    name = f"resource {uri}"
    try:
        found = run(discover_resource(uri, looked.clock), looked.world.answer)
    except AgentIdentityError as error:
        return [failed_by(name, error)._replace(status=WARNING)]
    if found is None:
        return [Finding(name, OK, "it publishes nothing of itself, so nothing speaks against it")]
    differing = [*_differing(name, found, table, looked.configuration)]
    return differing or [Finding(name, OK, "what it publishes of itself fits")]


def _differing(
    name: str, found: ProtectedResource, table: ResourceTable, configuration: Configuration
) -> Iterator[Finding]:
    issuer = configuration.issuers[table.issuer or ""].issuer
    if found.issuers and issuer not in found.issuers:
        yield Finding(
            name,
            WARNING,
            f"it doesn't name {issuer} among the issuers whose tokens it takes",
            "check resources.issuer, letter by letter; a trailing slash counts",
        )
    if found.wants_dpop and table.binding != "dpop":
        yield Finding(
            name, WARNING, "it takes none but DPoP-bound tokens", 'set binding = "dpop" for it'
        )
    if found.wants_certificate and table.binding != "mtls":
        yield Finding(
            name,
            WARNING,
            "it takes none but certificate-bound tokens",
            'set binding = "mtls" for it',
        )
    unknown = set(table.scopes or ()) - (found.scopes or set(table.scopes or ()))
    if unknown:
        yield Finding(
            name,
            WARNING,
            f"it doesn't know the scope {min(unknown)}",
            "check resources.scopes against what it publishes",
        )
