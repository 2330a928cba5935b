# SPDX-License-Identifier: Apache-2.0
"""An issuer's metadata and public keys, which can be read without a client.

Both are read once per process, cached until they expire, and used for another hour while the issuer can't be reached.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

from agent_identity.credentials.cache import Cooldown, digest_of
from agent_identity.credentials.oauth.metadata import (
    discover,
    endpoints_without_metadata,
    read_keys,
)
from agent_identity.credentials.oauth.retries import ATTEMPTS, Breaker, wait_for
from agent_identity.errors import (
    AgentIdentityError,
    CredentialRejectedError,
    CredentialUnavailableError,
)
from agent_identity.flow import Expiring, Shared, shared
from agent_identity.values import new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.credentials.oauth.metadata import Endpoints, KeySet
    from agent_identity.flow import Flow
    from agent_identity.values import JSON

E = TypeVar("E", bound=Expiring)
T = TypeVar("T")

STALE: Final = 3600.0
"""Seconds that expired metadata and keys are still used while the issuer can't be reached."""

_KEY_PAUSE: Final = 30.0
"""Seconds between two reads of an issuer's keys for an unknown `kid`, and after a failed read."""


class _Look:
    """One read of an issuer's keys for an unknown `kid`: when it began (Unix seconds), and whether it has ended."""

    __slots__ = ("cooldown", "has_ended")

    def __init__(self, began: float) -> None:
        self.cooldown = Cooldown(_KEY_PAUSE, began)
        self.has_ended = False


