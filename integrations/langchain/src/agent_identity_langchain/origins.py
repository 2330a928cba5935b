# SPDX-License-Identifier: Apache-2.0
"""Tools that a library makes, and that can't be guarded yet. They are known by their functions' modules: names may be anybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agent_identity_langchain.mcp import find_fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.tools import BaseTool

    from agent_identity.errors import ConfigurationError, DeniedError

__all__ = ["check_origin"]

_MCP: Final = ("langchain_mcp_adapters", "langchain.mcp")
_REMOTE_AGENTS: Final = ("deepagents.middleware.async_subagents",)


def check_origin(
    tool: BaseTool, *, has_resource: bool, error: type[ConfigurationError | DeniedError]
) -> None:
    """Whether guarding this tool guards all that it does.

    Raises:
        AgentIdentityError: of the class `error`; it starts an agent on a server, whose tools nothing guards, or an MCP server
            wouldn't get the credential that its rule asks for.
    """
    modules = set(_modules(tool))
    if any(_is_within(module, _REMOTE_AGENTS) for module in modules):
        raise error(
            "subagent_unguarded",
            f"the tool {tool.name!r} starts an agent on a server, where nothing guards its tools",
            remedy=(
                "leave the remote sub-agents out; or guard the remote agent's tools in its own process, and call it "
                "by a tool that you write"
            ),
        )
    if any(_is_within(module, _MCP) for module in modules):
        remedy = find_fault(tool) if has_resource else None
        if remedy is not None:
            raise error(
                "mcp_credential_unsent",
                f"the tool {tool.name!r} calls an MCP server, which wouldn't get the credential for the resource",
                remedy=remedy,
            )


def _is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _modules(tool: BaseTool) -> Iterator[str]:
    """The modules of what runs when the tool is called, below any decorator, and of the class and the error handler."""
    kind = type(tool)
    yield from (base.__module__ for base in kind.__mro__)
    for name in ("func", "coroutine", "handle_tool_error"):
        seen: list[Any] = [None]
        function = getattr(tool, name, None)
        while not any(function is known for known in seen):
            yield str(getattr(function, "__module__", ""))
            seen.append(function)
            function = getattr(function, "__wrapped__", None)
