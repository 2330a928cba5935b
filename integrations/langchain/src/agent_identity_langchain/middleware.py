# SPDX-License-Identifier: Apache-2.0
"""`IdentityMiddleware`: guards every tool of an agent, and tells the model of a refusal as a tool error.

It runs no tool that nothing describes: before the model is asked it looks at the tools that the model is shown, and at each
call at the tool that would run. LangChain shows no middleware the tools while an agent is built.

It puts a guarded copy of the tool into the request instead of looking at the model's arguments, so that whatever other
middleware and LangChain itself do to them, the digest is over what the function receives. A tool that middleware inside it runs
instead is recorded as itself if it is guarded, and refused if it isn't. What the function returns or raises
is scrubbed of secrets before callbacks see it (`protect` does that too), and once more what comes back for the model.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import ToolMessage
from langchain_core.runnables import ensure_config

from agent_identity import AgentIdentity, AgentIdentityError, DeniedError, NoSessionError
from agent_identity.adapters import (
    adelegated,
    arefuse,
    calling_tool,
    delegated,
    is_for_model,
    refusal_text,
    refuse,
    scrubs,
    within,
)
from agent_identity.values import agent_uri
from agent_identity_langchain.agent_tools import AgentTools
from agent_identity_langchain.carriers import carried_session
from agent_identity_langchain.framework_spans import abelow_framework, below_framework
from agent_identity_langchain.interrupts import Interrupts, check_asker, mark_asker
from agent_identity_langchain.stops import is_stopped, stopping_unguarded_tools
from agent_identity_langchain.subagents import agent_name, guard_specs, is_in_graph

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping

    from langchain.agents.middleware import ModelRequest, ModelResponse
    from langchain_core.tools import BaseTool
    from langgraph.prebuilt.tool_node import ToolCallRequest
    from langgraph.types import Command

    from agent_identity import Session

__all__ = ["IdentityMiddleware"]


class IdentityMiddleware(AgentMiddleware[Any, Any]):
    """Register it last: `create_agent(model, tools, middleware=[…, IdentityMiddleware(identity)])`.

    `rules` maps a tool's name to what `protect` takes for it (`resource`, `scopes`, `labels`, `opaque`; `{}` for a local
    tool). A tool without a rule that `protect` or `agent_identity.tool` doesn't describe either is refused, unless there is
    the rule `"*"`, which says that all other tools are local ones; it may have `labels`. A rule that names no tool is an
    error, so each agent has a middleware of its own. `{"hosted": True}` is the rule of a tool that the model's provider runs:
    nothing guards it.

    An agent that a tool of another agent starts acts in a session that is delegated to it, under the name that `create_agent`
    got, else under the tool's name. With `agent`, it always acts in a session that is delegated to that name: for the agents of
    a graph that hand work to one another. `subagents` is for deepagents.

    The session is the current one, or one that the run carries, for streams that are read outside the session's block: as its
    `context` (the session itself, or an object or mapping with `session`), or as
    `config={"configurable": {"agent_identity_session": session}}`.

    Raises:
        ConfigurationError: a rule can't be read.
    """

    def __init__(
        self,
        identity: AgentIdentity,
        rules: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        agent: str | None = None,
    ) -> None:
        super().__init__()
        self.identity = identity
        self._tools = AgentTools(rules)
        self._agent = None if agent is None else agent_uri(agent)

    def subagents(
        self, specs: Iterable[Mapping[str, Any]] = (), *, general_purpose: bool = True
    ) -> list[Any]:
        """The specs for `create_deep_agent(…, middleware=[middleware], subagents=middleware.subagents(specs))`.

        Each gets a middleware with the same rules; it acts in a session that is delegated to its name. A spec that has an
        `IdentityMiddleware` keeps it. A compiled sub-agent stays as it is, and runs guarded tools only. deepagents' default
        sub-agent is added, unless `general_purpose` is False: then disable it in deepagents, or its calls are refused.

        Raises:
            ConfigurationError: a sub-agent runs on a server, where nothing guards its tools.
        """
        guarded = guard_specs(specs, self._make_part, general_purpose=general_purpose)
        self._tools.add_names(guarded["tools"])
        return guarded["specs"]

    def _make_part(self, agent: str) -> IdentityMiddleware:
        part = type(self)(self.identity, agent=agent)
        vars(part).update(_tools=self._tools.make_part())
        return part

    def check_tools(self, tools: Iterable[BaseTool]) -> None:
        """Check the tools of a graph when it is built: each is described, and each rule names one of them.

        Raises:
            ConfigurationError: a tool isn't described or can't be guarded, or a rule names no tool.
        """
        self._tools.check_built(tools)

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any]:
        """Ask the model, unless it would be shown a tool that can't be guarded."""
        self._tools.check_shown(request.tools)
        return _marked(handler(request), request)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """The async twin of `wrap_model_call`."""
        self._tools.check_shown(request.tools)
        return _marked(await handler(request), request)

    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """Run one tool call under the session; a refusal comes back as a tool error."""
        carried, call_id, name = _carried(request), request.tool_call["id"], _name(request)
        config = request.runtime.config
        try:
            agent, is_hand_off = self._find_agent(request)
            session = delegated(carried, agent, is_hand_off=is_hand_off)
        except DeniedError as error:
            with within(carried, tool_call_id=call_id), below_framework(config):
                refuse(name, error)
            return _refused(request, error)
        with within(session, tool_call_id=call_id):
            interrupts = Interrupts.of_call(name, call_id, config)
            try:
                if interrupts is None:
                    check_asker(request.state, call_id)
                else:
                    interrupts.check(request.state)
                guarded_request = self._tools.guard_call(request)
            except AgentIdentityError as error:
                with below_framework(config):
                    refuse(name, error)
                return _refused(request, error)
            try:
                with stopping_unguarded_tools():
                    return scrubs(handler)(guarded_request)
            except BaseException as error:
                if interrupts is not None:
                    interrupts.keep_interrupt(error)
                if is_stopped(error):
                    return _refused(request, error)
                raise

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """The async twin of `wrap_tool_call`."""
        carried, call_id, name = _carried(request), request.tool_call["id"], _name(request)
        config = request.runtime.config
        try:
            agent, is_hand_off = self._find_agent(request)
            session = await adelegated(carried, agent, is_hand_off=is_hand_off)
        except DeniedError as error:
            with within(carried, tool_call_id=call_id), await abelow_framework(config):
                await arefuse(name, error)
            return _refused(request, error)
        with within(session, tool_call_id=call_id):
            interrupts = Interrupts.of_call(name, call_id, config)
            try:
                if interrupts is None:
                    check_asker(request.state, call_id)
                else:
                    await interrupts.acheck(request.state)
                guarded_request = self._tools.guard_call(request)
            except AgentIdentityError as error:
                with await abelow_framework(config):
                    await arefuse(name, error)
                return _refused(request, error)
            try:
                with stopping_unguarded_tools():
                    return await scrubs(_asking(handler))(guarded_request)
            except BaseException as error:
                if interrupts is not None:
                    await interrupts.akeep_interrupt(error)
                if is_stopped(error):
                    return _refused(request, error)
                raise

    def _find_agent(self, request: ToolCallRequest) -> tuple[str | None, bool]:
        """The name that this agent's session is delegated to, None if it acts in the session itself; whether by a hand-off."""
        if self._agent is not None:
            return self._agent, True
        caller, name = calling_tool(), agent_name(request.runtime.config)
        if caller is not None:
            # A run inherits the name of the agent around it.
            return (caller.tool if name is None or name == caller.agent else name), False
        return (name if is_in_graph(request.runtime.config) else None), True


