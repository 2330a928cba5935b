# SPDX-License-Identifier: Apache-2.0
"""What was used once: a replay store remembers one-use identifiers until they would have expired anyway.

A store that has no room denies; it never forgets early to make room, which would let an attacker who can fill it replay
what it forgot. A store in memory can't know what was used before it began: `not_before` says since when it does.

A clock may be set back, and then what ended is good once more. The newest entries are therefore kept beyond their end, and of
those that were dropped the times of their ends: what would end in such a time may be one of them, and is refused.
"""

from __future__ import annotations

import heapq
import time
from hashlib import blake2b
from math import ceil
from threading import Lock
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from agent_identity.errors import DeniedError
from agent_identity.forks import start_over_in_child

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MemoryReplay", "Replay", "ReplayKey", "UnsafeNoReplayCheck"]

ReplayKey: TypeAlias = "str | tuple[str, ...]"


class Replay(Protocol):
    """Remembers what was used. Several workers of one resource need one store between them."""

    @property
    def not_before(self) -> int:
        """Unix seconds since which it remembers; what was issued before that may have been used already."""
        ...

    def remember(self, key: ReplayKey, until: float, /) -> bool:
        """Check and set in one step: True the first time, False once it was used, until the Unix time `until`.

        Raises:
            DeniedError: there is no room, or the store is away.
        """
        ...


_KEPT: Final = 10_000
"""Entries that are kept although they have ended."""

_GAP: Final = 60
"""Seconds between two spans of dropped ends that count as one."""

_SPANS: Final = 32


class MemoryReplay:
    """A replay store for one process, safe between threads. It holds `limit` entries, some 120 bytes each."""

    def __init__(self, *, limit: int = 1_000_000, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self.start_over()
        self._seen: set[bytes] = set()
        # Digests by the whole second in which they end, and those seconds as a heap: each entry is put in and taken
        # out once, whatever order the ends come in.
        self._by_second: dict[int, list[bytes]] = {}
        self._seconds: list[int] = []
        self._kept = min(_KEPT, limit // 2)
        self._dropped: list[tuple[int, int]] = []  # first and last second of each span, in order
        self._now = int(clock())
        self.not_before: Final = self._now
        start_over_in_child(self)

    def start_over(self) -> None:
        """In a forked child: what was seen stays, but not a lock that a thread of the parent held."""
        self._lock = Lock()

    def __len__(self) -> int:
        """How many entries haven't ended."""
        with self._lock:
            return sum(
                len(ended) for second, ended in self._by_second.items() if second >= self._now
            )

    def remember(self, key: ReplayKey, until: float, /) -> bool:
        """Check and set in one step: True the first time, False once it was used. `until` is the same each time.

        False also for what ends when dropped entries ended: after the clock was set back it may be one of them.

        Raises:
            DeniedError: the store is full of entries that haven't expired.
        """
        digest = _digest(key)
        second = ceil(until)
        now = self._clock()
        with self._lock:
            self._sweep(int(now))
            if digest in self._seen or self._may_be_dropped(second):
                return False
            if len(self._seen) >= self._limit:
                raise DeniedError(
                    "replay_store_full",
                    "the replay store is full of entries that haven't expired",
                    remedy="give the verifier a shared store, or a larger limit",
                )
            # In this order, so that a copy forked in between knows no entry that it couldn't sweep.
            if second not in self._by_second:
                heapq.heappush(self._seconds, second)
                self._by_second[second] = []
            self._by_second[second].append(digest)
            self._seen.add(digest)
            return True

    def _sweep(self, now: int) -> None:
        """Drop what ended before `now`, in whole seconds, oldest first, but for the entries that are kept beyond their end."""
        self._now = now
        while self._seconds and self._seconds[0] < now and len(self._seen) > self._kept:
            second = heapq.heappop(self._seconds)
            self._note_dropped(second)
            self._seen.difference_update(self._by_second.pop(second, ()))

    def _may_be_dropped(self, second: int) -> bool:
        return any(first <= second <= last for first, last in self._dropped)

    def _note_dropped(self, second: int) -> None:
        """Widen a span that is near, or begin another; of too many the two oldest become one."""
        spans = self._dropped
        if spans and spans[-1][1] <= second <= spans[-1][1] + _GAP:  # nearly always
            spans[-1] = (spans[-1][0], second)
            return
        spans.append((second, second))
        spans.sort()
        joined = spans[:1]
        for first, last in spans[1:]:
            if first <= joined[-1][1] + _GAP:
                joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
            else:
                joined.append((first, last))
        if len(joined) > _SPANS:
            joined[:2] = [(joined[0][0], joined[1][1])]
        self._dropped = joined


class UnsafeNoReplayCheck:
    """Lets everything be used again. For a service where a repeated call does no harm, and that says so by this name."""

    not_before: Final = 0

    def remember(self, key: ReplayKey, until: float, /) -> bool:
        """True, always."""
        del key, until
        return True


def _digest(key: ReplayKey) -> bytes:
    """Sixteen bytes a key, however long a `jti` somebody sends. Parts are length-prefixed, so that none runs into the next."""
    parts = (key,) if isinstance(key, str) else key
    text = "".join([f"{len(part)}:{part}" for part in parts])
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
