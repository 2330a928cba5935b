# SPDX-License-Identifier: Apache-2.0
"""`IdentityMiddleware`: guards every tool of an agent, and tells the model of a refusal as a tool error.

It runs no tool that nothing describes: before the model is asked it looks at the tools that the model is shown, and at each
call at the tool that would run. LangChain shows no middleware the tools while an agent is built.

It puts a guarded copy of the tool into the request instead of looking at the model's arguments, so that whatever other
middleware and LangChain itself do to them, the digest is over what the function receives. What the function returns or raises
is scrubbed of secrets before callbacks see it (`protect` does that too), and once more what comes back for the model.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, ToolException

from agent_identity import (
    AgentIdentity,
    AgentIdentityError,
    ConfigurationError,
    DeniedError,
)
from agent_identity.adapters import arefuse, below, refusal_text, refuse, scrubbed, scrubs, within
from agent_identity_langchain.carriers import carried_session
from agent_identity_langchain.framework_spans import find_span
from agent_identity_langchain.protection import guarded, protect
from agent_identity_langchain.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping

    from langchain.agents.middleware import ModelRequest, ModelResponse
    from langgraph.prebuilt.tool_node import ToolCallRequest
    from langgraph.types import Command

    from agent_identity import Session

__all__ = ["IdentityMiddleware"]

_KEPT: Final = 1024


class _RefusedError(ToolException):
    """A refusal on its way to the model; its text holds nothing that the model may not read."""


class IdentityMiddleware(AgentMiddleware[Any, Any]):
    """Register it last: `create_agent(model, tools, middleware=[…, IdentityMiddleware(identity)])`.

    `rules` maps a tool's name to what `protect` takes for it (`resource`, `scopes`, `labels`, `opaque`; `{}` for a local
    tool). A tool without a rule that `protect` or `agent_identity.tool` doesn't describe either is refused, unless there is
    the rule `"*"`, which says that all other tools are local ones; it may have `labels`. A rule that names no tool is an
    error, so each agent has a middleware of its own. `{"hosted": True}` is the rule of a tool that the model's provider runs:
    nothing guards it.

    The session is the current one, or one that the run carries, for streams that are read outside the session's block: as its
    `context` (the session itself, or an object or mapping with `session`), or as
    `config={"configurable": {"agent_identity_session": session}}`.

    Raises:
        ConfigurationError: a rule can't be read.
    """

    def __init__(
        self, identity: AgentIdentity, rules: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        super().__init__()
        self.identity = identity
        self._rules = Rules(rules)
        self._guarded: dict[int, tuple[BaseTool, BaseTool]] = {}

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any]:
        """Ask the model, unless it would be shown a tool that can't be guarded."""
        self._check(request.tools)
        return handler(request)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """The async twin of `wrap_model_call`."""
        self._check(request.tools)
        return await handler(request)

    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """Run one tool call under the session; a refusal comes back as a tool error."""
        with (
            within(_carried(request), tool_call_id=request.tool_call["id"]),
            below(find_span(request.runtime.config)),
        ):
            try:
                guarded_request = self._guard_call(request)
            except AgentIdentityError as error:
                refuse(_name(request), error)
                return _refused(request, error)
            return scrubs(handler)(guarded_request)

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """The async twin of `wrap_tool_call`."""
        with (
            within(_carried(request), tool_call_id=request.tool_call["id"]),
            below(find_span(request.runtime.config)),
        ):
            try:
                guarded_request = self._guard_call(request)
            except AgentIdentityError as error:
                await arefuse(_name(request), error)
                return _refused(request, error)
            return await scrubs(_asking(handler))(guarded_request)

    def check_tools(self, tools: Iterable[BaseTool]) -> None:
        """Check the tools of a graph when it is built: each is described, and each rule names one of them.

        Raises:
            ConfigurationError: a tool isn't described or can't be guarded, or a rule names no tool.
        """
        tools = list(tools)
        self._check(tools)
        self._rules.check_matched(tools)

    def _check(self, tools: Iterable[BaseTool | dict[str, Any]]) -> None:
        """Whether each tool that the model is shown is described. Other middleware may hide some, so no rule is looked for."""
        for tool in tools:
            if isinstance(tool, BaseTool):
                self._rules.describe(tool, ConfigurationError)
            elif isinstance(tool, dict):
                self._rules.check_provider(tool)

    def _guard_call(self, request: ToolCallRequest) -> ToolCallRequest:
        """The same call of a guarded tool.

        Raises:
            DeniedError: the tool must not run; the model is told.
            ConfigurationError: the agent is set up in a way that can't work; the run stops.
        """
        tool = request.tool
        if tool is None:
            raise DeniedError(
                "tool_unknown",
                f"there is no tool {request.tool_call['name']!r}",
                remedy="call a tool that there is, by its exact name",
            )
        copy = self._guard(tool)
        self._rules.check_matched([tool, *request.runtime.tools])
        # A tool finds the agent's other tools in its runtime, and may call them.
        runtime = replace(request.runtime, tools=self._guard_all(request.runtime.tools))
        return replace(request, tool=copy, runtime=runtime)

    def _guard_all(self, tools: Iterable[BaseTool]) -> list[BaseTool]:
        """Guarded copies of those that can be guarded."""
        copies: list[BaseTool] = []
        for tool in tools:
            with contextlib.suppress(ConfigurationError, DeniedError):
                copies.append(self._guard(tool))
        return copies

    def _guard(self, tool: BaseTool) -> BaseTool:
        known = self._guarded.get(id(tool))
        if known is not None and known[0] is tool:
            return known[1]
        rule = self._rules.describe(tool, DeniedError)
        inner = tool if rule is None else protect(tool, **rule)
        copy = guarded(inner, _telling if inner is not tool else _scrubbed_too)
        copy.handle_tool_error = functools.partial(_told, tool.handle_tool_error)
        if len(self._guarded) >= _KEPT:
            self._guarded.clear()  # tools that are made anew for each run
        self._guarded[id(tool)] = (tool, copy)
        return copy


