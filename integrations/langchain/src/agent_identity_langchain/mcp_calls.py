# SPDX-License-Identifier: Apache-2.0
"""Calls of MCP tools through the guard of `agent_identity_mcp`. Only this module imports it, and langchain-mcp-adapters."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from langchain_mcp_adapters.callbacks import CallbackContext
from langchain_mcp_adapters.sessions import create_session
from langchain_mcp_adapters.tools import convert_mcp_tool_to_langchain_tool

from agent_identity import AgentIdentityError, TransportError, current_session
from agent_identity.adapters import RemoteServer, arefuse, tls_context
from agent_identity_mcp.asking import asking
from agent_identity_mcp.call_auth import CallAuth, make_client
from agent_identity_mcp.guarding import Connection, connection_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.adapters import Tool
    from agent_identity_langchain.mcp_tools import McpTool

__all__ = ["ask", "can_sign", "connection_of", "open_sessions"]

_KEPT: Final = 1024


def can_sign(connection: dict[str, Any]) -> bool:
    """Whether the requests of a connection can carry the credentials of calls: it has no authentication of another kind."""
    return isinstance(connection.get("auth"), CallAuth | None)


def ask(
    function: Callable[..., Any], name: str, remote: RemoteServer, **more: Any
) -> Callable[..., Any]:
    """The function of a tool, whose calls the guard refuses if an interceptor changes them. It raises refusals."""

    @functools.wraps(function)
    async def call_tool(runtime: object = None, **arguments: Any) -> Any:
        with asking(remote, name, arguments, **more):
            return await function(runtime=runtime, **arguments)

    return call_tool


def open_sessions(
    function: Callable[..., Any], made: McpTool, described: Tool
) -> Callable[..., Any]:
    """The function of a tool, each call of which opens a guarded session.

    It is the innermost interceptor that opens it, in place of the adapters, which would open one without a guard.
    """
    server = _find_server(made.connection, described.resource)

    async def call_guarded(request: Any, handler: Any) -> Any:  # noqa: ARG001 - the adapters' signature
        return await _call(made, server.remote, request)

    converted: Any = convert_mcp_tool_to_langchain_tool(
        None,
        made.tool,
        connection=made.connection,
        callbacks=made.callbacks,
        tool_interceptors=[*(made.tool_interceptors or ()), call_guarded],
        server_name=made.server_name,
    )

    @functools.wraps(function)
    async def call_tool(runtime: object = None, **arguments: Any) -> Any:
        asked = ask(
            converted.coroutine,
            made.tool.name,
            server.remote,
            tool=described,
            shown=made.tool,
            is_alone=True,
        )
        return await asked(runtime=runtime, **arguments)

    return call_tool


class _Server:
    """What is known of the tools behind a connection of the adapters, by event loop."""

    def __init__(self, connection: dict[str, Any], uri: str) -> None:
        self._connection = connection  # so that no other connection gets its id
        self._uri = uri
        self._remotes: WeakKeyDictionary[asyncio.AbstractEventLoop, RemoteServer] = (
            WeakKeyDictionary()
        )

    @property
    def remote(self) -> RemoteServer:
        loop = asyncio.get_running_loop()
        remote = self._remotes.get(loop)
        if remote is None:
            remote = self._remotes[loop] = RemoteServer(self._uri)
        return remote


_servers: Final[dict[tuple[int, str], _Server]] = {}


def _find_server(connection: dict[str, Any], uri: str) -> _Server:
    key = (id(connection), uri)
    if key not in _servers and len(_servers) >= _KEPT:
        _servers.clear()  # connections that are made anew for each run
    return _servers.setdefault(key, _Server(connection, uri))


async def _call(made: McpTool, remote: RemoteServer, request: Any) -> Any:
    """Open a session for one call, and call the tool on it. If the server can't be reached, the call is on record as refused."""
    callbacks = None
    if made.callbacks is not None:
        context = CallbackContext(server_name=request.server_name, tool_name=made.tool.name)
        callbacks = made.callbacks.to_mcp_format(context=context)
    connection, auth = _signing(made.connection, request.headers)
    error: BaseException | None = None
    result: Any = None
    is_open = False
    try:
        async with create_session(connection, mcp_callbacks=callbacks) as session:
            try:
                Connection(remote, auth).guard_session(session)
                await session.initialize()
                is_open = True
                result = await session.call_tool(
                    request.name,
                    request.args,
                    progress_callback=None if callbacks is None else callbacks.progress_callback,
                )
            except Exception as failure:  # noqa: BLE001 - it is raised below: a task group would wrap it
                error = failure
    except (Exception, BaseExceptionGroup) as failure:  # noqa: BLE001 - it is raised below, after the record
        refused = None
        if isinstance(failure, BaseExceptionGroup):
            refused = failure.subgroup(AgentIdentityError)
        error = _first(refused) or error or failure
    if error is None:
        return result
    if not is_open and isinstance(error, Exception):
        known = error if isinstance(error, AgentIdentityError) else None
        unreachable = TransportError("exchange_failed", f"no session with {remote.uri} was opened")
        await arefuse(request.name, known or unreachable)
    raise error


def _first(error: Any) -> Any:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _signing(
    connection: dict[str, Any], headers: dict[str, Any] | None
) -> tuple[Any, CallAuth | None]:
    """The adapters' connection for one call, and its authentication; a stdio server gets assertions alone."""
    if connection["transport"] == "stdio":
        return connection, None
    given, own_factory = connection.get("auth"), connection.get("httpx_client_factory")
    auth = CallAuth(None if given is None else given.access)

    def make(headers: Any = None, timeout: Any = None, auth: Any = None) -> Any:
        if own_factory is not None:
            client = own_factory(headers=headers, timeout=timeout, auth=auth)
            client.follow_redirects = False
            return client
        client = make_client(auth, tls_context(current_session()))
        client.headers.update(headers or {})
        client.timeout = timeout
        return client

    changed = {**connection, "auth": auth, "httpx_client_factory": make}
    if headers is not None:
        changed["headers"] = {**(connection.get("headers") or {}), **headers}
    return changed, auth
