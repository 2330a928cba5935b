# SPDX-License-Identifier: Apache-2.0
"""The order of one call: what is on record before the tool runs, and what never runs."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from agent_identity import (
    AgentIdentity,
    ApprovalRequiredError,
    CredentialRejectedError,
    CredentialUnavailableError,
    Decision,
    DeniedError,
    LedgerError,
    current_session,
    tool,
)
from agent_identity.adapters import arefuse, refuse, tool_of, within
from agent_identity.authority import Authority, ClientRecord
from agent_identity.authority.requests import OAuthError
from agent_identity.flow import Draft, HttpRequest, HttpResponse, http
from agent_identity.provenance.memory import MemoryLedger

BILLING = "https://billing.example"
ran: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


@tool(resource=BILLING, scopes=["invoices:read"], labels={"reads:finance"})
def read(customer: str = "ACME") -> str:
    ran.append(customer)
    return customer


@tool(labels={"sends:external"})
def send() -> None:
    ran.append("sent")


@tool(resource=BILLING, scopes=["invoices:read"])
async def aread() -> None:
    ran.append("async")


class BrokenLedger(MemoryLedger):
    """A ledger that refuses records of some kinds, for as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses: set[str] = set()

    def append(self, draft: Draft, /) -> None:
        self._check(draft.kind)
        super().append(draft)

    async def aappend(self, draft: Draft, /) -> None:
        self.append(draft)

    def probe(self) -> None:
        self._check("probe")

    def _check(self, kind: str) -> None:
        if kind in self.refuses or "everything" in self.refuses:
            raise LedgerError("ledger_unwritable", "the disk is full")


def kinds(session) -> list[str]:
    return [record.kind for record in session.records()]


# -- P1, P2: evidence first ----------------------------------------------------------------------------------------------


def test_the_intent_is_on_record_when_the_tool_runs_and_the_outcome_after(
    bot: AgentIdentity,
) -> None:
    seen: list[list[str]] = []

    @tool(resource=BILLING, scopes=["invoices:read"])
    def look() -> None:
        seen.append(kinds(current_session()))

    with bot.on_behalf_of("user:alice", purpose="p") as session:
        look()
        assert seen[0][-1] == "call.intended"
        assert kinds(session)[-1] == "call.completed"


def test_a_call_that_an_adapter_refuses_is_on_record_under_the_models_own_id(
    bot: AgentIdentity,
) -> None:
    error = DeniedError("tool_undescribed", "nothing describes drop_table")
    with (
        bot.on_behalf_of("user:alice", purpose="p") as session,
        within(None, tool_call_id="toolu_1"),
    ):
        refuse("drop_table", error)
        assert "call.intended" not in kinds(session)
        last = [*session.records()][-1].to_dict()
    assert (last["kind"], last["code"]) == ("call.denied", "tool_undescribed")
    (call,) = bot.who_triggered("toolu_1").calls
    assert (call["tool"], call["decision"]) == ("drop_table", "deny")
    assert (call["outcome"], call["call_id"]) == ("denied", error.call_id)


async def test_an_async_adapter_refuses_a_call_without_touching_the_ledger_on_the_loop(
    make_identity,
) -> None:
    class Watching(MemoryLedger):
        def append(self, draft: Draft, /) -> None:
            assert draft.kind != "call.denied"
            super().append(draft)

        async def aappend(self, draft: Draft, /) -> None:
            await asyncio.to_thread(super().append, draft)

    identity = make_identity(ledger=Watching())
    async with identity.on_behalf_of("user:alice", purpose="p") as session:
        # a lone surrogate, which a model may write and no record can hold
        await arefuse("drop\ud800", DeniedError("tool_unknown", "there is no such tool"))
        assert kinds(session)[-1] == "call.denied"
    (call,) = identity.who_triggered(session).calls
    assert (call["tool"], call["outcome"]) == ("drop?", "denied")


@pytest.mark.parametrize("refused", ["call.intended", "grant.made", "credential.acquired"])
def test_a_tool_whose_intent_could_not_be_written_never_ran(make_identity, refused) -> None:
    ledger = BrokenLedger()
    identity = make_identity(ledger=ledger)
    with identity.on_behalf_of("user:alice", purpose="p"):
        ledger.refuses = {refused}
        with pytest.raises(LedgerError) as caught:
            read()
        assert ran == []
        assert caught.value.call_id is not None
        ledger.refuses = set()
        assert read() == "ACME"


