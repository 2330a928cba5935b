# SPDX-License-Identifier: Apache-2.0
"""A session: the verbs that users call, and the current session and credential.

`with` and `async with` run the same flows. The data of a session is its `SessionState`.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, ParamSpec, Self, TypeVar

from agent_identity.credentials.agent import Agent
from agent_identity.errors import ConfigurationError, DeniedError
from agent_identity.flow import arun, run
from agent_identity.pipeline import Call
from agent_identity.runtime import acquire
from agent_identity.runtime.current import (
    bind,
    current_parent_id,
    enter,
    leave,
    open_session,
    running_call,
)
from agent_identity.runtime.grants import record_grant
from agent_identity.runtime.handover import inject, read_recipient_key, sign_handover
from agent_identity.runtime.lifetime import Life, exit_method
from agent_identity.runtime.options import Options
from agent_identity.runtime.state import SessionState
from agent_identity.values import LOCAL, agent_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping
    from types import TracebackType

    import httpx

    from agent_identity.flow import Flow
    from agent_identity.http.credential import Credential
    from agent_identity.provenance.records import Record
    from agent_identity.runtime.current import Entered, RunningCall
    from agent_identity.tools import Tool
    from agent_identity.values import JSON, Principal

__all__ = [
    "Session",
    "current_credential",
    "current_session",
    "open_detached",
    "session_of",
    "state_of",
]

P = ParamSpec("P")
R = TypeVar("R")

_SETTLED: Final = {
    "policy": "pass policy= when the identity is made",
    "approver": "pass approver= when the identity is made",
    **{
        name: f"pass {name}= to on_behalf_of(…), or open a narrower session with delegate(…)"
        for name in ("authorization_details", "budget", "expires_in", "resources", "scopes")
    },
}
"""Attributes that users might try to set, and the remedy for each."""


class Session:
    """Work for one principal. Make it with `identity.on_behalf_of(…)`, then enter it with `with` or `async with`."""

    def __init__(self, state: SessionState) -> None:
        self._state = state
        self._life: Life = state.life
        self._entered: Entered | None = None
        state.face = weakref.ref(self)

    def __enter__(self) -> Self:
        self._state.begin()
        try:
            self._open()
            self._entered = enter(self._state.reference)
        except BaseException:
            self._end()
            raise
        return self

    def _open(self) -> None:
        state = self._state
        if state.verify is not None:
            state.set_verified(run(state.verify(), state.parts.world.answer))
        state.set_pseudonym(state.parts.ledger.pseudonym(state.principal))
        run(_record_opening(state), state.parts.world.answer)

    async def __aenter__(self) -> Self:
        state = self._state
        state.begin()
        try:
            if state.verify is not None:
                state.set_verified(await arun(state.verify(), state.parts.world.aanswer))
            state.set_pseudonym(
                await asyncio.to_thread(state.parts.ledger.pseudonym, state.principal)
            )
            await arun(_record_opening(state), state.parts.world.aanswer)
            self._entered = enter(state.reference)
        except BaseException:
            self._end()
            raise
        return self

    @exit_method
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        if self._end():
            self._state.close("left" if error is None else "failed")

    @exit_method
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        if self._end():
            await self._state.aclose("left" if error is None else "failed")

    def _end(self) -> bool:
        """End it, and restore the context; False if a revocation had already ended it, and recorded that."""
        was_open = self._state.end()
        entered, self._entered = self._entered, None
        if entered is not None:
            leave(entered)
        return was_open

    @property
    def id(self) -> str:
        """Its id, `ses_…`."""
        return self._state.id

    @property
    def txn(self) -> str:
        """The transaction's id: that of the principal's session, the same for all sessions below it."""
        return self._state.txn

    @property
    def principal(self) -> Principal:
        """The principal. If a token names them, they are known after the session was entered."""
        return self._state.principal

    @property
    def agent(self) -> str:
        """The URI of the agent that acts."""
        return self._state.agent.uri

    @property
    def chain(self) -> tuple[str, ...]:
        """The URIs of the agents in the chain: this session's first, the principal's own agent last."""
        return self._state.chain

    @property
    def depth(self) -> int:
        """How many delegations are above it."""
        return self._state.depth

    @property
    def purpose(self) -> str:
        """The purpose that was passed to `on_behalf_of`."""
        return self._state.purpose

    @property
    def task(self) -> str | None:
        """What this agent is to do."""
        return self._state.task

    @property
    def expires_at(self) -> float:
        """When it expires, in Unix seconds."""
        return self._state.expires_at

    @property
    def is_open(self) -> bool:
        """Whether its block was entered and not left. It may have expired, or been revoked, all the same."""
        return self._life.is_open

    @property
    def call_id(self) -> str | None:
        """Inside a tool, the id of the running call."""
        call = self._running
        return None if call is None else call.call_id

    @property
    def _running(self) -> RunningCall | None:
        return running_call(self._state)

    def records(self) -> list[Record]:
        """The records of this session in the ledger, in order."""
        return self._state.parts.ledger.session_records(self.id)

    def delegate(
        self,
        agent: str,
        *,
        key: Mapping[str, object] | None = None,
        task: str | None = None,
        scopes: Iterable[str] | None = None,
        resources: Iterable[str] | None = None,
        authorization_details: Iterable[Mapping[str, JSON]] | None = None,
        expires_in: float | None = None,
    ) -> Session:
        """Open a session for a sub-agent; it can't exceed this one. Enter it with `with` or `async with`.

        `scopes` and `resources` default to this session's; `()` is none. `expires_in` is the longest lifetime in seconds.
        `authorization_details` are RFC 9396 objects of the type `urn:agent-identity:tool`: the tools that the child may call,
        with which arguments.

        With `key`, the public JWK of another process, the work is handed over: the grant is signed at once, and `resources` are
        required. Don't enter the child: this process can't act by it. Send it to the other agent with `inject`. It ends with this
        session, or by `revoke`.

        Raises:
            DeniedError: the child would exceed this session or its depth, or the agent is already in its chain.
        """
        options = Options.read(
            task=task,
            scopes=scopes,
            resources=resources,
            authorization_details=authorization_details,
            expires_in=expires_in,
        )
        child = self._make_child(agent, options)
        if key is not None:
            run(_hand_over(child, read_recipient_key(key)), child.parts.world.answer)
        return Session(child)

    async def adelegate(
        self,
        agent: str,
        *,
        key: Mapping[str, object] | None = None,
        task: str | None = None,
        scopes: Iterable[str] | None = None,
        resources: Iterable[str] | None = None,
        authorization_details: Iterable[Mapping[str, JSON]] | None = None,
        expires_in: float | None = None,
    ) -> Session:
        """The async twin of `delegate`; it waits only to sign a hand-over."""
        options = Options.read(
            task=task,
            scopes=scopes,
            resources=resources,
            authorization_details=authorization_details,
            expires_in=expires_in,
        )
        child = self._make_child(agent, options)
        if key is not None:
            await arun(_hand_over(child, read_recipient_key(key)), child.parts.world.aanswer)
        return Session(child)

    def _make_child(self, agent: str, options: Options) -> SessionState:
        state = self._state
        uri = agent_uri(agent)
        state.parts.gate.check_open()
        state.check(state.parts.clock())
        if state.depth >= state.max_depth:
            raise DeniedError(
                "depth_exceeded",
                f"this chain already has {state.max_depth} delegations, its maximum",
            )
        if uri in state.chain:
            raise DeniedError("actor_repeated", f"{uri} is already in this chain")
        now = state.parts.clock()
        return SessionState(
            state.parts,
            state.principal,
            agent=Agent(uri),
            parent=state,
            purpose=state.purpose,
            task=options.task,
            limits=state.limits.narrow(uri, options.scopes, options.resources, options.details),
            expires_at=min(state.expires_at, now + options.lifetime(state.expires_at - now)),
            max_depth=state.max_depth,
            evidence=state.evidence,
            trigger=state.trigger,
            subject=state.subject,
        )

    def call(
        self, tool: Tool, arguments: Mapping[str, object], *, tool_call_id: str | None = None
    ) -> Call:
        """Make a tool call of this session, a context manager around the tool's body; for adapters.

        `tool_call_id` is the model's own id of the call, if the framework has one.
        """
        parent_id = current_parent_id(self._state)
        return Call(self._state, tool, arguments, tool_call_id, parent_id=parent_id)

    def credential(self, resource: str, scopes: Iterable[str] | None = None) -> Credential:
        """Get a credential outside any tool: policy decides on it, and it is recorded, but its requests assert no call.

        Our own `Verifier` refuses its requests (`assertion_missing`) unless it allows `unasserted`.

        Raises:
            DeniedError: policy or the session's limits refuse it.
            CredentialError: the issuer refused or could not be reached.
        """
        return acquire.acquire(self._state, resource, scopes)

    async def acredential(self, resource: str, scopes: Iterable[str] | None = None) -> Credential:
        """The async twin of `credential`."""
        return await acquire.aacquire(self._state, resource, scopes)

    def http(self, resource: str | None = None) -> httpx.Client:
        """Make an httpx client that signs every request and can't leave its resource, by default the running tool's.

        Inside a tool of that resource, a request asserts the call. Outside it has only the credential and the chain, and our own
        `Verifier` refuses it (`assertion_missing`) unless it allows `unasserted`.
        """
        return acquire.client(self._state, self._find_resource(resource))

    def ahttp(self, resource: str | None = None) -> httpx.AsyncClient:
        """The async twin of `http`; make and use the client in one event loop."""
        return acquire.aclient(self._state, self._find_resource(resource))

    def _find_resource(self, resource: str | None) -> str:
        if resource is not None:
            return resource
        call = self._running
        if call is None or call.tool.resource == LOCAL:
            raise ConfigurationError(
                "no_resource",
                "no tool with a resource is running",
                remedy="pass the resource",
            )
        return call.tool.resource

    def inject(
        self,
        carrier: MutableMapping[str, Any],
        *,
        form: Literal["headers", "meta", "message"] | None = None,
    ) -> None:
        """Write this session into an outgoing request or message.

        For a session from `delegate(…, key=…)`, this writes its grants. Inside a tool, it writes the assertion and the chain of
        the running call. W3C trace context is added in both cases.

        `carrier` is the headers of a request, MCP's `_meta` (`form="meta"`) or a message (`form="message"`). Without `form`, a
        carrier that already has our `_meta` members is `_meta`, and any other one is headers. In `_meta`, the assertion names the
        resource's access token, which the same request carries; in a message, it names none.

        Raises:
            ConfigurationError: there is nothing to write, or the carrier is unsuitable for it.
            DeniedError: the session has ended.
        """
        inject(self._state, carrier, form)

    def bind(self, function: Callable[P, R]) -> Callable[P, R]:
        """Carry this session into a thread or an executor: `executor.submit(session.bind(fn), …)`.

        Threads don't inherit context variables, and a pool's worker may still have those of another job.

        Raises:
            ConfigurationError: `function` is a generator function, whose body would run where it is iterated.
        """
        return bind(self._state, function)

    def revoke(self, reason: str) -> None:
        """End this session and everything below it, now; `reason` goes into the record.

        Raises:
            NoSessionError: it was never entered.
        """
        if not self._state.revoke():
            return
        self._state.close(f"revoked: {reason}")
        self._state.parts.gate.wait_for_beginnings()

    async def arevoke(self, reason: str) -> None:
        """The async twin of `revoke`."""
        if not self._state.revoke():
            return
        await self._state.aclose(f"revoked: {reason}")
        await asyncio.to_thread(self._state.parts.gate.wait_for_beginnings)

    def __reduce_ex__(self, protocol: object, /) -> NoReturn:
        # A copy would go on acting after the original has ended.
        raise TypeError("a Session can't be pickled or copied")

    def __repr__(self) -> str:
        return f"<Session {self.id} of {self.agent}, {self._life.state}>"


def current_session() -> Session:
    """The session of the running code.

    Raises:
        NoSessionError: there is no session, it has ended, or it is ambiguous.
    """
    return session_of(open_session()[0])


def state_of(session: Session) -> SessionState:
    """The state of a session; for adapters."""
    return session._state  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - users have no use for it


def open_detached(session: Session) -> None:
    """Open a session without making it current; for adapters. Its `__exit__` ends it."""
    state_of(session).begin()
    try:
        session._open()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as in `state_of`
    except BaseException:
        session._end()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        raise


def session_of(state: SessionState) -> Session:
    """The `Session` that users hold of a state."""
    face = None if state.face is None else state.face()
    return face if isinstance(face, Session) else Session(state)


def current_credential() -> Credential:
    """The credential of the running tool, for `auth=` of an httpx client, or for plain headers.

    Raises:
        NoSessionError: there is no current session.
        ConfigurationError: no tool is running, or the running one has no resource.
    """
    call = open_session()[1].call
    if call is None or call.tool.resource == LOCAL:
        raise ConfigurationError(
            "no_resource",
            "no tool with a resource is running",
            remedy="give the tool a resource, or use session.credential(resource)",
        )
    return call.credential()


def _record_opening(state: SessionState) -> Flow[None]:
    state.register()
    yield from state.record_opening()
    if state.accepted is not None and state.parent is None:
        yield from record_grant(state, state.accepted.grants)


def _hand_over(child: SessionState, jkt: str) -> Flow[None]:
    """Sign the grant for another process; from then on only that process acts by the child."""
    handed = yield from sign_handover(child, jkt)
    child.life.handed = handed
    child.history.note_handover(handed[0].jti)
    child.life.end_by(handed[0].exp)
    child.register()
    yield from child.record_opening()
    try:
        child.life.hand_over(child)
    except DeniedError:  # the parent ended while the grant was signed
        child.end()
        yield from child.closing("left")
        raise


class _Settled:
    """Refuses to set an attribute that would have no effect on the session.

    A descriptor, because `__setattr__` would run for each attribute of each session.
    """

    def __init__(self, name: str, remedy: str) -> None:
        self._name = name
        self._remedy = remedy

    def __get__(self, session: Session | None, kind: type[Session]) -> NoReturn:
        raise AttributeError(f"{kind.__name__!r} object has no attribute {self._name!r}")

    def __set__(self, session: Session, value: object) -> None:
        raise ConfigurationError(
            "attribute_settled",
            f"{self._name} of a session can't be set after it was opened",
            remedy=self._remedy,
        )


for _name, _remedy in _SETTLED.items():
    setattr(Session, _name, _Settled(_name, _remedy))
