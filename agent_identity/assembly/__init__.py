# SPDX-License-Identifier: Apache-2.0
"""An identity put together: which issuers it asks, where its first grants come from, how each resource's credential is had.

    embedded    an authority in this process, and nothing to configure
    configured  what `agent-identity.toml` says
    issuers     a table of [issuers] as an issuer that can be asked, and as one whose word about principals is taken
    sources     a table of [resources] as a source
    secrets     a reference as the flow that reads it
    doors       the ways out: HTTP with its limits, the Workload API
    keys        private keys that outlive the process
    settings    times and limits

Nothing here asks anybody anything: what it makes does, when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.principal_tokens import Trusted
    from agent_identity.credentials.root_grants import Anchor
    from agent_identity.runtime.parts import Resources

__all__ = ["Assembled"]


class Assembled(NamedTuple):
    """What sessions need of the world: `issuers` by name, `trusted` by URL, those whose tokens of principals are believed."""

    anchor: Anchor
    resources: Resources
    issuers: Mapping[str, Issuer]
    trusted: Mapping[str, Trusted]