def _asking(
    handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
) -> Callable[[ToolCallRequest], Coroutine[Any, Any, ToolMessage | Command[Any]]]:
    async def ask(request: ToolCallRequest) -> ToolMessage | Command[Any]:
        return await handler(request)

    return ask


def _name(request: ToolCallRequest) -> str:
    return request.tool_call["name"] if request.tool is None else request.tool.name


def _refused(request: ToolCallRequest, error: AgentIdentityError) -> ToolMessage:
    """What the model is told of a refusal that is on record; anything but a denial stops the run."""
    if not is_for_model(error):
        raise error
    call = request.tool_call
    return ToolMessage(
        refusal_text(error), name=call["name"], tool_call_id=call["id"], status="error"
    )


def _marked(response: ModelResponse[Any], request: ModelRequest[Any]) -> ModelResponse[Any]:
    """The response, with a mark of the principal in each message that asks for tool calls."""
    with contextlib.suppress(NoSessionError), within(_carried(request)):
        return replace(response, result=[mark_asker(message) for message in response.result])
    return response


def _carried(request: ToolCallRequest | ModelRequest[Any]) -> Session | None:
    """The session that the run was given explicitly, if it was."""
    runtime = request.runtime
    config = getattr(runtime, "config", None)  # a model's request has none
    return carried_session(
        getattr(runtime, "context", None), ensure_config() if config is None else config
    )
