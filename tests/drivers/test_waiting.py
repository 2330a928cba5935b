# SPDX-License-Identifier: Apache-2.0
"""Nothing waits longer than there is time for, in either colour, and what fails is done once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_identity.errors import (
    AgentIdentityError,
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import HttpRequest, HttpResponse, Read, Shared, read
from agent_identity.http.surroundings import Surroundings
from agent_identity.http.transport import Transport
from agent_identity.http.world import World
from agent_identity.testing import FakeWeb, hostile
from agent_identity.values import Secret

DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True)
class Token:
    issued_at: float
    expires_at: float


class NoLedger:
    def append(self, draft: object) -> None:
        raise AssertionError

    async def aappend(self, draft: object) -> None:
        raise AssertionError


class FakeSecrets:
    """A keyring that somebody has to unlock first."""

    def __init__(self) -> None:
        self.unlocked = threading.Event()

    def read(self, reference: str, /) -> Secret | None:
        self.unlocked.wait(60)
        return Secret("opened")

    def keep(self, reference: str, secret: Secret | None, /) -> None:
        self.unlocked.wait(60)


def world(**how: Any) -> World:
    return World(how.pop("transport", Transport), NoLedger(), **how)


def asked(made: World, colour: str, ask: Shared[Any]) -> object:
    return made.answer(ask) if colour == "sync" else asyncio.run(made.aanswer(ask))


@pytest.fixture
def web() -> Iterator[FakeWeb]:
    with FakeWeb() as server:
        yield server


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_locked_keyring_is_waited_for_no_longer_than_the_deadline(colour: str) -> None:
    locked = FakeSecrets()
    made = world(surroundings=Surroundings(secrets=locked), deadline=0.3)

    def fetch():
        yield from read("keyring:x")
        return Token(0.0, 1e12)

    async def refused() -> None:
        with pytest.raises(CredentialUnavailableError) as caught:
            await made.aanswer(Shared(b"k", fetch))
        assert caught.value.code == "deadline_exceeded"
        locked.unlocked.set()  # `asyncio.run` waits for its threads

    if colour == "async":
        asyncio.run(refused())
        return
    with pytest.raises(CredentialUnavailableError) as caught:
        made.answer(Shared(b"k", fetch))
    assert caught.value.code == "deadline_exceeded"
    locked.unlocked.set()


def test_a_secret_that_is_asked_for_outside_any_deadline_is_waited_for() -> None:
    unlocked = FakeSecrets()
    unlocked.unlocked.set()
    made = world(surroundings=Surroundings(secrets=unlocked))
    found = made.answer(Read("keyring:x"))
    assert isinstance(found, Secret)


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_leader_that_fails_by_a_timeout_of_its_own_leads_once(colour: str) -> None:
    led: list[int] = []

    def fetch():
        led.append(1)
        yield from ()
        raise TimeoutError("the leader's own")

    made = world(deadline=1.0)
    with pytest.raises(TimeoutError, match="the leader's own"):
        asked(made, colour, Shared(b"k", fetch))
    assert led == [1]


def test_one_of_two_hundred_renews_early_and_one_warning_is_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All in one step of one loop, before any renewal has begun."""
    made = world()
    led: list[int] = []
    ends = time.time() + 100

    def fetch():
        led.append(1)
        yield from ()
        if len(led) > 1:
            raise CredentialRejectedError("access_denied", "no")
        return Token(ends - 1000, ends)

    async def all_at_once() -> None:
        await made.aanswer(Shared(b"k", fetch))
        entry = made.cache.get(b"k")
        assert entry is not None
        # usable, and no longer fresh
        made.cache._entries[b"k"] = type(entry)(
            entry.value, 0.0, entry.usable, 0.0, entry.usable_monotonic
        )
        await asyncio.gather(*(made.aanswer(Shared(b"k", fetch)) for _ in range(200)))
        await asyncio.sleep(0.05)

    with caplog.at_level(logging.WARNING, "agent_identity"):
        asyncio.run(all_at_once())
    assert len(led) == 2
    assert caplog.text.count("renewed early") == 1


def test_tools_that_hold_every_connection_keep_no_issuer_waiting(web: FakeWeb) -> None:
    web.scripts["/held"] = hostile.drips(0.5, b"x" * 240)
    transport = Transport()
    client = httpx.Client(transport=transport.network(), timeout=5)
    held = [client.send(client.build_request("GET", f"{web.url}/held"), stream=True)]
    pool = transport.pools.get("tools", None)
    pool._pool._max_connections = 1  # type: ignore[union-attr]
    request = HttpRequest("GET", f"{web.url}/token")
    assert transport.exchange(request, time.monotonic() + 60).status == 200
    for each in held:
        each.close()
    transport.close()


