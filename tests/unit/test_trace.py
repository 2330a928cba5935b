# SPDX-License-Identifier: Apache-2.0
"""Who triggered this: one answer for each reference, in programs, on a terminal, in a notebook."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest

from agent_identity.delegation.grant import hash_of
from agent_identity.errors import LedgerError
from agent_identity.flow import Draft
from agent_identity.provenance.ledger import open_ledger
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.provenance.trace import Trace, trace_of
from agent_identity.values import LOCAL, Principal, new_id

BILLING = "https://billing.example"
AGENT = "urn:agent-identity:agent:"


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 1, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        self.now += 1 / 64  # a whole number of microseconds, and exact as a float
        return self.now


class Told:
    """Writes records as the pipeline does."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ledger = MemoryLedger(clock=self.clock)
        self.agents: dict[str, tuple[str, int, str, str]] = {}

    def open(self, agent, *, parent=None, principal=None, trigger=None, task=None, scopes=None):
        session = new_id("ses_")
        who = principal or Principal("alice")
        above = self.agents.get(parent)
        depth = 0 if above is None else above[1] + 1
        txn = session if above is None else above[2]
        pseudonym = self.ledger.pseudonym(who)
        self.agents[session] = (AGENT + agent, depth, txn, pseudonym)
        public = {"purpose": "close the October books", "task": task, "agent": AGENT + agent}
        public |= {"depth": depth, "parent": parent, "txn": txn, "scopes": scopes}
        public |= {"resources": None, "expires_at": 1_900_000_000}
        sealed = {"sub": who.sub, "iss": who.iss, "profile": who.profile, "trigger": trigger}
        self._append("session.opened", session, public, sealed)
        return session

    def grant(self, session, *scopes, above=None):
        compact = f"eyJ.{new_id('')}.x"
        agent, depth, *_ = self.agents[session]
        chain = [compact, *(above or [])]
        public = {"agent": agent, "depth": depth, "scope": [*scopes], "aud": [BILLING]}
        public |= {"expires_at": 1_900_000_000, "grant_hash": hash_of(compact)}
        public |= {"evidence": "issuer" if depth == 0 else None}
        self._append("grant.made", session, public, {"grant": compact, "chain": chain}, ref="g-1")
        return chain

    def call(self, session, tool, *, ended="completed", error=None, chain=None, ref=None, **sealed):
        agent, depth, txn, _ = self.agents[session]
        call = new_id("call_")
        public = {"tool": tool, "resource": BILLING, "agent": agent, "depth": depth, "txn": txn}
        public |= {"decision": "permit", "policy_id": "allow-read", "labels": ["reads:finance"]}
        public |= {"grant_hash": None if chain is None else hash_of(chain[0])}
        ids = {"call": call, "trace": "7" * 32, "span": call[-16:], "ref": ref}
        self._append("call.intended", session, public, {"assertion": "eyJ.a.b", **sealed}, **ids)
        if ended is not None:
            self.clock.now += 0.25
            self._append(f"call.{ended}", session, {"error": error}, None, call=call)
        return call

    def acquired(self, session, chain):
        public = {"resource": BILLING, "grant_hash": hash_of(chain[0]), "source": "token-exchange"}
        public |= {"issuer": "https://idp.example", "scope": ["invoices:read"]}
        public |= {"expires_at": 1_793_491_500}
        self._append("credential.acquired", session, public, None)

    def used(self, session, call, kind, **public):
        self._append(
            f"credential.{kind}", session, {"resource": BILLING, **public}, None, call=call
        )

    def deny(self, session, tool, decision="deny"):
        agent, depth, txn, _ = self.agents[session]
        call = new_id("call_")
        public = {"tool": tool, "resource": LOCAL, "agent": agent, "depth": depth, "txn": txn}
        public |= {"decision": decision, "policy_id": "no-payments", "labels": ["moves:money"]}
        public |= {"code": "policy_denied", "reason": "policy refuses the call: no"}
        self._append("call.denied", session, public, None, call=call)
        return call

    def _append(self, kind, session, public, sealed, *, call=None, trace=None, span=None, ref=None):
        who = self.agents[session][3]
        self.ledger.append(
            Draft(
                kind,
                public,
                sealed,
                pseudonym=who,
                session_id=session,
                call_id=call,
                trace_id=trace,
                span_id=span,
                ref=ref,
            )
        )

    def trace(self, ref, **options) -> Trace:
        return trace_of(self.ledger, ref, **options)


