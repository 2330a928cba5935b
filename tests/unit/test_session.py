# SPDX-License-Identifier: Apache-2.0
"""A session: its limits, its end, its sub-agents, and where it is current."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agent_identity import (
    AgentIdentity,
    ConfigurationError,
    DeniedError,
    NoSessionError,
    Principal,
    RevokedError,
    current_credential,
    current_session,
    on_behalf_of,
    tool,
)
from agent_identity.keys.signing import SigningKey
from agent_identity.runtime.lifetime import Life

BILLING = "https://billing.example"
MAIL = "https://mail.example"


@tool(resource=BILLING, scopes=["invoices:read"])
def read() -> str:
    return current_session().principal.sub


@tool(resource=BILLING, scopes=["journal:write"])
def write() -> None:
    raise AssertionError("this tool must not run")


@tool(resource=MAIL, scopes=["invoices:read"])
def mail() -> None:
    raise AssertionError("this tool must not run")


@tool()
def who() -> str:
    return current_session().principal.sub


# -- opening and ending --------------------------------------------------------------------------------------------------


def test_a_session_that_was_not_entered_is_none(bot: AgentIdentity) -> None:
    session = bot.on_behalf_of("user:alice", purpose="try")
    with pytest.raises(NoSessionError):
        who()
    with pytest.raises(NoSessionError):
        session.credential(BILLING)


def test_a_session_is_entered_once(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="try") as session:
        pass
    with pytest.raises(ConfigurationError, match="once"), session:
        pass


def test_leaving_ends_it_and_restores_what_was_current_before(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="try") as outer:
        with bot.on_behalf_of("user:bob", purpose="try"):
            assert who() == "bob"
        assert current_session() is outer
        assert who() == "alice"
    with pytest.raises(NoSessionError):
        who()


def test_its_time_ends_it(make_identity, clock) -> None:
    identity = make_identity(clock=clock, authority=_authority(clock))
    with identity.on_behalf_of("user:alice", purpose="try", expires_in=60):
        assert read() == "alice"
        clock.now += 61
        with pytest.raises(DeniedError) as caught:
            read()
    assert caught.value.code == "session_expired"


def _authority(clock):
    from agent_identity.authority import Authority

    return Authority(clock=clock)


def test_revoking_it_ends_it_and_everything_below_at_once(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="try") as session, session.delegate("sub"):
        assert who() == "alice"
        session.revoke("stolen laptop")
        with pytest.raises(RevokedError):
            who()
    assert any(r.body.get("reason") == "revoked: stolen laptop" for r in session.records())


def test_a_session_is_revoked_whatever_the_reason_is_written_in(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="try") as session:
        session.revoke("seen in \udce9.log")
    assert session.records()[-1].body["reason"] == "revoked: seen in \\udce9.log"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"purpose": ""}, "purpose"),
        ({"purpose": "x" * 201}, "purpose"),
        *(({"purpose": text}, "purpose") for text in ("\ud800", "a\nb", "a\0", "a\u202eb")),
        *(({"purpose": "p", "task": text}, "task") for text in ("\ud800", "a\nb", "x" * 201)),
        ({"purpose": "p", "expires_in": 0}, "expires_in"),
        ({"purpose": "p", "max_depth": 8}, "max_depth"),
        ({"purpose": "p", "scopes": "invoices:read"}, "scope_malformed"),
        ({"purpose": "p", "scopes": ["a b"]}, "scope_malformed"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(bot, arguments, code) -> None:
    with pytest.raises(ConfigurationError) as caught:
        bot.on_behalf_of("user:alice", **arguments)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "Cl\u00f4turer\u00a0: livres",
        "\U0001f469\u200d\U0001f4bb",
    ],
)
def test_a_purpose_is_written_as_its_language_is(bot: AgentIdentity, text: str) -> None:
    with bot.on_behalf_of("user:alice", purpose=text, task=text) as session:
        session.credential("https://billing.example", [])
        assert session.records()[0].body["purpose"] == text


def test_a_clock_that_is_set_back_lengthens_no_life(clock) -> None:
    life = Life("ses_1", None, clock.now + 60, clock)
    life.begin()
    ends = life.ends_monotonic
    clock.now -= 3600
    life.end_by(life.expires_at - 1)
    assert life.ends_monotonic == ends


@pytest.mark.parametrize("owner", ["\ud800", "a\nb", "x" * 201])
def test_an_owner_that_no_record_could_hold_is_refused_at_once(make_identity, owner) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_identity(owner=owner)
    assert caught.value.code == "owner"


@pytest.mark.parametrize("subject", ["mallory", "nobody:mallory", "", "eyJhbGciOiJub25lIn0.e30."])
def test_a_subject_that_names_nobody_is_refused_and_not_quoted(bot, subject) -> None:
    with pytest.raises(ConfigurationError) as caught:
        bot.on_behalf_of(subject, purpose="p")
    assert subject == "" or subject not in str(caught.value)


@pytest.mark.parametrize(
    "said", [{"sub": "\ud800"}, {"iss": "https://\ud800"}, {"profile": "\ud800"}, {"sub": 5}]
)
def test_a_principal_that_no_grant_can_name_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Principal(**({"sub": "alice"} | said))
    assert refused.value.code == "principal_malformed"


def test_a_principal_of_another_issuer_is_refused(bot: AgentIdentity) -> None:
    with pytest.raises(ConfigurationError, match="belongs to another issuer"):
        bot.on_behalf_of(Principal("alice", iss="https://idp.example"), purpose="p")


def test_without_configuration_the_modules_function_says_how_to_get_one(monkeypatch) -> None:
    monkeypatch.delenv("AGENT_IDENTITY_CONFIG", raising=False)
    with pytest.raises(ConfigurationError) as caught:
        on_behalf_of("user:alice", purpose="p")
    assert "embedded" in caught.value.remedy


def test_a_session_whose_beginning_cannot_be_recorded_is_none(make_identity) -> None:
    from agent_identity import LedgerError
    from agent_identity.provenance.memory import MemoryLedger

    class Broken(MemoryLedger):
        def append(self, draft, /) -> None:
            raise LedgerError("ledger_unwritable", "the disk is full")

    session = make_identity(ledger=Broken()).on_behalf_of("user:alice", purpose="p")
    with pytest.raises(LedgerError), session:
        raise AssertionError("the block must not run")
    assert not session.is_open
    with pytest.raises(NoSessionError):
        who()


# -- limits --------------------------------------------------------------------------------------------------------------


def test_a_scope_beyond_the_session_is_denied_before_any_request(make_identity) -> None:
    identity = make_identity()
    with identity.on_behalf_of("user:alice", purpose="p", scopes=["invoices:read"]):
        with pytest.raises(DeniedError) as caught:
            write()
        assert caught.value.code == "scope_not_granted"
    assert identity.authority.issued == {}


def test_no_scopes_means_none_and_leaving_them_out_means_no_limit(bot: AgentIdentity) -> None:
    with (
        bot.on_behalf_of("user:alice", purpose="p", scopes=()),
        pytest.raises(DeniedError, match="lacks"),
    ):
        read()
    with bot.on_behalf_of("user:alice", purpose="p"):
        assert read() == "alice"


def test_a_resource_beyond_the_session_is_denied_before_any_request(make_identity) -> None:
    identity = make_identity()
    with identity.on_behalf_of("user:alice", purpose="p", resources=[BILLING]):
        with pytest.raises(DeniedError) as caught:
            mail()
        assert caught.value.code == "resource_not_granted"
        assert identity.authority.issued == {}
        assert read() == "alice"
        assert who() == "alice"  # local tools are within every session's reach


def test_what_a_resource_is_configured_with_is_the_most_and_the_default(make_identity) -> None:
    identity = make_identity(resources={BILLING: ["invoices:read"]})

    @tool(resource=BILLING)
    def default() -> frozenset[str]:
        return current_credential().scopes

    with identity.on_behalf_of("user:alice", purpose="p"):
        assert default() == {"invoices:read"}
        with pytest.raises(DeniedError) as caught:
            write()
    assert caught.value.code == "scope_not_configured"


# -- sub-agents ----------------------------------------------------------------------------------------------------------


def test_a_sub_agent_acts_for_the_same_principal_with_a_key_and_a_credential_of_its_own(
    bot: AgentIdentity,
) -> None:
    @tool(resource=BILLING, scopes=["invoices:read"])
    def token() -> str:
        return current_credential().reveal()

    with bot.on_behalf_of("user:alice", purpose="p") as session:
        mine = token()
        with session.delegate("archive-bot", scopes=["invoices:read"], expires_in=60) as child:
            assert token() != mine
            assert read() == "alice"
            assert child.txn == session.id
            assert child.purpose == "p"
            assert child.chain == (
                "urn:agent-identity:agent:archive-bot",
                "urn:agent-identity:agent:invoice-bot",
            )
        assert token() == mine


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"scopes": ["invoices:read", "invoices:pay"]}, "scope_widened"),
        ({"scopes": ["Invoices:read"]}, "scope_widened"),
        ({"scopes": ["*"]}, "scope_widened"),
        ({"resources": [BILLING, MAIL]}, "audience_widened"),
        ({"resources": [BILLING + "/"]}, "audience_widened"),
    ],
)
def test_a_child_is_narrower_or_an_error(bot, wanted, code) -> None:
    with (
        bot.on_behalf_of(
            "user:alice", purpose="p", scopes=["invoices:read"], resources=[BILLING]
        ) as session,
        pytest.raises(DeniedError) as caught,
    ):
        session.delegate("sub", **wanted)
    assert caught.value.code == code


def test_a_child_takes_over_what_it_is_not_given(bot: AgentIdentity) -> None:
    with (
        bot.on_behalf_of("user:alice", purpose="p", scopes=["invoices:read"]) as session,
        session.delegate("sub"),
    ):
        assert read() == "alice"
        with pytest.raises(DeniedError, match="lacks"):
            write()


def test_a_child_never_outlives_its_parent(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="p", expires_in=60) as session:
        assert session.delegate("sub", expires_in=3600).expires_at == session.expires_at
        child = session.delegate("sub").__enter__()
        inside = contextvars.copy_context()
        assert inside.run(who) == "alice"
    with pytest.raises(DeniedError, match="ended"):
        inside.run(who)
    with pytest.raises(DeniedError, match="ended"):
        child.delegate("further")


def test_depth_has_a_ceiling_and_no_agent_acts_twice(bot: AgentIdentity) -> None:
    with (
        bot.on_behalf_of("user:alice", purpose="p", max_depth=1) as session,
        session.delegate("sub") as child,
    ):
        with pytest.raises(DeniedError) as caught:
            child.delegate("further")
        assert caught.value.code == "depth_exceeded"
        with pytest.raises(DeniedError) as caught:
            session.delegate("invoice-bot")
        assert caught.value.code == "actor_repeated"


def test_a_run_that_nobody_asked_for_names_its_trigger(bot: AgentIdentity) -> None:
    with bot.autonomous(trigger="cron:nightly-close", purpose="close the day") as session:
        assert read() == "cron:nightly-close"
    trace = bot.who_triggered(session)
    assert trace.trigger == "cron:nightly-close"
    assert trace.principal.profile == "trigger"
    assert trace.chain[0]["evidence"] == "agent"


# -- where it is current -------------------------------------------------------------------------------------------------


async def test_tasks_and_to_thread_follow_and_never_cross(bot: AgentIdentity) -> None:
    async def work(name: str) -> set[str]:
        async with bot.on_behalf_of(f"user:{name}", purpose="p"):
            seen = set()
            for _ in range(5):
                await asyncio.sleep(0)
                seen.add(who())
                seen.add(await asyncio.to_thread(who))
            return seen

    names = [f"u{i}" for i in range(20)]
    assert await asyncio.gather(*map(work, names)) == [{name} for name in names]


def test_a_thread_has_no_session_unless_it_is_carried_there(bot: AgentIdentity) -> None:
    with ThreadPoolExecutor(1) as pool, bot.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(NoSessionError):
            pool.submit(who).result()
        assert pool.submit(session.bind(who)).result() == "alice"
        with pytest.raises(NoSessionError):
            pool.submit(who).result()  # nothing of the bound job is left in the worker


def test_a_bound_function_carries_the_running_call_along(bot: AgentIdentity) -> None:
    @tool(resource=BILLING, scopes=["invoices:read"])
    def outer() -> bool:
        session = current_session()
        with ThreadPoolExecutor(1) as pool:
            there = pool.submit(session.bind(lambda: current_session().call_id)).result()
            credential = pool.submit(session.bind(current_credential)).result()
        return there == session.call_id and credential.resource == BILLING

    with bot.on_behalf_of("user:alice", purpose="p"):
        assert outer()


def test_a_bound_function_runs_in_several_threads_at_once(bot: AgentIdentity) -> None:
    both = threading.Barrier(2, timeout=10)

    def meet() -> str:
        both.wait()
        return who()

    with ThreadPoolExecutor(2) as pool, bot.on_behalf_of("user:alice", purpose="p") as session:
        bound = session.bind(meet)
        jobs = [pool.submit(bound) for _ in range(2)]
        assert [job.result() for job in jobs] == ["alice", "alice"]


async def test_bind_takes_coroutine_functions_and_refuses_generators(bot: AgentIdentity) -> None:
    async def later() -> str:
        await asyncio.sleep(0)
        return who()

    def steps():
        yield who()

    async with bot.on_behalf_of("user:alice", purpose="p") as session:
        bound = session.bind(later)
        with pytest.raises(ConfigurationError, match="generator"):
            session.bind(steps)
        context = contextvars.Context()
        assert await asyncio.get_running_loop().create_task(bound(), context=context) == "alice"


def test_a_bound_function_is_denied_after_its_session_ended(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        bound = session.bind(who)
    with pytest.raises(NoSessionError):
        bound()


async def test_a_session_left_in_another_context_still_ends(bot: AgentIdentity) -> None:
    async def scoped():
        with bot.on_behalf_of("user:alice", purpose="p") as session:
            yield session

    steps = scoped()
    session = await asyncio.create_task(anext(steps))
    await asyncio.create_task(steps.aclose())
    assert not session.is_open
    with pytest.raises(NoSessionError):
        who()


def test_C18_a_pools_worker_never_acts_under_a_session_that_an_earlier_job_left_there(
    bot: AgentIdentity,
) -> None:
    """MCP Python issue 2208: context variables stay behind in pool workers."""

    def forgets_to_leave(ends: bool) -> None:
        session = bot.on_behalf_of("user:alice", purpose="p").__enter__()
        assert who() == "alice"
        if ends:
            session._end()

    with ThreadPoolExecutor(1) as pool:
        for ends in (True, False):
            pool.submit(forgets_to_leave, ends).result()
            gc.collect()
            with pytest.raises(NoSessionError):
                pool.submit(who).result()

        def own() -> str:
            with bot.on_behalf_of("user:bob", purpose="p"):
                return who()

        assert pool.submit(own).result() == "bob"


def test_C18_a_worker_that_was_born_inside_a_session_loses_it_with_that_session(
    bot: AgentIdentity,
) -> None:
    """As free-threaded builds start threads: in a copy of their creator's context."""
    jobs: list[threading.Event] = [threading.Event(), threading.Event()]
    seen: list[str] = []

    def worker() -> None:
        jobs[0].wait(10)
        try:
            seen.append(who())
        except NoSessionError as error:
            seen.append(error.code)
        jobs[1].set()

    with bot.on_behalf_of("user:alice", purpose="p"):
        thread = threading.Thread(target=contextvars.copy_context().run, args=(worker,))
        thread.start()
    jobs[0].set()
    thread.join(10)
    assert seen == ["session_ended"]