async def test_an_async_tool_whose_intent_could_not_be_written_never_ran(make_identity) -> None:
    ledger = BrokenLedger()
    identity = make_identity(ledger=ledger)
    async with identity.on_behalf_of("user:alice", purpose="p"):
        ledger.refuses = {"call.intended"}
        with pytest.raises(LedgerError):
            await aread()
    assert ran == []


# -- P5: the outcome -----------------------------------------------------------------------------------------------------


def test_an_outcome_that_cannot_be_written_costs_the_caller_nothing_and_shuts_the_gate(
    make_identity,
) -> None:
    ledger = BrokenLedger()
    identity = make_identity(ledger=ledger)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        read()
        ledger.refuses = {"call.completed", "probe"}
        assert read("Globex") == "Globex"
        with pytest.raises(LedgerError):
            read("Initech")
        assert ran == ["ACME", "Globex"]
        outcomes = [call["outcome"] for call in identity.who_triggered(session).calls]
        assert outcomes == ["completed", "unknown", "denied"]
        ledger.refuses = set()
        assert read("Initech") == "Initech"
        outcomes = [call["outcome"] for call in identity.who_triggered(session).calls]
        assert kinds(session).count("call.unknown") == 1
    assert outcomes == ["completed", "unknown", "denied", "completed"]


def test_an_outcome_that_could_not_be_written_is_recorded_as_unknown_at_the_latest_on_closing(
    make_identity,
) -> None:
    ledger = BrokenLedger()
    identity = make_identity(ledger=ledger)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        ledger.refuses = {"call.completed"}
        read()
    identity.close()
    assert [each.kind for each in ledger.session_records(session.id)].count("call.unknown") == 1


# -- P2: life is checked last --------------------------------------------------------------------------------------------


def _levels(identity, depth, stack):
    """A session and the delegates below it, all entered; root first."""
    levels = [stack.enter_context(identity.on_behalf_of("user:alice", purpose="p"))]
    for number in range(depth):
        levels.append(stack.enter_context(levels[-1].delegate(f"helper-{number}")))
    return levels


@pytest.mark.parametrize(
    "ends", [lambda session: session.revoke("stop"), lambda s: s._state.life.end()]
)
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(
    ("given", "while_"),
    [
        *((read, "policy"), (read, "credential"), (read, "intent")),
        *((send, "policy"), (send, "intent")),
    ],
)
def test_a_call_never_starts_after_a_session_above_it_ended(
    make_identity, ends, depth, given, while_
) -> None:
    """Whatever was waited for in between: a policy, a credential, a ledger that others hold."""
    meanwhile: list[object] = []

    class Slow(MemoryLedger):
        def append(self, draft: Draft, /) -> None:
            hit = {"credential": "credential.acquired", "intent": "call.intended"}.get(while_)
            if draft.kind == hit and meanwhile:
                ends(meanwhile.pop())
            super().append(draft)

    def policy(request) -> bool:
        if while_ == "policy" and meanwhile:
            ends(meanwhile.pop())
        return True

    identity = make_identity(ledger=Slow(), policy=policy)
    with contextlib.ExitStack() as stack:
        levels = _levels(identity, depth, stack)
        meanwhile.append(levels[0])
        with pytest.raises(DeniedError) as refusal:
            given()
        assert refusal.value.code in {"session_ended", "session_revoked"}
        assert refusal.value.call_id is not None
        assert ran == []
        last = [record for record in levels[-1].records() if record.kind.startswith("call.")]
        assert [record.kind for record in last] == (
            ["call.intended", "call.denied"] if while_ == "intent" else ["call.denied"]
        )
        assert identity.who_triggered(refusal.value.call_id).outcome == "denied"


@pytest.mark.parametrize("depth", [0, 1, 2])
async def test_an_async_call_never_starts_after_a_session_above_it_ended(
    make_identity, depth
) -> None:
    meanwhile: list[object] = []

    class Slow(MemoryLedger):
        async def aappend(self, draft: Draft, /) -> None:
            await asyncio.sleep(0)
            if draft.kind == "call.intended" and meanwhile:
                meanwhile.pop().revoke("stop")
            self.append(draft)

    identity = make_identity(ledger=Slow())
    with contextlib.ExitStack() as stack:
        levels = _levels(identity, depth, stack)
        meanwhile.append(levels[0])
        with pytest.raises(DeniedError) as refusal:
            await aread()
        assert refusal.value.code == "session_revoked"
        assert ran == []