class IssuerKeys:
    """The metadata and the keys of one issuer.

    `origins` are further allowed origins of its endpoints. `metadata` is the URL of its metadata where that isn't a standard one;
    with `has_metadata=False` none is read. `endpoints` (by their RFC 8414 names) and `jwks` replace those of the metadata. `key_use` is the `use` of its
    signing keys. `discovered` says that a resource named the issuer, and no configuration did. `clock` returns Unix seconds. `id` is unique: issuers with the same URL but other settings share no
    cache entries.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float],
        origins: frozenset[str] = frozenset(),
        jwks: str | None = None,
        metadata: str | None = None,
        has_metadata: bool = True,
        endpoints: Mapping[str, str] | None = None,
        key_use: str = "sig",
        discovered: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self.id: str = new_id("issuer_")
        self._key = digest_of(("metadata", self.id))
        self.clock = clock
        self.breaker: Breaker = Breaker(monotonic)
        self._origins = origins
        self._jwks = jwks
        self._metadata = metadata
        self._has_metadata = has_metadata
        self._given = endpoints or {}
        self._key_use = key_use
        self._discovered = discovered
        self._endpoints: Endpoints | None = None
        self._keys: KeySet | None = None
        self._keys_refused: CredentialRejectedError | None = None
        self._reading = Cooldown(_KEY_PAUSE)
        self._look = _Look(float("-inf"))

    def start_over(self) -> None:
        """In a forked child: threads that don't exist there may hold the locks."""
        self.breaker.forget()

    def endpoints(self) -> Flow[Endpoints]:
        """Return the issuer's metadata.

        Raises:
            CredentialError: there is none, or it can't be read.
        """
        if not self._has_metadata:
            return endpoints_without_metadata(self.url, self.clock(), self._given)
        start = lambda: self._attempt(self._discover)  # noqa: E731 - a flow to be made twice
        self._endpoints = yield from self._or_stale(Shared(self._key, start), self._endpoints)
        return self._endpoints

    def _discover(self) -> Flow[Endpoints]:
        return discover(
            self.url,
            self.clock,
            self._origins,
            place=self._metadata,
            given=self._given,
            discovered=self._discovered,
        )

    def only_key(self, alg: str) -> Flow[dict[str, JSON]]:
        """Return the issuer's public key for tokens that don't name their key.

        Raises:
            CredentialRejectedError: `unknown_key`, not exactly one of its keys fits this `alg`.
            CredentialUnavailableError: its keys can't be read.
        """
        keys, was_read = yield from self._current()
        if keys.only_for(alg) is None and not was_read:
            keys = yield from self._look_again(keys, at_once=False)
        key = keys.only_for(alg)
        if key is None:
            raise CredentialRejectedError(
                "unknown_key", f"the token doesn't name its key, and {self.url} has none or several"
            )
        return key

    def key(self, kid: str, *, at_once: bool = False) -> Flow[dict[str, JSON]]:
        """Return the issuer's public key with this `kid`. For an unknown one the keys are read again, at most every 30 s.

        These extra reads are independent of the regular ones, so that a new key is found at once. `at_once` ignores the pause;
        use it only for a `kid` that came from the issuer itself, not from a caller.

        Raises:
            CredentialRejectedError: `unknown_key`, the issuer has no such key.
            CredentialUnavailableError: its keys can't be read.
        """
        keys, was_read = yield from self._current()
        if keys.get(kid) is None and not was_read:
            keys = yield from self._look_again(keys, at_once=at_once)
        key = keys.get(kid)
        if key is None:
            raise CredentialRejectedError(
                "unknown_key", f"{self.url} signed with a key that it doesn't publish"
            )
        return key

    def keys(self) -> Flow[KeySet]:
        """Return all its keys. They are read again when they are five minutes old."""
        return (yield from self._current())[0]

    @property
    def known_keys(self) -> KeySet | None:
        """The keys of the last read, however old; None before the first."""
        return self._keys

    def may_look(self, now: float) -> bool:
        """Whether the keys are read again for an unknown `kid`: a read is under way, or the pause after the last is over."""
        return not self._look.has_ended or self._look.cooldown.is_over(now)

    def _current(self) -> Flow[tuple[KeySet, bool]]:
        """Return the keys, and whether this call read them."""
        known = self._keys
        if known is not None:
            now = self.clock()
            stale = now < known.expires_at + STALE and not self._reading.is_over(now)
            if known.issued_at <= now < known.expires_at or stale:
                return known, False
        elif self._keys_refused is not None and not self._reading.is_over(self.clock()):
            raise self._keys_refused.copy()
        return (yield from self._newer(known, self._read_keys)), True

    def _look_again(self, keys: KeySet, *, at_once: bool) -> Flow[KeySet]:
        """Read the keys again for an unknown `kid`. Concurrent callers share one read."""
        look = self._look
        now = self.clock()
        if at_once or look.cooldown.is_over(now):
            look = self._look = _Look(now)
        elif look.has_ended:
            return self._keys or keys  # the look may have ended since the caller read them
        return (yield from self._newer(keys, lambda: self._read_for(look)))

    def _read_for(self, look: _Look) -> Flow[KeySet]:
        """Read the keys once for a look. A caller that joins after it failed doesn't start another."""
        if look.has_ended:
            raise CredentialUnavailableError(
                "issuer_unavailable", f"reading the keys of {self.url} failed a moment ago"
            )
        try:
            self._keys = yield from self._read_keys()
        except AgentIdentityError:
            # After an interrupt it stays open, and the next caller continues it.
            look.has_ended = True
            raise
        look.has_ended = True  # only now: callers that see this use the new keys
        return self._keys

    def _newer(self, known: KeySet | None, start: Callable[[], Flow[KeySet]]) -> Flow[KeySet]:
        self._reading.start(self.clock())
        key = digest_of(("keys", self.id, "" if known is None else repr(known.issued_at)))
        try:
            self._keys = yield from self._or_stale(Shared(key, start), known)
        except CredentialRejectedError as error:
            self._keys_refused = error.copy()
            raise
        return self._keys

    def _read_keys(self) -> Flow[KeySet]:
        place = self._jwks
        if place is None:
            # It has attempts of its own, so that three failures here aren't repeated three times below.
            place = (yield from self.endpoints()).jwks
        read = lambda: read_keys(  # noqa: E731 - a flow to be made twice
            self.url, place, self.clock, discovered=self._discovered, use=self._key_use
        )
        return (yield from self._attempt(read))

    def _or_stale(self, ask: Shared[E], last: E | None) -> Flow[E]:
        try:
            return (yield from shared(ask))
        except CredentialUnavailableError:
            if last is None or self.clock() >= last.expires_at + STALE:
                raise
            return last

    def _attempt(self, once: Callable[[], Flow[T]], attempts: int = ATTEMPTS) -> Flow[T]:
        """Run a request with retries, unless the circuit breaker is open. Count failures and answers."""
        attempt = 1
        while True:
            self.breaker.check(self.url)
            try:
                value = yield from once()
            except CredentialUnavailableError as error:
                if error.code != "issuer_unavailable":
                    self.breaker.note_failure()
                if attempt >= attempts:
                    raise
                failure = error
            except CredentialRejectedError:
                self.breaker.note_answer()
                raise
            else:
                self.breaker.note_answer()
                return value
            yield from wait_for(failure, attempt)
            attempt += 1
