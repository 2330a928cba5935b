# SPDX-License-Identifier: Apache-2.0
"""Objects that are known without being held.

The callbacks of `weakref.WeakSet` and its relatives are Python code, which runs wherever the garbage collector does. An interrupt
that comes up in there is lost: nobody can raise it. The one here is a method of a built-in type.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Registry"]

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
