# SPDX-License-Identifier: Apache-2.0
"""Tools of MCP servers that langchain-mcp-adapters makes: which of them `agent_identity_mcp` guards, and why not the others.

The guard is on the session, where a call leaves the process. The adapters open a session for each call of a tool that
`MultiServerMCPClient.get_tools` returned; there the rule of the tool describes it. A session that stays open is guarded by its
user, with `guard`, which describes its tools.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from agent_identity.adapters import Tool, mark
from agent_identity.errors import ConfigurationError
from agent_identity_langchain.mcp_tools import read_tool

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from langchain_core.tools import BaseTool

    from agent_identity_langchain.mcp_tools import McpTool

__all__ = ["find_fault", "guard_fresh", "guard_open", "is_guarded_open"]

_TRANSPORTS: Final = frozenset({"http", "streamable_http", "streamable-http", "stdio"})
_LOCALLY: Final = "describe the tool without a resource; the connection to its server has its own authentication then"
_INJECTED: Final = "runtime"
_MARK: Final = "__agent_identity_mcp__"


def find_fault(tool: BaseTool) -> str | None:
    """Why the server of an MCP tool wouldn't get the credential of a call, as a remedy; None if it would."""
    function = getattr(tool, "coroutine", None)
    if hasattr(function, _MARK):
        return None
    made, calls = read_tool(function), _calls()
    if made is None:
        return _LOCALLY
    remedy = _find_remedy(function, made, calls)
    return None if remedy is None else f"{remedy}, or {_LOCALLY}"


def _find_remedy(function: Any, made: McpTool, calls: ModuleType | None) -> str | None:
    if calls is None:
        return "install integrations/mcp and integrations/langchain[mcp]"
    if made.session is not None:
        return (
            "guard the session with guard(session, server=…) of agent_identity_mcp, and leave the resource out; or "
            "load the tools with MultiServerMCPClient.get_tools"
        )
    if hasattr(function, "__wrapped__"):
        return "pass an interceptor to the client instead of decorating the tool"
    if made.connection.get("transport") not in _TRANSPORTS:
        return "connect over streamable HTTP or stdio"
    if not calls.can_sign(made.connection):
        return (
            "leave `auth` out of the connection, or use auth(identity, url) of agent_identity_mcp"
        )
    return None


def is_guarded_open(function: Any) -> bool:
    """Whether it is the function of a tool of an open session that `guard` guards, and nothing is around it."""
    return not hasattr(function, "__wrapped__") and _connection_of(function) is not None


def guard_open(function: Callable[..., Any]) -> Callable[..., Any]:
    """Such a function, with refusals that are raised; any other one as it is."""
    made, calls = read_tool(function), _calls()
    if not is_guarded_open(function) or made is None or calls is None:
        return function
    remote = calls.connection_of(made.session).remote
    tool = Tool(made.tool.name, resource=remote.uri, server=remote.uri)
    return _marked(calls.ask(function, tool.name, remote), tool)


def guard_fresh(function: Callable[..., Any], described: Tool) -> Callable[..., Any] | None:
    """The function of a tool whose calls open sessions, each of them guarded; None if it is another function.

    Raises:
        ConfigurationError: the description hides arguments, whose digest the server checks.
    """
    made, calls = read_tool(function), _calls()
    if made is None or calls is None or made.session is not None:
        return None
    if described.opaque - {_INJECTED}:
        raise ConfigurationError(
            "tool_malformed",
            f"the arguments of the MCP tool {described.name} can't be opaque, because its server checks their digest",
            remedy="leave opaque out",
        )
    uri = described.resource
    remote_tool = Tool(
        made.tool.name,
        resource=uri,
        server=uri,
        scopes=described.scopes,
        labels=described.labels,
        pauses=described.pauses,
    )
    return _marked(calls.open_sessions(function, made, remote_tool), remote_tool)


def _marked(function: Callable[..., Any], tool: Tool) -> Callable[..., Any]:
    function.__dict__[_MARK] = True
    return mark(function, tool)


@functools.cache
def _calls() -> ModuleType | None:
    """What guards calls; None where the packages for it aren't installed.

    They are looked for first, since of two threads that import a module that fails, only one gets the error that says so.
    """
    if None in map(find_spec, ("agent_identity_mcp", "langchain_mcp_adapters")):
        return None
    from agent_identity_langchain import mcp_calls  # noqa: PLC0415 - an extra

    return mcp_calls


def _connection_of(function: Any) -> Any:
    made = read_tool(function)
    if made is None or made.session is None:
        return None
    calls = _calls()
    return None if calls is None else calls.connection_of(made.session)
