# SPDX-License-Identifier: Apache-2.0
"""A forked child starts over: locks that a thread of the parent holds, sockets, keys and random state aren't its own."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["StartsOver", "start_over_in_child"]


class StartsOver(Protocol):
    """Something that a forked child can't use as it finds it."""

    def start_over(self) -> None:
        """Forget what is the parent's. Called in the child, before anything else of the library runs there."""
        ...


def start_over_in_child(thing: StartsOver) -> None:
    """Have a thing start over in every forked child, for as long as it lives."""
    _things.add(thing)


_things: weakref.WeakSet[StartsOver] = weakref.WeakSet()


def _in_child() -> None:
    for thing in list(_things):
        thing.start_over()


if hasattr(os, "register_at_fork"):  # elsewhere nothing forks
    os.register_at_fork(after_in_child=_in_child)
