# SPDX-License-Identifier: Apache-2.0
"""Work that no call waits for: one daemon thread for each ledger that is written to."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable

__all__ = ["Upkeep"]

_STOP_SECONDS: Final = 5.0


class Upkeep:
    """Runs `work` every so many seconds, and soon after each `wake`, from the first `wake` on.

    It holds its owner weakly and ends with it. A forked child has a thread of its own once it wakes it.
    """

    def __init__(self, work: weakref.WeakMethod[Callable[[], None]], *, every: float) -> None:
        self._work = work
        self._every = every
        self._thread: threading.Thread | None = None
        self._due = threading.Event()
        self._stopped = threading.Event()

    def wake(self) -> None:
        """Have the work done soon."""
        thread = self._thread
        if thread is not None and thread.is_alive():
            self._due.set()
        elif not self._stopped.is_set():
            self._due = (
                threading.Event()
            )  # the old one may have come through a fork with its lock held
            args = (self._work, self._due, self._stopped, self._every)
            self._thread = threading.Thread(target=_run, args=args, name="ledger", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, once it has finished what it does at this moment."""
        self._stopped.set()
        thread = self._thread
        if thread is not None and thread.is_alive():
            self._due.set()
            thread.join(_STOP_SECONDS)


def _run(
    work: weakref.WeakMethod[Callable[[], None]],
    due: threading.Event,
    stopped: threading.Event,
    every: float,
) -> None:
    while True:
        due.wait(every)
        due.clear()
        step = work()
        if step is None or stopped.is_set():
            return
        step()
        del step  # or it would keep the owner alive while this waits