@pytest.fixture
def told():
    return Told()


def test_a_call_answers_with_its_principal_purpose_and_the_chain_that_led_to_it(told) -> None:
    root = told.open("invoice-bot")
    above = told.grant(root, "invoices:read", "invoices:pay")
    child = told.open("archive-bot", parent=root)
    chain = told.grant(child, "invoices:read", above=above)
    told.call(root, "list_invoices", chain=above)
    call = told.call(child, "read_archive", chain=chain)
    trace = told.trace(call)
    assert trace.principal == Principal("alice")
    assert (trace.purpose, trace.trigger) == ("close the October books", None)
    assert (trace.decision, trace.outcome, trace.approval) == ("permit", "completed", None)
    assert trace.chain == [
        {
            "agent": AGENT + "invoice-bot",
            "depth": 0,
            "scope": ["invoices:pay", "invoices:read"],
            "evidence": "issuer",
        },
        {
            "agent": AGENT + "archive-bot",
            "depth": 1,
            "scope": ["invoices:read"],
            "evidence": None,
        },
    ]
    assert [entry["call_id"] for entry in trace.calls] == [call]
    assert (trace.verified, trace.witnessed, trace.erased) == (True, False, False)


def test_the_json_has_the_members_of_the_contract_in_its_order(told) -> None:
    """DESIGN.md section 12."""
    session = told.open("invoice-bot")
    call = told.call(session, "list_invoices")
    document = told.trace(call).to_dict()
    assert [*document] == [
        *("ref", "verified", "witnessed", "principal", "trigger", "purpose", "chain", "calls")
    ]
    assert document["principal"] == {"sub": "alice", "iss": None, "profile": "user"}
    assert [*document["chain"][0]] == ["agent", "depth", "scope", "evidence"]
    (entry,) = document["calls"]
    assert entry == {
        "call_id": call,
        "parent": None,
        "agent": AGENT + "invoice-bot",
        "tool": "list_invoices",
        "resource": BILLING,
        "labels": ["reads:finance"],
        "decision": "permit",
        "policy_id": "allow-read",
        "code": None,
        "reason": None,
        "approval": None,
        "credential": None,
        "outcome": "completed",
        "error": None,
        "started": "2026-11-01T00:00:00.031250Z",
        "ended": "2026-11-01T00:00:00.296875Z",
        "trace_id": "7" * 32,
        "span_id": call[-16:],
    }
    assert [*entry] == [
        *("call_id", "parent", "agent", "tool", "resource", "labels", "decision", "policy_id"),
        *("code", "reason", "approval", "credential", "outcome", "error"),
        *("started", "ended", "trace_id", "span_id"),
    ]
    assert json.loads(json.dumps(document)) == document


def test_a_call_names_the_agent_that_made_it_and_not_the_one_above(told) -> None:
    root = told.open("invoice-bot")
    told.call(told.open("archive-bot", parent=root), "read_archive")
    (call,) = told.trace(root).calls
    assert call.agent == AGENT + "archive-bot"


def test_a_refused_call_says_with_which_code_and_why(told) -> None:
    (call,) = told.trace(told.deny(told.open("bot"), "pay")).calls
    assert (call.code, call.reason) == ("policy_denied", "policy refuses the call: no")
    assert (call.labels, call.error) == (["moves:money"], None)


def test_a_call_that_was_refused_after_its_intent_keeps_what_the_intent_said(told) -> None:
    session = told.open("bot")
    call = told.call(session, "pay", ended=None)
    public = {"tool": "pay", "resource": BILLING, "agent": AGENT + "bot", "decision": "deny"}
    public |= {"policy_id": None, "code": "session_ended", "reason": "the session ended"}
    told._append("call.denied", session, public, None, call=call)
    (entry,) = told.trace(call).calls
    assert (entry.decision, entry.outcome, entry.code) == ("deny", "denied", "session_ended")
    assert (entry.labels, entry.reason) == (["reads:finance"], "the session ended")


def test_a_failed_call_names_the_error_of_its_tool(told) -> None:
    (call,) = told.trace(told.call(told.open("bot"), "pay", ended="failed", error="OSError")).calls
    assert (call.outcome, call.error, call.code) == ("failed", "OSError", None)


