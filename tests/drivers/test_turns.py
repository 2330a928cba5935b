# SPDX-License-Identifier: Apache-2.0
"""What may be used once is used by one at a time: refresh tokens that sessions share, sign-ins of one person."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_identity import AgentIdentity, AgentIdentityError
from agent_identity.errors import CredentialUnavailableError
from agent_identity.flow import Pause, Shared
from agent_identity.http.transport import Transport
from agent_identity.http.world import World
from agent_identity.testing import FakeIssuer

BILLING = "https://billing.example"


@pytest.fixture
def idp() -> Iterator[FakeIssuer]:
    with FakeIssuer() as issuer:
        answer = issuer.answer

        def slow(request: Any) -> Any:
            if request.path == "/token":
                time.sleep(0.05)
            return answer(request)

        issuer.answer = slow
        yield issuer


Configured = Callable[..., AgentIdentity]


@pytest.fixture
def configured(
    idp: FakeIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Configured]:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    made: list[AgentIdentity] = []

    def make(resource: str, **how: Any) -> AgentIdentity:
        path = tmp_path / "agent-identity.toml"
        path.write_text(
            f'[agent]\nname = "bot"\n[issuers.acme]\nissuer = "{idp.url}"\ntrust = ["subjects"]\n'
            f'client_id = "bot"\nclient_auth = "none"\n[resources."{BILLING}"]\n{resource}\n'
            '[policy]\nengine = "grants-only"\n[ledger]\nurl = "memory:"\n'
        )
        path.chmod(0o600)
        made.append(AgentIdentity.from_config(path, **how))
        return made[-1]

    yield make
    for identity in made:
        identity.close()


def side_by_side(count: int, work: Callable[[], object]) -> list[object]:
    """The same work in threads that start together; what each comes to, an error too."""
    found: list[object] = []
    barrier = threading.Barrier(count)

    def one() -> None:
        barrier.wait()
        try:
            found.append(work())
        except AgentIdentityError as error:
            found.append(error.code)

    workers = [threading.Thread(target=one) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    return found


def test_a_refresh_token_that_sessions_share_is_used_by_one_at_a_time(
    idp: FakeIssuer, configured: Configured, tmp_path: Path
) -> None:
    """It rotates at each use: used twice, the second would be refused, and a strict issuer would take back the family."""
    kept = tmp_path / "refresh"
    kept.write_text(idp._issue_refresh_token("alice"))
    kept.chmod(0o600)
    identity = configured('source = "refresh-token"\nrefresh_token = "file:refresh"')

    def work() -> str:
        token = idp.token("alice", audience="bot")
        with identity.on_behalf_of(token, purpose="p") as session:
            return session.credential(BILLING, ["a"]).token_type

    assert side_by_side(6, work) == ["DPoP"] * 6
    refreshes = [request.body for request in idp.received if b"refresh_token=" in request.body]
    assert len(refreshes) == len(set(refreshes)) == 6


def test_a_person_is_asked_once_by_sessions_that_need_them_at_once(
    idp: FakeIssuer, configured: Configured
) -> None:
    shown: list[str] = []

    def browser(prompt: Any) -> None:
        shown.append(prompt.kind)
        httpx.get(prompt.authorization_url, follow_redirects=True)

    identity = configured('source = "authorization-code"', on_interaction=browser)

    def work() -> str:
        token = idp.token("alice", audience="bot")
        with identity.on_behalf_of(token, purpose="p") as session:
            return session.credential(BILLING, ["a"]).token_type

    assert side_by_side(4, work) == ["DPoP"] * 4
    assert shown == ["authorization-code"]


def test_the_error_of_one_turn_is_nobody_elses(idp: FakeIssuer, configured: Configured) -> None:
    shown: list[int] = []

    def browser(prompt: Any) -> None:
        shown.append(1)
        idp.sub = "mallory" if len(shown) == 1 else "alice"
        httpx.get(prompt.authorization_url, follow_redirects=True)

    identity = configured('source = "authorization-code"', on_interaction=browser)

    def work() -> str:
        token = idp.token("alice", audience="bot")
        with identity.on_behalf_of(token, purpose="p") as session:
            return session.credential(BILLING, ["a"]).token_type

    assert sorted(map(str, side_by_side(3, work))) == ["DPoP", "DPoP", "subject_mismatch"]
    assert len(shown) == 2


def test_a_sync_call_on_the_loop_that_leads_is_refused_what_may_be_led_but_once() -> None:
    class NoLedger:
        def append(self, draft: object) -> None:
            raise AssertionError

        async def aappend(self, draft: object) -> None:
            raise AssertionError

    class Token:
        issued_at, expires_at = 0.0, 1e12

    led: list[int] = []

    def fetch():
        led.append(1)
        yield Pause(0.2)
        return Token()

    world = World(Transport, NoLedger())

    async def both(once: bool) -> None:
        ask = Shared(b"k" if once else b"l", fetch, once=once)
        first = asyncio.create_task(world.aanswer(ask))
        await asyncio.sleep(0.05)
        if once:
            with pytest.raises(CredentialUnavailableError) as caught:
                world.answer(ask)
            assert caught.value.code == "blocking_call"
        else:
            world.answer(ask)
        await first

    asyncio.run(both(once=True))
    assert led == [1]
    asyncio.run(both(once=False))
    assert led == [1, 1, 1]


def test_a_turn_that_comes_too_late_is_refused_before_the_token_is_sent(
    idp: FakeIssuer, configured: Configured, tmp_path: Path
) -> None:
    """Sent with no time left to hear the answer, the rotated token would be lost to everybody."""
    answer = idp.answer

    def slower(request: Any) -> Any:
        if request.path == "/token":
            time.sleep(0.7)
        return answer(request)

    idp.answer = slower
    kept = tmp_path / "refresh"
    kept.write_text(idp._issue_refresh_token("alice"))
    kept.chmod(0o600)
    identity = configured(
        'source = "refresh-token"\nrefresh_token = "file:refresh"\n[http]\ndeadline = 3.0'
    )

    def work() -> str:
        with identity.autonomous(trigger="cron:x", purpose="p") as session:
            return session.credential(BILLING, ["a"]).token_type

    found = side_by_side(8, work)
    assert set(found) == {"DPoP", "deadline_exceeded"}
    assert work() == "DPoP"
