# SPDX-License-Identifier: Apache-2.0
"""The sessions of sub-agents, for adapters: a tool that starts an agent delegates to it, and the agent's session ends with the call."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from agent_identity.errors import DeniedError
from agent_identity.session import current_session, open_detached, state_of
from agent_identity.values import agent_uri

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from agent_identity.session import Session

__all__ = ["Caller", "adelegated", "astarting", "calling_tool", "delegated", "starting"]


class Caller:
    """What starts sub-agents: a tool call, or a session that hands its work on. It delegates to each of them once.

    `agent` is the framework's name of the agent that called `tool`. The sub-agents' sessions end with it.
    """

    def __init__(self, session: Session, tool: str | None, agent: str | None) -> None:
        self.session: Session = session
        self.tool: str | None = tool
        self.agent: str | None = agent
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._is_over = False

    def find(self, agent: str) -> Session | None:
        """The session of a sub-agent, None if it has none yet."""
        return None if self._is_over else self._sessions.get(agent)

    def delegate(self, agent: str) -> Session:
        """The session of a sub-agent, opened when it is first asked for.

        Raises:
            DeniedError: the call has ended, or the session can't delegate to that agent.
        """
        with self._lock:
            if self._is_over:
                raise DeniedError(
                    "call_ended",
                    "the tool call that started this sub-agent has ended",
                    remedy="let the tool wait for its sub-agents",
                )
            session = self._sessions.get(agent)
            if session is None:
                session = self.session.delegate(agent)
                open_detached(session)
                self._sessions[agent] = session
            return session

    def end(self) -> None:
        """End the sub-agents' sessions."""
        for session in self._take():
            session.__exit__(None, None, None)

    async def aend(self) -> None:
        """The async twin of `end`."""
        for session in self._take():
            await session.__aexit__(None, None, None)

    def _take(self) -> list[Session]:
        with self._lock:
            self._is_over = True
            sessions = list(self._sessions.values())
            self._sessions.clear()
        return sessions


_CALLER: Final[ContextVar[Caller | None]] = ContextVar("agent_identity_caller", default=None)


@contextlib.contextmanager
def starting(tool: str, agent: str | None) -> Generator[None]:
    """Run a tool's body: the sub-agents that it starts act in sessions of their own, which end with the block.

    `agent` is the framework's name of the agent that calls the tool.
    """
    caller = Caller(current_session(), tool, agent)
    token = _CALLER.set(caller)
    try:
        yield
    finally:
        _CALLER.reset(token)
        caller.end()


@contextlib.asynccontextmanager
async def astarting(tool: str, agent: str | None) -> AsyncGenerator[None]:
    """The async twin of `starting`."""
    caller = Caller(current_session(), tool, agent)
    token = _CALLER.set(caller)
    try:
        yield
    finally:
        _CALLER.reset(token)
        await caller.aend()


def calling_tool() -> Caller | None:
    """The tool call in whose body this code runs, None outside of all tools of an adapter."""
    return _CALLER.get()


def delegated(session: Session | None, agent: str | None, *, is_hand_off: bool = False) -> Session:
    """The session in which the agent `agent` acts, when `session` (None: the current one) calls it.

    Below a tool call it is delegated from the call's session, unless the tool has delegated by itself. Elsewhere it is
    delegated if `is_hand_off`, and ends with the session that handed on. Without `agent` it is the session itself.

    Raises:
        NoSessionError: there is no session.
        DeniedError: the session can't delegate to that agent, or the tool call has ended.
    """
    acting, caller = _find_caller(session, agent, is_hand_off=is_hand_off)
    if caller is None or agent is None:
        return acting
    return caller.delegate(agent)


async def adelegated(
    session: Session | None, agent: str | None, *, is_hand_off: bool = False
) -> Session:
    """The async twin of `delegated`."""
    acting, caller = _find_caller(session, agent, is_hand_off=is_hand_off)
    if caller is None or agent is None:
        return acting
    opened = caller.find(agent)
    return await asyncio.to_thread(caller.delegate, agent) if opened is None else opened


def _find_caller(
    session: Session | None, agent: str | None, *, is_hand_off: bool
) -> tuple[Session, Caller | None]:
    """The session that calls, and what delegates to the agent, None if the agent acts in that session itself."""
    caller = _CALLER.get()
    # Below a tool the framework carries on the session of the agent around it. The current one is that, or one below it.
    if session is None or (caller is not None and session.txn == caller.session.txn):
        session = current_session()
    if agent is None:
        return session, None
    state = state_of(session)
    if caller is not None and state_of(caller.session) is state:
        return session, caller
    if not is_hand_off or state.agent.uri == agent_uri(agent):
        return session, None
    handed = state.sub_agents.setdefault(agent, Caller(session, None, None))
    return session, handed if isinstance(handed, Caller) else None
