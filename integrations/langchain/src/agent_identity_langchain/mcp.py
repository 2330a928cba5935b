# SPDX-License-Identifier: Apache-2.0
"""Tools of MCP servers that langchain-mcp-adapters connects to over streamable HTTP: each call with its own credential.

The adapters open a session for each call of a tool that `MultiServerMCPClient.get_tools` returned. `CallAuth` signs all requests
of that session as the running call, and nothing else. On a session that stays open, a request doesn't know its call; over stdio
there are no headers. There a tool with a resource is refused, because its server would get no credential.
"""

from __future__ import annotations

import functools
import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx

from agent_identity import AgentIdentityError, DeniedError, current_credential
from agent_identity.adapters import check_unchanged, wrap_keywords
from agent_identity.jose import loads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from langchain_core.tools import BaseTool

    from agent_identity.adapters import Tool

__all__ = ["CallAuth", "find_auth", "wrap_call"]

_HTTP: Final = frozenset({"http", "streamable_http", "streamable-http"})
_LOCALLY: Final = "or describe the tool without a resource; the connection to its server has its own authentication then"


class CallAuth(httpx.Auth):
    """The `auth` of a connection: `MultiServerMCPClient({"billing": {"transport": "http", "url": …, "auth": CallAuth()}})`.

    It signs the requests of a guarded tool's call with that call's credential. Other requests, such as listing the tools, are
    sent as they are; other calls of tools are refused.
    """

    def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Sign one request (httpx's hook).

        Raises:
            DeniedError: it calls a tool, and isn't the running call; or it leaves the resource.
        """
        acting = _acting.get()
        called = _read_call(request)
        if acting is None or acting.auth is not self:
            if called is not None:
                raise DeniedError(
                    "mcp_credential_unsent",
                    "a tool of this connection was called without a credential",
                    remedy="give the tool a rule with the resource, or pass the resource to protect",
                )
            return _send(request)
        if called is not None:
            check_unchanged(*called)
        return current_credential().async_auth_flow(request)


class _Acting(NamedTuple):
    """The connection that the running call uses, and what the framework injects into the tool."""

    auth: CallAuth
    runtime: object


_acting: Final[ContextVar[_Acting | None]] = ContextVar("agent_identity_mcp", default=None)


def find_auth(tool: BaseTool) -> tuple[CallAuth | None, str]:
    """How the credential of a call reaches the server of an MCP tool; else None, and a remedy."""
    function = _innermost(getattr(tool, "coroutine", None))
    if getattr(function, "__module__", None) != "langchain_mcp_adapters.tools":
        return None, _LOCALLY.removeprefix("or ")
    # The adapters keep both in the closure alone. Where they are named otherwise, the tool is refused.
    names = inspect.getclosurevars(function).nonlocals
    connection, mcp_tool = names.get("connection"), names.get("tool")
    if names.get("session", "") is not None or not isinstance(connection, dict):
        return None, f"load the tools with MultiServerMCPClient.get_tools, {_LOCALLY}"
    if connection.get("transport") not in _HTTP:
        return None, f"connect over streamable HTTP, {_LOCALLY}"
    if getattr(mcp_tool, "name", None) != tool.name:
        return None, f"leave the tool its server's name, without a prefix, {_LOCALLY}"
    auth = connection.get("auth")
    if not isinstance(auth, CallAuth):
        return None, f'give the connection "auth": CallAuth(), {_LOCALLY}'
    return auth, ""


def wrap_call(auth: CallAuth, function: Callable[..., Any], described: Tool) -> Callable[..., Any]:
    """The function of an MCP tool, guarded: what is digested are the arguments as they are sent."""

    async def send(**arguments: Any) -> Any:
        acting = _acting.get()
        try:
            return await function(runtime=acting and acting.runtime, **arguments)
        except BaseExceptionGroup as group:
            # The client's task group wraps what the auth raises.
            for error in _leaves(group):
                if isinstance(error, AgentIdentityError):
                    raise error from None
            raise

    permitted = wrap_keywords(send, described)

    @functools.wraps(function)
    async def call_tool(runtime: object = None, **arguments: Any) -> Any:
        token = _acting.set(_Acting(auth, runtime))
        try:
            return await permitted(**arguments)
        finally:
            _acting.reset(token)

    marks = {name: value for name, value in vars(permitted).items() if name != "__wrapped__"}
    call_tool.__dict__.update(marks)
    return call_tool


async def _send(request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
    yield request


def _read_call(request: httpx.Request) -> tuple[str, dict[str, Any]] | None:
    """The tool and the arguments of a request that calls one.

    Raises:
        VerificationError: the body isn't JSON.
    """
    body = request.read()
    message = loads(body) if body else None
    if not isinstance(message, dict) or message.get("method") != "tools/call":
        return None
    params = message.get("params")
    params = params if isinstance(params, dict) else {}
    arguments = params.get("arguments")
    return str(params.get("name")), arguments if isinstance(arguments, dict) else {}


def _innermost(function: Any) -> Any:
    seen: list[Any] = []
    while (inner := getattr(function, "__wrapped__", None)) is not None and inner not in seen:
        seen.append(function)
        function = inner
    return function


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
