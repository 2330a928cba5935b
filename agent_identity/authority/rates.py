# SPDX-License-Identifier: Apache-2.0
"""How often one client may ask: a bucket of requests that fills again by the minute.

Only a client that has proved itself has a bucket, so that nobody else can empty it, and no stranger can make one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity.authority.answers import OAuthError
from agent_identity.forks import StillLock

if TYPE_CHECKING:
    from agent_identity.authority.clients import ClientRecord

__all__ = ["Rates"]

_MINUTE: Final = 60.0


class Rates:
    """Buckets of configured clients; None is no limit. Each process counts for itself."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self._still = StillLock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def check(self, client: ClientRecord, now: float) -> None:
        """Take one request out of a client's bucket; `now` is Unix seconds.

        Raises:
            OAuthError: 429, it is empty; with the seconds until it isn't.
        """
        if self._per_minute is None or client.configured is None:
            return
        most, each = float(self._per_minute), _MINUTE / self._per_minute
        with self._still.lock:
            left, seen = self._buckets.get(client.client_id, (most, now))
            left = min(most, left + max(0.0, now - seen) / each)
            if left >= 1:
                self._buckets[client.client_id] = (left - 1, now)
                return
            self._buckets[client.client_id] = (left, now)
        wait = {"retry-after": str(int((1 - left) * each) + 1)}
        raise OAuthError("temporarily_unavailable", "rate_exceeded", status=429, headers=wait)