def test_what_sub_agents_cached_is_dropped_when_a_session_above_ends(make_identity) -> None:
    identity = make_identity()
    with contextlib.ExitStack() as stack:
        levels = _levels(identity, 2, stack)
        read()
        cache = identity._parts.world.cache
        keys = {key for level in levels for key in level._state.cache_keys}
        assert [key for key in keys if cache.get(key)]
        levels[0].revoke("stop")
        assert not [key for key in keys if cache.get(key)]
        assert not any(level._state.reaches for level in levels)


# -- P6: the span comes last ---------------------------------------------------------------------------------------------


def test_the_outcome_is_on_record_when_the_span_ends(make_identity) -> None:
    identity = make_identity()
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        call = session.call(tool_of(read), {"customer": "ACME"})
        seen: list[str] = []

        class FakeSpan:
            is_recording = True
            trace_id = "0" * 31 + "1"
            span_id = "0" * 15 + "1"

            def attach(self) -> None: ...

            def detach(self, token) -> None: ...

            def end(self, attributes, error) -> None:
                seen.append(kinds(session)[-1])

        call._span = FakeSpan()
        with call:
            pass
    assert seen == ["call.completed"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("secret text"), "call.failed"),
        (KeyboardInterrupt(), "call.cancelled"),
        (SystemExit(1), "call.failed"),
        (asyncio.CancelledError(), "call.cancelled"),
    ],
)
def test_how_a_body_ended_is_recorded_by_the_class_of_its_exception_alone(bot, error, kind) -> None:
    @tool()
    def ends() -> None:
        raise error

    with bot.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(type(error)):
            ends()
        last = session.records()[-1]
    assert (last.kind, last.body) == (kind, {"error": type(error).__name__})


async def test_a_cancelled_call_is_cancelled_and_its_context_given_back(bot: AgentIdentity) -> None:
    started = asyncio.Event()

    @tool()
    async def waits() -> None:
        started.set()
        await asyncio.Event().wait()

    async with bot.on_behalf_of("user:alice", purpose="p") as session:
        task = asyncio.create_task(waits())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert kinds(session)[-1] == "call.cancelled"
        assert session.call_id is None


# -- P3: absence never means allow ---------------------------------------------------------------------------------------


def raising(request: object) -> bool:
    raise RuntimeError("no database")


class Undecided:
    def decide(self, request: object):
        return None
        yield


class Failing:
    def decide(self, request: object):
        yield from http(HttpRequest("GET", "https://pdp.invalid/"))
        return Decision.permit()


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (lambda request: False, "policy_denied"),
        (lambda request: Decision.deny("no"), "policy_denied"),
        (lambda request: None, "policy_undecided"),
        (lambda request: 1, "policy_undecided"),
        (lambda request: "true", "policy_undecided"),
        (lambda request: object(), "policy_undecided"),
        (raising, "policy_failed"),
        (Undecided(), "policy_undecided"),
    ],
)
def test_a_tool_that_was_refused_never_ran_and_left_evidence(make_identity, policy, code) -> None:
    identity = make_identity(policy=policy)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(DeniedError) as caught:
            read()
        assert kinds(session) == ["session.opened", "call.denied"]
    assert (caught.value.code, ran, identity.authority.issued) == (code, [], {})
    trace = identity.who_triggered(caught.value.call_id)
    assert (trace.decision, trace.outcome) == ("deny", "denied")


def test_a_refused_call_is_on_record_with_the_labels_of_its_tool(make_identity) -> None:
    @tool(labels={"moves:money"})
    def pay() -> None: ...

    identity = make_identity(policy=lambda request: False)
    with identity.on_behalf_of("user:alice", purpose="p"):
        with pytest.raises(DeniedError) as caught:
            pay()
    (call,) = identity.who_triggered(caught.value.call_id).calls
    assert (call.labels, call.code) == (["moves:money"], "policy_denied")