def test_what_a_trace_lists_is_read_by_name_or_by_attribute(told) -> None:
    trace = told.trace(told.call(told.open("bot"), "pay"))
    assert trace.calls[0].tool == trace.calls[0]["tool"] == "pay"
    assert trace.chain[0].agent == AGENT + "bot"
    with pytest.raises(AttributeError):
        trace.calls[0].nothing  # noqa: B018 - asking is the test


def test_a_session_answers_with_all_that_was_done_below_it(told) -> None:
    root = told.open("invoice-bot")
    first = told.call(root, "list_invoices")
    child = told.open("archive-bot", parent=root)
    grandchild = told.open("mail-bot", parent=child)
    second = told.call(grandchild, "send")
    third = told.deny(child, "pay")
    told.call(told.open("sibling-bot", parent=root), "beside")
    other = told.call(told.open("invoice-bot"), "unrelated")
    whole, part = told.trace(root), told.trace(child)
    assert [entry["call_id"] for entry in whole.calls][:3] == [first, second, third]
    assert "sibling-bot" in str(whole)
    assert "sibling-bot" not in str(part)
    assert [entry["call_id"] for entry in part.calls] == [second, third]
    assert [hop["agent"] for hop in whole.chain] == [AGENT + "invoice-bot"]
    assert [hop["agent"] for hop in part.chain] == [AGENT + "invoice-bot", AGENT + "archive-bot"]
    assert (whole.decision, whole.outcome, whole.approval) == (None, None, None)
    assert other not in str(whole)


def test_every_reference_of_a_call_gives_the_same_answer(told) -> None:
    session = told.open("bot")
    call = told.call(session, "pay", ref="toolu_01")
    told.deny(session, "other")
    answers = [told.trace(ref) for ref in (call, f"{call}.2", f"{call}.r1", call[-16:], "toolu_01")]
    assert {answer.calls[0]["call_id"] for answer in answers} == {call}
    assert {len(answer.calls) for answer in answers} == {1}


def test_a_grant_answers_for_its_session(told) -> None:
    session = told.open("bot")
    told.grant(session, "a")
    call = told.call(session, "pay")
    assert [entry["call_id"] for entry in told.trace("g-1").calls] == [call]


def test_a_trace_id_answers_with_all_its_calls_and_what_their_chains_share(told) -> None:
    root = told.open("invoice-bot")
    one = told.call(root, "a")
    two = told.call(told.open("archive-bot", parent=root), "b")
    trace = told.trace("7" * 32)
    assert [entry["call_id"] for entry in trace.calls] == [one, two]
    assert [hop["agent"] for hop in trace.chain] == [AGENT + "invoice-bot"]
    assert trace.decision is None


def test_a_reference_of_two_transactions_has_no_one_answer(told) -> None:
    for who in ("alice", "bob"):
        told.call(told.open("bot", principal=Principal(who)), "pay", ref="call_1")
    with pytest.raises(LedgerError) as caught:
        told.trace("call_1")
    assert caught.value.code == "ambiguous_reference"


@pytest.mark.parametrize("ref", ["call_none", "ses_none", "", "' OR 1=1", "call_none.1"])
def test_an_unknown_reference_is_an_error_that_says_so(told, ref) -> None:
    told.call(told.open("bot"), "pay")
    with pytest.raises(LedgerError) as caught:
        told.trace(ref)
    assert caught.value.code == "unknown_reference"


@pytest.mark.parametrize("url", ["memory:", "sqlite:"])
def test_what_can_be_no_reference_is_an_unknown_one_in_every_ledger(tmp_path, url) -> None:
    ledger = open_ledger(url, state_dir=tmp_path)
    try:
        with pytest.raises(LedgerError) as caught:
            trace_of(ledger, "\ud800")
    finally:
        ledger.close()
    assert caught.value.code == "unknown_reference"


@pytest.mark.parametrize("ended", ["completed", "failed", "cancelled", "unknown"])
def test_an_outcome_is_what_was_recorded(told, ended) -> None:
    assert told.trace(told.call(told.open("bot"), "pay", ended=ended)).outcome == ended


