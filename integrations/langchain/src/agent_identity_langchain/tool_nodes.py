# SPDX-License-Identifier: Apache-2.0
"""`guarded_tool_node`: the tool node of a raw graph, guarded by the same rules as an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langgraph.prebuilt import ToolNode

from agent_identity_langchain.middleware import IdentityMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from langchain_core.tools import BaseTool

    from agent_identity import AgentIdentity

__all__ = ["guarded_tool_node"]


def guarded_tool_node(
    identity: AgentIdentity,
    tools: Sequence[BaseTool | Callable[..., Any]],
    rules: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> ToolNode:
    """A `ToolNode` for a `StateGraph`, each call permitted, credentialed, asserted and recorded, or refused.

    `rules` are those of `IdentityMiddleware`; `options` are further ones of `ToolNode` (`name`, `handle_tool_errors`, …), but not
    its wrappers, whose place the guard takes.

    Raises:
        ConfigurationError: a tool isn't described or can't be guarded, or a rule names no tool.
    """
    guard = IdentityMiddleware(identity, rules)
    node = ToolNode(
        tools,
        wrap_tool_call=guard.wrap_tool_call,
        awrap_tool_call=guard.awrap_tool_call,
        **options,
    )
    guard.check_tools(node.tools_by_name.values())
    return node
