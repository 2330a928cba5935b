# SPDX-License-Identifier: Apache-2.0
"""What happens inside a guarded tool: the agents that it starts act in sessions of their own, and no tool runs unguarded there."""

from __future__ import annotations

import functools
import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager

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
from agent_identity_langchain.interrupts import Interrupts
from agent_identity_langchain.stops import stopping_in, stopping_unguarded_tools
from agent_identity_langchain.subagents import agent_name, other_agent

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.callbacks import Callbacks

__all__ = ["is_nested", "runs_nested", "starts_agents", "with_call_ids"]

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
            call_id = _take_call_id()
            try:
                session = await adelegated(None, other_agent(agent_name()))
            except AgentIdentityError as error:
                with within(None, tool_call_id=call_id):
                    await arefuse(tool, error)
                raise
            attempt = Attempt()
            with within(session, tool_call_id=call_id, attempt=attempt):
                interrupts = Interrupts.of_call(tool, call_id)
                if interrupts is None:
                    return await function(*args, **kwargs)
                return await interrupts.arun(attempt, function, args, kwargs)

        arun.__dict__[_MARK] = True
        return arun

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        call_id = _take_call_id()
        try:
            session = delegated(None, other_agent(agent_name()))
        except AgentIdentityError as error:
            with within(None, tool_call_id=call_id):
                refuse(tool, error)
            raise
        attempt = Attempt()
        with within(session, tool_call_id=call_id, attempt=attempt):
            interrupts = Interrupts.of_call(tool, call_id)
            if interrupts is None:
                return function(*args, **kwargs)
            return interrupts.run(attempt, function, args, kwargs)

    run.__dict__[_MARK] = True
    return run


def is_nested(function: Callable[..., Any]) -> bool:
    """Whether `runs_nested` made it."""
    return bool(getattr(function, _MARK, False))


_CALL_ID: Final[ContextVar[str | None]] = ContextVar("agent_identity_call_id", default=None)


class _CallIds(BaseCallbackHandler):
    """Keeps the model's id of the tool call that starts, for the tool's function, which LangChain doesn't tell."""

    raise_error = True
    run_inline = True

    def on_tool_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - LangChain's own signature
        input_str: str,  # noqa: ARG002 - see above
        *,
        tool_call_id: str | None = None,
        **_: Any,
    ) -> None:
        _CALL_ID.set(tool_call_id)


_CALL_IDS: Final = _CallIds()


def with_call_ids(callbacks: Callbacks) -> Callbacks:
    """The callbacks of a guarded copy of a tool."""
    if isinstance(callbacks, BaseCallbackManager):
        callbacks = callbacks.copy()
        callbacks.add_handler(_CALL_IDS, inherit=False)
        return callbacks
    others = [each for each in callbacks or () if each is not _CALL_IDS]
    return [*others, _CALL_IDS]


def _take_call_id() -> str | None:
    """The model's id of the call; the function's body, which may call other functions, doesn't have it any more."""
    call_id = _CALL_ID.get()
    _CALL_ID.set(None)
    return call_id or current_tool_call_id()
