# SPDX-License-Identifier: Apache-2.0
"""What langchain-mcp-adapters made a tool of."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

__all__ = ["McpTool", "read_tool"]


class McpTool(NamedTuple):
    """What langchain-mcp-adapters has made a tool of, by the names in its closure; `tool` is mcp's."""

    session: Any
    connection: Any
    tool: Any
    callbacks: Any
    tool_interceptors: Any
    server_name: str | None


def read_tool(function: Any) -> McpTool | None:
    """What the function of a tool was made of, below any decorator; None if langchain-mcp-adapters didn't make it."""
    seen: list[Any] = []
    while (inner := getattr(function, "__wrapped__", None)) is not None and inner not in seen:
        seen.append(function)
        function = inner
    if getattr(function, "__module__", None) != "langchain_mcp_adapters.tools":
        return None
    # The adapters keep them in the closure alone. Where they are named otherwise, the tool is refused.
    names = inspect.getclosurevars(function).nonlocals
    if not names.keys() >= set(McpTool._fields):
        return None
    return McpTool(**{name: names[name] for name in McpTool._fields})
