# SPDX-License-Identifier: Apache-2.0
"""Replay stores remember single-use identifiers until these have expired.

A full store denies. It never evicts an entry early: an attacker who can fill it could then replay what it forgot. A store in
memory doesn't know what was used before it was made: `not_before` is that time.

If the clock is set back, expired entries become valid again. Therefore the newest entries are kept beyond their end, and for
dropped entries the time spans of their ends: an identifier that ends in such a span may be one of them, and is refused.
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

ReplayKey: TypeAlias = "str | tuple[str, ...]"


class Replay(Protocol):
    """Remembers what was used. Several workers of one resource need a shared store."""

    @property
    def not_before(self) -> int:
        """The Unix time since which it remembers; a token issued before that may already have been used."""
        ...

    def remember(self, key: ReplayKey, until: float, /) -> bool:
        """Check and set in one step. Returns True the first time, then False until the Unix time `until`.

        Raises:
            DeniedError: the store is full or unavailable.
        """
        ...


_KEPT: Final = 10_000
"""The number of expired entries that are kept."""

_GAP: Final = 60
"""Spans of dropped ends that are at most this many seconds apart are merged."""

_SPANS: Final = 32


class MemoryReplay:
    """A thread-safe replay store for one process. It holds `limit` entries, some 120 bytes each."""

    def __init__(self, *, limit: int = 1_000_000, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self.start_over()
        self._seen: set[bytes] = set()
        # Digests by the whole second in which they end, and those seconds as a heap, so that the ends may come in any order.
        self._by_second: dict[int, list[bytes]] = {}
        self._seconds: list[int] = []
        self._kept = min(_KEPT, limit // 2)
        self._dropped: list[tuple[int, int]] = []  # first and last second of each span, in order
        self._now = int(clock())
        self.not_before: Final = self._now
        start_over_in_child(self)

    def start_over(self) -> None:
        """In a forked child: the entries stay, but a thread of the parent may hold the lock."""
        self._lock = Lock()

    def __len__(self) -> int:
        """The number of entries that haven't expired."""
        with self._lock:
            return sum(
                len(ended) for second, ended in self._by_second.items() if second >= self._now
            )

    def remember(self, key: ReplayKey, until: float, /) -> bool:
        """Check and set in one step. Returns True the first time, then False. `until` must be the same each time.

        Returns False, too, for an identifier that ends when dropped entries ended: after a clock change it may be one of them.

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
                    remedy="pass the verifier a shared store, or a larger limit",
                )
            # In this order, so that a process forked in between has no entry that it can't sweep.
            if second not in self._by_second:
                heapq.heappush(self._seconds, second)
                self._by_second[second] = []
            self._by_second[second].append(digest)
            self._seen.add(digest)
            return True

    def _sweep(self, now: int) -> None:
        """Drop entries that ended before `now` (whole seconds), oldest first, except the newest expired ones."""
        self._now = now
        while self._seconds and self._seconds[0] < now and len(self._seen) > self._kept:
            second = heapq.heappop(self._seconds)
            self._note_dropped(second)
            self._seen.difference_update(self._by_second.pop(second, ()))

    def _may_be_dropped(self, second: int) -> bool:
        return any(first <= second <= last for first, last in self._dropped)

    def _note_dropped(self, second: int) -> None:
        """Extend a span that is near, or add one. If there are too many, the two oldest are merged."""
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
    """Allows replays. Only for a service where a repeated call does no harm."""

    not_before: Final = 0

    def remember(self, key: ReplayKey, until: float, /) -> bool:
        """True, always."""
        del key, until
        return True


def _digest(key: ReplayKey) -> bytes:
    """Sixteen bytes per key, however long the `jti` is. Parts are length-prefixed, so that different keys never collide."""
    parts = (key,) if isinstance(key, str) else key
    text = "".join([f"{len(part)}:{part}" for part in parts])
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