def test_a_running_call_has_no_outcome_until_its_writer_is_gone(told) -> None:
    call = told.call(told.open("bot"), "pay", ended=None)
    assert told.trace(call).outcome is None
    assert told.trace(call).calls[0]["ended"] is None
    told.ledger.close()
    assert told.trace(call).outcome == "unknown"


@pytest.mark.parametrize("decision", ["deny", "approval"])
def test_a_denied_call_shows_what_was_decided(told, decision) -> None:
    trace = told.trace(told.deny(told.open("bot"), "pay", decision))
    assert (trace.decision, trace.outcome) == (decision, "denied")
    assert trace.calls[0]["policy_id"] == "no-payments"


def test_an_approval_is_shown_with_who_gave_it(told) -> None:
    approval = {"id": "apr_1", "by": "bob", "evidence": "key"}
    trace = told.trace(told.call(told.open("bot"), "pay", approval=approval))
    assert trace.approval == trace.calls[0]["approval"] == approval
    assert "approved by bob (key)" in str(trace)


def test_an_unattended_run_answers_with_its_trigger(told) -> None:
    session = told.open(
        "bot", principal=Principal("nightly", profile="trigger"), trigger="cron:nightly-close"
    )
    trace = told.trace(told.call(session, "pay"))
    assert trace.trigger == "cron:nightly-close"
    assert trace.to_dict()["principal"]["profile"] == "trigger"
    assert "cron:nightly-close" in str(trace)


def test_a_hop_without_a_grant_of_its_own_shows_the_scopes_of_its_session(told) -> None:
    trace = told.trace(told.call(told.open("bot", scopes=["a", "b"]), "pay"))
    assert trace.chain[0]["scope"] == ["a", "b"]


def test_a_call_shows_the_grant_that_it_was_made_under_and_no_other(told) -> None:
    session = told.open("bot")
    told.grant(session, "mail:send")
    chain = told.grant(session, "invoices:read")
    assert told.trace(told.call(session, "pay", chain=chain)).chain[0]["scope"] == ["invoices:read"]
    assert told.trace(session).chain[0]["scope"] == ["invoices:read"]


def test_a_signature_that_fails_its_check_is_named(told) -> None:
    call = told.call(told.open("bot"), "pay")
    trace = told.trace(
        call, check=lambda record: "forged" if record.kind == "call.intended" else None
    )
    assert not trace.verified
    assert trace.unsound.endswith(": forged")
    assert "NOT VERIFIED" in str(trace)


def test_signatures_are_mentioned_only_when_they_were_checked(told) -> None:
    call = told.call(told.open("bot"), "pay")
    assert str(told.trace(call)).endswith("\nverified (3 records; no external checkpoint)")
    seen = []
    trace = told.trace(call, check=lambda record: seen.append(record.kind))
    assert str(trace).endswith("\nverified (3 records, signed; no external checkpoint)")
    assert sorted(seen) == ["call.completed", "call.intended", "session.opened"]


def test_an_erased_principal_leaves_its_pseudonym_and_what_can_still_be_checked(told) -> None:
    session = told.open("bot")
    call = told.call(session, "pay", chain=told.grant(session, "a"))
    pseudonym = told.agents[session][3]
    told.ledger.subjects.erase(pseudonym)
    trace = told.trace(call)
    assert trace.to_dict()["principal"] == {"sub": None, "pseudonym": pseudonym, "erased": True}
    assert (trace.principal, trace.erased, trace.verified) == (None, True, True)
    assert trace.unverifiable == ("assertions and approvals", "grants", "the principal")
    assert trace.chain[0]["scope"] == ["a"]
    assert "alice" not in str(trace)


def test_a_call_without_a_session_on_record_still_names_its_principal(told) -> None:
    session = told.open("bot")
    told.ledger = MemoryLedger(clock=told.clock)
    agent, depth, txn, _ = told.agents[session]
    told.agents[session] = (agent, depth, txn, told.ledger.pseudonym(Principal("bob")))
    trace = told.trace(told.call(session, "pay"))
    assert (trace.principal, trace.purpose) == (Principal("bob"), None)
    assert [hop["agent"] for hop in trace.chain] == [AGENT + "bot"]


