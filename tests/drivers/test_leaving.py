# SPDX-License-Identifier: Apache-2.0
"""Leaving a session gives its tokens back, whatever else is going on: cancellation, threads, requests under way, slow issuers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from agent_identity import AgentIdentity, AgentIdentityError, DeniedError
from agent_identity.credentials.oauth.requests import Issued
from agent_identity.runtime.lifetime import HeldTokens
from agent_identity.testing import FakeIssuer
from agent_identity.values import Secret

BILLING = "https://billing.example"
MAIL = "https://mail.example"


@pytest.fixture
def idp() -> Iterator[FakeIssuer]:
    with FakeIssuer() as issuer:
        yield issuer


@pytest.fixture
def bot(
    idp: FakeIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AgentIdentity]:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "agent-identity.toml"
    path.write_text(
        f'[agent]\nname = "bot"\n[issuers.acme]\nissuer = "{idp.url}"\nclient_id = "bot"\n'
        f'client_auth = "none"\n[resources."{BILLING}"]\nsource = "client-credentials"\n'
        f'[resources."{MAIL}"]\nsource = "client-credentials"\n'
        '[policy]\nengine = "grants-only"\n[ledger]\nurl = "memory:"\n[http]\ndeadline = 3.0\n'
    )
    path.chmod(0o600)
    with AgentIdentity.from_config(path) as identity:
        yield identity


def until(holds: Callable[[], bool]) -> None:
    for _ in range(6_000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to hold")


def slowed(idp: FakeIssuer, path: str, seconds: float) -> None:
    answer = idp.answer

    def slow(request):
        if request.path == path:
            time.sleep(seconds)
        return answer(request)

    idp.answer = slow


def test_a_token_that_comes_after_the_session_was_left_is_given_back_at_once(
    idp: FakeIssuer, bot: AgentIdentity
) -> None:
    slowed(idp, "/token", 0.3)
    failures: list[AgentIdentityError] = []
    with bot.autonomous(trigger="cron:x", purpose="p") as session:

        def ask() -> None:
            try:
                session.credential(BILLING, ["a"])
            except AgentIdentityError as error:
                failures.append(error)

        worker = threading.Thread(target=session.bind(ask))
        worker.start()
        time.sleep(0.1)
    worker.join(5)
    assert [type(failure) for failure in failures] == [DeniedError]
    assert (idp.issued, len(idp.revoked)) == (1, 1)
    kinds = [record.kind for record in session.records()]
    assert "credential.revoked" in kinds
    assert "credential.acquired" not in kinds


def test_leaving_under_cancellation_gives_back_and_records_all_the_same(
    idp: FakeIssuer, bot: AgentIdentity
) -> None:
    slowed(idp, "/revoke", 0.1)
    sessions = []

    async def under_anyio() -> None:
        with anyio.CancelScope() as scope:
            async with bot.autonomous(trigger="cron:x", purpose="p") as session:
                sessions.append(session)
                await session.acredential(BILLING, ["a"])
                scope.cancel()
                await anyio.sleep(1)

    async def under_asyncio() -> None:
        async def work() -> None:
            async with bot.autonomous(trigger="cron:x", purpose="p") as session:
                sessions.append(session)
                await session.acredential(BILLING, ["a"])
                await asyncio.sleep(5)

        task = asyncio.create_task(work())
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for way in (under_anyio, under_asyncio):
        asyncio.run(way())
    until(lambda: len(idp.revoked) == 2)
    for session in sessions:
        until(lambda: [r.kind for r in session.records()][-1] == "session.closed")  # noqa: B023 - called at once


def test_leaving_waits_for_a_slow_issuer_no_longer_than_for_one_acquisition(
    idp: FakeIssuer, bot: AgentIdentity
) -> None:
    slowed(idp, "/revoke", 1.2)
    with bot.autonomous(trigger="cron:x", purpose="p") as session:
        for scope in "abcdef":
            session.credential(BILLING, [scope])
    records = [r.to_dict() for r in session.records() if r.kind == "credential.revoked"]
    assert len(records) == 6
    assert records[-1]["code"] == "deadline_exceeded"
    assert records[0]["revoked"] is True


def test_no_token_is_forgotten_between_threads() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    tokens = HeldTokens()

    def add() -> None:
        for number in range(1000):
            issued = Issued(Secret(f"t{number}"), "Bearer", BILLING, "i", frozenset(), 0.0, 1e12)
            assert tokens.add(None, issued, 1.0)

    try:
        workers = [threading.Thread(target=add) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert len(tokens.close()) == 4000
    late = Issued(Secret("late"), "Bearer", BILLING, "i", frozenset(), 0.0, 1e12)
    assert not tokens.add(None, late, 1.0)
    assert tokens.close() == []


def test_revoking_a_session_gives_back_what_sub_agents_hold(
    idp: FakeIssuer, bot: AgentIdentity
) -> None:
    with bot.autonomous(trigger="cron:x", purpose="p") as session:
        with session.delegate("sub") as below, below.delegate("deeper") as deeper:
            deeper.credential(BILLING, ["a"])
            session.revoke("enough")
            assert (idp.issued, len(idp.revoked)) == (1, 1)


def test_an_identity_that_is_closed_waits_for_sessions_that_are_being_left(
    idp: FakeIssuer, bot: AgentIdentity
) -> None:
    slowed(idp, "/revoke", 0.3)

    async def work() -> None:
        async with bot:
            async with bot.autonomous(trigger="cron:x", purpose="p") as session:
                await session.acredential(BILLING, ["a"])
                await asyncio.sleep(5)

    async def twice_cancelled() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0.4)
        task.cancel()
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(twice_cancelled())
    until(lambda: len(idp.revoked) == idp.issued == 1)


def test_a_program_that_ends_with_a_generator_tool_suspended_ends(tmp_path: Path) -> None:
    """Finalised while the interpreter goes, its outcome must start no thread."""
    code = """
import os, sys, pathlib
from agent_identity import AgentIdentity, tool
from agent_identity.testing import FakeIssuer
folder = pathlib.Path(sys.argv[1])
os.environ["AGENT_IDENTITY_STATE_DIR"] = str(folder / "s")
idp = FakeIssuer()
path = folder / "c.toml"
path.write_text(f'[agent]\\nname="b"\\n[issuers.a]\\nissuer="{idp.url}"\\ntrust=["subjects"]\\nclient_id="b"\\nclient_auth="none"\\n[policy]\\nengine="grants-only"\\n')
path.chmod(0o600)
identity = AgentIdentity.from_config(path)
@tool()
def pages():
    yield 1
    yield 2
with identity.on_behalf_of(idp.token("alice", audience="b"), purpose="p"):
    kept = pages()
    next(kept)
print("end of program", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "end of program\n", done.stderr
