# SPDX-License-Identifier: Apache-2.0
"""A LangChain tool whose function is guarded: what is digested is what the function receives, after LangChain's own coercion."""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from langchain_core.runnables import ensure_config
from langchain_core.tools import BaseTool, BaseToolkit, StructuredTool
from langchain_core.tools import Tool as SingleInputTool

from agent_identity.adapters import Tool, scrubs, tool_of, within, wrap
from agent_identity.errors import ConfigurationError
from agent_identity_langchain.carriers import carried_session, find_context
from agent_identity_langchain.framework_spans import nested
from agent_identity_langchain.mcp import find_auth, wrap_call
from agent_identity_langchain.origins import check_origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["guarded", "has_resources", "is_protected", "protect"]

T = TypeVar("T", bound=BaseTool)
_LOCAL: Final = Tool("local").resource


@overload
def protect(
    tool: T,
    *,
    resource: str | None = None,
    scopes: Iterable[str] | None = None,
    labels: Iterable[str] = (),
    opaque: Iterable[str] = (),
) -> T: ...


@overload
def protect(
    tool: BaseToolkit | Sequence[BaseTool],
    *,
    resource: str | None = None,
    scopes: Iterable[str] | None = None,
    labels: Iterable[str] = (),
    opaque: Iterable[str] = (),
) -> list[BaseTool]: ...


def protect(
    tool: BaseTool | BaseToolkit | Sequence[BaseTool],
    *,
    resource: str | None = None,
    scopes: Iterable[str] | None = None,
    labels: Iterable[str] = (),
    opaque: Iterable[str] = (),
) -> BaseTool | list[BaseTool]:
    """A copy of a tool that runs only under a session, each call permitted, credentialed, asserted and recorded.

    A list or a toolkit gives the list of its tools, each protected alike; `opaque` names arguments, so it is for one tool.

    What it returns and raises is scrubbed of secrets, since LangChain shows both to callbacks before anybody else gets them.
    The parameters are those of `agent_identity.tool`. Name, description and schema stay as they are: a tool that needs the
    credential asks `current_credential()`, so no model ever sees one. What the framework injects (state, store, runtime,
    configuration) is no argument of the call and is passed through. The session is the current one, or one that the run carries
    (see `IdentityMiddleware`).

    Raises:
        ConfigurationError: it is protected already, or guarding it wouldn't guard all that it does.
    """
    if isinstance(tool, BaseTool):
        return _protect(tool, resource, scopes, labels, opaque)
    tools = tool.get_tools() if isinstance(tool, BaseToolkit) else tool
    wanted = scopes if scopes is None or isinstance(scopes, str) else frozenset(scopes)
    marks = labels if isinstance(labels, str) else frozenset(labels)
    if tuple(opaque):
        raise ConfigurationError(
            "tool_malformed",
            "opaque names the arguments of one tool",
            remedy="protect that tool by itself",
        )
    return [_protect(one, resource, wanted, marks, ()) for one in tools]


def _protect(
    tool: T,
    resource: str | None,
    scopes: Iterable[str] | None,
    labels: Iterable[str],
    opaque: Iterable[str],
) -> T:
    if is_protected(tool):
        raise ConfigurationError("protected_twice", f"the tool {tool.name} is protected already")
    has_resource = resource is not None or has_resources(tool)
    check_origin(tool, has_resource=has_resource, error=ConfigurationError)
    described = Tool(
        tool.name,
        resource=resource,
        scopes=scopes,
        labels=labels,
        opaque={*opaque, *_injected(tool)} if not isinstance(opaque, str) else opaque,
        pauses=_pauses(),
    )
    auth = find_auth(tool)[0] if resource is not None else None
    around = wrap if auth is None else functools.partial(wrap_call, auth)
    copy = guarded(
        tool,
        lambda function: scrubs(function if tool_of(function) else around(function, described)),
    )
    object.__setattr__(copy, "__class__", _carrying(type(copy)))
    return copy


class _Carrying:
    """Runs a tool under the session that the run carries, and tells the model's id of the call, which the function doesn't get."""

    def run(self, *args: Any, **options: Any) -> Any:
        with _entered(options):
            return super().run(*args, **options)  # type: ignore[misc]  # it is mixed into a tool's class

    async def arun(self, *args: Any, **options: Any) -> Any:
        with _entered(options):
            return await super().arun(*args, **options)  # type: ignore[misc]  # as above


def _entered(options: dict[str, Any]) -> contextlib.AbstractContextManager[object]:
    tool_call_id = options.get("tool_call_id")
    session = carried_session(find_context(), options.get("config") or ensure_config())
    if session is None and tool_call_id is None:
        return contextlib.nullcontext()
    return within(session, tool_call_id=tool_call_id)


@functools.lru_cache(64)
def _carrying(kind: type[T]) -> type[T]:
    return type(kind.__name__, (_Carrying, kind), {"__module__": __name__})


def is_protected(tool: BaseTool) -> bool:
    """Whether every function of it is guarded, by `protect` or by `agent_identity.tool`."""
    return all(tool_of(function) is not None for function in _functions(tool).values())


def has_resources(tool: BaseTool) -> bool:
    """Whether `protect` or `agent_identity.tool` gave one of its functions a resource."""
    described = map(tool_of, _functions(tool).values())
    return any(known is not None and known.resource != _LOCAL for known in described)


def guarded(tool: T, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> T:
    """A copy of a tool with `around` about its functions, sync and async; nothing else of it changes."""
    functions = {name: nested(around(function)) for name, function in _functions(tool).items()}
    if functions.keys() <= {"func", "coroutine"}:
        return tool.model_copy(update=functions)
    # A tool with code of its own: a class below its own one, with the same fields.
    kind = type(
        f"Guarded{type(tool).__name__}", (type(tool),), {"__module__": __name__, **functions}
    )
    copy = tool.model_copy()
    object.__setattr__(copy, "__class__", kind)
    return copy


def _functions(tool: BaseTool) -> dict[str, Callable[..., Any]]:
    """What runs when the tool is called, by the name under which LangChain looks for it.

    Raises:
        ConfigurationError: something else runs, which can't be guarded.
    """
    kind = type(tool)
    for entry in ("invoke", "ainvoke", "run", "arun"):
        stock = (
            getattr(base, entry, None)
            for base in (BaseTool, StructuredTool, SingleInputTool, _Carrying)
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


def _injected(tool: BaseTool) -> set[str]:
    """Parameters that the framework fills in and the model doesn't see; they have no canonical form."""
    fields = getattr(tool.tool_call_schema, "model_fields", None)
    seen = set(tool.args if fields is None else fields)
    names: set[str] = set()
    for function in _functions(tool).values():
        for name, parameter in inspect.signature(function).parameters.items():
            plain = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if plain and name not in seen:
                names.add(name)
    return names


def _pauses() -> tuple[type[BaseException], ...]:
    """How LangGraph stops a tool to ask a person; absent where LangGraph isn't installed."""
    try:
        from langgraph.errors import GraphBubbleUp  # noqa: PLC0415 - langchain brings it, langchain-core doesn't
    except ModuleNotFoundError:
        return ()
    return (GraphBubbleUp,)