def test_sessions_that_form_a_ring_end_the_search(told) -> None:
    """Ours: records of a ledger that was tampered with may name each other as parents."""
    session = told.open("bot")
    who = told.agents[session][3]
    for one, other in (("ses_x", "ses_y"), ("ses_y", "ses_x")):
        public = {"agent": AGENT + "bot", "depth": 0, "parent": other, "txn": "ses_x"}
        told.ledger.append(Draft("session.opened", public, pseudonym=who, session_id=one))
    assert len(told.trace("ses_x").chain) == 2


# -- how it looks ---------------------------------------------------------------------------------------------------


def test_the_tree_reads_from_the_principal_down(told) -> None:
    root = told.open("invoice-bot")
    one = told.call(root, "list_invoices")
    two = told.deny(root, "pay_invoice")
    child = told.open("archive-bot", parent=root, task="find the old ones")
    three = told.call(child, "read_archive", ended=None)
    four = told.call(root, "send_report", ended="failed", error="TimeoutError")
    assert str(told.trace(root)).splitlines() == [
        "user:alice: close the October books",
        "└─ invoice-bot",
        f"   ├─ ✔ list_invoices at {BILLING}, completed in 266ms",
        f"   │    {one}",
        "   │    by invoice-bot, permitted by allow-read",
        "   │    2026-11-01 00:00:00.031 to 00:00:00.296 UTC",
        "   ├─ ✘ pay_invoice locally, denied",
        f"   │    {two}",
        "   │    by invoice-bot, denied by no-payments",
        "   │    policy_denied: policy refuses the call: no",
        "   │    2026-11-01 00:00:00.312 UTC",
        "   ├─ archive-bot: find the old ones",
        f"   │  └─ … read_archive at {BILLING}, running",
        f"   │       {three}",
        "   │       by archive-bot, permitted by allow-read",
        "   │       since 2026-11-01 00:00:00.343 UTC",
        f"   └─ ✘ send_report at {BILLING}, failed (TimeoutError) in 266ms",
        f"        {four}",
        "        by invoice-bot, permitted by allow-read",
        "        2026-11-01 00:00:00.359 to 00:00:00.625 UTC",
        "verified (8 records; no external checkpoint)",
    ]


@pytest.mark.parametrize(
    ("ended", "mark"),
    [("completed", "✔"), ("failed", "✘"), ("cancelled", "✘"), ("unknown", "?"), (None, "…")],
)
def test_the_mark_of_a_call_fits_its_outcome_and_not_its_decision(told, ended, mark) -> None:
    trace = told.trace(told.call(told.open("bot"), "pay", ended=ended))
    (line,) = [line for line in str(trace).splitlines() if "pay at" in line]
    assert line.startswith(f"   └─ {mark} pay at {BILLING}, {ended or 'running'}")


@pytest.mark.parametrize(("decision", "said"), [("deny", "denied"), ("approval", "needs approval")])
def test_a_refused_call_is_drawn_with_its_cross_its_code_and_its_reason(
    told, decision, said
) -> None:
    text = str(told.trace(told.deny(told.open("bot"), "pay", decision)))
    assert "└─ ✘ pay locally, denied\n" in text
    assert f"by bot, {said} by no-payments\n" in text
    assert "policy_denied: policy refuses the call: no\n" in text


