# SPDX-License-Identifier: Apache-2.0
"""A whole identity under `kill -9`: what ran is on record as intended, and nothing is said to have ended that didn't."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_identity import AgentIdentity, current_session, tool
from agent_identity.provenance.ledger import open_ledger
from agent_identity.provenance.signatures import SignatureCheck
from agent_identity.provenance.trace import trace_of

pytestmark = pytest.mark.system

ROUNDS = int(os.environ.get("AGENT_IDENTITY_KILL_ROUNDS", "40"))
BILLING = "https://billing.example"
AT_ONCE = 3


def fork(work: Callable[[], None]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


class Work:
    """What the child does until it is killed: calls of tools that say so the moment they run."""

    def __init__(self, state: Path, log: Path, warm: int) -> None:
        self._identity = AgentIdentity.embedded("invoice-bot", state_dir=state)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._warm = warm

        @tool(resource=BILLING, scopes=["invoices:read"])
        def read(number: int) -> str:
            return self._body()

        @tool()
        def add_up(number: int) -> str:
            return self._body()

        @tool(resource=BILLING, scopes=["invoices:read"])
        async def aread(number: int) -> str:
            ran = self._body()
            await asyncio.sleep(0)
            return ran

        self._read, self._add_up, self._aread = read, add_up, aread

    def _say(self, word: str, call: str | None) -> None:
        os.write(self._log, f"{word} {call}\n".encode())

    def _body(self) -> str:
        """Takes about as long as everything around it, so that the signal often comes in here."""
        call = current_session().call_id
        self._say("ran", call)
        hashlib.pbkdf2_hmac("sha256", b"work", b"", 600)
        assert call is not None
        return call

    def sync(self) -> None:
        with self._identity.on_behalf_of("user:alice", purpose="close the books") as session:
            self._say("returned", self._read(0))
            os.write(self._warm, f"{session.id}\n".encode())
            for number in range(1_000_000):
                self._say("returned", self._read(number))
                self._say("returned", self._add_up(number))
                if number % 20 == 0:
                    with session.delegate("archive-bot", scopes=["invoices:read"]):
                        self._say("returned", self._read(number))

    async def many(self) -> None:
        async def some() -> None:
            for number in range(1_000_000):
                self._say("returned", await self._aread(number))

        async with self._identity.on_behalf_of("user:alice", purpose="close the books") as session:
            self._say("returned", await self._aread(0))
            os.write(self._warm, f"{session.id}\n".encode())
            await asyncio.gather(*(some() for _ in range(AT_ONCE)))


def killed(state: Path, log: Path, *, concurrent: bool) -> str:
    """Let a child work, kill it at a random moment once it is warm, and say which session it was in."""
    readable, writable = os.pipe()

    def work() -> None:
        child = Work(state, log, writable)
        if concurrent:
            asyncio.run(child.many())
        else:
            child.sync()

    child = fork(work)
    os.close(writable)
    try:
        assert select.select([readable], [], [], 20)[0], "the child never got warm"
        session = os.read(readable, 100).decode().strip()
        time.sleep(random.uniform(0.0, 0.2))  # the moment of the kill, which is what is tried here
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(readable)
    assert os.WTERMSIG(status) == signal.SIGKILL, "the child ended by itself"
    return session


def told(log: Path) -> tuple[list[str], set[str]]:
    """The calls that ran, in order, and those that came back to their caller."""
    lines = [line.split() for line in log.read_text().splitlines()]
    ran = [call for word, call in lines if word == "ran"]
    assert len(ran) == len(set(ran)), "a call's body ran twice"
    return ran, {call for word, call in lines if word == "returned"}


def test_F16_what_ran_is_on_record_and_what_was_cut_off_reads_unknown(tmp_path: Path) -> None:
    """Forty kills of a whole identity that shares one state directory over all of them."""
    state = tmp_path / "state"
    sessions: list[str] = []
    expected: dict[str, str] = {}
    for number in range(ROUNDS):
        log = tmp_path / f"log-{number}"
        concurrent = number % 3 == 2
        sessions.append(killed(state, log, concurrent=concurrent))
        ran, returned = told(log)
        with open_ledger("sqlite:", state_dir=state, clock=lambda: time.time() + 60) as ledger:
            calls = {call["call_id"]: call for call in trace_of(ledger, sessions[-1]).calls}
            recorded = {
                record.call_id for record in ledger.records() if record.kind == "call.completed"
            }
            assert set(ran) <= calls.keys(), "a tool ran without an intent on record"
            assert len(calls.keys() - set(ran)) <= (AT_ONCE if concurrent else 1)
            assert len(set(ran) - returned) <= (AT_ONCE if concurrent else 1)
            for call_id, call in calls.items():
                ended = "completed" if call_id in recorded else "unknown"
                assert call["outcome"] == ended
                expected[call_id] = ended
            assert all(expected[call] == "completed" for call in returned)
            report = ledger.verify()
            assert report.ok, report.first_bad
        cut_off = [call for call in calls if expected[call] == "unknown"]
        with open_ledger("sqlite:", state_dir=state) as ledger:
            # Its writer's lease still runs, so nobody can know yet that it won't end.
            assert {trace_of(ledger, call).outcome for call in cut_off} <= {None}
    assert "unknown" in expected.values(), "no kill ever came into a call"
    with open_ledger("sqlite:", state_dir=state, clock=lambda: time.time() + 60) as ledger:
        after = {
            call["call_id"]: call["outcome"]
            for session in sessions
            for call in trace_of(ledger, session).calls
        }
        assert after == expected
        report = ledger.verify(SignatureCheck(ledger))
        assert report.ok, report.first_bad
        assert report.writers == ROUNDS
        last = trace_of(ledger, sessions[-1], check=SignatureCheck(ledger))
        assert (last.verified, last.principal and last.principal.sub) == (True, "alice")
