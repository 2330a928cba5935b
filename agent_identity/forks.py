# SPDX-License-Identifier: Apache-2.0
"""Forks: what comes to rest before one, and what a child starts over with.

A child has one thread. A lock that another thread of the parent held stays locked there for good, a mutex inside SQLite too, and
sockets, keys and random state are the parent's. So a fork waits until no thread is inside a `StillLock` or another `Forkable`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects that compare by identity, each for as long as it lives. Thread-safe."""

    __slots__ = ("_references",)

    def __init__(self) -> None:
        self._references: set[weakref.ReferenceType[T]] = set()

    def add(self, thing: T) -> None:
        """Know an object from here on."""
        self._references.add(weakref.ref(thing, self._references.discard))

    def __iter__(self) -> Iterator[T]:
        """Those that live, as they are now."""
        for reference in self._references.copy():
            thing = reference()
            if thing is not None:
                yield thing


REST_SECONDS: Final = 5.0
"""How long a fork waits for each lock."""


class StartsOver(Protocol):
    """Something that a forked child can't use as it finds it."""

    def start_over(self) -> None:
        """Forget what is the parent's. Called in the child, before anything else of the library runs there."""
        ...


class Forkable(Protocol):
    """Something with a lock, or with a file that mustn't be shared by two processes."""

    def before_fork(self) -> None:
        """Come to rest, and stay there, if that can be done in time."""
        ...

    def after_fork_in_parent(self) -> None:
        """Go on."""
        ...

    def after_fork_in_child(self) -> None:
        """Begin anew."""
        ...


class StillLock:
    """A lock that no thread holds at a fork, and that is free in the child. Use it as `with still.lock:`.

    The lock itself is a plain one: an interrupt can't leave it locked behind a `with` statement, as it can a lock class that is
    written in Python.
    """

    __slots__ = ("__weakref__", "_rests", "lock")

    def __init__(self) -> None:
        self.lock: threading.Lock = threading.Lock()
        self._rests: list[bool] = []
        hold_still(self)

    @property
    def is_at_rest(self) -> bool:
        """Whether a fork holds it."""
        return bool(self._rests and self._rests[0])

    def before_fork(self) -> None:
        self._rests.clear()
        acquire(self.lock, self._rests, REST_SECONDS)

    def after_fork_in_parent(self) -> None:
        if self.is_at_rest:
            self._rests.clear()
            self.lock.release()

    def after_fork_in_child(self) -> None:
        self._rests.clear()
        self.lock = threading.Lock()


def acquire(lock: threading.Lock, outcome: list[bool], seconds: float) -> None:
    """Acquire a lock, and append to `outcome` whether that worked.

    Both happen inside one call into C, so no interrupt comes between them and leaves the lock held by nobody who knows it. The
    caller releases it in `finally`, where `outcome` says so.
    """
    outcome.extend(map(lock.acquire, (True,), (seconds,)))


def reset_in_child(reset: Callable[[], None]) -> None:
    """Have what a module holds reset in every forked child, before anything starts over there."""
    _resets.append(reset)


def start_over_in_child(thing: StartsOver) -> None:
    """Have a thing start over in every forked child, for as long as it lives."""
    _starting_over.add(thing)


def hold_still(thing: Forkable) -> None:
    """Have a thing come to rest around every fork, for as long as it lives."""
    _holding_still.add(thing)


_resets: Final[list[Callable[[], None]]] = []
_starting_over: Final[Registry[StartsOver]] = Registry()
_holding_still: Final[Registry[Forkable]] = Registry()
_resting: list[Forkable] = []
_forking = threading.Lock()  # two threads may fork at once
_forks: list[bool] = []


def _wait_for_imports() -> None:
    """A lock of a module that another thread imports would stay locked in the child."""
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if getattr(spec, "_initializing", False):
            with contextlib.suppress(Exception):  # that thread tells how its import failed
                importlib.import_module(name)


def _before() -> None:
    _wait_for_imports()
    acquire(_forking, _forks, 2 * REST_SECONDS)
    _resting.extend(list(_holding_still))
    for thing in _resting:
        thing.before_fork()


def _in_parent() -> None:
    for thing in _resting:
        thing.after_fork_in_parent()
    _resting.clear()
    if _forks and _forks.pop():
        _forking.release()


def _in_child() -> None:
    global _forking  # noqa: PLW0603 - the old one is held by a thread that this process doesn't have
    _forking = threading.Lock()
    _forks.clear()
    for reset in _resets:
        reset()
    for thing in _resting:
        thing.after_fork_in_child()
    _resting.clear()
    for starting in list(_starting_over):
        starting.start_over()


if hasattr(os, "register_at_fork"):  # elsewhere nothing forks
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
