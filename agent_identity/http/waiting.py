# SPDX-License-Identifier: Apache-2.0
"""Threads that wait in place of a caller: for a disk, a keyring, a socket or a person, none of which has a time-out.

A thread that has finished waits for the next work, since starting one takes as long as several reads of a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, TypeVar

from agent_identity.errors import CredentialUnavailableError
from agent_identity.forks import reset_in_child

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_IDLE_SECONDS: Final = 10.0
_idle: list[_Thread] = []
reset_in_child(_idle.clear)  # a forked child has none of these threads


class _Thread:
    """A thread that runs one function after another, and ends when there was none for ten seconds."""

    __slots__ = ("_work",)

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._run, name="agent-identity-waiting", daemon=True).start()

    def start(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def _run(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=_IDLE_SECONDS)
            except Empty:
                with contextlib.suppress(ValueError):  # a caller has just taken it
                    _idle.remove(self)
                    return
                continue
            work()
            del work  # it holds what the caller asked for
            _idle.append(self)


def _start(work: Callable[[], None]) -> None:
    try:
        thread = _idle.pop()
    except IndexError:
        thread = _Thread()
    thread.start(work)


def wait_within(deadline: float, look: Callable[[], T]) -> T:
    """Run `look` in another thread, and wait for it until `deadline` on the monotonic clock.

    Raises:
        CredentialUnavailableError: `deadline_exceeded`. The thread goes on, and nobody gets its result.
    """
    left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
    context = contextvars.copy_context()
    results: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()
    _start(lambda: results.put(_outcome(context, look)))
    try:
        values, error = results.get(timeout=left)
    except Empty:
        raise CredentialUnavailableError(
            "deadline_exceeded", "a secret, an SVID or a prompt took longer than the deadline"
        ) from None
    if error is not None:
        raise error
    return values[0]


async def wait_in_thread(look: Callable[[], T]) -> T:
    """Run `look` in another thread; `asyncio.to_thread` takes twice the processor time. Cancelling it leaves the thread behind."""
    loop = asyncio.get_running_loop()
    landing: asyncio.Future[tuple[list[T], BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def land(outcome: tuple[list[T], BaseException | None]) -> None:
        if not landing.done():
            landing.set_result(outcome)

    def work() -> None:
        outcome = _outcome(context, look)
        with contextlib.suppress(RuntimeError):  # that loop was closed
            loop.call_soon_threadsafe(land, outcome)

    _start(work)
    values, error = await landing
    if error is not None:
        raise error
    return values[0]


def _outcome(
    context: contextvars.Context, look: Callable[[], T]
) -> tuple[list[T], BaseException | None]:
    try:
        return [context.run(look)], None
    except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
        return [], error
