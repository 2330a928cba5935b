# SPDX-License-Identifier: Apache-2.0
"""A LangChain tool whose function is guarded: what is digested is what the function receives, after LangChain's own coercion."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar, overload

from langchain_core.tools import BaseTool, BaseToolkit

from agent_identity.adapters import Tool, scrubs, tool_of, wrap
from agent_identity.errors import ConfigurationError
from agent_identity_langchain.mcp import guard_fresh, guard_open, is_guarded_open
from agent_identity_langchain.nested import is_nested, runs_nested, starts_agents
from agent_identity_langchain.origins import check_origin
from agent_identity_langchain.refusals import states_refusals
from agent_identity_langchain.tool_functions import (
    functions_of,
    guarded,
    has_resources,
    is_protected,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T", bound=BaseTool)


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

    What it returns and raises is scrubbed of secrets, since LangChain shows both to callbacks. The
    text of a refusal is what a model may read, without the policy's reason, which is on record.
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
    if all(map(is_guarded_open, functions_of(tool).values())):
        if (resource, scopes, tuple(labels), tuple(opaque)) != (None, None, (), ()):
            raise ConfigurationError(
                "protected_twice",
                f"the session of the MCP tool {tool.name} is guarded, and describes it",
                remedy="put its scopes and labels into the rules of guard",
            )
        return finished(tool)
    if is_protected(tool):
        raise ConfigurationError("protected_twice", f"the tool {tool.name} is protected already")
    has_resource = resource is not None or has_resources(tool)
    check_origin(tool, has_resource=has_resource, error=ConfigurationError)
    injected = _injected(tool)
    described = Tool(
        tool.name,
        resource=resource,
        scopes=scopes,
        labels=labels,
        opaque={*opaque, *injected} if not isinstance(opaque, str) else opaque,
        pauses=_pauses(),
    )

    def guard(function: Callable[..., Any]) -> Callable[..., Any]:
        remote = None if resource is None else guard_fresh(function, described)
        function = starts_agents(function if remote is None else remote, tool.name, injected)
        function = scrubs(function if tool_of(function) else wrap(function, described))
        return states_refusals(runs_nested(function, tool.name))

    return guarded(tool, guard)


def finished(tool: T) -> T:
    """A copy of a tool that `agent_identity.tool` or its MCP session guards, with what `protect` does besides."""

    def finish(function: Callable[..., Any]) -> Callable[..., Any]:
        if is_nested(function):
            return function
        function = starts_agents(guard_open(function), tool.name, _injected(tool))
        return states_refusals(runs_nested(scrubs(function), tool.name))

    return guarded(tool, finish)


def _injected(tool: BaseTool) -> frozenset[str]:
    """Parameters that the framework fills in and the model doesn't see; they have no canonical form."""
    fields = getattr(tool.tool_call_schema, "model_fields", None)
    seen = set(tool.args if fields is None else fields)
    names: set[str] = set()
    for function in functions_of(tool).values():
        for name, parameter in inspect.signature(function).parameters.items():
            plain = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if plain and name not in seen:
                names.add(name)
    return frozenset(names)


def _pauses() -> tuple[type[BaseException], ...]:
    """How LangGraph stops a tool to ask a person; absent where LangGraph isn't installed."""
    try:
        from langgraph.errors import GraphBubbleUp  # noqa: PLC0415 - langchain brings it, langchain-core doesn't
    except ModuleNotFoundError:
        return ()
    return (GraphBubbleUp,)
