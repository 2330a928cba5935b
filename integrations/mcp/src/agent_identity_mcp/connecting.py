# SPDX-License-Identifier: Apache-2.0
"""`connect`: a guarded connection to a server over streamable HTTP, with an HTTP client of its own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from agent_identity import AgentIdentityError
from agent_identity.adapters import tls_context
from agent_identity_mcp.authorization import auth
from agent_identity_mcp.call_auth import make_client
from agent_identity_mcp.generations import IS_SECOND, know_session_id
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

    Each call carries the credential of the session that makes it, in `Authorization` alone. No other request carries one, unless the
    server demands authorization; see `auth`. Redirects to another origin aren't followed. `rules` are those of `guard`, `options`
    go to the client of mcp.

    Raises:
        ConfigurationError: the URL or a rule can't be used.
        AgentIdentityError: the server demands authorization, and it can't be got.
    """
    signing = auth(identity, url)
    refused: AgentIdentityError | None = None
    async with contextlib.AsyncExitStack() as stack:
        if signing.access is not None:
            stack.push_async_callback(signing.access.aclose)
        client = await stack.enter_async_context(make_client(signing, tls_context(identity)))
        transport = streamable_http_client(url, http_client=client)
        try:
            with signing.telling():
                connected = await _enter(stack, transport, options)
            guard(connected, identity, server=url, rules=rules, auth=signing)
            if not IS_SECOND:
                with signing.telling():
                    await connected.initialize()
        except AgentIdentityError as error:
            refused = error
        else:
            yield connected
    if refused is not None:
        raise refused  # here, so that mcp's task groups don't wrap it


async def _enter(
    stack: contextlib.AsyncExitStack, transport: Any, options: Mapping[str, Any]
) -> Any:
    """Enter mcp 2's `Client`, which connects, or the `ClientSession` of mcp 1."""
    if IS_SECOND:
        from mcp import Client  # noqa: PLC0415 - mcp 1 has none

        return await stack.enter_async_context(Client(transport, **options))
    streams: Any = await stack.enter_async_context(transport)
    session = await stack.enter_async_context(ClientSession(*streams[:2], **options))
    know_session_id(session, streams[2])
    return session
