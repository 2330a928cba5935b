# SPDX-License-Identifier: Apache-2.0
"""Rounds in one process: the reference and what is measured take turns, and medians are compared."""

from __future__ import annotations

import os
import random
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ed25519

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 31
CALLS = 200


class Figure(NamedTuple):
    """One row: what was measured, in which unit, against which budget; None is measured without one."""

    path: str
    value: float
    unit: str
    budget: float | None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.budget is None:
            return "measured"
        return "met" if self.value <= self.budget else "MISSED"


def reference() -> Callable[[], object]:
    """r: one bare Ed25519 signature over 800 bytes."""
    key = ed25519.Ed25519PrivateKey.generate()
    data = os.urandom(800)
    return lambda: key.sign(data)


def seconds(
    function: Callable[[], object],
    calls: int = CALLS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The mean time of one call, over a run of them."""
    started = clock()
    for _ in range(calls):
        function()
    return (clock() - started) / calls


def in_r(
    wrapped: Callable[[], object],
    bare: Callable[[], object],
    calls: int = CALLS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """What wrapping adds, as a multiple of r, and r in microseconds: medians over shuffled rounds.

    With `time.process_time` as the clock, it is the processor time of this process, all its threads included.
    """
    r = reference()
    times: dict[str, list[float]] = {"r": [], "bare": [], "wrapped": []}
    turns = [("r", r), ("bare", bare), ("wrapped", wrapped)]
    for _ in range(ROUNDS):
        random.shuffle(turns)
        for name, function in turns:
            times[name].append(seconds(function, calls, clock))
    unit = statistics.median(times["r"])
    pairs = zip(times["wrapped"], times["bare"], strict=True)
    added = statistics.median(wrapped - bare for wrapped, bare in pairs)
    return added / unit, unit * 1e6
