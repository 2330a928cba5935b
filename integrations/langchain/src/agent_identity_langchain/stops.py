# SPDX-License-Identifier: Apache-2.0
"""Stops unguarded tools inside a guarded one, for instance those of a sub-agent without our middleware, or instead of a guarded one.

LangChain tells callbacks of each tool before it runs, at any depth. While a guarded call runs, a callback handler raises for
every tool that isn't guarded. It reaches all runs that inherit the tool's context, or the configuration that it was given.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from contextvars import ContextVar
from dataclasses import is_dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from langchain_core.callbacks import (
    AsyncCallbackManager,
    BaseCallbackHandler,
    BaseCallbackManager,
    CallbackManager,
)
from langchain_core.tools import BaseTool
from langchain_core.tracers.context import register_configure_hook

from agent_identity.adapters import (
    adelegated,
    arefuse,
    current_tool_call_id,
    delegated,
    refuse,
    within,
)
from agent_identity.errors import AgentIdentityError, DeniedError
from agent_identity_langchain.framework_spans import abelow_framework, below_framework
from agent_identity_langchain.subagents import agent_name, other_agent
from agent_identity_langchain.tool_functions import is_protected

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_identity import Session

__all__ = ["is_stopped", "stopping_in", "stopping_unguarded_tools"]

_CODE: Final = "tool_unguarded"


class _Stop(BaseCallbackHandler):
    """Stops each tool that starts and isn't guarded."""

    raise_error = True
    run_inline = True

    @property
    def on_tool_start(self) -> Any:
        # LangChain awaits a coroutine function, and calls another one.
        is_async = sys._getframe(1).f_code.co_flags & inspect.CO_COROUTINE  # noqa: SLF001 - who asks
        return self._astop if is_async else self._stop

    def _stop(self, serialized: dict[str, Any] | None, _: str, **more: Any) -> None:
        error = _find_fault(serialized)
        if error is not None:
            session = self._find_session(more.get("metadata"))
            call_id = more.get("tool_call_id") or current_tool_call_id()
            with within(session, tool_call_id=call_id), below_framework():
                refuse(_name_of(serialized), error)
            raise error

    async def _astop(self, serialized: dict[str, Any] | None, _: str, **more: Any) -> None:
        error = _find_fault(serialized)
        if error is not None:
            session = await self._afind_session(more.get("metadata"))
            call_id = more.get("tool_call_id") or current_tool_call_id()
            with within(session, tool_call_id=call_id), await abelow_framework():
                await arefuse(_name_of(serialized), error)
            raise error

    def _find_session(self, metadata: Any) -> Session | None:
        try:
            return delegated(None, other_agent(agent_name({"metadata": metadata})))
        except AgentIdentityError:
            return None  # the refusal belongs to the calling session

    async def _afind_session(self, metadata: Any) -> Session | None:
        try:
            return await adelegated(None, other_agent(agent_name({"metadata": metadata})))
        except AgentIdentityError:
            return None  # see above


_STOP: Final = _Stop()
_STOPPING: Final[ContextVar[BaseCallbackHandler | None]] = ContextVar(
    "agent_identity_stopping", default=None
)
register_configure_hook(_STOPPING, inheritable=True)

_ANNOUNCES: Final = (
    CallbackManager.on_tool_start.__code__,
    AsyncCallbackManager.on_tool_start.__code__,
)
_RUNS: Final = (BaseTool.run.__code__, BaseTool.arun.__code__)


def is_stopped(error: BaseException) -> TypeGuard[DeniedError]:
    """Whether it is the refusal of an unguarded tool, which is on record."""
    return isinstance(error, DeniedError) and error.code == _CODE


@contextlib.contextmanager
def stopping_unguarded_tools() -> Generator[None]:
    token = _STOPPING.set(_STOP)
    try:
        yield
    finally:
        _STOPPING.reset(token)


def stopping_in(arguments: dict[str, Any], injected: frozenset[str]) -> dict[str, Any]:
    """The arguments; a configuration that the framework has injected stops unguarded tools also where the context doesn't reach."""
    changed = dict(arguments)
    for name in injected & arguments.keys():
        value = arguments[name]
        config = getattr(value, "config", None)
        if _is_config(value):
            changed[name] = _with_stop(value)
        elif is_dataclass(value) and not isinstance(value, type) and _is_config(config):
            changed[name] = replace(value, config=_with_stop(config))  # a ToolRuntime
    return changed


def _is_config(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and "callbacks" in value


def _with_stop(config: dict[str, Any]) -> dict[str, Any]:
    callbacks = config["callbacks"]
    if isinstance(callbacks, BaseCallbackManager):
        callbacks = callbacks.copy()
        callbacks.add_handler(_STOP, inherit=True)
        return {**config, "callbacks": callbacks}
    return {**config, "callbacks": [*(callbacks or ()), _STOP]}


def _find_fault(serialized: dict[str, Any] | None) -> DeniedError | None:
    """Why the tool that starts must not run, None if it is guarded."""
    tool = _find_tool()
    with contextlib.suppress(AgentIdentityError):  # its functions can't be found
        if tool is not None and is_protected(tool):
            return None
    return DeniedError(
        _CODE,
        f"the tool {_name_of(serialized)!r} would run unguarded inside a guarded call",
        remedy=(
            "give each sub-agent an IdentityMiddleware (for deepagents: subagents=middleware.subagents(…)), "
            "register it after middleware that swaps tools, or describe the tool with protect"
        ),
    )


def _find_tool() -> BaseTool | None:
    """The tool that LangChain announces to the callbacks, found on the stack: callbacks get its name, which may be anybody's."""
    frame = sys._getframe()  # noqa: SLF001 - see above
    while frame.f_back is not None:
        back = frame.f_back
        if frame.f_code in _ANNOUNCES:
            tool = back.f_locals.get("self") if back.f_code in _RUNS else None
            return tool if isinstance(tool, BaseTool) else None
        frame = back
    return None


def _name_of(serialized: dict[str, Any] | None) -> str:
    return str((serialized or {}).get("name") or "unknown")
