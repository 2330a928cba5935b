# SPDX-License-Identifier: Apache-2.0
"""One token request for a herd, and never one principal's token for another (cases C01 to C11)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_identity import AgentIdentity, current_credential, current_session, tool
from agent_identity.authority import Authority, ClientRecord
from agent_identity.authority.requests import OAuthError
from agent_identity.credentials.cache import CacheKey
from agent_identity.credentials.source import Described
from agent_identity.errors import ConfigurationError
from agent_identity.flow import Shared
from agent_identity.jose import loads_object, unverified
from agent_identity.runtime.grants import share_key

BILLING = "https://billing.example"


class SlowAuthority(Authority):
    """The real one, which takes its time over token requests so that a herd can gather."""

    def __init__(self, pause: float = 0.05, **parts: Any) -> None:
        super().__init__(**parts)
        self.pause = pause
        self.token_requests = 0

    def client(self, client_id: str) -> ClientRecord:
        self.token_requests += 1  # each request for a grant or a token looks up its client
        time.sleep(self.pause)
        return super().client(client_id)


@tool(resource=BILLING, scopes=["invoices:read"])
def subject_of_my_token() -> str:
    claims = loads_object(unverified(current_credential().reveal()).payload)
    return str(claims["sub"])


@tool(resource=BILLING, scopes=["invoices:read"])
async def asubject_of_my_token() -> str:
    claims = loads_object(unverified(current_credential().reveal()).payload)
    await asyncio.sleep(0)
    return str(claims["sub"])


def herd(identity: AgentIdentity, threads: int, loops: int, tasks: int) -> list[str]:
    """Callers on one cold key, released together: in threads, and as tasks of several event loops."""
    results: list[str] = []
    with identity.on_behalf_of("user:alice", purpose="herd") as session:
        barrier = threading.Barrier(threads + loops, timeout=30)

        def one() -> None:
            barrier.wait()
            results.append(subject_of_my_token())

        async def many() -> None:
            results.extend(await asyncio.gather(*(asubject_of_my_token() for _ in range(tasks))))

        def loop() -> None:
            barrier.wait()
            asyncio.run(many())

        workers = [threading.Thread(target=session.bind(one)) for _ in range(threads)]
        workers += [threading.Thread(target=session.bind(loop)) for _ in range(loops)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    return results


def test_C01_two_hundred_threads_on_one_cold_key_ask_once(make_identity) -> None:
    authority = SlowAuthority()
    results = herd(make_identity(authority=authority), threads=200, loops=0, tasks=0)
    assert results == ["alice"] * 200
    assert authority.issued == {"grant": 1, "access_token": 1}
    assert authority.token_requests == 2  # the grant, and the one token


def test_C02_threads_and_tasks_of_three_event_loops_ask_once(make_identity) -> None:
    authority = SlowAuthority()
    results = herd(make_identity(authority=authority), threads=80, loops=3, tasks=40)
    assert results == ["alice"] * 200
    assert authority.issued == {"grant": 1, "access_token": 1}
    assert authority.token_requests == 2


KEY = CacheKey(
    grant_type="g",
    issuer="i",
    client="c",
    principal=("user:alice", "t", "s"),
    chain="h",
    resource="r",
    audience="a",
    scopes=frozenset({"x", "y"}),
    details="d",
    parameters="p",
    binding_key="b",
    policy_epoch=1,
)
texts = st.text(max_size=6)
keys = st.builds(
    CacheKey,
    grant_type=texts,
    issuer=texts,
    client=texts,
    principal=st.tuples(st.text(min_size=1, max_size=6), texts, texts),
    chain=texts,
    resource=texts,
    audience=texts,
    scopes=st.frozensets(texts, max_size=3),
    details=texts,
    parameters=texts,
    binding_key=texts,
    policy_epoch=st.integers(0, 3),
)


@given(keys, keys)
def test_C03_keys_share_a_digest_only_when_every_part_is_the_same(
    one: CacheKey, two: CacheKey
) -> None:
    assert (one.digest() == two.digest()) == (one == two)


@pytest.mark.parametrize("part", CacheKey._fields)
def test_C03_any_change_of_any_part_gives_another_key(part: str) -> None:
    changed: dict[str, Any] = {
        "principal": ("user:Alice", "t", "s"),
        "scopes": frozenset({"x"}),
        "policy_epoch": 2,
    }
    other = KEY._replace(**{part: changed.get(part, "other")})
    assert other.digest() != KEY.digest()


def test_C03_separators_case_and_moved_characters_never_collide() -> None:
    tricks = [
        KEY._replace(issuer="ic", client=""),
        KEY._replace(issuer="", client="ic"),
        KEY._replace(issuer="i\0c", client=""),
        KEY._replace(scopes=frozenset({"x y"})),
        KEY._replace(scopes=frozenset({"xy"})),
        KEY._replace(scopes=frozenset({"X", "y"})),
        KEY._replace(resource="ra", audience=""),
        KEY._replace(principal=("user:alices", "t", "")),
        KEY._replace(principal=("user:alice", "ts", "")),
    ]
    digests = {key.digest() for key in [KEY, *tricks]}
    assert len(digests) == len(tricks) + 1


def test_C03_a_key_without_a_principal_cannot_be_made() -> None:
    with pytest.raises(ConfigurationError):
        KEY._replace(principal=("", "t", "s")).digest()


def test_C03_a_source_with_other_parameters_has_another_key(make_identity) -> None:
    source = Described("token-exchange", "i", "c", "a", "", "connection=google")
    with make_identity().on_behalf_of("user:alice", purpose="p") as session:
        keys = [
            share_key(session._state, described, "h", BILLING, frozenset())
            for described in (source, source._replace(parameters="connection=github"), source)
        ]
    assert keys[0] == keys[2] != keys[1]


def test_C04_a_wider_cached_token_never_serves_a_narrower_request(make_identity) -> None:
    @tool(resource=BILLING, scopes=["invoices:read", "invoices:pay"])
    def wide() -> frozenset[str]:
        return current_credential().scopes

    @tool(resource=BILLING, scopes=["invoices:read"])
    def narrow() -> tuple[frozenset[str], str]:
        credential = current_credential()
        claims = loads_object(unverified(credential.reveal()).payload)
        return credential.scopes, str(claims["scope"])

    identity = make_identity()
    with identity.on_behalf_of("user:alice", purpose="p"):
        assert wide() == {"invoices:read", "invoices:pay"}
        assert narrow() == ({"invoices:read"}, "invoices:read")
    assert identity.authority.issued["access_token"] == 2


def test_one_principals_token_never_serves_another_nor_another_session_of_the_same(bot) -> None:
    tokens = []

    @tool(resource=BILLING, scopes=["invoices:read"])
    def token() -> str:
        tokens.append(current_credential().reveal())
        return subject_of_my_token()

    for name in ("alice", "bob", "alice"):
        with bot.on_behalf_of(f"user:{name}", purpose="p"):
            assert token() == name
    assert len(set(tokens)) == 3


async def test_C05_a_cancelled_leader_takes_nobody_down(make_identity) -> None:
    authority = SlowAuthority(pause=0.0)
    identity = make_identity(authority=authority)
    gate = asyncio.Event()
    world = identity._parts.world
    original = world._alead
    led = []

    async def slow_lead(ask: Any, deadline: float) -> Any:
        led.append(1)
        await gate.wait()
        return await original(ask, deadline)

    world._alead = slow_lead
    async with identity.on_behalf_of("user:alice", purpose="p"):
        leader = asyncio.create_task(asubject_of_my_token())
        await asyncio.sleep(0.01)
        followers = [asyncio.create_task(asubject_of_my_token()) for _ in range(199)]
        await asyncio.sleep(0.01)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        gate.set()
        assert await asyncio.gather(*followers) == ["alice"] * 199
    assert authority.issued == {"grant": 1, "access_token": 1}


def test_C05_a_leading_thread_that_is_interrupted_is_replaced(make_identity) -> None:
    interrupted = threading.Event()

    class Interrupting(SlowAuthority):
        def client(self, client_id: str) -> ClientRecord:
            if not interrupted.is_set():
                interrupted.set()
                time.sleep(0.05)
                raise KeyboardInterrupt
            return super().client(client_id)

    identity = make_identity(authority=Interrupting())
    results: Counter[str] = Counter()
    with identity.on_behalf_of("user:alice", purpose="p") as session:

        def one() -> None:
            try:
                results[subject_of_my_token()] += 1
            except KeyboardInterrupt:
                results["interrupted"] += 1

        threads = [threading.Thread(target=session.bind(one)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert results == {"alice": 19, "interrupted": 1}


def test_a_failed_leader_gives_every_follower_a_typed_error_of_its_own(make_identity) -> None:
    class Refusing(SlowAuthority):
        def client(self, client_id: str) -> ClientRecord:
            self.token_requests += 1
            time.sleep(0.1)
            raise OAuthError("invalid_grant", "refused")

    identity = make_identity(authority=Refusing())
    errors: list[Any] = []
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        barrier = threading.Barrier(20, timeout=30)

        def one() -> None:
            barrier.wait()
            try:
                subject_of_my_token()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=session.bind(one)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert {error.code for error in errors} == {"invalid_grant"}
    assert len({id(error) for error in errors}) == 20
    assert len({error.call_id for error in errors}) == 20
    assert identity.authority.token_requests <= 3


async def test_a_failed_leading_task_gives_every_follower_an_error_of_its_own(
    make_identity,
) -> None:
    class Refusing(Authority):
        def client(self, client_id: str) -> ClientRecord:
            raise OAuthError("invalid_grant", "refused")

    identity = make_identity(authority=Refusing())
    async with identity.on_behalf_of("user:alice", purpose="p"):
        failures = await asyncio.gather(
            *(asubject_of_my_token() for _ in range(20)), return_exceptions=True
        )
    assert {failure.code for failure in failures} == {"invalid_grant"}
    assert len({id(failure) for failure in failures}) == 20
    assert len({failure.call_id for failure in failures}) == 20


def test_who_boards_just_after_a_flight_landed_asks_nobody(make_identity) -> None:
    identity = make_identity()
    world = identity._parts.world
    with identity.on_behalf_of("user:alice", purpose="p"):
        subject_of_my_token()
        (key, entry), *_ = [
            (key, entry)
            for key, entry in world.cache._entries.items()
            if type(entry.value).__name__ == "Issued"
        ]

        def never() -> Any:
            raise AssertionError("somebody is asked again")

        assert world._lead(Shared(key, never), time.monotonic() + 1) is entry.value
        assert asyncio.run(world._alead(Shared(key, never), time.monotonic() + 1)) is entry.value


def test_C06_calls_of_fifty_sessions_over_threads_and_tasks_never_cross(make_identity) -> None:
    """20,000 calls; the token's own `sub` says whose it is. tests/drivers/test_served_authority.py has nonces too."""
    identity = make_identity()
    crossings: list[tuple[str, str]] = []
    done: Counter[str] = Counter()

    def calls(name: str, count: int) -> None:
        for _ in range(count):
            found = subject_of_my_token()
            done[name] += 1
            if found != name or current_session().principal.sub != name:
                crossings.append((name, found))

    async def acalls(name: str, count: int) -> None:
        async with identity.on_behalf_of(f"user:{name}", purpose="p"):
            for _ in range(count):
                found = await asubject_of_my_token()
                done[name] += 1
                if found != name:
                    crossings.append((name, found))

    def in_session(name: str) -> None:
        with identity.on_behalf_of(f"user:{name}", purpose="p") as session:
            inner = [
                threading.Thread(target=session.bind(calls), args=(name, 200)) for _ in range(2)
            ]
            for thread in inner:
                thread.start()
            for thread in inner:
                thread.join(120)

    async def in_tasks() -> None:
        await asyncio.gather(*(acalls(f"t{n}", 400) for n in range(25)))

    with ThreadPoolExecutor(26) as pool:
        jobs = [pool.submit(in_session, f"s{n}") for n in range(25)]
        jobs.append(pool.submit(lambda: asyncio.run(in_tasks())))
        for job in jobs:
            job.result()
    assert crossings == []
    assert sum(done.values()) == 20_000
    assert identity.authority.issued["access_token"] == 50


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_C10_a_child_forked_in_mid_refresh_gets_its_own_credential(make_identity) -> None:
    authority = SlowAuthority(pause=0.2)
    identity = make_identity(authority=authority)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        flying = threading.Thread(target=session.bind(subject_of_my_token))
        flying.start()
        deadline = time.monotonic() + 60
        while not authority.token_requests and time.monotonic() < deadline:
            time.sleep(0.001)
        parent_key = identity.public_jwk
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            message = b"failed"
            with contextlib.suppress(BaseException):
                signal.alarm(60)  # a child that waits for its parent's flight ends by this
                authority.pause = 0.0
                name = subject_of_my_token()
                fresh = identity.public_jwk != parent_key
                message = f"{name} {fresh}".encode()
            os.write(write_end, message)
            os._exit(0)
        os.close(write_end)
        assert os.read(read_end, 100) == b"alice True"
        os.waitpid(pid, 0)
        os.close(read_end)
        flying.join(30)
        assert subject_of_my_token() == "alice"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_C10_a_forked_child_shares_no_identifiers_with_its_parent() -> None:
    from agent_identity.values import new_id

    new_id("x")  # the page of random identifiers is part of what a fork copies
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write_end, " ".join(new_id("") for _ in range(50)).encode())
        os._exit(0)
    os.close(write_end)
    theirs = set(os.read(read_end, 10_000).decode().split())
    os.waitpid(pid, 0)
    os.close(read_end)
    assert len(theirs) == 50
    assert not theirs & {new_id("") for _ in range(500)}


