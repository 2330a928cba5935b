# SPDX-License-Identifier: Apache-2.0
"""The interface for integrations. They turn a framework's tool into a `Tool`, wrap its function, and decide nothing.

An `if` about identity in an integration is a line that belongs in the library.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from agent_identity.decorators import tool_of, wrap
from agent_identity.errors import DeniedError
from agent_identity.identity import parts_of
from agent_identity.pipeline import Call
from agent_identity.remote_access import ServerAccess
from agent_identity.remote_tools import ListedTool, RemoteServer, check_sent, named_request
from agent_identity.runtime.current import (
    Attempt,
    Current,
    activated,
    open_session,
    parent_call_id,
    running_call,
)
from agent_identity.scrubbing import scrubbed, scrubs
from agent_identity.session import current_session, open_detached, state_of
from agent_identity.tool_rules import Rule, Rules
from agent_identity.tools import Tool
from agent_identity.values import agent_uri

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Generator

    from agent_identity.errors import AgentIdentityError
    from agent_identity.identity import AgentIdentity
    from agent_identity.session import Session

__all__ = [
    "Attempt",
    "Call",
    "Caller",
    "ListedTool",
    "RemoteServer",
    "Rule",
    "Rules",
    "ServerAccess",
    "Tool",
    "adelegated",
    "arefuse",
    "astarting",
    "calling_tool",
    "check_owner",
    "check_sent",
    "current_tool_call_id",
    "delegated",
    "is_for_model",
    "mark_owner",
    "named_request",
    "refusal_text",
    "refuse",
    "scrubbed",
    "scrubs",
    "starting",
    "tls_context",
    "tool_of",
    "within",
    "wrap",
]


@contextlib.contextmanager
def within(
    session: Session | None, *, tool_call_id: str | None = None, attempt: Attempt | None = None
) -> Generator[Session]:
    """Run the block under the session that the framework carried here; None is the current session.

    `tool_call_id` is the model's id of the tool call in the block; `who_triggered` finds it. `attempt` says which interrupted
    call this one continues, and gets the id of the call that is made.

    Raises:
        NoSessionError: there is no session.
    """
    entered = session or current_session()
    state = state_of(entered)
    with activated(Current(state.reference, running_call(state), tool_call_id, attempt)):
        yield entered


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


def current_tool_call_id() -> str | None:
    """The model's id of the tool call that begins here, None if `within` was given none."""
    return open_session()[1].tool_call_id


def refuse(name: str, error: AgentIdentityError) -> None:
    """Record that a call of the tool `name` was refused, because the adapter can't guard that tool.

    The call belongs to the current session, and `within` gives the model's id of it. `error` gets its `call_id`.

    Raises:
        NoSessionError: there is no current session.
    """
    _make_call(name).refuse(error)


async def arefuse(name: str, error: AgentIdentityError) -> None:
    """The async twin of `refuse`."""
    await _make_call(name).arefuse(error)


def _make_call(name: str) -> Call:
    session, entry = open_session()
    # The name may be a model's own text, with characters that a record can't contain.
    tool = Tool(name.encode("utf-8", "replace").decode())
    parent_id = parent_call_id(session, entry)
    return Call(session, tool, {}, entry.tool_call_id, parent_id=parent_id)


def refusal_text(error: AgentIdentityError) -> str:
    """The text for a model about a refusal: its code and remedy, without arguments or the policy's reason."""
    help_text = f" {error.remedy}" if error.remedy else ""
    return f"The call was refused and did not run ({error.code}).{help_text}"


_FOREIGN_RESUME: Final = "resumed_by_another"
_STOPS: Final = frozenset({_FOREIGN_RESUME, "call_running"})


def mark_owner() -> str:
    """A mark of the current session's principal, for a framework to store with an interrupted call. It names nobody.

    Raises:
        NoSessionError: there is no session.
    """
    salt = secrets.token_hex(16)
    return f"{salt}.{_digest_owner(salt)}"


def check_owner(mark: object) -> None:
    """Check that an interrupted call goes on for the principal whose `mark_owner` is stored with it.

    Raises:
        NoSessionError: there is no session.
        DeniedError: it is another principal, or the mark can't be read.
    """
    salt, _, digest = mark.partition(".") if isinstance(mark, str) else ("", "", "")
    if not hmac.compare_digest(_digest_owner(salt).encode(), digest.encode()):
        raise DeniedError(
            _FOREIGN_RESUME,
            "the interrupted call belongs to another principal",
            remedy="resume it in a session of the principal whose call was interrupted",
        )


def _digest_owner(salt: str) -> str:
    state = state_of(current_session())
    owner = state.parts.own_principal(state.principal)
    return hashlib.sha256(f"{salt}\0{owner}".encode()).hexdigest()


def is_for_model(error: AgentIdentityError) -> bool:
    """Whether the model is told of an error; any other one stops the run.

    The refusal of a resumption stops the run, because an answer to the model would use up the interrupt.
    """
    return isinstance(error, DeniedError) and error.code not in _STOPS


def tls_context(identity: AgentIdentity) -> ssl.SSLContext:
    """A TLS context that trusts what the identity trusts, for an adapter's own HTTP client."""
    return parts_of(identity).world.context(None)
