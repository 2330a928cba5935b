# SPDX-License-Identifier: Apache-2.0
"""One on-behalf-of context: who is acted for, by which agent, within which limits, until when.

`with` and `async with` are two thin shells around the same flows; how long it acts is its `Life`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import weakref
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, ParamSpec, Self, TypeVar

from agent_identity.credentials.agent import Agent
from agent_identity.delegation.details import details_from
from agent_identity.errors import ConfigurationError, DeniedError, LedgerError, NoSessionError
from agent_identity.flow import Append, Draft, arun, run
from agent_identity.forks import start_over_in_child
from agent_identity.lifecycle.revocation import revoked_error
from agent_identity.pipeline import Call
from agent_identity.policy.history import accepted_history, new_history
from agent_identity.provenance.records import SESSION_CLOSED, SESSION_OPENED
from agent_identity.runtime import acquire
from agent_identity.runtime.acquire import grant_made
from agent_identity.runtime.closing import given_back
from agent_identity.runtime.current import bound, current, enter, leave
from agent_identity.runtime.handover import checked_key, handed_over, inject
from agent_identity.runtime.lifetime import SKEW, Life, Proof, way_out
from agent_identity.uris import resource_set
from agent_identity.values import LOCAL, Principal, agent_uri, checked_task, new_id, scope_set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping
    from types import TracebackType

    import httpx

    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.source import Renewal, Subject, Verified
    from agent_identity.delegation.chain import Handover
    from agent_identity.delegation.grant import Grant
    from agent_identity.delegation.limits import Limits
    from agent_identity.flow import Flow
    from agent_identity.http.credential import Credential
    from agent_identity.keys.signing import JWK
    from agent_identity.lifecycle import Reference
    from agent_identity.policy.history import History
    from agent_identity.provenance.records import Record
    from agent_identity.runtime.acquire import Reach
    from agent_identity.runtime.current import Entered
    from agent_identity.runtime.parts import Parts, Resource
    from agent_identity.tools import Tool
    from agent_identity.values import JSON

__all__ = ["Session"]

P = ParamSpec("P")
R = TypeVar("R")

SHORTEST: Final = 2
"""Seconds that a session lasts at least: grants end on whole seconds, and one that ends within a second serves nobody."""

_SETTLED: Final = {
    "policy": "pass policy= when the identity is made",
    "approver": "pass approver= when the identity is made",
    **{
        name: f"pass {name}= to on_behalf_of(…), or open a narrower session with delegate(…)"
        for name in ("authorization_details", "budget", "expires_in", "resources", "scopes")
    },
}
"""What looks as if it could be set at a session, and where it is given instead."""

_log: Final = logging.getLogger("agent_identity")


class Session:
    """Work for one principal. Make it with `identity.on_behalf_of(…)`, then enter it with `with` or `async with`."""

    def __init__(
        self,
        parts: Parts,
        principal: Principal | None,
        *,
        agent: Agent,
        parent: Session | None,
        purpose: str,
        task: str | None,
        limits: Limits,
        expires_at: float,
        max_depth: int,
        evidence: str,
        trigger: str | None = None,
        subject: Subject | None = None,
        verify: Callable[[Session], Flow[Verified]] | None = None,
        taken_over: Handover | None = None,
    ) -> None:
        self.parts = parts
        self.id: str = new_id("ses_")
        self._principal = principal
        self.subject = subject
        self._verify = verify
        self.purpose = purpose
        self.task = task
        self.agent = agent
        self.parent = parent
        self.limits = limits
        self.max_depth = max_depth
        self.evidence: str = evidence
        self.trigger = trigger
        self.taken_over = taken_over
        above_life = None if parent is None else parent.life
        self.life: Life = Life(self.id, above_life, expires_at, parts.clock)
        above = () if taken_over is None else taken_over.grants[1:]
        root_txn = self.id if taken_over is None else taken_over.grants[0].txn
        self.txn: str = root_txn if parent is None else parent.txn
        self.depth: int = len(above) if parent is None else parent.depth + 1
        self.chain: tuple[str, ...] = (
            agent.uri,
            *(parent.chain if parent else (grant.agent for grant in above)),
        )
        self.anchor_key: JWK | None = (
            taken_over.anchor_key if taken_over else parent.anchor_key if parent else None
        )
        self.history: History = (
            parent.history
            if parent is not None
            else accepted_history(self.txn, taken_over.grants[0].jti)
            if taken_over is not None
            else new_history(self.txn)
        )
        self.reaches: dict[tuple[str, frozenset[str]], Reach] = self.life.reaches
        self.reference: weakref.ReferenceType[Session] = weakref.ref(self)
        self._pseudonym: str | None = None if parent is None else parent.pseudonym
        self.proof: Proof = Proof(parts.clock) if parent is None else parent.proof
        self._entered: Entered | None = None
        self._issued_at: float | None = (
            min(grant.iat for grant in taken_over.grants)
            if taken_over
            else parent.issued_at
            if parent
            else None
        )
        self.cache_keys: set[bytes] = self.life.cache_keys
        self.warned: set[str] = set()
        start_over_in_child(self)
        self._needed: dict[tuple[str, frozenset[str] | None], frozenset[str]] = {}

    # -- entering and leaving ----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._begin()
        try:
            if self._verify is not None:
                self._take(run(self._verify(self), self.parts.world.answer))
            self._pseudonym = self.parts.ledger.pseudonym(self.principal)
            run(self._begun(), self.parts.world.answer)
            self._entered = enter(self.reference)
        except BaseException:
            self._end()
            raise
        return self

    async def __aenter__(self) -> Self:
        self._begin()
        try:
            if self._verify is not None:
                self._take(await arun(self._verify(self), self.parts.world.aanswer))
            self._pseudonym = await asyncio.to_thread(self.parts.ledger.pseudonym, self.principal)
            await arun(self._begun(), self.parts.world.aanswer)
            self._entered = enter(self.reference)
        except BaseException:
            self._end()
            raise
        return self

    @way_out
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        if self._end():
            self._close("left" if error is None else "failed")

    @way_out
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        if self._end():
            await self._aclosed("left" if error is None else "failed")

    def _begin(self) -> None:
        if self.life.handed is not None:
            raise ConfigurationError(
                "session_handed_over",
                "this session is for another process, and nothing in this one acts by it",
                remedy="write it beside a call to that agent with inject(…), outside of any `with`",
            )
        self.parts.gate.check()
        self.life.begin()

    def _take(self, verified: Verified) -> None:
        """The principal's token was verified: from here on it is known who they are, and until when."""
        self._principal = verified.principal
        self.subject = verified.subject
        self.evidence = verified.evidence
        self._issued_at = verified.issued_at
        self.proof.given(verified.proven_until, verified.renew)
        if verified.renew is None:
            self.life.lasts_until(verified.proven_until)

    def _end(self) -> bool:
        """End it, and give the context back; False when a revocation had ended it, and recorded that, before."""
        was_open = self.life.end()
        self._let_go()
        self.parts.revocations.close(self.id)
        entered, self._entered = self._entered, None
        if entered is not None:
            leave(entered)
        return was_open

    def take(self, place: Resource, issued: Issued) -> bool:
        """Remember what was acquired for this session: it is given back when the session ends. False when it has ended."""
        return self.life.taken.add(place.issuer, issued, self.parts.clock())

    def _let_go(self) -> None:
        """Nothing that was acquired for this session, or below it, serves anybody any more."""
        for key in self.life.forget_cached():
            self.parts.world.drop(key)

    def _begun(self) -> Flow[None]:
        if self._issued_at is None:
            self._issued_at = self.parts.clock()
        self.parts.revocations.open(self)
        yield from self._opened()
        if self.taken_over is not None and self.parent is None:
            yield from grant_made(self, self.taken_over.grants)

    def _opened(self) -> Flow[None]:
        parent = self.parent
        yield Append(
            Draft(
                SESSION_OPENED,
                {
                    "purpose": self.purpose,
                    "task": self.task,
                    "agent": self.agent.uri,
                    "depth": self.depth,
                    "parent": None if parent is None else parent.id,
                    "txn": self.txn,
                    "scopes": _listed(self.limits.scopes),
                    "resources": _listed(self.limits.resources),
                    "expires_at": int(self.expires_at),
                    **self._told_of_hand_over(),
                },
                {
                    "sub": self.principal.sub,
                    "iss": self.principal.iss,
                    "profile": self.principal.profile,
                    "trigger": self.trigger,
                },
                pseudonym=self.pseudonym,
                session_id=self.id,
            )
        )

    def _told_of_hand_over(self) -> dict[str, JSON]:
        """Who acts above, for a session that came from another process; whose key it is, for one that goes to one."""
        if self.taken_over is not None:
            above = reversed(self.taken_over.grants[1:])
            return {"above": [_actor(grant) for grant in above]}
        return {} if self.handed is None else {"handed_to": self.handed[0].jkt}

    def _close(self, reason: str) -> None:
        """Give back what was acquired, and record the end."""
        self.parts.gate.sweep()
        run(self._closed(reason), self.parts.world.answer)

    async def _aclosed(self, reason: str) -> None:
        """Close it in a thread, so that a cancelled task or a loop that ends keeps no token from being given back."""
        context, world = contextvars.copy_context(), self.parts.world

        def close() -> None:
            with world.closing():
                context.run(self._close, reason)

        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, close))

    def _closed(self, reason: str) -> Flow[None]:
        yield from given_back(self, self.life.all_taken())
        self._take_back()
        draft = Draft(
            SESSION_CLOSED,
            {"reason": reason.encode(errors="backslashreplace").decode()},
            pseudonym=self.pseudonym,
            session_id=self.id,
        )
        try:
            yield Append(draft)
        except LedgerError as failure:
            self.parts.gate.shut()
            _log.warning("the end of %s could not be recorded (%s)", self.id, failure.code)

    # -- limits ------------------------------------------------------------------------------------------------------

    @property
    def principal(self) -> Principal:
        """Whoever is acted for; known once the session was entered, where it is a token that says so."""
        if self._principal is None:
            raise NoSessionError(
                "session_not_entered",
                "the principal's token is verified when the session is entered",
            )
        return self._principal

    @property
    def pseudonym(self) -> str:
        """What spans and records call the principal."""
        if self._pseudonym is None:
            raise NoSessionError("session_not_entered", "the session has not been entered")
        return self._pseudonym

    @property
    def known_as(self) -> str | None:
        """The pseudonym, None before the session was entered."""
        return self._pseudonym

    @property
    def is_open(self) -> bool:
        """Whether its block was entered and not left; time, parent or revocation may have ended it all the same."""
        return self.life.is_open

    @property
    def expires_at(self) -> float:
        """When it ends at the latest, in Unix seconds."""
        return self.life.expires_at

    @property
    def handed(self) -> tuple[Grant, ...] | None:
        """The chain that was handed over to another process by it, newest first."""
        return self.life.handed

    @property
    def issued_at(self) -> float:
        """When what it rests on was issued, in Unix seconds: the principal's token, the grants that were handed over, or itself."""
        return self.parts.clock() if self._issued_at is None else self._issued_at

    def names(self) -> frozenset[str]:
        """What it may be revoked by: its principal, agent, session and transaction, and the grants that were handed over."""
        grants = [] if self.taken_over is None else [grant.jti for grant in self.taken_over.grants]
        if self.handed is not None:
            grants.append(self.handed[0].jti)
        principal = str(self.parts.own_principal(self.principal))
        return frozenset({principal, self.agent.uri, self.id, self.txn, *grants})

    def end_revoked(self, reference: Reference) -> bool:
        """End it because of a revocation; False where it had ended."""
        if self.life.state == "new":
            return False
        was_open = self.life.revoke(revoked_error(reference))
        self._let_go()
        self._take_back()
        return was_open

    def _take_back(self) -> None:
        """Have the authority refuse what was handed over by this session and below it."""
        if self.parts.take_back is not None:
            for grant in self.life.hand_overs():
                self.parts.take_back(grant.jti, grant.exp + SKEW)

    def close_revoked(self, reason: str) -> None:
        """Give back what it acquired, and record its end."""
        with self.parts.world.closing():
            self._close(reason)

    @property
    def is_taken_over(self) -> bool:
        """Whether it, or one above it, came from another process: its chain speaks for the principal, whose token stayed there."""
        return self.anchor_key is not None

    def check(self, now: float) -> None:
        """Pass while this session and every one above it may act; `now` is Unix seconds.

        Raises:
            NoSessionError: it was never entered.
            DeniedError: it ended, or its time is up.
        """
        self.life.check(now)

    def needed(self, resource: str, scopes: frozenset[str] | None) -> frozenset[str]:
        """The scopes that a call asks for, held to what the session and the configuration allow.

        Raises:
            DeniedError: it is more than that, so no request is made.
        """
        known = self._needed.get((resource, scopes))
        if known is not None:
            return known
        configured = self.parts.resources.scopes(resource)
        asked_for = scopes if scopes is not None else self.limits.allowed(resource, configured)
        self.limits.check(resource, asked_for, configured)
        self._needed[resource, scopes] = asked_for
        return asked_for

    # -- what users do with it ---------------------------------------------------------------------------------------

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
        """A session for a sub-agent, below this one and never wider: enter it with `with` or `async with`.

        `scopes` and `resources` default to this session's, `()` is none; `expires_in` is seconds and a ceiling.
        `authorization_details` are RFC 9396 objects of the type `urn:agent-identity:tool`, which say what the child may call with
        which arguments.

        With `key`, the public JWK of another process, the work is handed over: the grant is signed at once, for `resources` that have
        to be named. The child isn't entered, because this process can't act by it; `inject` writes it beside a call to that agent.
        It ends with its parent, or by `revoke`.

        Raises:
            DeniedError: it would be wider, deeper than allowed, or the agent acts in this chain already.
        """
        child = self._child(agent, task, scopes, resources, authorization_details, expires_in)
        if key is not None:
            run(child._hand_over(checked_key(key)), self.parts.world.answer)  # noqa: SLF001 - one of its own
        return child

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
        """The async twin of `delegate`, which waits only where a hand-over is signed."""
        child = self._child(agent, task, scopes, resources, authorization_details, expires_in)
        if key is not None:
            await arun(child._hand_over(checked_key(key)), self.parts.world.aanswer)  # noqa: SLF001 - see `delegate`
        return child

    def _child(
        self,
        agent: str,
        task: str | None,
        scopes: Iterable[str] | None,
        resources: Iterable[str] | None,
        authorization_details: Iterable[Mapping[str, JSON]] | None,
        expires_in: float | None,
    ) -> Session:
        uri = agent_uri(agent)
        self.parts.gate.check_open()
        self.check(self.parts.clock())
        if self.depth >= self.max_depth:
            raise DeniedError(
                "depth_exceeded", f"this chain may be {self.max_depth} delegations deep, and is"
            )
        if uri in self.chain:
            raise DeniedError("actor_repeated", f"{uri} acts in this chain already")
        limits = self.limits.narrowed(
            uri,
            None if scopes is None else scope_set(scopes),
            None if resources is None else resource_set(resources),
            None if authorization_details is None else details_from(authorization_details),
        )
        end = self.expires_at
        if expires_in is not None:
            if not _is_lifetime(expires_in):
                raise ConfigurationError(
                    "expires_in",
                    f"expires_in is seconds, at least {SHORTEST}: a grant ends on a whole second",
                )
            end = min(end, self.parts.clock() + expires_in)
        return Session(
            self.parts,
            self.principal,
            agent=Agent(uri),
            parent=self,
            purpose=self.purpose,
            task=checked_task(task),
            limits=limits,
            expires_at=end,
            max_depth=self.max_depth,
            evidence=self.evidence,
            trigger=self.trigger,
            subject=self.subject,
        )

    def call(
        self, tool: Tool, arguments: Mapping[str, object], *, tool_call_id: str | None = None
    ) -> Call:
        """One tool call under this session, as a context manager around the tool's body; for adapters.

        `tool_call_id` is the model's own id of the call, where a framework has one.
        """
        return Call(self, tool, arguments, tool_call_id)

    def credential(self, resource: str, scopes: Iterable[str] | None = None) -> Credential:
        """A credential outside any tool: decided by policy and recorded, but with no call to assert.

        Our own `Verifier` refuses its requests (`assertion_missing`) unless it allows `unasserted`.

        Raises:
            DeniedError: policy or the session's limits refuse it.
            CredentialError: the issuer refused or could not be reached.
        """
        with acquire.traced(self, resource):
            return run(acquire.credential(self, resource, scopes), self.parts.world.answer)

    async def acredential(self, resource: str, scopes: Iterable[str] | None = None) -> Credential:
        """The async twin of `credential`."""
        with acquire.traced(self, resource):
            return await arun(acquire.credential(self, resource, scopes), self.parts.world.aanswer)

    def renewed(self, reached: Reach, renewal: Renewal, call: Call | None) -> Flow[Reach]:
        """The credential of a resource that refused the one it was shown; for credentials."""
        return acquire.renewed(self, reached, renewal, call)

    def http(self, resource: str | None = None) -> httpx.Client:
        """An httpx client that signs every request and can't leave its resource; default: the running tool's.

        Inside a tool of that resource a request asserts the call. Outside one it carries credential and delegation alone, which our
        own `Verifier` refuses (`assertion_missing`) unless it allows `unasserted`.
        """
        return acquire.client(self, self._place(resource))

    def ahttp(self, resource: str | None = None) -> httpx.AsyncClient:
        """The async twin of `http`; to be made and used inside one event loop."""
        return acquire.aclient(self, self._place(resource))

    def _place(self, resource: str | None) -> str:
        if resource is not None:
            return resource
        call = self.running
        if call is None or call.tool.resource == LOCAL:
            raise ConfigurationError(
                "no_resource",
                "there is no running tool with a resource",
                remedy="name the resource",
            )
        return call.tool.resource

    @property
    def running(self) -> Call | None:
        """The call of this session that the current code is part of."""
        try:
            found = current()
        except NoSessionError:
            return None
        if found is None or found.session() is not self:
            return None
        return found.call

    def _hand_over(self, jkt: str) -> Flow[None]:
        self._pseudonym = self.pseudonym
        handed = yield from handed_over(self, jkt)
        self.life.handed = handed
        self.history.hand_over(handed[0].jti)
        self.life.lasts_until(handed[0].exp)
        self.parts.revocations.open(self)
        yield from self._opened()
        try:
            self.life.hand_over(self)
        except DeniedError:  # it ended while this was signed, and knew nothing of it yet
            self._end()
            yield from self._closed("left")
            raise

    def inject(
        self,
        carrier: MutableMapping[str, Any],
        *,
        form: Literal["headers", "meta", "message"] | None = None,
    ) -> None:
        """Write into what travels: of a session that `delegate(…, key=…)` gave, its grants; inside a tool, the call's assertion.

        `carrier` is the headers of a request, MCP's `_meta` (`form="meta"`) or a message (`form="message"`); by default what the
        carrier is by what stands in it already. In `_meta` the assertion names the resource's access token, which goes in the
        same request; in a message it names none. W3C trace context goes along.

        Raises:
            ConfigurationError: there is nothing to write, or not into such a carrier.
            DeniedError: it has ended.
        """
        inject(self, carrier, form)

    def bind(self, function: Callable[P, R]) -> Callable[P, R]:
        """Carry this session into a thread or an executor: `executor.submit(session.bind(fn), …)`.

        Context variables don't follow into threads by themselves, and what a pool's worker has left over isn't trusted.

        Raises:
            ConfigurationError: a generator function, whose body runs wherever it is iterated.
        """
        return bound(self, function)

    def revoke(self, reason: str) -> None:
        """End this session and everything below it, now; `reason` goes into the record.

        Raises:
            NoSessionError: it was never entered.
        """
        if not self._revoked():
            return
        self._close(f"revoked: {reason}")

    def _revoked(self) -> bool:
        """Mark it; False when it had ended before, and there is nothing left to revoke."""
        was_open = self.life.revoke()
        self._let_go()
        return was_open

    async def arevoke(self, reason: str) -> None:
        """The async twin of `revoke`."""
        if not self._revoked():
            return
        await self._aclosed(f"revoked: {reason}")

    def start_over(self) -> None:
        """In a forked child: nothing that the parent holds is used; grants are made again at first use, same `txn`."""
        self.life.start_over()
        self.history.renew_lock()
        self.agent.renew()

    def records(self) -> list[Record]:
        """What the ledger holds of this session, in order."""
        return self.parts.ledger.session_records(self.id)

    @property
    def call_id(self) -> str | None:
        """Inside a tool, the id of the running call."""
        call = self.running
        return None if call is None else call.call_id

    def __reduce_ex__(self, protocol: object, /) -> NoReturn:
        # A copy would go on acting after the original has ended.
        raise TypeError("a Session can't be pickled or copied")

    def __repr__(self) -> str:
        return f"<Session {self.id} of {self.agent.uri}, {self.life.state}>"


class _Settled:
    """A name that a session doesn't have. Setting it would look as if it limited the session, and change nothing.

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


def _actor(grant: Grant) -> dict[str, JSON]:
    """What a record says of an agent that acts above, in another process."""
    return {
        "agent": grant.agent,
        "depth": grant.depth,
        "scope": [*sorted(grant.scopes)],
        "evidence": grant.evidence,
    }


def _is_lifetime(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and given >= SHORTEST


def _listed(limit: frozenset[str] | None) -> list[JSON] | None:
    return None if limit is None else [*sorted(limit)]