def test_a_policy_that_asks_somebody_who_is_away_permits_nothing(
    make_identity, monkeypatch
) -> None:
    identity = make_identity(policy=Failing())
    from agent_identity.errors import TransportError

    def away(*args: object) -> HttpResponse:
        raise TransportError("exchange_failed", "nobody there")

    monkeypatch.setattr("agent_identity.http.transport.Transport.exchange", away)
    with identity.on_behalf_of("user:alice", purpose="p"), pytest.raises(TransportError):
        read()
    assert ran == []


def test_a_policy_that_asks_for_an_approval_gets_an_error_that_says_so(make_identity) -> None:
    identity = make_identity(policy=lambda request: Decision.approval("manager", policy_id="big"))
    with identity.on_behalf_of("user:alice", purpose="p"):
        with pytest.raises(ApprovalRequiredError) as caught:
            read()
    assert (ran, caught.value.policy_id) == ([], "big")
    assert identity.who_triggered(caught.value.call_id).decision == "approval"


@pytest.mark.parametrize(
    ("status", "expected"), [(503, CredentialUnavailableError), (400, CredentialRejectedError)]
)
def test_a_tool_whose_credential_could_not_be_had_never_ran(
    make_identity, status, expected
) -> None:
    class Away(Authority):
        def client(self, client_id: str) -> ClientRecord:
            raise OAuthError("x", "away", status=status)

    identity = make_identity(authority=Away())
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(expected) as caught:
            read()
        assert kinds(session) == ["session.opened", "call.denied"]
    assert ran == []
    assert identity.who_triggered(caught.value.call_id).outcome == "denied"


def test_a_session_that_ended_while_its_credential_was_fetched_acts_no_more(make_identity) -> None:
    class Ending(Authority):
        session = None

        def client(self, client_id: str) -> ClientRecord:
            self.session.revoke("meanwhile")
            return super().client(client_id)

    authority = Ending()
    identity = make_identity(authority=authority)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        authority.session = session
        with pytest.raises(DeniedError) as caught:
            read()
    assert (caught.value.code, ran) == ("session_revoked", [])


# -- policy sees -----------------------------------------------------------------------------------------------------------


def test_policy_sees_the_whole_call_and_can_change_none_of_it(make_identity) -> None:
    seen = []

    def look(request) -> bool:
        context = request.context
        seen.append(
            (
                request.subject.type,
                request.subject.id,
                request.action.id,
                request.resource.id,
                request.resource.properties["labels"],
                request.resource.properties["scopes"],
                context["args"]["customer"],
                context["args_hash"][:8],
                context["purpose"],
                context["agent"],
                context["depth"],
                context["session"]["calls"],
            )
        )
        with pytest.raises(TypeError):
            context["args"]["customer"] = "Globex"
        with pytest.raises(TypeError):
            context["purpose"] = "another"
        return True

    identity = make_identity(policy=look)
    with identity.on_behalf_of("user:alice", purpose="close the books"):
        read()
    assert seen == [
        (
            *("User", "alice", "call", "read", {"reads:finance"}, {"invoices:read"}, "ACME"),
            *("sha-256:", "close the books", "urn:agent-identity:agent:invoice-bot", 0, 0),
        )
    ]


def no_leaving_after_reading(request) -> bool:
    labels = request.resource.properties["labels"]
    return not (
        "sends:external" in labels and "reads:finance" in request.context["session"]["labels"]
    )


def test_policy_sees_what_was_permitted_before_sub_agents_included(make_identity) -> None:
    identity = make_identity(policy=no_leaving_after_reading)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        send()
        with session.delegate("reader"):
            read()
        with pytest.raises(DeniedError):
            send()
    with identity.on_behalf_of("user:alice", purpose="p"):
        send()  # another session has another past
    assert ran == ["sent", "ACME", "sent"]


