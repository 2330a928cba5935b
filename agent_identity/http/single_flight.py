# SPDX-License-Identifier: Apache-2.0
"""One fetch for all who wait: callers with the same key, over threads and event loops, share one flight.

A flight is a thread future, since threads and several loops wait for it. In async code the leader is a task of its own, so
that whoever asked first may be cancelled without taking anybody along; in sync code the leader is the thread that asked.
The lock guards a dictionary and is never held while anybody waits.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from agent_identity.errors import AgentIdentityError, CredentialUnavailableError, TransportError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["SingleFlight"]

T = TypeVar("T")

_led: ContextVar[frozenset[bytes]] = ContextVar("agent_identity_led", default=frozenset())
"""What the code that runs here is being fetched for, tasks and threads that it started included."""

_SLICE: Final = 0.5
"""Seconds between two looks at whether the leader's loop still exists."""


class _LeaderGone(Exception):  # noqa: N818 - no error of the library: the followers board again
    """The loop or process of the leader ended before the flight landed."""


class _Flight(Generic[T]):
    """One fetch under way: who leads it, and the future that all wait for."""

    __slots__ = ("future", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.future = Future[T]()
        self.future.set_running_or_notify_cancel()  # from here on nobody can cancel it
        self.loop = loop

    def stranded(self) -> bool:
        """A leader whose loop was stopped or closed under it doesn't land."""
        return self.loop is not None and not self.loop.is_running() and not self.future.done()


class SingleFlight(Generic[T]):
    """Flights by key. Made anew in a forked child, where the leader's thread doesn't exist."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[bytes, _Flight[T]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def fetch(self, key: bytes, lead: Callable[[], T], seconds: float, *, once: bool = False) -> T:
        """Lead or follow in sync code; `seconds` bounds the waiting of a follower.

        Raises:
            CredentialUnavailableError: `blocking_call`, it may be led but `once`, and waiting here would block the loop that leads.
        """
        deadline = time.monotonic() + seconds
        _check_cycle(key)
        while True:
            flight, leads = self._board(key, None)
            if leads:
                self._land(key, flight, lead)
            elif flight.loop is not None and _running_loop() is not None:
                # Waiting here could block the very loop that has to land the flight, or one that it waits for.
                if once:
                    raise _blocking()
                return _leading(key, lead)
            try:
                return flight.future.result(min(_SLICE, max(0.0, deadline - time.monotonic())))
            except _LeaderGone:
                continue
            except AgentIdentityError as error:
                failure = error.again()
            except FutureTimeout:
                if (
                    flight.future.done()
                ):  # it isn't the waiting that took too long: the leader failed so
                    raise
                if time.monotonic() < deadline:
                    continue
                failure = _too_slow()
            raise failure

    async def afetch(self, key: bytes, lead: Callable[[], Awaitable[T]], seconds: float) -> T:
        """Lead or follow in async code. A cancelled caller cancels itself alone."""
        deadline = time.monotonic() + seconds
        _check_cycle(key)
        while True:
            flight, leads = self._board(key, asyncio.get_running_loop())
            if leads:
                task = asyncio.create_task(self._aland(key, flight, lead))
                self._tasks.add(task)  # a loop keeps weak references only
                task.add_done_callback(self._tasks.discard)
            landing = asyncio.wrap_future(flight.future)
            left = max(0.0, deadline - time.monotonic())
            try:
                done, _ = await asyncio.wait({landing}, timeout=min(_SLICE, left))
            finally:
                if not landing.done() and not landing.get_loop().is_closed():
                    landing.cancel()  # the view of the flight, not the flight
            if not done:
                if time.monotonic() < deadline:
                    continue
                raise _too_slow()
            error = landing.exception()
            if isinstance(error, _LeaderGone):
                continue
            if isinstance(error, AgentIdentityError):
                raise error.again()
            return landing.result()

    def flying(self, key: bytes) -> bool:
        """Whether somebody is fetching this key at the moment."""
        with self._lock:
            return key in self._flights

    def _board(self, key: bytes, loop: asyncio.AbstractEventLoop | None) -> tuple[_Flight[T], bool]:
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and not flight.stranded():
                return flight, False
            self._flights[key] = fresh = _Flight[T](loop)
            return fresh, True

    def _land(self, key: bytes, flight: _Flight[T], lead: Callable[[], T]) -> None:
        try:
            value = _leading(key, lead)
        except Exception as error:  # noqa: BLE001 - every follower gets the leader's error, whatever it is
            self._leave(key, flight)
            flight.future.set_exception(error.with_traceback(None))
        except BaseException:
            # The leading thread is being interrupted; that is its own affair, and the followers board again.
            self._leave(key, flight)
            flight.future.set_exception(_LeaderGone())
            raise
        else:
            self._leave(key, flight)
            flight.future.set_result(value)

    async def _aland(
        self, key: bytes, flight: _Flight[T], lead: Callable[[], Awaitable[T]]
    ) -> None:
        _led.set(_led.get() | {key})  # of this task alone
        try:
            value = await lead()
        except Exception as error:  # noqa: BLE001 - see `_land`
            self._leave(key, flight)
            flight.future.set_exception(error.with_traceback(None))
        except BaseException:
            self._leave(key, flight)
            flight.future.set_exception(_LeaderGone())
            raise
        else:
            self._leave(key, flight)
            flight.future.set_result(value)

    def _leave(self, key: bytes, flight: _Flight[T]) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]


def _leading(key: bytes, lead: Callable[[], T]) -> T:
    token = _led.set(_led.get() | {key})
    try:
        return lead()
    finally:
        _led.reset(token)


def _check_cycle(key: bytes) -> None:
    """Refuse to wait for ourselves: a tool that is called on the way to its own credential, say."""
    if key in _led.get():
        raise CredentialUnavailableError(
            "credential_cycle", "getting a credential needs that same credential"
        )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _blocking() -> CredentialUnavailableError:
    return CredentialUnavailableError(
        "blocking_call",
        "a sync call inside an event loop needs what an async call is getting at the moment",
        remedy="use the async twin there, or make the sync call in a thread",
    )


def _too_slow() -> CredentialUnavailableError:
    """Whoever waits and the flight that they wait for have the same deadline; either may see it first."""
    error = CredentialUnavailableError(
        "deadline_exceeded", "the credential took longer than the deadline"
    )
    error.__cause__ = TransportError("deadline_exceeded", "nobody answered within the deadline")
    return error