def test_waiting_for_a_connection_ends_at_the_deadline(web: FakeWeb) -> None:
    is_held, is_over = threading.Event(), threading.Event()

    def slow(request: object, write: object) -> None:
        is_held.set()
        is_over.wait(60)

    web.scripts["/slow"] = slow
    transport = Transport()
    transport.pools.get("issuers", None)._pool._max_connections = 1  # type: ignore[union-attr]

    def holds() -> None:
        with contextlib.suppress(TransportError):
            transport.exchange(HttpRequest("GET", f"{web.url}/slow"), time.monotonic() + 60)

    holder = threading.Thread(target=holds)
    holder.start()
    assert is_held.wait(60)
    with pytest.raises(TransportError) as caught:
        transport.exchange(HttpRequest("GET", f"{web.url}/token"), time.monotonic() + 0.3)
    assert caught.value.code == "deadline_exceeded"
    is_over.set()
    holder.join()
    transport.close()


def test_a_name_server_that_doesnt_answer_costs_the_deadline_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_over = threading.Event()

    def slow(*args: object, **how: object) -> list[Any]:
        is_over.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    transport = Transport()
    with pytest.raises(TransportError) as caught:
        transport.exchange(HttpRequest("GET", "https://idp.example/"), time.monotonic() + 0.3)
    is_over.set()
    assert caught.value.code == "deadline_exceeded"


def test_a_header_that_cant_be_read_stands_in_no_log(
    web: FakeWeb, caplog: pytest.LogCaptureFixture
) -> None:
    """H01, H04: the parser's error would say the line, with whatever the issuer echoes in it."""

    def echo(request: object, write: Callable[[bytes], None]) -> None:
        write(b"HTTP/1.1 200 OK\r\nbad header canary-secret\r\n\r\n")

    web.scripts["/token"] = echo
    caplog.set_level(logging.DEBUG)
    transport = Transport()
    with pytest.raises(TransportError):
        transport.exchange(HttpRequest("POST", f"{web.url}/token"), time.monotonic() + 2)

    async def again() -> None:
        with pytest.raises(TransportError):
            await transport.aexchange(HttpRequest("POST", f"{web.url}/token"), time.monotonic() + 2)
        await transport.aclose()

    asyncio.run(again())
    assert "canary-secret" not in caplog.text


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="counts descriptors in /proc")
def test_a_loop_that_was_closed_without_a_last_word_leaves_no_sockets(web: FakeWeb) -> None:
    transport = Transport()

    def one() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(
            transport.aexchange(HttpRequest("GET", f"{web.url}/a"), time.monotonic() + 2)
        )
        loop.close()

    before = len(list(DESCRIPTORS.iterdir()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(10):
            one()
            gc.collect()
        assert len(transport.pools._loops) <= 1
        assert len(list(DESCRIPTORS.iterdir())) - before < 12
        transport.close()
        transport.pools._loops.clear()  # the last one is swept when the next one comes
        gc.collect()


def test_the_door_is_opened_once_for_all_who_come_at_once() -> None:
    opened: list[Transport] = []

    def slowly() -> Transport:
        time.sleep(0.05)
        opened.append(Transport())
        return opened[-1]

    made = world(transport=slowly)
    workers = [threading.Thread(target=lambda: made.transport) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(opened) == 1


def test_copies_of_an_error_share_no_notes_and_count_down() -> None:
    class FakeClock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = FakeClock()

    class Busy:
        def exchange(self, request: HttpRequest, deadline: float) -> HttpResponse:
            raise AssertionError

    def busy():
        yield from ()
        raise CredentialUnavailableError("issuer_busy", "b", remedy="r", retry_after=60.0)

    made = world(transport=Busy, monotonic=clock)
    seen: list[AgentIdentityError] = []
    for moment in (0.0, 50.0):
        clock.now = moment
        with pytest.raises(CredentialUnavailableError) as caught:
            made.answer(Shared(b"k", busy))
        caught.value.add_note(f"serving somebody at {moment}")
        seen.append(caught.value)
    assert [error.retry_after for error in seen] == [60.0, 10.0]
    assert seen[1].__notes__ == ["what to do: r", "serving somebody at 50.0"]
