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

from agent_identity import outside
from agent_identity.carrying import bound
from agent_identity.credentials.agent import Agent
from agent_identity.current import CURRENT, Current
from agent_identity.delegation.details import details_from
from agent_identity.errors import ConfigurationError, DeniedError, LedgerError, NoSessionError
from agent_identity.flow import Append, Draft, arun, run
from agent_identity.forks import start_over_in_child
from agent_identity.giving_back import given_back
from agent_identity.handover import checked_key, handed_over, inject
from agent_identity.life import SKEW, Life
from agent_identity.pipeline import Call
from agent_identity.policy.history import History
from agent_identity.proof import Proof
from agent_identity.provenance.records import SESSION_CLOSED, SESSION_OPENED
from agent_identity.reach import grant_made
from agent_identity.uris import resource_set
from agent_identity.values import LOCAL, Principal, agent_uri, checked_task, new_id, scope_set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping
    from contextvars import Token
    from types import TracebackType

    import httpx

    from agent_identity.credentials.oauth import Issued
    from agent_identity.credentials.source import Renewal, Subject, Verified
    from agent_identity.delegation.grant import Grant
    from agent_identity.delegation.limits import Limits
    from agent_identity.described import Tool
    from agent_identity.flow import Flow
    from agent_identity.http.credential import Credential
    from agent_identity.keys import JWK
    from agent_identity.parts import Parts, Resource
    from agent_identity.provenance.records import Record
    from agent_identity.reach import Reach
    from agent_identity.values import JSON
    from agent_identity.verify.verified import Handover

__all__ = ["Session"]

