# SPDX-License-Identifier: Apache-2.0
"""What a fork waits for, and what a child finds."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from agent_identity import AgentIdentity, RevokedError, current_session, tool
from agent_identity.forks import Registry, StillLock


def in_child(work: object) -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if work() else 1)  # type: ignore[operator]
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_waits_for_modules_that_other_threads_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a module that is half imported would stay locked in the child."""
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.5)\nVALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importer = threading.Thread(target=importlib.import_module, args=("slow_to_import",))
    importer.start()
    while "slow_to_import" not in sys.modules:
        time.sleep(0.001)
    assert in_child(lambda: importlib.import_module("slow_to_import").VALUE == 1) == 0
    importer.join()


def test_a_lock_that_a_thread_holds_is_waited_for_and_free_in_the_child() -> None:
    still, held = StillLock(), threading.Event()

    def hold() -> None:
        with still.lock:
            held.set()
            time.sleep(0.2)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    assert in_child(lambda: still.lock.acquire(timeout=1)) == 0
    assert still.lock.acquire(timeout=1)
    still.lock.release()
    holder.join()


def test_a_registry_knows_what_lives() -> None:
    class Thing:
        pass

    things: Registry[Thing] = Registry()
    kept, dropped = Thing(), Thing()
    things.add(kept)
    things.add(dropped)
    assert set(things) == {kept, dropped}
    del dropped
    assert list(things) == [kept]


@tool()
def who() -> str:
    return current_session().principal.sub


def test_a_forked_child_follows_revocations_of_others_without_opening_a_session(
    tmp_path: Path,
) -> None:
    """Its parent's thread that looks for them isn't there."""
    ready, done = os.pipe(), os.pipe()
    with (
        AgentIdentity.embedded("bot", state_dir=tmp_path) as identity,
        identity.on_behalf_of("user:alice", purpose="p"),
    ):
        who()

        def child() -> bool:
            os.write(ready[1], b".")
            os.read(done[0], 1)
            identity._parts.revocations._looked_at += 1000  # no look because of its age
            for _ in range(2000):
                try:
                    who()
                except RevokedError:
                    return True
                time.sleep(0.01)
            return False

        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            os._exit(0 if child() else 1)
        os.read(ready[0], 1)
        identity.revoke("user:alice", reason="gone")
        os.write(done[1], b".")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for end in (*ready, *done):
        os.close(end)
