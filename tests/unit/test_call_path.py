# SPDX-License-Identifier: Apache-2.0
"""Ways around the order of a call, each of which somebody found open once."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import sys

import pytest

from agent_identity import (
    AgentIdentity,
    ConfigurationError,
    DeniedError,
    Principal,
    RevokedError,
    current_credential,
    current_session,
    tool,
)
from agent_identity.adapters import Tool
from agent_identity.authority import Authority, ClientRecord
from agent_identity.authority.requests import OAuthError
from agent_identity.errors import CredentialUnavailableError
from agent_identity.policy import GrantsOnly
from agent_identity.values import Secret, scrub

BILLING = "https://billing.example"
ran: list[object] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


@tool()
def who() -> str:
    ran.append("who")
    return current_session().principal.sub


def kinds(session) -> list[str]:
    return [record.kind for record in session.records()]


def test_a_stricter_kind_of_grants_only_decides_itself(make_identity) -> None:
    class Strict(GrantsOnly):
        def decide(self, request):
            raise DeniedError("strict", "nothing at all")
            yield

    identity = make_identity(policy=Strict())
    with identity.on_behalf_of("user:alice", purpose="p"), pytest.raises(DeniedError):
        who()
    assert ran == []


async def test_an_async_generators_last_words_are_spoken_under_its_own_session(bot) -> None:
    @tool()
    async def speaks():
        try:
            yield 1
        finally:
            ran.append(who())

    async with bot.on_behalf_of("user:alice", purpose="p"):
        steps = speaks()
        await anext(steps)
        async with bot.on_behalf_of("user:bob", purpose="p"):
            await steps.aclose()
    assert ran == ["who", "alice"]


def test_what_is_thrown_into_a_generator_doesnt_wake_it_after_its_session(bot) -> None:
    @tool()
    def handles():
        try:
            yield 1
        except ValueError:
            ran.append("woken")
            yield 2

    with bot.on_behalf_of("user:alice", purpose="p"):
        steps = handles()
        next(steps)
    with pytest.raises(DeniedError, match="ended"):
        steps.throw(ValueError())
    assert ran == []


def test_an_error_of_ours_that_a_consumer_throws_reaches_the_body(bot) -> None:
    @tool()
    def handles():
        try:
            yield 1
        except DeniedError:
            yield "handled"

    with bot.on_behalf_of("user:alice", purpose="p"):
        steps = handles()
        next(steps)
        assert steps.throw(DeniedError("x", "x")) == "handled"


def test_a_generator_that_python_cannot_begin_has_its_call_ended(bot) -> None:
    class Box:
        @tool()
        def steps(self):
            yield 1

    with bot.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises((TypeError, ConfigurationError)):
            next(Box.steps())
        assert kinds(session)[-1] != "call.intended"


def test_an_argument_named_like_an_owner_is_kept_from_nobody(bot) -> None:
    class Box:
        @staticmethod
        @tool()
        def take(cls, text: str) -> None:  # noqa: PLW0211 - that is the test
            ran.append(text)

    with bot.on_behalf_of("user:alice", purpose="p"), pytest.raises(ConfigurationError):
        Box.take({"hidden": "argument"}, "x")
    assert ran == []


async def test_a_body_that_would_run_outside_its_call_is_refused(bot) -> None:
    def plain_wrapper(function):
        @functools.wraps(function)
        def inner():
            return function()

        return inner

    @tool()
    @plain_wrapper
    async def hidden() -> None:
        ran.append("ran")

    with bot.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(ConfigurationError) as caught:
            hidden()
        assert caught.value.code == "hidden_body"
        assert kinds(session)[-1] == "call.failed"
        with pytest.raises(ConfigurationError):
            session.bind(hidden.__wrapped__)()
    assert ran == []


def test_one_principal_has_one_spelling(bot) -> None:
    own = Principal("alice", iss=bot.authority.issuer)
    with (
        bot.on_behalf_of(own, purpose="p") as one,
        bot.on_behalf_of("user:alice", purpose="p") as two,
    ):
        assert one.principal == two.principal
        assert one._state.pseudonym == two._state.pseudonym


def test_one_string_is_no_list_wherever_a_list_is_meant(bot) -> None:
    for wrong in ({"labels": "risk:high"}, {"scopes": "read"}, {"opaque": "x"}):
        with pytest.raises(ConfigurationError):
            Tool("t", **wrong)
    with pytest.raises(ConfigurationError):
        bot.on_behalf_of("user:alice", purpose="p", resources=BILLING)
    with bot.on_behalf_of("user:alice", purpose="p") as session, pytest.raises(ConfigurationError):
        session.delegate("sub", resources=BILLING)


def test_labels_given_once_serve_every_function_they_decorate() -> None:
    decorate = tool(labels=(label for label in ("risk:high",)))

    def one() -> None: ...
    def two() -> None: ...

    found = [decorate(function).__agent_identity_tool__ for function in (one, two)]
    assert [(made.name, made.labels) for made in found] == [
        *(("one", {"risk:high"}), ("two", {"risk:high"})),
    ]


def test_a_tool_is_decorated_once() -> None:
    with pytest.raises(ConfigurationError, match="already"):
        tool()(who)


@pytest.mark.parametrize(
    "resource",
    [
        "https://Billing.example",
        "https://billing.example:443",
        "HTTPS://billing.example",
        "billing",
        "https://billing.example/#x",
    ],
)
def test_a_resource_has_one_spelling_so_that_no_limit_is_spelled_around(bot, resource) -> None:
    with pytest.raises(ConfigurationError) as caught:
        tool(resource=resource)
    assert caught.value.code == "resource_malformed"
    with pytest.raises(ConfigurationError):
        bot.on_behalf_of("user:alice", purpose="p", resources=[resource])


def test_a_call_is_entered_once(bot) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        call = session.call(Tool("t"), {})
        with call:
            pass
        with pytest.raises(ConfigurationError) as caught, call:
            ran.append("again")
    assert (caught.value.code, ran) == ("call_reused", [])


def test_nothing_is_signed_for_a_call_that_has_ended(bot) -> None:
    @tool(resource=BILLING, scopes=["read"])
    def keep() -> object:
        return current_credential(), current_session().bind(current_credential)

    with bot.on_behalf_of("user:alice", purpose="p"):
        credential, bound = keep()
        for kept in (credential, bound()):
            with pytest.raises(DeniedError) as caught:
                kept.headers("GET", BILLING)
            assert caught.value.code == "call_ended"


def test_a_policy_that_calls_tools_of_its_session_comes_to_an_end(make_identity) -> None:
    rounds: list[int] = []

    def nosy(request) -> bool:
        if request.resource.id == "who":
            rounds.append(1)
            current_session()
            inner()
        return True

    @tool()
    def inner() -> None: ...

    identity = make_identity(policy=nosy)
    with identity.on_behalf_of("user:alice", purpose="p"), pytest.raises(DeniedError) as caught:
        who()
    assert caught.value.code == "history_contended"
    assert (ran, len(rounds) < 100) == ([], True)


def test_whatever_goes_wrong_on_the_way_in_is_a_typed_refusal_on_record(make_identity) -> None:
    class Odd:
        def decide(self, request):
            yield "no ask of ours"

    identity = make_identity(policy=Odd())
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(DeniedError) as caught:
            who()
        assert kinds(session)[-1] == "call.denied"
    assert (ran, caught.value.call_id is not None) == ([], True)


def test_an_interruption_on_the_way_in_leaves_a_record(make_identity) -> None:
    def interrupted(request):
        raise KeyboardInterrupt

    identity = make_identity(policy=interrupted)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(KeyboardInterrupt):
            who()
        assert kinds(session)[-1] == "call.denied"
    assert ran == []


def test_a_reason_that_cannot_be_written_is_written_as_well_as_it_can(make_identity) -> None:
    from agent_identity import Decision

    identity = make_identity(policy=lambda request: Decision.deny("bad \ud800"))
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(DeniedError):
            who()
        assert session.records()[-1].body["code"] == "policy_denied"


def test_a_call_of_a_session_that_was_never_entered_ends_its_span(bot, spans) -> None:
    from agent_identity import NoSessionError

    session = bot.on_behalf_of("user:alice", purpose="p")
    with pytest.raises(NoSessionError), session.call(Tool("t"), {}):
        ran.append("ran")
    assert [span.name for span in spans()] == ["execute_tool t"]
    assert ran == []


def test_a_tool_of_a_revoked_session_is_refused_with_evidence(bot) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        session.revoke("stolen")
        with pytest.raises(RevokedError) as caught:
            who()
    assert bot.who_triggered(caught.value.call_id).decision == "deny"
    assert kinds(session).count("session.closed") == 1


def test_leaving_in_another_context_costs_neither_result_nor_record(bot) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        call = session.call(Tool("t"), {})
        contextvars.copy_context().run(call.__enter__)
        call.__exit__(None, None, None)
        assert kinds(session)[-1] == "call.completed"


def test_an_ended_session_leaves_nothing_acquired_behind(bot) -> None:
    @tool(resource=BILLING, scopes=["read"])
    def read() -> None: ...

    cache = bot._parts.world.cache
    with bot.on_behalf_of("user:alice", purpose="p"):
        read()
        inside = len(cache._entries)
    shared = len(cache._entries)
    for _ in range(5):
        with bot.on_behalf_of("user:alice", purpose="p"):
            read()
    assert inside - shared == 2  # grant and token; metadata, keys and registration are everybody's
    assert len(cache._entries) == shared


def test_a_delegate_has_another_key_in_a_forked_child(bot) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session, session.delegate("sub") as child:
        before = (child._state.agent.key.thumbprint, session._state.agent.key.thumbprint)
        credential = child.credential(BILLING)
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            after = (child._state.agent.key.thumbprint, session._state.agent.key.thumbprint)
            try:
                credential.headers("GET", BILLING)
                signed = "signed"
            except DeniedError as error:
                signed = error.code
            fresh = all(one != two for one, two in zip(before, after, strict=True))
            os.write(write_end, f"{fresh} {signed}".encode())
            os._exit(0)
        os.close(write_end)
        assert os.read(read_end, 100) == b"True key_renewed"
        os.waitpid(pid, 0)
        os.close(read_end)


def test_an_authority_that_is_busy_registers_nobody_yet(make_identity) -> None:
    class Busy(Authority):
        def register(self, metadata: object) -> ClientRecord:
            raise OAuthError("temporarily_unavailable", "busy", status=503)

    identity = make_identity(authority=Busy())
    with (
        identity.on_behalf_of("user:alice", purpose="p"),
        pytest.raises(CredentialUnavailableError),
    ):
        who()


def test_scrubbing_goes_on_while_secrets_come_and_go() -> None:
    import threading

    stop = threading.Event()

    def make() -> None:
        while not stop.is_set():
            kept = [Secret(f"secret-{n}") for n in range(500)]
            del kept

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    mine = Secret("canary-secret")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads meet in the middle of things
    try:
        for _ in range(300):
            assert scrub("a canary-secret b") == "a <secret> b"
    finally:
        sys.setswitchinterval(before)
        stop.set()
        for thread in threads:
            thread.join()
    assert mine


async def test_a_loop_that_stopped_strands_nobody(make_identity) -> None:
    authority = Authority()
    identity = make_identity(authority=authority)
    world = identity._parts.world
    original = world._alead
    hang = True

    async def lead(ask, deadline):
        if hang:
            await asyncio.Event().wait()
        return await original(ask, deadline)

    world._alead = lead

    def in_a_loop_that_stops() -> None:
        loop = asyncio.new_event_loop()
        try:
            with identity.on_behalf_of("user:alice", purpose="p"):
                loop.run_until_complete(asyncio.wait({loop.create_task(alater())}, timeout=0.02))
                ran.append(_sync(identity))
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.run_until_complete(asyncio.sleep(0.02))
        finally:
            loop.close()

    await asyncio.to_thread(in_a_loop_that_stops)
    assert ran == ["who", "alice"]


@tool()
async def alater() -> None: ...


def _sync(identity: AgentIdentity) -> str:
    return who()
