# SPDX-License-Identifier: Apache-2.0
"""Revocation: what it ends in this process, what it keeps, who may do it, and how references are read."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent_identity import (
    AgentIdentity,
    ConfigurationError,
    DeniedError,
    RevokedError,
    current_credential,
    current_session,
    tool,
)
from agent_identity.authority import Authority
from agent_identity.errors import AgentIdentityError
from agent_identity.lifecycle import Reference, Revocations, read_reference
from agent_identity.pipeline import Call
from agent_identity.provenance.memory import MemoryLedger

BILLING = "https://billing.example"


@tool(resource=BILLING, scopes=["invoices:read"])
def read() -> str:
    return current_session().principal.sub


@tool(resource=BILLING, scopes=["invoices:read"])
async def aread() -> str:
    return current_session().principal.sub


@tool(resource=BILLING, scopes=["invoices:read"])
def leak() -> Any:
    return current_credential()


def code(work: Any) -> str:
    try:
        work()
    except AgentIdentityError as error:
        return error.code
    return "worked"


def granted(session: Any) -> str:
    """The `jti` of a session's first grant."""
    return next(each.ref for each in session.records() if each.kind == "grant.made")


# -- what it ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        (lambda session, child: "user:alice", "principal_revoked"),
        (lambda session, child: session.id, "session_revoked"),
        (lambda session, child: "agent:invoice-bot", "agent_revoked"),
        (lambda session, child: session.agent, "agent_revoked"),
        (lambda session, child: granted(session), "grant_revoked"),
        (lambda session, child: "*", "everything_revoked"),
    ],
    ids=["principal", "session", "agent", "uri", "grant", "everything"],
)
def test_a_revocation_ends_running_sessions_and_all_below_at_once(
    bot: AgentIdentity, ref: Any, expected: str
) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        with session.delegate("helper") as child:
            with child.delegate("deeper") as deepest:
                assert read() == "alice"
                cached = session.credential(BILLING, ["invoices:read"])
                answer = bot.revoke(ref(session, child), reason="stolen laptop")
                assert answer.sessions >= 1
                assert code(read) == expected
                assert code(lambda: deepest.delegate("more")) == expected
                assert code(lambda: cached.headers("GET", BILLING)) == expected
                assert code(lambda: session.credential(BILLING)) == expected
            assert code(lambda: asyncio.run(aread())) == expected
        assert code(lambda: session.delegate("another")) == expected