P = ParamSpec("P")
R = TypeVar("R")

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
        self.history: History = History() if parent is None else parent.history
        self.reaches: dict[tuple[str, frozenset[str]], Reach] = {}
        self.reference: weakref.ReferenceType[Session] = weakref.ref(self)
        self._pseudonym: str | None = None if parent is None else parent.pseudonym
        self.proof: Proof = Proof(parts.clock) if parent is None else parent.proof
        self._token: Token[Current | None] | None = None
        self.cache_keys: set[bytes] = set()
        start_over_in_child(self)
        self._needed: dict[tuple[str, frozenset[str] | None], frozenset[str]] = {}

    # -- entering and leaving ----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if (
            self.life.state == "handed"
        ):  # it acts elsewhere: the block is its life, and isn't run by it
            return self
        self._begin()
        try:
            if self._verify is not None:
                self._take(run(self._verify(self), self.parts.world.answer))
            self._pseudonym = self.parts.ledger.pseudonym(self.principal)
            run(self._entered(), self.parts.world.answer)
        except BaseException:
            self.life.end()
            raise
        self._make_current()
        return self

    async def __aenter__(self) -> Self:
        if self.life.state == "handed":
            return self
        self._begin()
        try:
            if self._verify is not None:
                self._take(await arun(self._verify(self), self.parts.world.aanswer))
            self._pseudonym = await asyncio.to_thread(self.parts.ledger.pseudonym, self.principal)
            await arun(self._entered(), self.parts.world.aanswer)
        except BaseException:
            self.life.end()
            raise
        self._make_current()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        if self._end():
            run(self._closed("left" if error is None else "failed"), self.parts.world.answer)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        if self._end():
            await self._aclosed("left" if error is None else "failed")

    def _begin(self) -> None:
        self.parts.gate.check()
        self.life.begin()

    def _take(self, verified: Verified) -> None:
        """The principal's token was verified: from here on it is known who they are, and until when."""
        self._principal = verified.principal
        self.subject = verified.subject
        self.evidence = verified.evidence
        self.proof.given(verified.proven_until, verified.renew)
        if verified.renew is None:
            self.life.lasts_until(verified.proven_until)

    def _make_current(self) -> None:
        self._token = CURRENT.set(Current(self.reference, None))

    def _end(self) -> bool:
        """End it, and give the context back; False when a revocation had ended it, and recorded that, before."""
        was_open = self.life.end()
        self._let_go()
        token, self._token = self._token, None
        if token is None:
            return was_open
        try:
            CURRENT.reset(token)
        except ValueError:
            # Entered in one context, left in another (an async generator's, say). The session has ended all the same,
            # and what is left behind in that context points to an ended session, which is none.
            _log.warning("session %s was left in another context than it was entered in", self.id)
        return was_open

    def take(self, place: Resource, issued: Issued) -> bool:
        """Remember what was acquired for this session: it is given back when the session ends. False when it has ended."""
        return self.life.taken.add(place.issuer, issued, self.parts.clock())

    def _let_go(self) -> None:
        """Nothing that was acquired for this session serves anybody any more."""
        self.reaches.clear()
        for key in list(self.cache_keys):
            self.parts.world.drop(key)
        self.cache_keys.clear()

    def _entered(self) -> Flow[None]:
        yield from self._opened()
        if self.taken_over is not None and self.parent is None:
            yield from grant_made(self, self.taken_over.grants)

    def _opened(self) -> Flow[None]:
        parent = self.parent
        yield Append(
            Draft(
                SESSION_OPENED,
                self.pseudonym,
                self.id,
                None,
                None,
                None,
                None,
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
            )
        )

    def _told_of_hand_over(self) -> dict[str, JSON]:
        """Who acts above, for a session that came from another process; whose key it is, for one that goes to one."""
        if self.taken_over is not None:
            above = reversed(self.taken_over.grants[1:])
            return {"above": [_actor(grant) for grant in above]}
        return {} if self.handed is None else {"handed_to": self.handed[0].jkt}

    async def _aclosed(self, reason: str) -> None:
        """Close it in a thread: whoever cancels this task, or ends its loop, keeps no token from being given back."""
        context, world = contextvars.copy_context(), self.parts.world

        def close() -> None:
            with world.closing():
                context.run(run, self._closed(reason), world.answer)

        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, close))

    def _closed(self, reason: str) -> Flow[None]:
        yield from given_back(self, self.life.all_taken())
        if self.parts.take_back is not None:
            for grant in self.life.hand_overs():
                self.parts.take_back(grant.jti, grant.exp + SKEW)
        draft = Draft(
            SESSION_CLOSED,
            self.pseudonym,
            self.id,
            None,
            None,
            None,
            None,
            {"reason": reason.encode(errors="backslashreplace").decode()},
            None,
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
        asked_for = scopes if scopes is not None else (configured or frozenset[str]())
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
        to be named, this process can't act by it, and `inject` writes it beside a call to that agent.

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
                raise ConfigurationError("expires_in", "expires_in is seconds, at least one")
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

        Raises:
            DeniedError: policy or the session's limits refuse it.
            CredentialError: the issuer refused or could not be reached.
        """
        with outside.traced(self, resource):
            return run(outside.credential(self, resource, scopes), self.parts.world.answer)

    async def acredential(self, resource: str, scopes: Iterable[str] | None = None) -> Credential:
        """The async twin of `credential`."""
        with outside.traced(self, resource):
            return await arun(outside.credential(self, resource, scopes), self.parts.world.aanswer)

    def renewed(self, reached: Reach, renewal: Renewal, call: Call | None) -> Flow[Reach]:
        """The credential of a resource that refused the one it was shown; for credentials."""
        return outside.renewed(self, reached, renewal, call)

    def http(self, resource: str | None = None) -> httpx.Client:
        """An httpx client that signs every request and can't leave its resource; default: the running tool's."""
        return outside.client(self, self._place(resource))

    def ahttp(self, resource: str | None = None) -> httpx.AsyncClient:
        """The async twin of `http`; to be made and used inside one event loop."""
        return outside.aclient(self, self._place(resource))

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
        current = CURRENT.get()
        if current is None or current.session() is not self:
            return None
        return current.call

    def _hand_over(self, jkt: str) -> Flow[None]:
        self._pseudonym = self.pseudonym
        handed = yield from handed_over(self, jkt)
        self.life.handed = handed
        self.life.lasts_until(handed[0].exp)
        yield from self._opened()
        try:
            self.life.hand_over()
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
        run(self._closed(f"revoked: {reason}"), self.parts.world.answer)

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
        self.reaches = {}
        self.cache_keys = set()
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


def _actor(grant: Grant) -> dict[str, JSON]:
    """What a record says of an agent that acts above, in another process."""
    return {
        "agent": grant.agent,
        "depth": grant.depth,
        "scope": [*sorted(grant.scopes)],
        "evidence": grant.evidence,
    }


def _is_lifetime(given: object) -> bool:
    return isinstance(given, int | float) and given >= 1


def _listed(limit: frozenset[str] | None) -> list[JSON] | None:
    return None if limit is None else [*sorted(limit)]
