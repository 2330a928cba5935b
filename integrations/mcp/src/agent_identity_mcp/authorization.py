# SPDX-License-Identifier: Apache-2.0
"""`auth`: the authorization of a connection, as MCP specifies it, by the issuers, clients and flows of the identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.adapters import ServerAccess
from agent_identity_mcp.call_auth import CallAuth

if TYPE_CHECKING:
    from agent_identity import AgentIdentity

__all__ = ["auth"]


def auth(identity: AgentIdentity, url: str) -> CallAuth:
    """The `auth` of an HTTP client (httpx for mcp 1, httpx2 for mcp 2) that connects to the server at `url`; `connect` uses it.

    Where the server demands authorization, its requests carry a credential of the session in which they are sent, and outside of
    all sessions one of an autonomous session. Calls of a guarded connection carry their own. The identity's configuration says
    where the credential comes from; with `issuer = "discovered"`, or without configuration, the server's metadata names the issuer.

    Give each connection one of its own, and pass it to `guard(session, server=url, auth=…)` too.

    Raises:
        ConfigurationError: the URL can't be used.
    """
    return CallAuth(ServerAccess(identity, url))