def test_C11_event_loops_come_and_go(make_identity) -> None:
    identity = make_identity()

    async def work() -> str:
        async with identity.on_behalf_of("user:alice", purpose="p"):
            return await asubject_of_my_token()

    assert [asyncio.run(work()) for _ in range(3)] == ["alice"] * 3


def test_C11_a_loop_that_is_closed_in_mid_refresh_strands_nobody(make_identity) -> None:
    authority = SlowAuthority(pause=0.0)
    identity = make_identity(authority=authority)
    world = identity._parts.world
    original = world._alead
    hanging = True

    async def lead(ask: Any, deadline: float) -> Any:
        if hanging:
            await asyncio.Event().wait()
        return await original(ask, deadline)

    world._alead = lead
    with identity.on_behalf_of("user:alice", purpose="p"):
        loop = asyncio.new_event_loop()
        task = loop.create_task(asubject_of_my_token())
        loop.run_until_complete(asyncio.sleep(0.02))
        task._log_destroy_pending = False
        for flying in asyncio.all_tasks(loop):
            flying._log_destroy_pending = False
        loop.close()
        hanging = False
        assert subject_of_my_token() == "alice"
    del task, flying
    gc.collect()  # what the loop left behind is collected without an error


def until(holds: Callable[[], bool]) -> None:
    for _ in range(6_000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to hold")


def test_refreshing_early_keeps_the_old_token_and_asks_once(make_identity, clock) -> None:
    authority = SlowAuthority(pause=0.0, clock=clock)
    identity = make_identity(authority=authority, clock=clock)

    @tool(resource=BILLING, scopes=["invoices:read"])
    def token() -> str:
        return current_credential().reveal()

    with identity.on_behalf_of("user:alice", purpose="p"):
        first = token()
        clock.now += 280  # of 300: within the window in which somebody renews and everybody goes on
        assert token() == first
        deadline = time.monotonic() + 60
        while authority.issued["access_token"] < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert authority.issued["access_token"] == 2
        deadline = time.monotonic() + 60
        while token() == first and time.monotonic() < deadline:
            time.sleep(0.005)
        assert token() != first
        assert authority.issued["access_token"] == 2
        clock.now += 400  # past its end: the caller waits for another
        assert token() != first
        assert authority.issued["access_token"] == 3


def test_C16_an_early_renewal_that_fails_keeps_the_token_warns_once_and_pauses(
    make_identity, clock, caplog
) -> None:
    class Failing(SlowAuthority):
        away = False

        def client(self, client_id: str) -> ClientRecord:
            if self.away:
                self.token_requests += 1
                raise OAuthError("temporarily_unavailable", "away", status=503)
            return super().client(client_id)

    authority = Failing(pause=0.0, clock=clock)
    identity = make_identity(authority=authority, clock=clock)
    with identity.on_behalf_of("user:alice", purpose="p"):
        subject_of_my_token()
        authority.away = True
        clock.now += 280
        before = authority.token_requests
        for _ in range(20):
            assert subject_of_my_token() == "alice"
            time.sleep(0.005)
        until(lambda: "renewed early" in caplog.text)
        assert authority.token_requests - before <= 3  # one try, with its attempts
        assert caplog.text.count("renewed early") == 1
        for _ in range(20):
            assert subject_of_my_token() == "alice"
        assert authority.token_requests - before <= 3
