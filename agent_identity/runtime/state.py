# SPDX-License-Identifier: Apache-2.0
"""The state of one session: its agent, principal and limits, and how it opens and closes.

The library works on a `SessionState`. Users have a `Session`, which has the verbs.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialUnavailableError,
    LedgerError,
    NoSessionError,
)
from agent_identity.flow import Append, Draft, run
from agent_identity.forks import start_over_in_child
from agent_identity.lifecycle.revocation import revoked_error
from agent_identity.policy.history import begin_history, join_history
from agent_identity.policy.request import Facts, Request
from agent_identity.provenance.records import CREDENTIAL_REVOKED, SESSION_CLOSED, SESSION_OPENED
from agent_identity.runtime.lifetime import SKEW, Life, Proof
from agent_identity.values import new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.source import Revoker, Subject, Verified
    from agent_identity.delegation.chain import Handover
    from agent_identity.delegation.grant import Grant
    from agent_identity.delegation.limits import Limits
    from agent_identity.flow import Flow
    from agent_identity.keys.signing import JWK
    from agent_identity.lifecycle import Reference
    from agent_identity.policy.history import History, Past
    from agent_identity.policy.request import Entity
    from agent_identity.runtime.parts import Parts, Resource
    from agent_identity.runtime.reach import Reach
    from agent_identity.values import JSON, Principal

_log: Final = logging.getLogger("agent_identity")


class SubAgents(Protocol):
    """Sessions of sub-agents that end together."""

    def end(self) -> None: ...


class SessionState:
    """The data of a session, without the verbs that users call.

    `parent` is the session that delegated to this one, None for one of a principal, and for one that this process `accepted` from
    another. `verify` makes the flow that verifies the principal's token when the session is entered; without it, `principal` is
    known.
    """

    def __init__(
        self,
        parts: Parts,
        principal: Principal | None,
        *,
        agent: Agent,
        parent: SessionState | None,
        purpose: str,
        task: str | None,
        limits: Limits,
        expires_at: float,
        max_depth: int,
        evidence: str,
        trigger: str | None = None,
        subject: Subject | None = None,
        verify: Callable[[], Flow[Verified]] | None = None,
        accepted: Handover | None = None,
    ) -> None:
        self.parts = parts
        self.id: str = new_id("ses_")
        self._principal = principal
        self.subject = subject
        self.verify = verify
        self.purpose = purpose
        self.task = task
        self.agent = agent
        self.parent = parent
        self.limits = limits
        self.max_depth = max_depth
        self.evidence: str = evidence
        self.trigger = trigger
        self.accepted = accepted
        above_life = None if parent is None else parent.life
        self.life: Life = Life(self.id, above_life, expires_at, parts.clock)
        above = () if accepted is None else accepted.grants[1:]
        root_txn = self.id if accepted is None else accepted.grants[0].txn
        self.txn: str = root_txn if parent is None else parent.txn
        self.depth: int = len(above) if parent is None else parent.depth + 1
        self.chain: tuple[str, ...] = (
            agent.uri,
            *(parent.chain if parent else (grant.agent for grant in above)),
        )
        self.anchor_key: JWK | None = (
            accepted.anchor_key if accepted else parent.anchor_key if parent else None
        )
        self.history: History = (
            parent.history
            if parent is not None
            else join_history(self.txn, accepted.grants[0].jti)
            if accepted is not None
            else begin_history(self.txn)
        )
        self.reaches: dict[tuple[str, frozenset[str]], Reach] = self.life.reaches
        self.reference: weakref.ReferenceType[SessionState] = weakref.ref(self)
        self.face: weakref.ReferenceType[Any] | None = None
        """The `Session` that users hold."""
        self._pseudonym: str | None = None if parent is None else parent.pseudonym
        self.proof: Proof = Proof(parts.clock) if parent is None else parent.proof
        self._issued_at: float | None = (
            min(grant.iat for grant in accepted.grants)
            if accepted
            else parent.issued_at
            if parent
            else None
        )
        self.cache_keys: set[bytes] = self.life.cache_keys
        self.warned: set[str] = set()
        self.sub_agents: dict[str, SubAgents] = {}
        """The sessions of agents that it hands work on to, by name; they end with this one."""
        start_over_in_child(self)
        self._needed: dict[tuple[str, frozenset[str] | None], frozenset[str]] = {}

    @property
    def principal(self) -> Principal:
        """The principal.

        Raises:
            NoSessionError: the principal's token wasn't verified yet.
        """
        if self._principal is None:
            raise NoSessionError(
                "session_not_entered",
                "the principal is unknown until the session is entered, which verifies their token",
            )
        return self._principal

    @property
    def pseudonym(self) -> str:
        """The principal's name in spans and records.

        Raises:
            NoSessionError: the session has not been entered.
        """
        if self._pseudonym is None:
            raise NoSessionError("session_not_entered", "the session has not been entered")
        return self._pseudonym

    @property
    def known_as(self) -> str | None:
        """The pseudonym, None before the session was entered."""
        return self._pseudonym

    @property
    def expires_at(self) -> float:
        """When it expires, in Unix seconds."""
        return self.life.expires_at

    @property
    def handed(self) -> tuple[Grant, ...] | None:
        """The chain that was handed over to another process, newest grant first."""
        return self.life.handed

    @property
    def issued_at(self) -> float:
        """When its evidence was issued, in Unix seconds: the principal's token, the accepted grants, or the session itself."""
        return self.parts.clock() if self._issued_at is None else self._issued_at

    @property
    def is_accepted(self) -> bool:
        """Whether it or a parent was accepted from another process, so this process has no token of the principal."""
        return self.anchor_key is not None

    def names(self) -> frozenset[str]:
        """What it may be revoked by: principal, agent, session, transaction, and grants of a hand-over."""
        grants = [] if self.accepted is None else [grant.jti for grant in self.accepted.grants]
        if self.handed is not None:
            grants.append(self.handed[0].jti)
        principal = str(self.parts.own_principal(self.principal))
        return frozenset({principal, self.agent.uri, self.id, self.txn, *grants})

    def check(self, now: float) -> None:
        """Check that this session and all its parents may act; `now` is Unix seconds.

        Raises:
            NoSessionError: it was never entered.
            DeniedError: it has ended or expired.
        """
        self.life.check(now)

    def needed(self, resource: str, scopes: frozenset[str] | None) -> frozenset[str]:
        """The scopes that a call needs, after checking that the session and the configuration allow them.

        Raises:
            DeniedError: they don't, so no request is made.
        """
        asked = None if scopes is not None else self.parts.resources.asked(resource)
        cached = None if asked is not None else self._needed.get((resource, scopes))
        if cached is not None:
            return cached
        configured = self.parts.resources.scopes(resource)
        needed = (
            scopes
            if scopes is not None
            else self.limits.default_scopes(resource, configured, asked)
        )
        self.limits.check(resource, needed, configured)
        self._needed[resource, scopes] = needed
        return needed

    def policy_request(
        self, action: str, target: Entity, now: float, arguments: bytes, past: Past
    ) -> Request:
        """What policy decides on: an action on a target, with the facts of this session."""
        facts = Facts(
            action,
            target,
            self.principal,
            self.evidence,
            self.agent.uri,
            self.chain,
            self.purpose,
            self.task,
            now,
            arguments,
            past,
        )
        return Request(facts)

    def draft(
        self,
        kind: str,
        public: dict[str, JSON],
        sealed: dict[str, JSON] | None = None,
        *,
        call_id: str | None = None,
        ref: str | None = None,
    ) -> Draft:
        """Draft a record of this session, which has to have been entered."""
        return Draft(
            kind,
            public,
            sealed,
            pseudonym=self.pseudonym,
            session_id=self.id,
            call_id=call_id,
            ref=ref,
        )

    def begin(self) -> None:
        """Begin its life.

        Raises:
            ConfigurationError: it was handed over, or entered before.
            DeniedError: the identity was closed, or the parent session has ended.
            LedgerError: the ledger still can't be written.
        """
        if self.life.handed is not None:
            raise ConfigurationError(
                "session_handed_over",
                "the session was handed over to another process and can't be entered in this one",
                remedy="send it to that agent with inject(…), without entering it",
            )
        self.parts.gate.check()
        self.life.begin()

    def set_verified(self, verified: Verified) -> None:
        """Store the principal of the verified token, and until when the token proves them."""
        self._principal = verified.principal
        self.subject = verified.subject
        self.evidence = verified.evidence
        self._issued_at = verified.issued_at
        self.proof.set(verified.proven_until, verified.renew)
        if verified.renew is None:
            self.life.end_by(verified.proven_until)

    def set_pseudonym(self, pseudonym: str) -> None:
        self._pseudonym = pseudonym

    def register(self) -> None:
        """Register it with the revocations, which end it from now on.

        Raises:
            RevokedError: one of its names is revoked.
            DeniedError: `revocations_stale`.
        """
        if self._issued_at is None:
            self._issued_at = self.parts.clock()
        self.parts.revocations.open(self)

    def record_opening(self) -> Flow[None]:
        parent = self.parent
        yield Append(
            self.draft(
                SESSION_OPENED,
                {
                    "purpose": self.purpose,
                    "task": self.task,
                    "agent": self.agent.uri,
                    "depth": self.depth,
                    "parent": None if parent is None else parent.id,
                    "txn": self.txn,
                    "scopes": _sorted_or_none(self.limits.scopes),
                    "resources": _sorted_or_none(self.limits.resources),
                    "expires_at": int(self.expires_at),
                    **self._handover_members(),
                },
                {
                    "sub": self.principal.sub,
                    "iss": self.principal.iss,
                    "profile": self.principal.profile,
                    "trigger": self.trigger,
                },
            )
        )

    def _handover_members(self) -> dict[str, JSON]:
        """The agents above, for an accepted session; the recipient's key, for one that is handed over."""
        if self.accepted is not None:
            above = reversed(self.accepted.grants[1:])
            return {"above": [_describe_actor(grant) for grant in above]}
        return {} if self.handed is None else {"handed_to": self.handed[0].jkt}

    def hold_token(self, place: Resource, issued: Issued) -> bool:
        """Keep a token, to be revoked when the session ends; False if it has ended."""
        return self.life.tokens.add(place.issuer, issued, self.parts.clock())

    def end(self) -> bool:
        """End it; False if a revocation had already ended it, and recorded that."""
        was_open = self.life.end()
        self._drop_credentials()
        self.parts.revocations.close(self.id)
        return was_open

    def revoke(self) -> bool:
        """Revoke it; False if it had already ended.

        Raises:
            NoSessionError: it was never entered.
        """
        was_open = self.life.revoke()
        self._drop_credentials()
        return was_open

    def end_revoked(self, reference: Reference) -> bool:
        """End it because `reference` was revoked; False if it had already ended."""
        if self.life.state == "new":
            return False
        was_open = self.life.revoke(revoked_error(reference))
        self._drop_credentials()
        self._revoke_hand_overs()
        return was_open

    def close(self, reason: str) -> None:
        """Run `closing`."""
        self.parts.gate.sweep()
        for below in list(self.sub_agents.values()):
            below.end()
        run(self.closing(reason), self.parts.world.answer)

    async def aclose(self, reason: str) -> None:
        """`close` in a thread, so that tokens are revoked even if the task is cancelled or the loop ends."""
        context = contextvars.copy_context()

        def close() -> None:
            context.run(self.close_revoked, reason)

        # Not `to_thread`, whose task a loop cancels when it ends, together with work that no thread has begun.
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, close))

    def close_revoked(self, reason: str) -> None:
        """`close` while the program goes on: the identity's clients stay open until it is done."""
        with self.parts.world.closing():
            self.close(reason)

    def closing(self, reason: str) -> Flow[None]:
        """Revoke its tokens and hand-overs, and record its end."""
        yield from self.revoke_tokens(self.life.close_tokens())
        self._revoke_hand_overs()
        text = reason.encode(errors="backslashreplace").decode()
        try:
            yield Append(self.draft(SESSION_CLOSED, {"reason": text}))
        except LedgerError as failure:
            self.parts.gate.shut()
            _log.warning("the end of %s could not be recorded (%s)", self.id, failure.code)

    def revoke_tokens(self, tokens: Sequence[tuple[Revoker | None, Issued]]) -> Flow[None]:
        """Revoke tokens that haven't expired (RFC 7009), and record for each whether its issuer did that.

        All revocations together get the deadline of one acquisition, so that a slow issuer doesn't delay the end of a session. No
        error here keeps the session from ending.
        """
        parts = self.parts
        unreachable: set[str] = set()
        ends = parts.clock() + parts.world.deadline
        for issuer, issued in tokens:
            now = parts.clock()
            if issued.expires_at <= now:
                continue
            code: str | None
            if issuer is None:
                code = "no_revocation"
            elif issuer.url in unreachable:
                code = "issuer_unreachable"
            elif now >= ends:
                code = "deadline_exceeded"
            else:
                code = yield from _revoke(issuer, issued, unreachable)
            public: dict[str, JSON] = {
                "resource": issued.resource,
                "issuer": issued.issuer,
                "revoked": code is None,
                "code": code,
                "expires_at": int(issued.expires_at),
                "bound": issued.is_bound,
            }
            try:
                yield Append(self.draft(CREDENTIAL_REVOKED, public, ref=issued.jti))
            except LedgerError as failure:
                parts.gate.shut()
                _log.warning(
                    "the end of a token of %s could not be recorded (%s)", self.id, failure.code
                )

    def _drop_credentials(self) -> None:
        """Drop the credentials of it and of all sessions below from the cache."""
        for key in self.life.forget_cached():
            self.parts.world.drop(key)

    def _revoke_hand_overs(self) -> None:
        """Revoke the hand-overs of it and of all sessions below at the authority."""
        if self.parts.take_back is not None:
            for grant in self.life.list_handovers():
                self.parts.take_back(grant.jti, grant.exp + SKEW)

    def start_over(self) -> None:
        """Use nothing of the parent process in a forked child; grants are made again at first use, with the same `txn`."""
        self.life.start_over()
        self.history.renew_lock()
        self.agent.renew()


def _revoke(issuer: Revoker, issued: Issued, unreachable: set[str]) -> Flow[str | None]:
    """Ask the issuer once to revoke a token; return None if it did, else the code of the reason."""
    try:
        is_revoked = yield from issuer.revoke(issued)
    except CredentialUnavailableError as failure:
        unreachable.add(issuer.url)
        return failure.code
    except AgentIdentityError as failure:
        return failure.code
    return None if is_revoked else "no_revocation"


def _describe_actor(grant: Grant) -> dict[str, JSON]:
    """The members of a record about an agent above, in another process."""
    return {
        "agent": grant.agent,
        "depth": grant.depth,
        "scope": [*sorted(grant.scopes)],
        "evidence": grant.evidence,
    }


def _sorted_or_none(limit: frozenset[str] | None) -> list[JSON] | None:
    return None if limit is None else [*sorted(limit)]