def test_a_call_shows_where_its_credential_came_from_and_what_became_of_it(told) -> None:
    session = told.open("bot")
    chain = told.grant(session, "invoices:read")
    told.acquired(session, chain)
    call = told.call(session, "pay", chain=chain)
    told.used(session, call, "stepped_up", scope=["invoices:read", "invoices:pay"])
    told.used(session, call, "refused", place="https://evil.example", code="foreign_url")
    trace = told.trace(call)
    credential = trace.calls[0].credential
    assert (credential["source"], credential["issuer"]) == (
        *("token-exchange", "https://idp.example"),
    )
    assert credential["expires_at"] == "2026-11-01T00:05:00Z"
    lines = [line.strip() for line in str(trace).splitlines()]
    at = lines.index("credential: token-exchange from https://idp.example")
    assert lines[at + 1 : at + 4] == [
        "for invoices:read, until 2026-11-01 00:05:00 UTC",
        "stepped up to invoices:read invoices:pay at 2026-11-01 00:00:00.343 UTC",
        "credential refused for https://evil.example (foreign_url) at 2026-11-01",
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_is_longer_than_the_width_and_no_word_is_broken(told, width) -> None:
    root = told.open("invoice-bot", task="read every invoice of last year " * 6)
    chain = told.grant(root, "invoices:read")
    told.acquired(root, chain)
    session = root
    for depth in range(3):
        session = told.open(f"archive-bot-{depth}", parent=session, task="look for old ones " * 8)
        told.call(session, "a_tool_with_a_name_of_its_own", chain=chain)
        told.deny(session, "pay_invoice")
    trace = told.trace(root)
    text = trace.to_text(width)
    assert max(map(len, text.splitlines())) <= width
    words = set(text.split())
    for call in trace.calls:
        assert {call.call_id, call.tool} <= words
    whole = set(trace.to_text(10_000).split()) - set("├─└│")
    assert whole - words == set()


def test_a_word_that_is_longer_than_a_line_stays_whole_on_a_line_of_its_own(told) -> None:
    name = "x" * 100
    text = told.trace(told.call(told.open("bot"), name)).to_text(60)
    assert name in text.split()


def test_wide_letters_count_as_the_two_columns_that_they_take(told) -> None:
    text = told.trace(told.open("bot", task="李雷 " * 30)).to_text(60)
    lines = [line for line in text.splitlines() if "李雷" in line]
    assert len(lines) == 3
    assert max(len(line) + line.count("李") + line.count("雷") for line in lines) <= 60


HOSTILE = 'x\r\n└─ ✔ forged\x1b[31m\u202egnp\u2028\u200b<script>alert(1)</script>"]; n-->m[`'


def test_H12_a_hostile_name_draws_no_line_turns_nothing_round_and_runs_nowhere(told) -> None:
    session = told.open("bot", task=HOSTILE, principal=Principal(HOSTILE), trigger=HOSTILE)
    told.call(session, HOSTILE)
    trace = told.trace(session)
    text, html, mermaid = str(trace), trace._repr_html_(), trace.to_mermaid()
    drawn_nodes = [line for line in text.splitlines() if re.match(r"[│ ]*[├└]─ ", line)]
    assert len(drawn_nodes) == 2
    assert sum(line.count("─") for line in text.splitlines()) == 2
    for drawn in (text, html, mermaid):
        assert not set(drawn) & set("\r\x1b\u202e\u2028\u200b")
    assert "<script" not in html
    assert html.count("<li>") == 3
    labels = [line.split('["', 1)[1] for line in mermaid.splitlines() if '["' in line]
    assert len(labels) == 3
    assert all(label.endswith('"]') and label.count('"') == 1 for label in labels)
    assert not any(set("<>`") & set(label) for label in labels)


@pytest.mark.parametrize("width", [60, 80])
def test_a_text_that_goes_on_in_the_next_line_passes_for_no_line_of_the_trace(told, width) -> None:
    """Ours: what wraps may be chosen so that a line of it begins like one of ours."""
    forged = "verified (9 records, signed; no external checkpoint)"
    padding = "x" * (width - 4)
    lie = f"{padding} {forged} {padding} by bot, permitted by allow-all {padding}   by bot, permitted by allow-all"
    session = told.open("bot", task=lie, trigger=lie, principal=Principal(lie))
    told.call(session, lie)
    trace = told.trace(session, check=lambda record: lie)
    lines = trace.to_text(width).splitlines()
    assert [line for line in lines if line.startswith("verified")] == []
    (honest,) = [line for line in lines if "by bot, permitted by allow-read" in line]
    at = [line.index("by bot") for line in lines if "by bot, permitted by allow-all" in line]
    assert len(at) >= 8
    notes = honest.index(
        "by bot"
    )  # of one call; below and above it they begin 3 columns further and earlier
    assert [column for column in at if column > 2 and column % 3 == notes % 3] == []


def test_the_flowchart_links_every_box_to_the_one_above(told) -> None:
    root = told.open("invoice-bot")
    told.call(told.open("archive-bot", parent=root), "read_archive")
    told.call(root, "list_invoices")
    lines = told.trace(root).to_mermaid().splitlines()
    assert lines[0] == "flowchart LR"
    assert sum("-->" in line for line in lines) == sum("[" in line for line in lines) - 1 == 4


def test_a_name_in_any_script_stays_readable(told) -> None:
    session = told.open("bot", principal=Principal("Łucja Ångström 李雷"))
    assert "Łucja Ångström 李雷" in str(told.trace(session))
