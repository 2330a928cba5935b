# SPDX-License-Identifier: Apache-2.0
"""What a callable is, found out when it is given: a function that can be a tool, or one that answers at once."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Final

from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["answers_at_once", "check_function", "is_async", "takes_one_argument"]


def check_function(given: object) -> None:
    """Pass for a function or a method, which are what `tool` can decorate.

    Raises:
        ConfigurationError: it is something else; the remedy says what to write for its kind.
    """
    if inspect.isfunction(given) or inspect.ismethod(given):
        return
    kind = type(given)
    if isinstance(given, type):
        what = f"the class {given.__qualname__}"
    elif inspect.isbuiltin(given):
        what = f"the builtin {given.__name__}"
    else:
        what = f"an object of the class {kind.__module__}.{kind.__qualname__}"  # its repr may hold anything
    raise ConfigurationError(
        "tool_malformed",
        f"tool decorates a function or a method, not {what}",
        remedy=_remedy(given),
    )


def _remedy(given: object) -> str:
    if isinstance(given, type):
        return "decorate a method of the class, or a function that makes the object"
    for base in type(given).__mro__:
        instead = _FRAMEWORKS.get(base.__module__.partition(".")[0])
        if instead is not None and "Tool" in base.__name__:
            return instead
    return next((remedy for kind, remedy in _KINDS if isinstance(given, kind)), _ANY)


_ANY: Final = "write a function that calls it, and decorate that function"

_KINDS: Final[tuple[tuple[type, str], ...]] = (
    (classmethod, "write @classmethod above @tool, not below it"),
    (staticmethod, "write @staticmethod above @tool, not below it"),
    (property, "write @property above @tool, not below it"),
    (functools.partial, "decorate the function, then make the partial object of the tool"),
    (functools.partialmethod, "decorate the function, then make the partial method of the tool"),
    (str, "pass the name by its keyword, tool(name=…)"),
)

_FRAMEWORKS: Final[Mapping[str, str]] = {
    "langchain_core": "use agent_identity_langchain.protect(…), or write agent_identity's @tool below LangChain's",
    "pydantic_ai": "decorate the function, then make the tool, Tool(function), or register the function at the agent",
    "agents": "write @tool below @function_tool, directly above the function",
    "crewai": "write agent_identity's @tool below CrewAI's, or decorate the method _run",
    "mcp": "decorate the function, then register it at the server; at a client, decorate the function that calls call_tool",
    "mcp_types": "decorate the function that calls call_tool: this only describes a tool of a server",
    "fastmcp": "decorate the function, then register it at the server",
    "google": "decorate the function, then make the tool, FunctionTool(function)",
    "llama_index": "decorate the function, then make the tool, FunctionTool.from_defaults(function)",
}
"""What to write for a framework's tool, by the package that its class comes from: no framework is imported to tell."""


def is_async(function: object) -> bool:
    """Whether a call of it gives a coroutine or an async generator: `async def`, also behind `__call__` or a partial object."""
    return _is_any(function, inspect.iscoroutinefunction, inspect.isasyncgenfunction)


def answers_at_once(function: object) -> bool:
    """Whether calling it returns the answer itself, and no coroutine or generator."""
    return not is_async(function) and not _is_any(function, inspect.isgeneratorfunction)


def _is_any(function: object, *tests: Callable[[object], bool]) -> bool:
    for _ in range(_DEEPEST):
        if isinstance(function, functools.partial):
            function = function.func
        elif any(test(function) for test in tests):
            return True
        elif inspect.isroutine(function):
            return False
        else:  # an object is called by its class
            function = inspect.getattr_static(type(function), "__call__", None)
    return False


_DEEPEST: Final = 32
"""Partial objects and objects with `__call__` within one another; no end of them is followed."""


def takes_one_argument(function: object) -> bool:
    """Whether it can be called with one argument, as far as its signature tells."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:
        return True  # a builtin that doesn't tell
    return True