def test_sessions_and_identities_show_no_secret_and_travel_nowhere(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        credential = session.credential(BILLING)
        for made in (credential, bot, session):
            assert credential.reveal() not in f"{made!r} {made} {vars(made)}"
        for forbidden in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                forbidden(credential)


def test_a_credential_outside_a_tool_is_decided_and_recorded_but_asserts_no_call(
    make_identity,
) -> None:
    asked = []
    identity = make_identity(policy=lambda request: asked.append(request) or True)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        headers = session.credential(BILLING, ["invoices:read"]).headers("GET", BILLING)
        kinds = [record.kind for record in session.records()]
    assert "Agent-Assertion" not in headers
    assert headers["Agent-Delegation"]
    assert (asked[0].action.id, asked[0].resource.type, asked[0].resource.id) == (
        *("credential", "Resource", BILLING),
    )
    assert "credential.acquired" in kinds
    assert kinds.count("credential.decided") == 1


def test_a_credential_that_policy_refuses_is_on_record_and_on_a_span(make_identity, spans) -> None:
    identity = make_identity(policy=lambda request: request.action.id != "credential")
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(DeniedError):
            session.credential(BILLING)
        last = session.records()[-1]
    assert (last.kind, last.body["decision"], last.body["code"]) == (
        *("credential.decided", "deny", "policy_denied"),
    )
    (span,) = spans()
    assert span.attributes["agent_identity.decision"] == "deny"
    assert span.attributes["error.type"] == "policy_denied"


def test_what_is_no_part_of_this_version_is_said_and_not_ignored(bot, tmp_path) -> None:
    for asked in ({"approver": object()}, {"shared": "valkey://x"}):
        with pytest.raises(ConfigurationError) as caught:
            AgentIdentity.embedded("bot", state_dir=tmp_path / "s", **asked)
        assert caught.value.code == "not_supported"
    assert not (tmp_path / "s").exists()
    with pytest.raises(ConfigurationError):
        bot.on_behalf_of("user:alice", purpose="p", budget={"calls": 1})
    with pytest.raises(ConfigurationError):
        bot.autonomous(trigger="cron:x", purpose="p", budget={"calls": 1})
    AgentIdentity.embedded("bot", state_dir=tmp_path / "s", shared="memory:").close()


def test_a_resource_may_be_described_as_a_table(make_identity) -> None:
    identity = make_identity(resources={BILLING: {"scopes": ["invoices:read"]}, MAIL: {}})
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        assert session._state.needed(BILLING, None) == {"invoices:read"}
        assert session._state.needed(MAIL, frozenset({"anything"})) == {"anything"}
        with pytest.raises(DeniedError):
            write()
    with pytest.raises(ConfigurationError) as caught:
        make_identity(resources={BILLING: {"scope": ["invoices:read"]}})
    assert caught.value.code == "unknown_key"


@pytest.mark.parametrize("handed", [False, True])
@pytest.mark.parametrize(
    ("said", "code"),
    [
        *(({"task": value}, "task") for value in (5, b"x", ["x"], "", "\ud800")),
        *(({"task": value}, "task") for value in ("x" * 201, "a\nb")),
        *(({"scopes": value}, "scope_malformed") for value in (5, b"x", [None], [b"x"], [[]])),
        *(({"resources": value}, "resource_malformed") for value in (5, b"x", [None], [b"x"])),
        *(({"expires_in": value}, "expires_in") for value in ("60", b"x", [60], float("nan"))),
        *(({"agent": value}, "agent_name") for value in (None, 5, b"x", ["x"])),
    ],
)
def test_delegate_takes_nothing_of_another_type(
    bot: AgentIdentity, said: dict[str, Any], code: str, handed: bool
) -> None:
    key = {"key": SigningKey.generate().public_jwk} if handed else {}
    usual = {"agent": "sub", "scopes": ["read"], "resources": [BILLING]} | key
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(ConfigurationError) as refused:
            session.delegate(**(usual | said))
        assert refused.value.code == code


# -- what `scopes=None` means -------------------------------------------------------------------------------------------


@tool(resource=BILLING)
def read_all() -> frozenset[str]:
    return current_credential().scopes


@pytest.mark.parametrize(
    ("configured", "granted", "expected"),
    [
        (None, ["a", "b"], {"a", "b"}),
        (["a", "b"], None, {"a", "b"}),
        (["a", "b"], ["b", "c"], {"b"}),
        (["a"], ["b"], set()),
        (None, None, set()),
        (["a"], [], set()),
    ],
)
@pytest.mark.parametrize("is_child", [False, True])
async def test_no_scopes_mean_what_the_level_above_allows(
    make_identity, configured, granted, expected, is_child
) -> None:
    """For a credential outside any tool, and for a tool that names none."""
    bot = make_identity(resources={BILLING: configured})
    with bot.on_behalf_of("user:alice", purpose="p", scopes=granted) as session:
        acting = session.delegate("helper") if is_child else session
        with acting if is_child else contextlib.nullcontext():
            assert acting.credential(BILLING).scopes == expected
            assert (await acting.acredential(BILLING)).scopes == expected
            assert read_all() == expected
            assert acting.credential(BILLING, ()).scopes == set()


def test_a_local_tool_asks_for_no_scopes(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="p", scopes=["a"]) as session:
        who()
        made = [each for each in session.records() if each.kind == "grant.made"]
    assert [each.body["scope"] for each in made] == [[]]


# -- how short a session may be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1, 1.9, 0, -1, True, "60"])
def test_a_session_too_short_to_serve_anybody_is_refused(bot: AgentIdentity, seconds) -> None:
    with pytest.raises(ConfigurationError, match="at least 2"):
        bot.on_behalf_of("user:alice", purpose="p", expires_in=seconds)
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(ConfigurationError, match="at least 2"):
            session.delegate("helper", expires_in=seconds)


def test_the_shortest_session_works(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="p", expires_in=2) as session:
        assert read() == "alice"
        with session.delegate("helper", expires_in=2):
            assert read() == "alice"