def _scrubbed_too(function: Callable[..., Any]) -> Callable[..., Any]:
    """For a tool that is protected already: `protect` scrubs, `agent_identity.tool` leaves values alone."""
    return _telling(scrubs(function))


def _asking(
    handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
) -> Callable[[ToolCallRequest], Coroutine[Any, Any, ToolMessage | Command[Any]]]:
    async def ask(request: ToolCallRequest) -> ToolMessage | Command[Any]:
        return await handler(request)

    return ask


def _telling(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, a refusal turned into what LangChain has for errors that a model may see."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def atold(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            except DeniedError as error:
                raise _RefusedError(refusal_text(error)) from error

        return atold

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except DeniedError as error:
            raise _RefusedError(refusal_text(error)) from error

    return told


def _told(
    own: bool | str | Callable[[ToolException], Any] | None,  # noqa: FBT001 - LangChain's own type
    error: ToolException,
) -> Any:
    """Our refusals as text; the tool's own errors, scrubbed already, as the tool's own setting says."""
    if isinstance(error, _RefusedError) or own is True:
        return str(error.args[0]) if error.args else "Tool execution error"
    if isinstance(own, str):
        return own
    if callable(own):
        return scrubbed(own(error))
    raise error


def _name(request: ToolCallRequest) -> str:
    return request.tool_call["name"] if request.tool is None else request.tool.name


def _refused(request: ToolCallRequest, error: AgentIdentityError) -> ToolMessage:
    """What the model is told of a refusal that is on record; anything but a denial stops the run."""
    if not isinstance(error, DeniedError):
        raise error
    call = request.tool_call
    return ToolMessage(
        refusal_text(error), name=call["name"], tool_call_id=call["id"], status="error"
    )


def _carried(request: ToolCallRequest) -> Session | None:
    """The session that the run was given explicitly, if it was."""
    return carried_session(request.runtime.context, request.runtime.config)
