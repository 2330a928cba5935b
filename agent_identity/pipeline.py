# SPDX-License-Identifier: Apache-2.0
"""The order of one call. Only this module knows it; decorators and adapters translate into a `Call`.

    session ─▶ span opens ─▶ policy decides ─▶ (approval) ─▶ credential ─▶ assertion ─▶ intent recorded ─▶ tool runs
            ─▶ outcome recorded ─▶ span closes

P1  The span opens first, so that a refusal leaves evidence too.
P2  The intent is committed before the tool runs. If that fails, the tool doesn't run. The session's life is checked last, before
    the commit and after it, because policy, credential and ledger may have taken time.
P3  Absence never means allow: without a session or a decision, or after an error, the tool doesn't run, and a typed error says why.
P4  Arguments are copied and digested once; the tool gets that copy, and no other code has it.
P5  The tool's own exception passes through unchanged, and so does an interrupt on the way in or out. An outcome that can't be
    written raises nothing: the call reads `unknown`, and the identity refuses new calls until the ledger can be written again.
P6  The outcome is appended before the span ends, so that no span processor delays or loses it.

tests/unit/test_pipeline.py has a test for each rule.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Final, Literal, Self

from agent_identity import canonical
from agent_identity.delegation.assertion import CallFacts
from agent_identity.errors import (
    AgentIdentityError,
    ApprovalRequiredError,
    ConfigurationError,
    CredentialError,
    DeniedError,
    LedgerError,
)
from agent_identity.flow import Draft, arun, run
from agent_identity.policy.rules import ask_policy, require_permit
from agent_identity.provenance import spans
from agent_identity.provenance.records import (
    CALL_CANCELLED,
    CALL_COMPLETED,
    CALL_DENIED,
    CALL_FAILED,
    CALL_INTENDED,
    CALL_UNKNOWN,
)
from agent_identity.runtime.acquire import make_credential, reach, reach_for_call
from agent_identity.runtime.current import Current, activate, deactivate
from agent_identity.runtime.parts import check_call
from agent_identity.values import Decision, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from agent_identity.flow import Flow
    from agent_identity.http.credential import Credential
    from agent_identity.policy import Policy
    from agent_identity.policy.history import Past
    from agent_identity.policy.request import Request
    from agent_identity.runtime.reach import Reach
    from agent_identity.runtime.state import SessionState
    from agent_identity.tools import Tool
    from agent_identity.values import JSON

_log: Final = logging.getLogger("agent_identity")


class Call:
    """One call of a tool, as a context manager around its body, sync and async alike.

        with session.call(tool, {"customer": "ACME"}) as call:
            result = list_invoices(**call.arguments)

    Entering permits the call or raises. The body then runs at most once, with `call.arguments`, the copy that was digested.
    Leaving records how it ended. A framework that returns a failure as a value reports it with `call.failed("…")`.
    """

    __slots__ = (
        *(
            "_args_hash",
            "_canonical",
            "_facts",
            "_failure",
            "_given",
            "_has_begun",
            "_is_intended",
            "_now",
            "_numbers",
            "_reach",
            "_rounds",
        ),
        *(
            "_scopes",
            "_span",
            "_state",
            "_span_token",
            "_current",
            "_tool_call_id",
            "_parent_id",
            "_continues",
            "arguments",
            "call_id",
        ),
        *("__weakref__", "decision", "session", "tool"),
    )

    def __init__(
        self,
        session: SessionState,
        tool: Tool,
        arguments: Mapping[str, object],
        tool_call_id: str | None = None,
        *,
        parent_id: str | None = None,
        continues: str | None = None,
    ) -> None:
        self.session = session
        self.tool = tool
        self.arguments: dict[str, object] = {}
        self.call_id: str = new_id("call_")
        self.decision: Decision | None = None
        self._given = arguments
        self._tool_call_id = tool_call_id
        self._parent_id = parent_id
        self._continues = continues
        self._span = spans.open_call_span(tool.span_name, tool.span_attributes, tool_call_id)
        self._args_hash: str | None = None
        self._canonical = b""
        self._now = 0.0
        self._scopes = _NO_SCOPES
        self._reach: Reach | None = None
        self._facts: CallFacts | None = None
        self._numbers: Iterator[int] | None = None
        self._rounds: Iterator[int] | None = None
        self._state: Literal["new", "entering", "refused", "running", "ending", "ended"] = "new"
        self._is_intended = False
        self._has_begun = False
        self._failure: str | None = None
        self._current: Current | None = None
        self._span_token: spans.Attachment | None = None

    @property
    def args_hash(self) -> str:
        """The digest of the arguments, for policy and the assertion."""
        if self._args_hash is None:
            self._args_hash = canonical.digest(self._canonical)
        return self._args_hash

    @property
    def reach(self) -> Reach:
        """The grants and the credential of this call, after it was permitted."""
        if self._reach is None:
            raise DeniedError("not_permitted", "the call has not been permitted")
        return self._reach

    @property
    def facts(self) -> CallFacts:
        """The members that all assertions of this call have in common."""
        if self._facts is None:
            raise DeniedError("not_permitted", "the call has not been permitted")
        return self._facts

    @property
    def numbers(self) -> Iterator[int]:
        """Counts the HTTP requests of this call, from 1; each has its own assertion."""
        if self._numbers is None:
            self._numbers = itertools.count(1)
        return self._numbers

    def credential(self) -> Credential:
        """The credential of the running call; each request asserts the call.

        Raises:
            ConfigurationError: the tool has no resource.
        """
        return make_credential(self.session, self.reach, self)

    def renewed(self, reached: Reach) -> None:
        """Use another credential from now on, because the resource refused the first one."""
        self._reach = reached

    def sign_assertion(self, *, with_token: bool) -> tuple[str, list[str]]:
        """Sign an assertion of the whole call, for a message or `_meta`; return it with the grants of the chain, newest first.

        Each assertion is numbered from 0 and used once. `with_token` binds it to the resource's access token, if there is one.

        Raises:
            DeniedError: the call has ended.
        """
        self.check_running()
        if self._rounds is None:
            self._rounds = itertools.count()
        reached = self.reach
        issued = reached.issued if with_token else None
        assertion = reached.statement.for_call(
            self.facts,
            int(self.session.parts.clock()),
            resend=next(self._rounds),
            ath=None if issued is None else issued.sent_ath,
        )
        return assertion, [grant.compact for grant in reached.chain]

    @property
    def is_beginning(self) -> bool:
        """Whether its intent is recorded, and its body is about to run."""
        return not self._has_begun and self._state in ("entering", "running")

    @property
    def is_running(self) -> bool:
        """Whether it was entered and has not ended."""
        return self._state == "running"

    def check_running(self) -> None:
        """Check that the body still runs; nothing is signed for a call whose outcome is recorded.

        Raises:
            DeniedError: the call has ended.
        """
        if self._state != "running":
            raise DeniedError("call_ended", "the call that this credential is for has ended")

    def failed(self, what: str) -> None:
        """Report that the body failed without raising; `what` names the kind of failure."""
        self._failure = what

    def enter(self) -> None:
        """Do all that comes before the tool runs. When this returns, the intent is recorded.

        Raises:
            AgentIdentityError: the call was refused, or its credential could not be acquired; the tool must not run.
        """
        parts = self.session.parts
        try:
            self._begin()
            if not self._prepare_now():
                run(self._prepare(), parts.world.answer)
            self.session.life.check(parts.clock())
            parts.ledger.append(self._draft_intent())
            self._start()
        except BaseException as error:
            refusal = self._explain(error)
            self._record(self._give_up(refusal))
            self._end_span(refusal)
            if refusal is error:
                raise
            raise refusal from error

    async def aenter(self) -> None:
        """The async twin of `enter`."""
        parts = self.session.parts
        try:
            self._begin()
            if not self._prepare_now():
                await arun(self._prepare(), parts.world.aanswer)
            self.session.life.check(parts.clock())
            await parts.ledger.aappend(self._draft_intent())
            self._start()
        except BaseException as error:
            refusal = self._explain(error)
            await self._arecord(self._give_up(refusal))
            self._end_span(refusal)
            if refusal is error:
                raise
            raise refusal from error

    def refuse(self, error: AgentIdentityError) -> None:
        """Record a call that an adapter refuses, without asking policy or issuers."""
        self._begin()
        self._record(self._give_up(error))
        self._end_span(error)

    async def arefuse(self, error: AgentIdentityError) -> None:
        """The async twin of `refuse`."""
        self._begin()
        await self._arecord(self._give_up(error))
        self._end_span(error)

    def _begin(self) -> None:
        if self._state != "new":
            raise ConfigurationError(
                "call_reused", "the call was already entered once", remedy="make another call"
            )
        self._state = "entering"

    def _start(self) -> None:
        """Start the body after the intent was recorded. That may have taken time, so the session's life is checked again.

        Raises:
            AgentIdentityError: the session has ended meanwhile; the body doesn't run, and the refusal is the outcome.
        """
        self._is_intended = True
        parts = self.session.parts
        # Before the check: a revocation waits for the calls that passed it, and finds them at the gate.
        parts.gate.add(self)
        self.session.life.check(parts.clock())
        self._state = "running"

    def _prepare_now(self) -> bool:
        """Do the part of the way in that needs no I/O; True if nothing else is left, as for most calls."""
        session, tool = self.session, self.tool
        parts = session.parts
        self._now = parts.clock()
        session.life.check(self._now)
        parts.gate.check()
        parts.revocations.check_fresh()
        self.arguments, self._canonical = canonical.copy_and_encode(
            self._given, tool.opaque, tool.name
        )
        self._scopes = session.needed(tool.resource, tool.scopes)
        check_call(session.limits, parts.resources, tool.name, tool.resource, self._canonical)
        if parts.policy_now is None:
            return False
        self._decide_now(parts.policy_now)
        reached = session.reaches.get((tool.resource, self._scopes))
        if reached is None or reached.is_per_call or not reached.is_fresh(self._now):
            return False
        self._reach = reached
        return True

    def _prepare(self) -> Flow[None]:
        """Do the part of the way in that needs I/O: ask a policy engine and an issuer."""
        session, tool = self.session, self.tool
        parts = session.parts
        if self.decision is None:
            yield from self._decide(parts.policy)
        reached = yield from reach(session, tool.resource, self._scopes)
        session.reaches[tool.resource, self._scopes] = reached
        if reached.is_per_call:
            reached = yield from reach_for_call(session, reached, self, self._span.trace_id)
        self._reach = reached
        self._now = parts.clock()

    def _decide_now(self, policy: Callable[[Request], Decision]) -> None:
        tool, history = self.tool, self.session.history
        for _ in range(_ROUNDS):
            past = history.past
            decision = require_permit(policy(self._request(past)))
            if history.enter(past, tool.policy_name, tool.resource, tool.labels):
                self.decision = decision
                return
        raise _contended_error()

    def _decide(self, policy: Policy) -> Flow[None]:
        tool, history = self.tool, self.session.history
        for _ in range(_ROUNDS):
            past = history.past
            decision = yield from ask_policy(policy, self._request(past))
            if history.enter(past, tool.policy_name, tool.resource, tool.labels):
                self.decision = decision
                return
        raise _contended_error()

    def _request(self, past: Past) -> Request:
        target = self.tool.target(self._scopes)
        return self.session.policy_request("call", target, self._now, self._canonical, past)

    def _draft_intent(self) -> Draft:
        """Sign the call, and draft the record of its intent."""
        tool, span, reached = self.tool, self._span, self.reach
        self._facts = CallFacts(
            self.call_id, tool.name_json, self.args_hash, span.trace_id, span.span_id
        )
        assertion = reached.statement.for_record(self._facts, int(self._now))
        policy_id = None if self.decision is None else self.decision.policy_id
        draft = self._draft_decided(CALL_INTENDED, "permit", policy_id, {"assertion": assertion})
        draft.public["grant_hash"] = reached.grant_hash
        draft.public["labels"] = tool.labels_json
        return draft

    def _draft_denied(self, error: AgentIdentityError) -> Draft:
        """Draft the record of a call that was refused."""
        verdict, policy_id = _verdict(error)
        draft = self._draft_decided(CALL_DENIED, verdict, policy_id, None)
        draft.public["labels"] = self.tool.labels_json
        draft.public["code"] = error.code
        draft.public["reason"] = str(error).encode("utf-8", "replace").decode()
        return draft

    def _draft_decided(
        self,
        kind: str,
        verdict: str,
        policy_id: str | None,
        sealed: dict[str, JSON] | None,
    ) -> Draft:
        """Draft the record of a decision: to run the body, or not to."""
        session, tool, span = self.session, self.tool, self._span
        public: dict[str, JSON] = {
            "tool": tool.name,
            "resource": tool.resource,
            "agent": session.agent.uri,
            "depth": session.depth,
            "txn": session.txn,
            "decision": verdict,
            "policy_id": policy_id,
        }
        if self._parent_id is not None:
            public["parent"] = self._parent_id
        if self._continues is not None:
            public["continues"] = self._continues
        return Draft(
            kind,
            public,
            sealed,
            pseudonym=session.known_as,
            session_id=session.id,
            call_id=self.call_id,
            trace_id=span.trace_id,
            span_id=span.span_id,
            # The model's id stays that of the first call, so that it names one call.
            ref=self._tool_call_id if self._continues is None else self._continues,
        )

    def resume(self) -> None:
        """Make this call and its span current while the body runs."""
        self._current = Current(self.session.reference, self)
        activate(self._current)
        self._span_token = self._span.attach()
        self._has_begun = True

    def suspend(self) -> None:
        """Restore the context of the caller, or of the code that iterates the body."""
        entry, self._current = self._current, None
        try:
            if entry is not None:
                deactivate(entry)
        finally:
            span_token, self._span_token = self._span_token, None
            if span_token is not None:
                self._span.detach(span_token)

    def check_resumption(self) -> None:
        """Check that a generator's body may go on: its session and the proof of its principal haven't ended.

        Raises:
            DeniedError: one of them has.
        """
        try:
            now = self.session.parts.clock()
            self.session.check(now)
            self.session.proof.check(now)
        except AgentIdentityError as error:
            error.call_id = self.call_id
            raise

    def leave(self, error: BaseException | None) -> None:
        """Record how the body ended, then close the span. No error here changes the caller's result.

        Does nothing for a call that was refused, or that was already left.
        """
        if self._state == "running":
            self._state = "ending"
            self._record(self._draft_outcome(error))
        elif self._state == "ending":  # after an interrupt, the outcome may be recorded or not
            self._settle()
        else:
            return
        self._state = "ended"
        self._end_span(error)

    async def aleave(self, error: BaseException | None) -> None:
        """The async twin of `leave`."""
        if self._state == "running":
            self._state = "ending"
            await self._arecord(self._draft_outcome(error))
        elif self._state == "ending":
            await asyncio.to_thread(self._settle)
        else:
            return
        self._state = "ended"
        self._end_span(error)

    def _record(self, draft: Draft) -> None:
        parts = self.session.parts
        try:
            parts.ledger.append(draft)
        except LedgerError as failure:
            self._shut_gate(failure)
        else:
            parts.gate.remove(self)

    async def _arecord(self, draft: Draft) -> None:
        parts = self.session.parts
        try:
            await parts.ledger.aappend(draft)
        except LedgerError as failure:
            self._shut_gate(failure)
        else:
            parts.gate.remove(self)

    def _settle(self) -> None:
        try:
            self.session.parts.gate.settle(self.call_id)
        except LedgerError as failure:
            self._shut_gate(failure)

    def _explain(self, error: BaseException) -> BaseException:
        """The reason of a refusal. If an issuer refused because the session was revoked, that is the reason."""
        if isinstance(error, CredentialError):
            try:
                self.session.check(self.session.parts.clock())
            except AgentIdentityError as ended:
                return ended
        return error

    def _give_up(self, error: BaseException) -> Draft:
        """Draft the record of a call whose body never runs: it was refused, cancelled or interrupted on the way in."""
        self._state = "refused"
        if isinstance(error, AgentIdentityError):
            error.call_id = self.call_id
            return self._draft_denied(error)
        if self._is_intended:
            return self._draft_outcome(error)
        return self._draft_denied(
            DeniedError("interrupted", f"{type(error).__name__} interrupted the call")
        )

    def _draft_outcome(self, error: BaseException | None) -> Draft:
        kind, what = CALL_COMPLETED, self._failure
        if error is not None:
            # Only the class: the text of a foreign error may contain secrets.
            what = type(error).__name__
            kind = CALL_CANCELLED if isinstance(error, self.tool.pauses) else CALL_FAILED
        elif what is not None:
            kind = CALL_FAILED
        return self.session.draft(kind, {"error": what}, call_id=self.call_id)

    def _shut_gate(self, failure: LedgerError) -> None:
        """Refuse new calls until the ledger can be written, and let this one read `unknown`."""
        gate = self.session.parts.gate
        if self._is_intended:
            unknown = self.session.draft(CALL_UNKNOWN, {"error": None}, call_id=self.call_id)
            gate.lose(self.call_id, unknown)
        elif gate.is_closed:
            return  # the refusal is `identity_closed`, and the ledger is closed too
        gate.shut()
        _log.warning(
            "the outcome of %s could not be recorded (%s): it reads unknown, new calls are refused",
            self.call_id,
            failure.code,
        )

    def _end_span(self, error: BaseException | None) -> None:
        span = self._span
        if not span.is_recording:
            return
        session = self.session
        verdict, policy_id = "permit", None if self.decision is None else self.decision.policy_id
        code = self._failure
        if isinstance(error, AgentIdentityError) and self._state == "refused":
            verdict, policy_id = _verdict(error)
            code = error.code
        elif error is not None:
            if not self._is_intended:
                verdict = "deny"
            code = type(error).__name__
        attributes: dict[str, str | int] = {
            spans.CALL_ID: self.call_id,
            spans.SESSION_ID: session.id,
            spans.TXN: session.txn,
            spans.AGENT_ID: session.agent.uri,
            spans.DEPTH: session.depth,
            spans.DECISION: verdict,
            spans.RESOURCE: self.tool.resource,
        }
        if session.known_as is not None:
            attributes[spans.PSEUDONYM] = session.known_as
        if policy_id is not None:
            attributes[spans.POLICY_ID] = policy_id
        if self._reach is not None:
            attributes[spans.GRANT_HASH] = self._reach.grant_hash
        span.end(attributes, code)

    def __enter__(self) -> Self:
        try:
            self.enter()
            self.resume()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        try:
            self.suspend()
        finally:
            self.leave(error)

    async def __aenter__(self) -> Self:
        try:
            await self.aenter()
            self.resume()
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        try:
            self.suspend()
        finally:
            await self.aleave(error)


_ROUNDS: Final = 50
_NO_SCOPES: Final[frozenset[str]] = frozenset()


def _verdict(error: AgentIdentityError) -> tuple[str, str | None]:
    """The decision that a refusal stands for, and the policy that made it."""
    verdict = "approval" if isinstance(error, ApprovalRequiredError) else "deny"
    return verdict, error.policy_id if isinstance(error, DeniedError) else None


def _contended_error() -> DeniedError:
    return DeniedError(
        "history_contended",
        "policy could not decide, because other calls of this session kept changing its history",
        remedy="make the policy faster, and call no tools of this session in it",
    )
