# SPDX-License-Identifier: Apache-2.0
"""What was used once is not used again."""

from __future__ import annotations

import os
import signal
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from agent_identity.errors import DeniedError
from agent_identity.verify.replay import MemoryReplay, Replay, UnsafeNoReplayCheck


class Clock:
    def __init__(self, now: float = 1_000_000.75) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_key_is_new_once() -> None:
    replay = MemoryReplay(clock=(clock := Clock()))
    assert replay.remember("a", clock.now + 60)
    assert not replay.remember("a", clock.now + 60)
    assert not replay.remember("a", clock.now + 600)
    assert replay.remember("b", clock.now + 60)


def test_the_parts_of_a_key_do_not_run_together() -> None:
    replay = MemoryReplay(clock=(clock := Clock()))
    keys = [
        ("a", "bc"),
        ("ab", "c"),
        ("abc",),
        ("a", "b", "c"),
        ("a\0b", "c"),
        ("1:a", ""),
        ("", "1:a"),
    ]
    assert all(replay.remember(key, clock.now + 60) for key in keys)
    assert not any(replay.remember(key, clock.now + 60) for key in keys)


def test_B10_of_fifty_that_come_at_once_one_is_accepted() -> None:
    replay = MemoryReplay(clock=(clock := Clock()))
    start = Barrier(50)

    def use(_: int) -> list[bool]:
        start.wait()
        return [replay.remember(("aud", "jkt", f"jti{i}"), clock.now + 60) for i in range(100)]

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(use, range(50)))
    assert [sum(column) for column in zip(*answers, strict=True)] == [1] * 100


def test_an_entry_is_kept_until_its_end_and_then_forgotten() -> None:
    replay = MemoryReplay(clock=(clock := Clock(1000.0)))
    replay.remember("a", 1060.5)
    for clock.now in (1059.0, 1060.4, 1060.9):
        assert not replay.remember("a", 1060.5)
    assert len(replay) == 1
    clock.now = 1062.0
    assert replay.remember("b", 1100.0)
    assert len(replay) == 1


def test_a_clock_set_back_brings_nothing_back() -> None:
    replay = MemoryReplay(clock=(clock := Clock(1000.0)))
    replay.remember("a", 1060.0)
    clock.now = 1100.0
    replay.remember("b", 1160.0)
    clock.now = 1000.0
    assert not replay.remember("a", 1060.0)
    assert not replay.remember("b", 1160.0)
    assert replay.remember("c", 1161.0)


@pytest.mark.parametrize("jump", [91, 3600, 86_400, 365 * 86_400])
def test_a_clock_that_was_ahead_for_a_while_refuses_nothing_new(jump: int) -> None:
    replay = MemoryReplay(clock=(clock := Clock(1000.0)))
    assert replay.remember("a", 1090.0)
    clock.now += jump
    assert replay.remember("b", 1090.0 + jump)
    clock.now += 200
    assert replay.remember("c", 1290.0 + jump)
    clock.now = 1001.0
    assert replay.remember("d", 1091.0)
    assert replay.remember("e", 1090.0)
    assert not any(
        replay.remember(key, until)
        for key, until in (("a", 1090.0), ("b", 1090.0 + jump), ("c", 1290.0 + jump))
    )


def test_where_entries_had_to_be_dropped_only_what_could_be_one_of_them_is_refused() -> None:
    replay = MemoryReplay(limit=4, clock=(clock := Clock(1000.0)))
    for start in (1000, 5000, 90_000, 200_000):
        clock.now = float(start)
        for number in range(4):
            assert replay.remember(f"{start}:{number}", start + 90.0)
    for start in (1000, 5000, 90_000):
        clock.now = float(start)
        assert not replay.remember(f"{start}:0", start + 90.0)
        assert not replay.remember("new", start + 90.0)
    clock.now = 300_000.0
    assert replay.remember("later", 300_090.0)
    clock.now = 7000.0
    assert replay.remember("never read before", 7090.0)


def test_of_many_spans_of_dropped_entries_none_is_forgotten() -> None:
    replay = MemoryReplay(limit=2, clock=(clock := Clock(0.0)))
    for number in range(100):
        clock.now = number * 1000.0
        assert replay.remember(str(number), number * 1000.0 + 90)
    for number in range(98):
        clock.now = number * 1000.0
        assert not replay.remember(str(number), number * 1000.0 + 90)
    assert len(replay._dropped) <= 32


def test_B12_a_full_store_denies_and_forgets_nothing() -> None:
    replay = MemoryReplay(limit=3, clock=(clock := Clock(1000.0)))
    assert all(replay.remember(key, 1010.0 + at) for at, key in enumerate("abc"))
    for _ in range(5):
        with pytest.raises(DeniedError) as refused:
            replay.remember("d", 1060.0)
        assert refused.value.code == "replay_store_full"
    assert len(replay) == 3
    assert not any(replay.remember(key, 1060.0) for key in "abc")
    clock.now = 1012.0
    assert replay.remember("d", 1060.0)
    assert not replay.remember("c", 1060.0)


def test_ends_in_any_order_are_swept() -> None:
    replay = MemoryReplay(clock=(clock := Clock(1000.0)))
    for at in (5, 3, 9, 1, 7, 3, 5):
        replay.remember((str(at), str(len(replay))), 1000.0 + at)
    clock.now = 1006.0
    replay.remember("last", 1100.0)
    assert len(replay) == 3


def test_a_long_jti_takes_no_more_room_than_a_short_one() -> None:
    replay = MemoryReplay(clock=(clock := Clock()))
    tracemalloc.start()
    for number in range(500):
        replay.remember(("aud", "jkt", f"{number}" + "x" * 10_000), clock.now + 60)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 500 * 300


def test_the_store_says_since_when_it_remembers_in_whole_seconds() -> None:
    assert MemoryReplay(clock=Clock(1000.9)).not_before == 1000


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_remembers_and_is_not_locked_out() -> None:
    replay = MemoryReplay(clock=(clock := Clock()))
    replay.remember("a", clock.now + 60)
    replay._lock.acquire()  # as a thread of the parent might, at the moment of the fork
    child = os.fork()
    if child == 0:
        signal.alarm(5)  # a lock that stays shut ends the child, not the test run
        kept = not replay.remember("a", clock.now + 60) and replay.remember("b", clock.now + 60)
        os._exit(0 if kept else 1)
    replay._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_check_is_no_check() -> None:
    unsafe: Replay = UnsafeNoReplayCheck()
    assert unsafe.remember("a", 1.0)
    assert unsafe.remember("a", 1.0)
    assert unsafe.not_before == 0
