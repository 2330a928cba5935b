# SPDX-License-Identifier: Apache-2.0
"""What has to hold still while the process forks, so that the child begins with whole things and free locks."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

__all__ = ["Forkable", "hold_still"]


class Forkable(Protocol):
    """Something with a lock, or with a file that mustn't be shared by two processes."""

    def before_fork(self) -> bool:
        """Come to rest, and stay there; False when that can't be done in time."""
        ...

    def after_fork_in_parent(self) -> None:
        """Go on. Only called after a rest."""
        ...

    def after_fork_in_child(self, *, rested: bool) -> None:
        """Begin anew."""
        ...


def hold_still(thing: Forkable) -> None:
    """Have a thing come to rest around every fork, for as long as it lives."""
    _things.add(thing)


_things: weakref.WeakSet[Forkable] = weakref.WeakSet()
_resting: list[tuple[Forkable, bool]] = []
_forking = threading.Lock()  # two threads may fork at once


def _before() -> None:
    _forking.acquire()
    _resting.extend((thing, thing.before_fork()) for thing in list(_things))


def _in_parent() -> None:
    for thing, rested in _resting:
        if rested:
            thing.after_fork_in_parent()
    _resting.clear()
    _forking.release()


def _in_child() -> None:
    global _forking  # noqa: PLW0603 - the old one is held by a thread that this process doesn't have
    _forking = threading.Lock()
    for thing, rested in _resting:
        thing.after_fork_in_child(rested=rested)
    _resting.clear()


if hasattr(os, "register_at_fork"):  # elsewhere nothing forks
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
