# SPDX-License-Identifier: Apache-2.0
"""Assembles the parts of an identity: its issuers, the anchor of its first grants, and a credential source for each resource.

    embedded    with an authority in this process, without configuration
    configured  from `agent-identity.toml`; also times, limits, HTTP and the Workload API
    issuers     a table of [issuers] as an `Issuer`, and as one whose tokens about principals are trusted
    sources     a table of [resources] as a source
    secrets     a reference as the flow that reads it
    keys        private keys that outlive the process

Nothing here does I/O: the parts do, when they are first used.
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
    """The parts: `issuers` by name, and `trusted` by URL, those whose tokens about principals are accepted."""

    anchor: Anchor
    resources: Resources
    issuers: Mapping[str, Issuer]
    trusted: Mapping[str, Trusted]