def test_a_revoked_sub_agent_leaves_its_parent_alone(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        with session.delegate("helper"):
            bot.revoke("agent:helper", reason="odd")
            assert code(read) == "agent_revoked"
        assert read() == "alice"
        with pytest.raises(RevokedError), session.delegate("helper"):
            read()


@pytest.mark.parametrize("ref", ["user:alice", "agent:invoice-bot", "*"])
def test_the_next_session_of_what_is_revoked_is_refused_by_that_name(
    bot: AgentIdentity, ref: str
) -> None:
    bot.revoke(ref, reason="gone")
    with pytest.raises(RevokedError) as refusal, bot.on_behalf_of("user:alice", purpose="p"):
        read()
    assert refusal.value.code in {"principal_revoked", "agent_revoked", "everything_revoked"}


def test_others_work_on(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:bob", purpose="p"):
        bot.revoke("user:alice", reason="gone")
        assert read() == "bob"
    with bot.on_behalf_of("user:bob", purpose="p"):
        assert read() == "bob"


def test_two_identities_of_one_authority_in_one_process_follow_each_other(make_identity) -> None:
    authority = Authority()
    one = make_identity("one", authority=authority)
    other = make_identity("other", authority=authority)
    with other.on_behalf_of("user:alice", purpose="p"):
        one.revoke("user:alice", reason="gone")
        assert code(read) == "principal_revoked"


def test_a_revoked_sessions_tokens_are_given_back_and_its_end_is_on_record(
    bot: AgentIdentity,
) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        read()
        bot.revoke(session, reason="odd")
        for _ in range(200):
            if any(each.kind == "session.closed" for each in session.records()):
                break
            threading.Event().wait(0.02)
    assert [each.body["reason"] for each in session.records() if each.kind == "session.closed"] == [
        "revoked: odd"
    ]
    assert any(record.kind == "credential.revoked" for record in session.records())


async def test_the_async_twins_do_the_same(make_identity, clock) -> None:
    bot = make_identity(authority=Authority(clock=clock), clock=clock)
    async with bot.on_behalf_of("user:alice", purpose="p"):
        await bot.arevoke("user:alice", reason="gone")
        with pytest.raises(RevokedError):
            await aread()
    await bot.areinstate("user:alice")
    clock.now += 1
    async with bot.on_behalf_of("user:alice", purpose="p"):
        assert await aread() == "alice"


# -- for good, until it is reinstated -------------------------------------------------------------------------------------


def test_what_is_reinstated_begins_anew_and_what_was_issued_before_stays_ended(
    make_identity, clock
) -> None:
    bot = make_identity(authority=Authority(clock=clock), clock=clock)
    with bot.on_behalf_of("user:alice", purpose="p"):
        bot.revoke("user:alice", reason="gone")
        bot.reinstate("user:alice", reason="back")
        assert code(read) == "principal_revoked"
        clock.now += 1
        assert code(read) == "principal_revoked"
    with bot.on_behalf_of("user:alice", purpose="p"):
        assert read() == "alice"


def test_nothing_starts_after_the_kill_switch_until_everything_is_reinstated(
    make_identity, clock
) -> None:
    bot = make_identity(authority=Authority(clock=clock), clock=clock)
    bot.revoke("*", reason="incident 7")
    for user in ("user:alice", "user:bob"):
        with pytest.raises(RevokedError), bot.on_behalf_of(user, purpose="p"):
            read()
    with pytest.raises(RevokedError), bot.autonomous(trigger="cron:nightly", purpose="p"):
        read()
    bot.reinstate("*")
    clock.now += 1
    with bot.on_behalf_of("user:alice", purpose="p"):
        assert read() == "alice"


@pytest.mark.parametrize("ref", ["user:alice", "*", "agent:other", "ses_" + "0" * 32])
def test_reinstating_what_is_not_revoked_is_an_error(bot: AgentIdentity, ref: str) -> None:
    assert code(lambda: bot.reinstate(ref)) == "not_revoked"


def test_a_revocation_survives_a_restart(tmp_path: Path) -> None:
    with AgentIdentity.embedded("bot", state_dir=tmp_path) as first:
        first.revoke("user:alice", reason="gone")
    with (
        AgentIdentity.embedded("bot", state_dir=tmp_path) as second,
        pytest.raises(RevokedError),
        second.on_behalf_of("user:alice", purpose="p"),
    ):
        read()


# -- references, records, rights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("user:alice", "principal", "user:alice"),
        ("user:https://idp.example#alice", "principal", "user:https://idp.example#alice"),
        ("service:batch", "principal", "service:batch"),
        ("trigger:cron:nightly", "principal", "trigger:cron:nightly"),
        ("ses_abc", "session", "ses_abc"),
        ("grant_abc", "grant", "grant_abc"),
        ("agent:payments-bot", "agent", "urn:agent-identity:agent:payments-bot"),
        ("payments-bot", "agent", "urn:agent-identity:agent:payments-bot"),
        ("spiffe://acme/bot", "agent", "spiffe://acme/bot"),
        ("client:invoice", "client", "invoice"),
        ("*", "everything", "*"),
    ],
)
def test_references_are_read_by_their_form(text: str, kind: Any, name: str) -> None:
    assert read_reference(text) == Reference(kind, name)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "user:", "alice smith", "call_abc", "apr_1", "user:alice\n", "agent:"),
        "client:",
        "**",
    ],
)
def test_what_is_no_reference_is_an_error_that_shows_what_references_look_like(
    bot: AgentIdentity, text: str
) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        bot.revoke(text, reason="gone")
    assert refusal.value.code == "reference_malformed"
    assert "user:alice" in str(refusal.value.remedy)


