# SPDX-License-Identifier: Apache-2.0
"""`connect`: a guarded connection to a server over streamable HTTP, with an HTTP client of its own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from agent_identity.adapters import tls_context
from agent_identity_mcp.call_auth import CallAuth, make_client
from agent_identity_mcp.generations import IS_SECOND
from agent_identity_mcp.guarding import guard

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from agent_identity import AgentIdentity

__all__ = ["connect"]


@contextlib.asynccontextmanager
async def connect(
    url: str,
    *,
    identity: AgentIdentity,
    rules: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> AsyncGenerator[Any]:
    """Connect to a server and guard the connection; yields mcp 2's `Client`, or the `ClientSession` of mcp 1.

    Each call carries the credential of the session that makes it, in `Authorization` alone, and no other request carries one.
    Redirects to another origin aren't followed. `rules` are those of `guard`, `options` go to the client of mcp.

    Raises:
        ConfigurationError: the URL or a rule can't be used.
    """
    auth = CallAuth()
    async with make_client(auth, tls_context(identity)) as client:
        transport = streamable_http_client(url, http_client=client)
        if IS_SECOND:
            from mcp import Client  # noqa: PLC0415 - mcp 1 has none

            async with Client(transport, **options) as connected:
                yield guard(connected, identity, server=url, rules=rules, auth=auth)
            return
        streams: Any
        async with transport as streams, ClientSession(*streams[:2], **options) as session:
            guard(session, identity, server=url, rules=rules, auth=auth)
            await session.initialize()
            yield session
