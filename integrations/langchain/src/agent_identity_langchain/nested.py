# SPDX-License-Identifier: Apache-2.0
"""What happens inside a guarded tool: the agents that it starts act in sessions of their own, and no tool runs unguarded there."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from agent_identity.adapters import (
    Attempt,
    adelegated,
    arefuse,
    astarting,
    current_tool_call_id,
    delegated,
    refuse,
    starting,
    within,
)
from agent_identity.errors import AgentIdentityError
from agent_identity_langchain.framework_spans import abelow_framework, below_framework
from agent_identity_langchain.interrupts import Interrupts
from agent_identity_langchain.stops import stopping_in, stopping_unguarded_tools
from agent_identity_langchain.subagents import agent_name, other_agent

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["is_nested", "runs_nested", "starts_agents"]

_MARK: Final = "__agent_identity_nested__"


def starts_agents(
    function: Callable[..., Any], tool: str, injected: frozenset[str]
) -> Callable[..., Any]:
    """The function of a tool, inside which only guarded tools run, and each agent acts in a session of its own.

    `injected` are the parameters that the framework fills in, a configuration for instance, which may go to another thread.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return function  # LangChain runs no generator: it shows the model the object
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def astart(*args: Any, **kwargs: Any) -> Any:
            async with astarting(tool, agent_name()):
                with stopping_unguarded_tools():
                    return await function(*args, **stopping_in(kwargs, injected))

        return astart

    @functools.wraps(function)
    def start(*args: Any, **kwargs: Any) -> Any:
        with starting(tool, agent_name()), stopping_unguarded_tools():
            return function(*args, **stopping_in(kwargs, injected))

    return start


def runs_nested(function: Callable[..., Any], tool: str) -> Callable[..., Any]:
    """A guarded function that acts for the agent that calls it, and that an interrupt of LangGraph doesn't make run twice."""
    if is_nested(function):
        return function
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def arun(*args: Any, **kwargs: Any) -> Any:
            call_id = current_tool_call_id()
            try:
                session = await adelegated(None, other_agent(agent_name()))
            except AgentIdentityError as error:
                with within(None, tool_call_id=call_id), await abelow_framework():
                    await arefuse(tool, error)
                raise
            attempt = Attempt()
            entered = within(session, tool_call_id=call_id, attempt=attempt)
            with entered, await abelow_framework():
                interrupts = Interrupts.of_call(tool, call_id)
                if interrupts is None:
                    return await function(*args, **kwargs)
                return await interrupts.arun(attempt, function, args, kwargs)

        arun.__dict__[_MARK] = True
        return arun

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        call_id = current_tool_call_id()
        try:
            session = delegated(None, other_agent(agent_name()))
        except AgentIdentityError as error:
            with within(None, tool_call_id=call_id), below_framework():
                refuse(tool, error)
            raise
        attempt = Attempt()
        with within(session, tool_call_id=call_id, attempt=attempt), below_framework():
            interrupts = Interrupts.of_call(tool, call_id)
            if interrupts is None:
                return function(*args, **kwargs)
            return interrupts.run(attempt, function, args, kwargs)

    run.__dict__[_MARK] = True
    return run


def is_nested(function: Callable[..., Any]) -> bool:
    """Whether `runs_nested` made it."""
    return bool(getattr(function, _MARK, False))
