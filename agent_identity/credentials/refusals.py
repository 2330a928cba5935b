# SPDX-License-Identifier: Apache-2.0
"""What an issuer refused isn't asked for again at once: the same question would get the same answer.

A refusal stands for five seconds; "come back later" stands until then, for an hour at most.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from agent_identity.errors import (
    AgentIdentityError,
    CredentialRejectedError,
    CredentialUnavailableError,
)

__all__ = ["Refusals"]

_REFUSED: Final = 5.0
_LONGEST: Final = 3600.0


class Refusals:
    """A bounded table of refusals, oldest out. Moments are on the monotonic clock; the lock guards the dictionary."""

    __slots__ = ("_entries", "_lock", "_size")

    def __init__(self, size: int = 1024) -> None:
        self._size = size
        self.start_over()

    def start_over(self) -> None:
        """In a forked child: the lock may be held by a thread that isn't there."""
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, tuple[AgentIdentityError, float]] = OrderedDict()

    def check(self, key: bytes, monotonic: float) -> None:
        """Pass unless this was refused a moment ago.

        Raises:
            CredentialError: what was said then.
        """
        with self._lock:
            found = self._entries.get(key)
        if found is None or monotonic >= found[1]:
            return
        error = found[0].again()
        if isinstance(error, CredentialUnavailableError):
            error.retry_after = found[1] - monotonic
        raise error

    def note(self, key: bytes, error: AgentIdentityError, monotonic: float) -> None:
        """Remember an error, if it is one that asking again would only repeat."""
        if isinstance(error, CredentialRejectedError):
            seconds = _REFUSED
        elif isinstance(error, CredentialUnavailableError) and error.retry_after is not None:
            seconds = min(error.retry_after, _LONGEST)
        else:
            return
        kept = error.again()
        with self._lock:
            self._entries[key] = kept, monotonic + seconds
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)

    def drop(self, key: bytes) -> None:
        """Forget one: what is asked for again on purpose is asked."""
        with self._lock:
            self._entries.pop(key, None)
