# SPDX-License-Identifier: Apache-2.0
"""One fetch for all waiting callers: those with the same key, in any thread or event loop, share one flight.

In async code the leader is a separate task, so that cancelling the first caller doesn't cancel the others; in sync code the
leader is the calling thread. The lock guards a dictionary and is never held while waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from agent_identity.errors import (
    AgentIdentityError,
    CredentialUnavailableError,
    TransportError,
    is_interrupt,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

_led: ContextVar[frozenset[bytes]] = ContextVar("agent_identity_led", default=frozenset())
"""The keys that the running code is fetching, including in tasks and threads that it started."""

_SLICE: Final = 0.5
"""Seconds between two checks that the leader's loop still exists."""


class _LeaderGone(Exception):  # noqa: N818 - no error of the library: the followers board again
    """The loop or process of the leader ended before the flight landed."""


class _Flight(Generic[T]):
    """One fetch: its leader's loop, its result, and its waiters.

    Each waiter has a lock of its own. A shared lock, or the condition of a `Future`, would stay locked if an interrupt hit the
    thread that had just acquired it.
    """

    __slots__ = ("_error", "_value", "_wakers", "has_landed", "interrupt", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop
        self.has_landed = False
        self.interrupt: Exception | None = None
        """An exception of a signal handler in the leading task; the caller that started the flight raises it."""
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._wakers: list[Callable[[], object]] = []

    def land(self, value: T) -> None:
        """End with a value, and wake all waiters."""
        self._value.append(value)
        self.has_landed = True
        self._wake()

    def fail(self, error: BaseException) -> None:
        """End with an error, unless it has landed, and wake all waiters."""
        if not self.has_landed:
            self._error = error
            self.has_landed = True
        self._wake()

    def outcome(self, deadline: float) -> tuple[T] | None:
        """Return the value, or raise a copy of the error; None where the caller has to try again."""
        if not self.has_landed:
            if time.monotonic() < deadline:
                return None
            raise _deadline_exceeded()
        if self._error is None:
            return (self._value[0],)
        if isinstance(self._error, _LeaderGone):
            return None
        if isinstance(self._error, AgentIdentityError):
            raise self._error.copy()
        raise self._error

    def wait(self, seconds: float) -> None:
        """Wait until it has landed, or the time is up."""
        gate = threading.Lock()
        gate.acquire()
        wake = gate.release
        self._wakers.append(wake)
        try:
            if not self.has_landed:
                gate.acquire(timeout=seconds)
        finally:
            with contextlib.suppress(ValueError):  # it was called
                self._wakers.remove(wake)

    async def await_(self, seconds: float) -> None:
        """The async twin of `wait`."""
        loop = asyncio.get_running_loop()
        landing: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if _running_loop() is loop:
                _finish(landing)
                return
            with contextlib.suppress(RuntimeError):  # that loop was closed
                loop.call_soon_threadsafe(_finish, landing)

        self._wakers.append(wake)
        try:
            if not self.has_landed:
                timer = loop.call_later(seconds, _finish, landing)
                try:
                    await landing
                finally:
                    timer.cancel()
        finally:
            with contextlib.suppress(RuntimeError):  # its loop was closed
                landing.cancel()
            if wake in self._wakers:
                self._wakers.remove(wake)

    def is_stranded(self) -> bool:
        """Whether the leader's loop was stopped or closed, so that the flight will never land."""
        return self.loop is not None and not self.loop.is_running() and not self.has_landed

    def _wake(self) -> None:
        while self._wakers:
            with contextlib.suppress(IndexError, RuntimeError):
                self._wakers.pop()()


def _finish(landing: asyncio.Future[None]) -> None:
    if not landing.done():
        landing.set_result(None)


class SingleFlight(Generic[T]):
    """Flights by key. A forked child starts with none, since the leader's thread doesn't exist there."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[bytes, _Flight[T]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def fetch(self, key: bytes, lead: Callable[[], T], seconds: float, *, once: bool = False) -> T:
        """Lead or follow in sync code. `seconds` limits the waiting of a follower.

        Raises:
            CredentialUnavailableError: `blocking_call`, it may be led only `once`, and waiting here would block the leading loop.
        """
        deadline = time.monotonic() + seconds
        _check_cycle(key)
        while True:
            flight = self._join(key, lead)
            if flight.loop is not None and _running_loop() is not None and not flight.has_landed:
                # Waiting here could block the loop that has to land the flight, or one that it waits for.
                if once:
                    raise _blocking_call()
                return _run_as_leader(key, lead)
            if not flight.has_landed:
                flight.wait(min(_SLICE, max(0.0, deadline - time.monotonic())))
            if landed := flight.outcome(deadline):
                return landed[0]

    async def afetch(self, key: bytes, lead: Callable[[], Awaitable[T]], seconds: float) -> T:
        """Lead or follow in async code. Cancelling one caller doesn't cancel the others."""
        deadline = time.monotonic() + seconds
        _check_cycle(key)
        while True:
            flight, is_own = self._ajoin(key, lead)
            await flight.await_(min(_SLICE, max(0.0, deadline - time.monotonic())))
            if is_own and flight.has_landed and flight.interrupt is not None:
                raise flight.interrupt
            if landed := flight.outcome(deadline):
                return landed[0]

    def is_flying(self, key: bytes) -> bool:
        """Whether this key is being fetched at the moment."""
        with self._lock:
            return key in self._flights

    def _join(self, key: bytes, lead: Callable[[], T]) -> _Flight[T]:
        """Return the flight to wait for. If there is none, lead one; it has landed then."""
        own: _Flight[T] = _Flight(None)  # `_Flight[T](None)` takes several times as long
        try:
            flight = self._board(key, own)
            if flight is own:
                value = _run_as_leader(key, lead)
                self._leave(key, own)
                own.land(value)
        except BaseException as error:
            # An interrupt may hit any of these lines, or `lead`. Only the leader raises it.
            self._end(key, own, error)
            if is_interrupt(error):
                raise
            return own
        return flight

    def _ajoin(self, key: bytes, lead: Callable[[], Awaitable[T]]) -> tuple[_Flight[T], bool]:
        """Return the flight to wait for, and whether this call started it (a task then leads it)."""
        own: _Flight[T] = _Flight(asyncio.get_running_loop())
        try:
            flight = self._board(key, own)
            if flight is own:
                task = asyncio.create_task(self._lead(key, own, lead))
                self._tasks.add(task)  # a loop keeps weak references only
                task.add_done_callback(self._tasks.discard)
        except BaseException as error:
            self._end(key, own, error)
            raise
        return flight, flight is own

    def _board(self, key: bytes, own: _Flight[T]) -> _Flight[T]:
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and not flight.is_stranded():
                return flight
            self._flights[key] = own
            return own

    async def _lead(self, key: bytes, flight: _Flight[T], lead: Callable[[], Awaitable[T]]) -> None:
        _led.set(_led.get() | {key})  # in this task only
        try:
            value = await lead()
            self._leave(key, flight)
            flight.land(value)
        except Exception as error:  # noqa: BLE001 - every follower gets the leader's error
            flight.interrupt = error if is_interrupt(error) else None
            self._end(key, flight, error)
        except BaseException as error:
            self._end(key, flight, error)
            raise

    def _end(self, key: bytes, flight: _Flight[T], error: BaseException) -> None:
        """Give every follower the leader's error; after an interrupt of the leader they try again instead."""
        self._leave(key, flight)
        flight.fail(_LeaderGone() if is_interrupt(error) else error.with_traceback(None))

    def _leave(self, key: bytes, flight: _Flight[T]) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]


def _run_as_leader(key: bytes, lead: Callable[[], T]) -> T:
    token = _led.set(_led.get() | {key})
    try:
        return lead()
    finally:
        _led.reset(token)


def _check_cycle(key: bytes) -> None:
    """Refuse to wait for ourselves, for instance in a tool that is called while its own credential is fetched."""
    if key in _led.get():
        raise CredentialUnavailableError(
            "credential_cycle", "fetching a credential requires that same credential"
        )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _blocking_call() -> CredentialUnavailableError:
    return CredentialUnavailableError(
        "blocking_call",
        "a sync call inside an event loop needs a credential that an async call is just fetching",
        remedy="use the async twin, or make the sync call in a thread",
    )


def _deadline_exceeded() -> CredentialUnavailableError:
    """The same error as the flight's own: a follower and its flight have the same deadline, and either may see it first."""
    error = CredentialUnavailableError(
        "deadline_exceeded", "the credential took longer than the deadline"
    )
    error.__cause__ = TransportError("deadline_exceeded", "there was no answer within the deadline")
    return error
