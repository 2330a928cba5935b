# SPDX-License-Identifier: Apache-2.0
"""Cache keys of credential requests, lifetimes of answers, and the tables of answers and refusals.

A key holds everything that changes the answer, the principal first, and is compared whole: a token with more scopes is never
used for a request with fewer. A lifetime is measured on the wall clock and on the monotonic one; the earlier end counts.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialRejectedError,
    CredentialUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_identity.flow import Expiring


class Cooldown:
    """A pause of `seconds` after `start` before the next attempt. Setting the clock back ends it."""

    __slots__ = ("seconds", "started")

    def __init__(self, seconds: float, started: float = float("-inf")) -> None:
        self.seconds: float = seconds
        self.started: float = started

    def start(self, now: float) -> None:
        self.started = now

    def is_over(self, now: float) -> bool:
        return not 0 <= now - self.started < self.seconds

    def claim(self, now: float) -> bool:
        """Restart the pause if it is over. Return whether it was, so that one caller makes the attempt."""
        if self.is_over(now):
            self.started = now
            return True
        return False


class CacheKey(NamedTuple):
    """Everything that a credential depends on. The tables use its `digest` as their key.

    `details` is the canonical JSON of RFC 9396 objects, `parameters` the encoded form of a resource's own parameters.
    """

    grant_type: str
    issuer: str
    client: str
    principal: tuple[str, str, str]
    chain: str
    resource: str
    audience: str
    scopes: frozenset[str]
    details: str
    parameters: str
    binding_key: str
    policy_epoch: int

    def digest(self) -> bytes:
        """SHA-256 over the length-prefixed parts, so that two different keys never have the same digest.

        Raises:
            ConfigurationError: there is no principal; one principal's token could be given to another.
        """
        if not self.principal[0]:
            raise ConfigurationError("cache_key", "a cached credential needs a principal")
        parts: list[str] = [self.grant_type, self.issuer, self.client, *self.principal]
        parts += [self.chain, self.resource, self.audience, str(len(self.scopes))]
        parts += sorted(self.scopes)
        parts += [self.details, self.parameters, self.binding_key, str(self.policy_epoch)]
        return digest_of(parts)


def digest_of(parts: Iterable[str]) -> bytes:
    """SHA-256 over texts, each preceded by its number of characters and a colon."""
    whole = "".join([f"{len(part)}:{part}" for part in parts])
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).digest()


def _advisory(life: float) -> float:
    return min(300.0, 0.2 * life)


def _mandatory(life: float) -> float:
    return min(60.0, 0.05 * life)


def fresh_until(value: Expiring) -> float:
    """When an answer should be renewed (Unix seconds). It stays usable for a while after that."""
    return value.expires_at - _advisory(value.expires_at - value.issued_at)


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer and its windows: used as it is until `fresh`, and until `usable` while it is being renewed."""

    value: Expiring
    fresh: float
    usable: float
    fresh_monotonic: float
    usable_monotonic: float

    def is_fresh(self, now: float, monotonic: float) -> bool:
        return now < self.fresh and monotonic < self.fresh_monotonic

    def is_usable(self, now: float, monotonic: float) -> bool:
        return now < self.usable and monotonic < self.usable_monotonic


_RETRY_PAUSE: Final = 30.0


class Cache:
    """A bounded table of answers with LRU eviction. The lock guards the dictionary and nothing else."""

    __slots__ = ("_entries", "_lock", "_paused", "_size")

    def __init__(self, size: int = 20_000) -> None:
        self._size = size
        self.start_over()

    def start_over(self) -> None:
        """In a forked child: a thread that doesn't exist there may hold the lock, and the answers are the parent's."""
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._paused: dict[bytes, Cooldown] = {}

    def get(self, key: bytes) -> Entry | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, key: bytes, value: Expiring, *, now: float, monotonic: float) -> Entry:
        """Keep an answer. Renewals of answers that were stored together are spread over half of the advisory window."""
        # If the wall clock was set back, nothing lives longer than it was issued for.
        life = max(0.0, min(value.expires_at - now, value.expires_at - value.issued_at))
        jitter = random.uniform(0.0, 0.5) * _advisory(life)  # noqa: S311 - spreads load, guards nothing
        fresh = life - _advisory(life) + jitter
        usable = life - _mandatory(life)
        entry = Entry(value, now + fresh, now + usable, monotonic + fresh, monotonic + usable)
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            self._paused.pop(key, None)
            while len(self._entries) > self._size:
                evicted, _ = self._entries.popitem(last=False)
                self._paused.pop(evicted, None)
        return entry

    def drop(self, key: bytes) -> None:
        with self._lock:
            self._entries.pop(key, None)
            self._paused.pop(key, None)

    def claim_renewal(self, key: bytes, monotonic: float) -> bool:
        """Whether the caller should renew an answer early: one caller at a time, and not within 30 s after a failure."""
        with self._lock:
            if key not in self._entries:
                return False
            return self._paused.setdefault(key, Cooldown(_RETRY_PAUSE)).claim(monotonic)


_REFUSED: Final = 5.0
_LONGEST: Final = 3600.0


class Refusals:
    """A bounded table of refusals; the oldest is evicted. Times are on the monotonic clock; the lock guards the dictionary."""

    __slots__ = ("_entries", "_lock", "_size")

    def __init__(self, size: int = 1024) -> None:
        self._size = size
        self.start_over()

    def start_over(self) -> None:
        """In a forked child: a thread that doesn't exist there may hold the lock."""
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, tuple[AgentIdentityError, float]] = OrderedDict()

    def check(self, key: bytes, monotonic: float) -> None:
        """Raise the remembered refusal of this request while it lasts.

        Raises:
            CredentialError: a copy of the remembered error.
        """
        with self._lock:
            entry = self._entries.get(key)
        if entry is None or monotonic >= entry[1]:
            return
        refusal, ends = entry
        error = refusal.copy()
        if isinstance(error, CredentialUnavailableError):
            error.retry_after = ends - monotonic
        raise error

    def note(self, key: bytes, error: AgentIdentityError, monotonic: float) -> None:
        """Remember an error that another attempt would only repeat; ignore others."""
        if isinstance(error, CredentialRejectedError):
            seconds = _REFUSED
        elif isinstance(error, CredentialUnavailableError) and error.retry_after is not None:
            seconds = min(error.retry_after, _LONGEST)
        else:
            return
        copy = error.copy()
        with self._lock:
            self._entries[key] = copy, monotonic + seconds
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)

    def drop(self, key: bytes) -> None:
        """Forget a refusal, so that the next request is sent."""
        with self._lock:
            self._entries.pop(key, None)
