# SPDX-License-Identifier: Apache-2.0
"""What was used once: a replay store remembers one-use identifiers until they would have expired anyway.

A store that has no room denies; it never forgets early to make room, which would let an attacker who can fill it replay
what it forgot. A store in memory can't know what was used before it began: `not_before` says since when it does.
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
        self._swept = 0
        self.not_before: Final = int(clock())
        start_over_in_child(self)

    def start_over(self) -> None:
        """In a forked child: what was seen stays, but not a lock that a thread of the parent held."""
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._seen)

    def remember(self, key: ReplayKey, until: float, /) -> bool:
        """Check and set in one step: True the first time, False once it was used.

        What ends before a moment that this store has already seen is False too: it may have been forgotten since, and
        a clock that was set back would let it in again.

        Raises:
            DeniedError: the store is full of entries that haven't expired.
        """
        digest = _digest(key)
        second = ceil(until)
        now = self._clock()
        with self._lock:
            self._sweep(int(now))
            if second <= self._swept or digest in self._seen:
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
        """Forget what ended before `now`, in whole seconds."""
        while self._seconds and self._seconds[0] < now:
            second = heapq.heappop(self._seconds)
            self._seen.difference_update(self._by_second.pop(second, ()))
            self._swept = max(self._swept, second)


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