def test_two_calls_at_once_cannot_both_see_an_innocent_past(make_identity) -> None:
    both = threading.Barrier(2, timeout=10)
    met: list[int] = []

    def slow(request) -> bool:
        innocent = no_leaving_after_reading(request) and not (
            "reads:finance" in request.resource.properties["labels"]
            and "sends:external" in request.context["session"]["labels"]
        )
        if not met or len(met) < 2:
            met.append(1)
            both.wait()  # both have decided upon the same past before either enters it
        return innocent

    identity = make_identity(policy=slow)
    outcomes: list[str] = []

    def attempt(function) -> None:
        try:
            function()
            outcomes.append("ran")
        except DeniedError as error:
            outcomes.append(error.code)

    with identity.on_behalf_of("user:alice", purpose="p") as session:
        threads = [
            threading.Thread(target=attempt, args=(session.bind(function),))
            for function in (read, send)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(outcomes) == ["policy_denied", "ran"]


# -- one id --------------------------------------------------------------------------------------------------------------


def test_one_call_id_is_on_span_assertion_record_and_error(make_identity, spans) -> None:
    from agent_identity.jose import loads_object, unverified

    identity = make_identity(policy=lambda request: request.resource.id == "read")
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        read()
        with pytest.raises(DeniedError) as caught:
            send()
        intent = next(r for r in session.records() if r.kind == "call.intended")
    done, denied = [span for span in spans() if span.name.startswith("execute_tool")]
    claims = loads_object(unverified(intent.to_dict()["assertion"]).payload)
    assert done.name == "execute_tool read"
    assert claims["call"]["id"] == intent.call_id == done.attributes["agent_identity.call.id"]
    assert claims["trace"]["trace_id"] == f"{done.context.trace_id:032x}" == intent.trace_id
    assert claims["trace"]["span_id"] == f"{done.context.span_id:016x}" == intent.span_id
    assert denied.attributes["agent_identity.call.id"] == caught.value.call_id
    assert denied.attributes["error.type"] == "policy_denied"
    assert identity.who_triggered(intent.span_id).calls[0]["call_id"] == intent.call_id


def test_a_span_has_the_attributes_of_the_contract_and_no_argument(make_identity, spans) -> None:
    identity = make_identity()
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        read("a very secret customer")
    (span,) = [span for span in spans() if span.name == "execute_tool read"]
    attributes = dict(span.attributes)
    assert attributes.pop("agent_identity.call.id").startswith("call_")
    assert attributes.pop("agent_identity.grant.hash")
    pseudonym = attributes.pop("agent_identity.principal.pseudonym")
    assert attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "read",
        "agent_identity.session.id": session.id,
        "agent_identity.txn": session.id,
        "agent_identity.agent.id": "urn:agent-identity:agent:invoice-bot",
        "agent_identity.chain.depth": 0,
        "agent_identity.decision": "permit",
        "agent_identity.policy.id": "grants-only",
        "agent_identity.resource": BILLING,
    }
    assert "alice" not in pseudonym
    assert "secret customer" not in span.to_json()


def test_inside_a_frameworks_own_execute_tool_span_ours_leaves_the_operation_out(
    bot, spans
) -> None:
    from opentelemetry import trace

    tracer = trace.get_tracer("framework")
    with bot.on_behalf_of("user:alice", purpose="p"):
        with tracer.start_as_current_span(
            "execute_tool read", attributes={"gen_ai.operation.name": "execute_tool"}
        ) as outer:
            read()
    ours = next(s for s in spans() if "agent_identity.call.id" in (s.attributes or {}))
    assert "gen_ai.operation.name" not in ours.attributes
    assert ours.parent.span_id == outer.get_span_context().span_id


def test_a_tools_own_spans_nest_below_its_call(bot, spans) -> None:
    from opentelemetry import trace

    @tool()
    def works() -> None:
        with trace.get_tracer("mine").start_as_current_span("inner"):
            pass

    with bot.on_behalf_of("user:alice", purpose="p"):
        works()
    found = {span.name: span for span in spans()}
    assert found["inner"].parent.span_id == found["execute_tool works"].context.span_id


def test_an_exporter_that_raises_changes_no_result(bot, monkeypatch) -> None:
    from agent_identity.provenance import spans as module

    class Exploding:
        def start_span(self, *args: object, **kwargs: object) -> None:
            raise RuntimeError("collector down")

    monkeypatch.setattr(module, "_tracer", Exploding())
    with bot.on_behalf_of("user:alice", purpose="p"):
        assert read() == "ACME"


def test_the_same_call_made_again_asks_nobody_again(make_identity) -> None:
    identity = make_identity()
    with identity.on_behalf_of("user:alice", purpose="p"):
        read()
        before = identity.authority.issued.copy()
        for _ in range(20):
            read()
        assert identity.authority.issued == before == {"grant": 1, "access_token": 1}
