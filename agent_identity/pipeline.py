# SPDX-License-Identifier: Apache-2.0
"""The order of one call. This module alone knows it; decorators and adapters only translate into a `Call`.

    session ─▶ span opens ─▶ policy decides ─▶ (approval) ─▶ credential ─▶ assertion ─▶ intent recorded ─▶ tool runs
            ─▶ outcome recorded ─▶ span closes

P1  The span opens first, so that a refusal leaves evidence too.
P2  The intent is committed before the tool runs. If it can't be, the tool doesn't run.
P3  Absence never means allow: no session, no decision, an error on the way ⇒ the tool doesn't run, with a typed reason.
P4  Arguments are copied and digested once; the tool gets that copy, which nobody else holds.
P5  The tool's own exception passes through untouched. An outcome that can't be written costs the caller nothing: the call
    reads `unknown`, and the identity refuses new calls until the ledger can be written again.

tests/unit/test_pipeline.py has a test for each.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
from typing import TYPE_CHECKING, Final, Self

import orjson

from agent_identity import canonical
from agent_identity.current import CURRENT, Current
from agent_identity.delegation.assertion import CallFacts
from agent_identity.errors import (
    AgentIdentityError,
    ApprovalRequiredError,
    DeniedError,
    LedgerError,
)
from agent_identity.flow import Append, Draft, arun, run
from agent_identity.policy.request import Facts, Request
from agent_identity.provenance import spans
from agent_identity.provenance.records import (
    CALL_CANCELLED,
    CALL_COMPLETED,
    CALL_DENIED,
    CALL_FAILED,
    CALL_INTENDED,
)
from agent_identity.reach import Reach, reach
from agent_identity.values import LOCAL, Decision, b64url, new_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextvars import Token
    from types import TracebackType

    from agent_identity.flow import Flow
    from agent_identity.policy import Policy
    from agent_identity.session import Session
    from agent_identity.values import JSON

__all__ = ["Call", "Tool", "asked"]

_log: Final = logging.getLogger("agent_identity")


class Tool:
    """What is known of a tool before it is called: its name, what it reaches, what it says of itself.

    `scopes=None` means those that its resource is configured with, `resource=None` that it reaches nothing outside.
    """

    __slots__ = ("labels", "labels_json", "name", "name_json", "opaque", "resource", "scopes")

    def __init__(
        self,
        name: str,
        *,
        resource: str | None = None,
        scopes: Iterable[str] | None = None,
        labels: Iterable[str] = (),
        opaque: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.name_json = orjson.dumps(name)
        self.resource = LOCAL if resource is None else resource
        self.scopes = None if scopes is None else frozenset(scopes)
        self.labels = frozenset(labels)
        self.labels_json: list[JSON] = [*sorted(self.labels)]
        self.opaque = frozenset(opaque)


class Call:
    """One call of a tool, as a context manager around its body, sync and async alike.

        with session.call(tool, {"customer": "ACME"}) as call:
            result = list_invoices(**call.arguments)

    Entering permits the call or raises; the body then runs at most once, with `call.arguments`, the copy that was digested.
    Leaving records how it ended. A framework that turns a failure into a value says so by `call.failed("…")`.
    """

    __slots__ = (
        *("_args_hash", "_canonical", "_facts", "_failure", "_given", "_past", "_reach", "_span"),
        *(
            "_numbers",
            "_span_token",
            "_token",
            "_tool_call_id",
            "arguments",
            "call_id",
            "policy_id",
        ),
        *("session", "tool", "__weakref__"),
    )

    def __init__(
        self,
        session: Session,
        tool: Tool,
        arguments: Mapping[str, object],
        tool_call_id: str | None = None,
    ) -> None:
        self.session = session
        self.tool = tool
        self.arguments: dict[str, object] = {}
        self.call_id = new_id("call_")
        self.policy_id: str | None = None
        self._given = arguments
        self._tool_call_id = tool_call_id
        self._span = spans.open_span(tool.name, tool_call_id=tool_call_id)
        self._numbers: Iterator[int] | None = None
        self._failure: str | None = None
        self._args_hash: str | None = None
        self._canonical = b""
        self._reach: Reach | None = None
        self._facts: CallFacts | None = None
        self._token: Token[Current | None] | None = None
        self._span_token: spans.Attachment = None

    @property
    def args_hash(self) -> str:
        """The digest of the arguments, as policy sees it and the assertion carries it."""
        if self._args_hash is None:
            digest = hashlib.sha256(self._canonical).digest()
            self._args_hash = f"sha-256:{b64url(digest)}"
        return self._args_hash

    @property
    def reach(self) -> Reach:
        """The grants and the credential of this call; there is one once the call was permitted."""
        if self._reach is None:
            raise DeniedError("not_permitted", "the call has not been permitted")
        return self._reach

    @property
    def facts(self) -> CallFacts:
        """What every assertion of this call says."""
        if self._facts is None:
            raise DeniedError("not_permitted", "the call has not been permitted")
        return self._facts

    @property
    def numbers(self) -> Iterator[int]:
        """Counts the HTTP requests of this call, from 1; each carries an assertion of its own."""
        if self._numbers is None:
            self._numbers = itertools.count(1)
        return self._numbers

    def failed(self, what: str) -> None:
        """Say that the body's result is a failure, although it raised nothing; `what` names its kind."""
        self._failure = what

    # -- the order ---------------------------------------------------------------------------------------------------

    def prepare(self) -> Flow[None]:
        """Everything before the tool runs. When this returns, the intent is on record.

        Raises:
            AgentIdentityError: the call was refused, or something it needs could not be had; the tool must not run.
        """
        try:
            yield from self._permit()
        except AgentIdentityError as error:
            error.call_id = self.call_id
            yield from self._refused(error)
            raise

    def _permit(self) -> Flow[None]:
        session, tool = self.session, self.tool
        parts = session.parts
        now = parts.clock()
        session.check(now)
        parts.gate.check()
        self.arguments, self._canonical = canonical.bound(self._given, tool.opaque)
        scopes = session.needed(tool.resource, tool.scopes)
        decision = yield from self._decide(now, scopes)
        self.policy_id = decision.policy_id
        ready = session.reaches.get((tool.resource, scopes))
        if ready is None or now >= ready.fresh_until:
            ready = yield from reach(session, tool.resource, scopes)
            session.reaches[tool.resource, scopes] = ready
            now = parts.clock()
            session.check(now)  # getting here took a while: whoever ended meanwhile acts no more
        self._reach = ready
        span = self._span
        self._facts = CallFacts(
            self.call_id, tool.name_json, self.args_hash, span.trace_id, span.span_id
        )
        assertion = ready.statement.recorded(self._facts, int(now))
        yield Append(
            Draft(
                CALL_INTENDED,
                session.pseudonym,
                session.id,
                self.call_id,
                span.trace_id,
                span.span_id,
                self._tool_call_id,
                {
                    "tool": tool.name,
                    "resource": tool.resource,
                    "agent": session.agent.uri,
                    "depth": session.depth,
                    "txn": session.txn,
                    "decision": "permit",
                    "policy_id": decision.policy_id,
                    "grant_hash": ready.grant_hash,
                    "labels": tool.labels_json,
                },
                {"assertion": assertion},
            )
        )

    def _decide(self, now: float, scopes: frozenset[str]) -> Flow[Decision]:
        session, tool = self.session, self.tool
        parts = session.parts
        history = session.history
        while True:
            past = history.past
            facts = Facts(
                "call",
                "Tool",
                tool.name,
                tool.resource,
                scopes,
                tool.labels,
                session.principal,
                session.evidence,
                session.agent.uri,
                session.chain,
                session.purpose,
                session.task,
                now,
                self._canonical,
                self._digest,
                past,
            )
            decision = yield from asked(parts.policy, Request(facts))
            if history.enter(past, tool.name, tool.resource, tool.labels):
                return decision

    def _digest(self) -> str:
        return self.args_hash

    def _refused(self, error: AgentIdentityError) -> Flow[None]:
        """Leave evidence of a call that never ran; it can't be more than an attempt when the ledger is what failed."""
        session, tool, span = self.session, self.tool, self._span
        verdict = "approval" if isinstance(error, ApprovalRequiredError) else "deny"
        policy_id = error.policy_id if isinstance(error, DeniedError) else self.policy_id
        draft = Draft(
            CALL_DENIED,
            session.pseudonym,
            session.id,
            self.call_id,
            span.trace_id,
            span.span_id,
            self._tool_call_id,
            {
                "tool": tool.name,
                "resource": tool.resource,
                "agent": session.agent.uri,
                "depth": session.depth,
                "txn": session.txn,
                "decision": verdict,
                "policy_id": policy_id,
                "code": error.code,
                "reason": str(error),
            },
            None,
        )
        try:
            yield Append(draft)
        except LedgerError:
            session.parts.gate.shut()
        finally:
            self._end_span(verdict, policy_id, error.code)

    def finish(self, kind: str, error: str | None) -> Flow[None]:
        """Record how the body ended, and close the span."""
        session = self.session
        try:
            yield Append(
                Draft(
                    kind,
                    session.pseudonym,
                    session.id,
                    self.call_id,
                    None,
                    None,
                    None,
                    {"error": error},
                    None,
                )
            )
        except LedgerError as failure:
            session.parts.gate.shut()
            _log.warning(
                "the outcome of %s could not be recorded (%s): it reads unknown, new calls are refused",
                self.call_id,
                failure.code,
            )
        finally:
            self._end_span("permit", self.policy_id, error)

    def _end_span(self, verdict: str, policy_id: str | None, error: str | None) -> None:
        span = self._span
        if not span.recording:
            return
        session = self.session
        attributes: dict[str, str | int] = {
            spans.CALL_ID: self.call_id,
            spans.SESSION_ID: session.id,
            spans.TXN: session.txn,
            spans.AGENT_ID: session.agent.uri,
            spans.PSEUDONYM: session.pseudonym,
            spans.DEPTH: session.depth,
            spans.DECISION: verdict,
            spans.RESOURCE: self.tool.resource,
        }
        if policy_id is not None:
            attributes[spans.POLICY_ID] = policy_id
        if self._reach is not None:
            attributes[spans.GRANT_HASH] = self._reach.grant_hash
        span.end(attributes, error)

    # -- the body ----------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Make this call and its span the current ones, while the body runs."""
        self._token = CURRENT.set(Current(self.session.reference, self))
        self._span_token = self._span.attach()

    def check_resumption(self) -> None:
        """Whether a generator's body may go on: not once its session has ended.

        Raises:
            DeniedError: it may not.
        """
        try:
            self.session.check(self.session.parts.clock())
        except AgentIdentityError as error:
            error.call_id = self.call_id
            raise

    def suspend(self) -> None:
        """Give the context back to whoever called or consumes."""
        self._span.detach(self._span_token)
        if self._token is not None:
            CURRENT.reset(self._token)
            self._token = None

    def __enter__(self) -> Self:
        try:
            run(self.prepare(), self.session.parts.world.answer)
        except AgentIdentityError:
            raise
        except BaseException as error:
            self._interrupted(error)
            raise
        self.resume()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self.suspend()
        run(self.finish(*self.outcome(error)), self.session.parts.world.answer)

    async def __aenter__(self) -> Self:
        try:
            await arun(self.prepare(), self.session.parts.world.aanswer)
        except AgentIdentityError:
            raise
        except BaseException as error:
            self._interrupted(error)
            raise
        self.resume()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self.suspend()
        await arun(self.finish(*self.outcome(error)), self.session.parts.world.aanswer)

    def _interrupted(self, error: BaseException) -> None:
        """Cancelled or interrupted on the way in: the body won't run, and an intent that got on record gets its end."""
        if self._facts is not None:
            run(self.finish(*self.outcome(error)), self.session.parts.world.answer)
        else:
            self._end_span("deny", self.policy_id, type(error).__name__)

    def outcome(self, error: BaseException | None) -> tuple[str, str | None]:
        """The kind of record that an ending makes, and the error's class name: its text may hold anything."""
        if error is None:
            if self._failure is not None:
                return CALL_FAILED, self._failure
            return CALL_COMPLETED, None
        if isinstance(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt):
            return CALL_CANCELLED, type(error).__name__
        return CALL_FAILED, type(error).__name__


def asked(policy: Policy, request: Request) -> Flow[Decision]:
    """Policy's permit, or the error that its answer amounts to; a policy that fails permits nothing.

    Policy's reason goes into the record, and no adapter shows it to a model.
    """
    try:
        decision = yield from policy.decide(request)
    except AgentIdentityError:
        raise
    except Exception as error:
        raise DeniedError(
            "policy_failed", f"the policy raised {type(error).__name__} instead of deciding"
        ) from error
    if not isinstance(decision, Decision):
        raise DeniedError("policy_undecided", "the policy answered something that is no Decision")
    if decision.verdict == "permit":
        return decision
    if decision.verdict == "approval":
        raise ApprovalRequiredError(
            "approval_required",
            f"somebody in the role {decision.role} has to approve this call",
            remedy="no approver is set up, so nobody can be asked",
            policy_id=decision.policy_id,
        )
    raise DeniedError(
        "policy_denied", f"policy refuses the call: {decision.reason}", policy_id=decision.policy_id
    )
