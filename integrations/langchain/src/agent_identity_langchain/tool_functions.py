# SPDX-License-Identifier: Apache-2.0
"""The functions that run when a LangChain tool is called: whether they are guarded, and a copy of the tool with others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.tools import Tool as SingleInputTool

from agent_identity.adapters import Tool, tool_of
from agent_identity.errors import ConfigurationError
from agent_identity_langchain.carriers import Carrying, carrying
from agent_identity_langchain.mcp import is_guarded_open

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T", bound=BaseTool)
_LOCAL: Final = Tool("local").resource


def is_protected(tool: BaseTool) -> bool:
    """Whether every function of it is guarded, by `protect`, `agent_identity.tool` or the guard of its MCP session."""
    functions = functions_of(tool).values()
    return all(tool_of(each) is not None or is_guarded_open(each) for each in functions)


def has_resources(tool: BaseTool) -> bool:
    """Whether `protect` or `agent_identity.tool` gave one of its functions a resource."""
    described = map(tool_of, functions_of(tool).values())
    return any(known is not None and known.resource != _LOCAL for known in described)


def guarded(tool: T, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> T:
    """A copy of a tool with `around` about its functions, sync and async; nothing else of it changes."""
    functions = {name: around(function) for name, function in functions_of(tool).items()}
    kind = carrying(type(tool))
    if functions.keys() <= {"func", "coroutine"}:
        copy = tool.model_copy(update=functions)
    else:
        # A tool with code of its own: a class below its own one, with the same fields.
        kind = type(f"Guarded{kind.__name__}", (kind,), {"__module__": __name__, **functions})
        copy = tool.model_copy()
    object.__setattr__(copy, "__class__", kind)
    return copy


def functions_of(tool: BaseTool) -> dict[str, Callable[..., Any]]:
    """What runs when the tool is called, by the name under which LangChain looks for it.

    Raises:
        ConfigurationError: something else runs, which can't be guarded.
    """
    kind = type(tool)
    for entry in ("invoke", "ainvoke", "run", "arun"):
        stock = (
            getattr(base, entry, None)
            for base in (BaseTool, StructuredTool, SingleInputTool, Carrying)
        )
        if getattr(kind, entry) not in stock:
            raise ConfigurationError(
                "tool_unguardable",
                f"{kind.__name__} overrides {entry}, past which nothing can be guarded",
                remedy="put the work into _run and _arun, or decorate it with agent_identity.tool",
            )
    if isinstance(tool, StructuredTool | SingleInputTool) and _is_stock(kind):
        given = {"func": tool.func, "coroutine": tool.coroutine}
        found = {name: function for name, function in given.items() if function is not None}
    else:
        found = {"_run": kind._run}  # noqa: SLF001 - these two are what a BaseTool's author writes
        inherited = {base._arun for base in (BaseTool, StructuredTool, SingleInputTool)}  # noqa: SLF001 - see above
        if kind._arun not in inherited or getattr(tool, "coroutine", None) is not None:  # noqa: SLF001 - see above
            found["_arun"] = kind._arun  # noqa: SLF001 - an inherited one calls `_run`, which is guarded already
    if not found:
        raise ConfigurationError("tool_unguardable", f"the tool {tool.name} has no function")
    return found


def _is_stock(kind: type[BaseTool]) -> bool:
    """Whether `func` and `coroutine` are all that runs: a subclass may have code of its own."""
    return any(
        kind._run is base._run and kind._arun is base._arun  # noqa: SLF001 - see above
        for base in (StructuredTool, SingleInputTool)
    )