@pytest.mark.parametrize("ref", ["ses_" + "0" * 32, "grant_" + "0" * 32])
def test_a_session_or_grant_that_nobody_knows_is_an_error(bot: AgentIdentity, ref: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        bot.revoke(ref, reason="gone")
    assert refusal.value.code == "reference_unknown"
    assert "user:alice" in str(refusal.value.remedy)
    assert code(lambda: bot.reinstate(ref)) == "not_revoked"


def test_a_principal_or_agent_that_was_never_seen_may_be_revoked_and_the_answer_says_so(
    bot: AgentIdentity,
) -> None:
    assert bot.revoke("user:zoe", reason="never hired").is_new
    assert "new here" in str(bot.revoke("agent:typo-bot", reason="never built"))
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        with session.delegate("helper"):
            read()
        assert not bot.revoke("agent:helper", reason="odd").is_new
        assert not bot.revoke("user:alice", reason="gone").is_new
        assert not bot.revoke("agent:invoice-bot", reason="odd").is_new


def test_a_revocation_is_on_record_with_who_asked_and_names_no_principal_in_clear(
    make_identity,
) -> None:
    ledger = MemoryLedger()
    bot = make_identity(ledger=ledger)
    bot.revoke("user:alice", reason="stolen laptop")
    bot.reinstate("user:alice")
    made, lifted = list(ledger.records())[-2:]
    assert (made.kind, lifted.kind) == ("revocation.made", "revocation.lifted")
    assert made.body == {
        "kind": "principal",
        "ref": None,
        "reason": "stolen laptop",
        "by": "urn:agent-identity:agent:invoice-bot",
    }
    assert made.sealed == {"ref": "user:alice"}
    assert made.pseudonym == ledger.pseudonym(read_reference("user:alice").principal)


def test_a_reason_is_one_short_line(bot: AgentIdentity) -> None:
    for reason in ("", "a\nb", "x" * 201):
        assert code(lambda reason=reason: bot.revoke("user:alice", reason=reason)) != "worked"
    with bot.on_behalf_of("user:alice", purpose="p"):
        assert read() == "alice"


# -- that nothing slips through -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("ref", ["user:alice", "*"])
def test_nothing_starts_after_a_revocation_was_acknowledged(
    make_identity, clock, depth: int, ref: str
) -> None:
    bot = make_identity(authority=Authority(clock=clock), clock=clock)
    acknowledged = threading.Event()
    late: list[bool] = []

    @tool()
    def work() -> None:
        late.append(acknowledged.is_set())

    def agent(ready: threading.Barrier) -> None:
        with contextlib.ExitStack() as stack:
            session = stack.enter_context(bot.on_behalf_of("user:alice", purpose="p"))
            for number in range(depth):
                session = stack.enter_context(session.delegate(f"helper-{number}"))
            ready.wait(20)
            with contextlib.suppress(RevokedError):
                while True:
                    work()

    for _ in range(20):
        acknowledged.clear()
        ready = threading.Barrier(4)
        agents = [threading.Thread(target=agent, args=(ready,)) for _ in range(3)]
        for each in agents:
            each.start()
        ready.wait(20)
        bot.revoke(ref, reason="stop")
        acknowledged.set()
        for each in agents:
            each.join(20)
        assert not any(late)
        late.clear()
        bot.reinstate(ref)
        clock.now += 1


@pytest.mark.parametrize("way", ["identity", "session"])
def test_a_revocation_waits_for_a_call_that_had_passed_its_last_check(
    make_identity, monkeypatch, way: str
) -> None:
    """Its thread may have lost the processor right there."""
    bot = make_identity()
    passed, events = threading.Event(), list[str]()
    resume = Call.resume

    def late(call: Call) -> None:
        passed.set()
        time.sleep(0.1)
        resume(call)

    monkeypatch.setattr(Call, "resume", late)

    @tool()
    def work() -> None:
        events.append("began")

    with bot.on_behalf_of("user:alice", purpose="p") as session:
        agent = threading.Thread(target=session.bind(work))
        agent.start()
        passed.wait(20)
        if way == "identity":
            bot.revoke("user:alice", reason="stop")
        else:
            session.revoke("stop")
        events.append("acknowledged")
        agent.join(20)
    assert events == ["began", "acknowledged"]


def test_a_session_that_opens_while_its_principal_is_revoked_never_acts(make_identity) -> None:
    class Slow(MemoryLedger):
        def append(self, draft: Any, /) -> None:
            if draft.kind == "session.opened" and draft.session_id == opening[0].id:
                bot.revoke("user:alice", reason="gone")
            super().append(draft)

    opening: list[Any] = []
    bot = make_identity(ledger=Slow())
    opening.append(bot.on_behalf_of("user:alice", purpose="p"))
    with opening[0]:
        assert code(read) == "principal_revoked"


class FakeStore:
    """A store that other processes write to, and that can't be read for a while."""

    place, is_shared = "a file", True

    def __init__(self) -> None:
        self.found: dict[str, int | None] = {}
        self.number = 0
        self.is_away = False

    def version(self) -> int:
        if self.is_away:
            raise DeniedError("store_unavailable", "the disk is gone")
        return self.number

    def revoke(self, ref: str, now: int, ends: int | None = None) -> None:
        self.found[ref] = None

    def reinstate(self, ref: str, now: int) -> None: ...

    def revocations(self, now: float) -> list[tuple[str, int | None]]:
        return [*self.found.items()]


def test_what_another_process_revoked_counts_after_the_next_look(make_identity) -> None:
    store = FakeStore()
    bot = make_identity(revocations=store)
    with bot.on_behalf_of("user:alice", purpose="p"):
        store.found, store.number = {"user:alice": None}, 1
        bot._parts.revocations.look()
        assert code(read) == "principal_revoked"


def test_revocations_that_cannot_be_read_for_too_long_refuse_every_call(make_identity) -> None:
    store, now = FakeStore(), [time.monotonic()]
    bot = make_identity(revocations=store)
    revocations = Revocations(store, bot.ledger, monotonic=lambda: now[0])
    revocations.check_fresh()
    store.is_away = True
    now[0] += 5
    revocations.check_fresh()
    now[0] += 6
    assert code(revocations.check_fresh) == "revocations_stale"
    store.is_away = False
    revocations.check_fresh()


def test_an_agent_without_the_operators_key_revokes_itself_and_what_is_below_alone(
    make_identity,
) -> None:
    bot = make_identity()
    bot._is_operator = False
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        for ref in ("user:alice", "agent:other", "*"):
            assert code(lambda ref=ref: bot.revoke(ref, reason="odd")) == "operator_required"
        assert code(lambda: bot.reinstate("user:alice")) == "operator_required"
        assert read() == "alice"
        bot.revoke(session, reason="odd")
        assert code(read) == "session_revoked"
    bot.revoke("agent:invoice-bot", reason="odd")
