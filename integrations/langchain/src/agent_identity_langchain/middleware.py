# SPDX-License-Identifier: Apache-2.0
"""`IdentityMiddleware`: guards every tool of an agent, and tells the model of a refusal as a tool error.

It puts a guarded copy of the tool into the request instead of looking at the model's arguments, so that whatever other
middleware and LangChain itself do to them, the digest is over what the function receives. What the function returns or raises
is scrubbed of secrets before callbacks see it (`protect` does that too), and once more what comes back for the model.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, ToolException

from agent_identity import AgentIdentity, ConfigurationError, DeniedError, Session
from agent_identity.adapters import Tool, refusal_text, scrubbed, scrubs, within
from agent_identity_langchain.protection import guarded, is_protected, protect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from langgraph.prebuilt.tool_node import ToolCallRequest
    from langgraph.types import Command

__all__ = ["IdentityMiddleware"]

_KEPT: Final = 1024


class _RefusedError(ToolException):
    """A refusal on its way to the model; its text holds nothing that the model may not read."""


class IdentityMiddleware(AgentMiddleware[Any, Any]):
    """Register it last: `create_agent(model, tools, middleware=[…, IdentityMiddleware(identity)])`.

    `rules` maps a tool's name to what `protect` takes for it (`resource`, `scopes`, `labels`, `opaque`); a tool without a
    rule is a local one. The session is the current one, or one that the run carries as its `context` (the session itself, or
    an object or mapping with `session`), for streams that are read outside the session's block.
    """

    def __init__(
        self, identity: AgentIdentity, rules: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        super().__init__()
        self.identity = identity
        self._rules = dict(rules or {})
        for name, rule in self._rules.items():
            Tool(name, **rule)  # a rule that makes no sense is said at once
        self._guarded: dict[int, tuple[BaseTool, BaseTool]] = {}

    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """Run one tool call under the session; a refusal comes back as a tool error."""
        with within(_carried(request), tool_call_id=request.tool_call["id"]):
            if request.tool is None:
                return _unknown(request)
            return scrubs(handler)(request.override(tool=self._guard(request.tool)))

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """The async twin of `wrap_tool_call`."""
        with within(_carried(request), tool_call_id=request.tool_call["id"]):
            if request.tool is None:
                return _unknown(request)
            return await scrubs(_asking(handler))(request.override(tool=self._guard(request.tool)))

    def _guard(self, tool: BaseTool) -> BaseTool:
        known = self._guarded.get(id(tool))
        if known is not None and known[0] is tool:
            return known[1]
        rule = self._rules.get(tool.name)
        if is_protected(tool):
            if rule is not None:
                raise ConfigurationError(
                    "protected_twice", f"{tool.name} is protected already, and has a rule besides"
                )
            inner = tool
        else:
            inner = protect(tool, **(rule or {}))
        copy = guarded(inner, _telling if inner is not tool else _scrubbed_too)
        copy.handle_tool_error = functools.partial(_told, tool.handle_tool_error)
        if len(self._guarded) >= _KEPT:
            self._guarded.clear()  # tools that are made anew for each run
        self._guarded[id(tool)] = (tool, copy)
        return copy


def _scrubbed_too(function: Callable[..., Any]) -> Callable[..., Any]:
    """For a tool that was protected by somebody else: `protect` scrubs, `agent_identity.tool` leaves values alone."""
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
    own: bool | str | Callable[[ToolException], str] | None,  # noqa: FBT001 - LangChain's own type
    error: ToolException,
) -> str:
    """Our refusals as text; the tool's own errors, scrubbed already, as the tool's own setting says."""
    if isinstance(error, _RefusedError) or own is True:
        return str(error.args[0]) if error.args else "Tool execution error"
    if isinstance(own, str):
        return own
    if callable(own):
        return scrubbed(own(error))
    raise error


def _unknown(request: ToolCallRequest) -> ToolMessage:
    """A name that no tool has: nothing runs."""
    call = request.tool_call
    return ToolMessage(
        "There is no such tool.", name=call["name"], tool_call_id=call["id"], status="error"
    )


def _carried(request: ToolCallRequest) -> Session | None:
    """The session that the run was given explicitly, if it was."""
    context = getattr(request.runtime, "context", None)
    if isinstance(context, dict):
        context = context.get("session")
    elif not isinstance(context, Session):
        context = getattr(context, "session", None)
    return context if isinstance(context, Session) else None
