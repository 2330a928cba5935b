# SPDX-License-Identifier: Apache-2.0
"""Runs background work in a daemon thread, such as the upkeep of a ledger."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

_STOP_SECONDS: Final = 5.0
_Bell: TypeAlias = (
    "queue.SimpleQueue[bool]"  # unlike an Event, it can be used inside a garbage collection
)


class Upkeep:
    """Runs `work`, a method, every few seconds and soon after each `wake`, from the first `wake` or `start` on.

    It has a weak reference to the method's object, and ends with it. A forked child starts a thread of its own when it wakes it.
    """

    def __init__(self, work: Callable[[], None], *, every: float) -> None:
        self._work = weakref.WeakMethod(work, lambda _: self._bell.put(False))
        self._every = every
        self._bell: _Bell = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def wake(self) -> None:
        """Run the work soon."""
        self.start()
        self._bell.put(True)

    def start(self) -> None:
        """Run the work every few seconds from now on."""
        if self._stopped or sys.is_finalizing():
            return  # at finalization a new thread never runs, and starting it would wait for ever
        if self._thread is None or not self._thread.is_alive():
            self._bell = (
                queue.SimpleQueue()
            )  # the old one may have come through a fork with its lock held
            args = (self._work, self._bell, self._every)
            self._thread = threading.Thread(target=_run, args=args, name="ledger", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread after its current run."""
        self._stopped = True
        if self._thread is not None and self._thread.is_alive():
            self._bell.put(False)
            self._thread.join(_STOP_SECONDS)


def _run(work: weakref.WeakMethod[Callable[[], None]], bell: _Bell, every: float) -> None:
    while True:
        go_on = True
        with contextlib.suppress(queue.Empty):
            go_on = bell.get(timeout=every)
        while not bell.empty():
            go_on = bell.get() and go_on
        step = work()
        if step is None or not go_on:
            return
        step()
        del step  # so that it doesn't keep the object alive while this waits
