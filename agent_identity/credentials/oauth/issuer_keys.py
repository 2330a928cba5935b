# SPDX-License-Identifier: Apache-2.0
"""What an issuer publishes: its metadata and its public keys. To read them takes no client.

Both are read once for all that ask in this process, kept while they last, and used for an hour longer while the issuer
can't be reached.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

from agent_identity.credentials.cache import Cooldown, digest_of
from agent_identity.credentials.oauth.metadata import discover, read_keys
from agent_identity.credentials.oauth.retries import ATTEMPTS, Breaker, wait_for
from agent_identity.errors import (
    AgentIdentityError,
    CredentialRejectedError,
    CredentialUnavailableError,
)
from agent_identity.flow import Expiring, Shared, shared
from agent_identity.values import new_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.oauth.metadata import Endpoints, KeySet
    from agent_identity.flow import Flow
    from agent_identity.values import JSON

__all__ = ["STALE", "IssuerKeys"]

E = TypeVar("E", bound=Expiring)
T = TypeVar("T")

STALE: Final = 3600.0
"""Seconds that metadata and keys outlive their end while the issuer can't be reached."""

_KEY_PAUSE: Final = 30.0
"""Seconds between two looks at an issuer's keys for one that isn't there, and after a reading that failed."""


class _Look:
    """One reading of an issuer's keys for a key that isn't there, from its beginning (Unix seconds) until it has ended."""

    __slots__ = ("cooldown", "has_ended")

    def __init__(self, began: float) -> None:
        self.cooldown = Cooldown(_KEY_PAUSE, began)
        self.has_ended = False


class IssuerKeys:
    """The metadata and the keys of one issuer.

    `origins` are further origins that its endpoints may have, `jwks` is where its keys are when that isn't left to its metadata,
    `key_use` what those say that they are for. `clock` gives Unix seconds. `id` tells it from others of the same URL, which may
    be asked in another way: what is kept of one never serves another.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float],
        origins: frozenset[str] = frozenset(),
        jwks: str | None = None,
        key_use: str = "sig",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self.id: str = new_id("issuer_")
        self.clock = clock
        self.breaker: Breaker = Breaker(monotonic)
        self._origins = origins
        self._jwks = jwks
        self._key_use = key_use
        self._endpoints: Endpoints | None = None
        self._keys: KeySet | None = None
        self._keys_refused: CredentialRejectedError | None = None
        self._reading = Cooldown(_KEY_PAUSE)
        self._look = _Look(float("-inf"))

    def start_over(self) -> None:
        """In a forked child: locks may be held by threads that aren't there."""
        self.breaker.forget()

    def endpoints(self) -> Flow[Endpoints]:
        """The issuer's metadata.

        Raises:
            CredentialError: there is none, or it can't be had.
        """
        key = digest_of(("metadata", self.id))
        start = lambda: self._guarded(lambda: discover(self.url, self.clock, self._origins))  # noqa: E731 - a flow to be made twice
        self._endpoints = yield from self._or_stale(Shared(key, start), self._endpoints)
        return self._endpoints

    def key(self, kid: str, *, at_once: bool = False) -> Flow[dict[str, JSON]]:
        """The public key by which the issuer signs under `kid`; for unknown ones the keys are read again every thirty seconds.

        That is apart from the ordinary reading: a key that came a moment after it is found. `at_once` doesn't wait for the
        thirty seconds: for what the issuer has just answered itself, and nobody else can send.

        Raises:
            CredentialRejectedError: `unknown_key`, the issuer has no such key.
            CredentialUnavailableError: its keys can't be had.
        """
        keys, was_read = yield from self._current()
        if keys.get(kid) is None and not was_read:
            keys = yield from self._looked_at_again(keys, at_once=at_once)
        found = keys.get(kid)
        if found is None:
            raise CredentialRejectedError(
                "unknown_key", f"{self.url} signed with a key that it doesn't publish"
            )
        return found

    def keys(self) -> Flow[KeySet]:
        """All its keys, read again when they are five minutes old."""
        return (yield from self._current())[0]

    @property
    def known_keys(self) -> KeySet | None:
        """The keys that were read last, however old they are."""
        return self._keys

    def may_look(self, now: float) -> bool:
        """Whether an unknown key is looked for: the pause after the last look is over, or that look isn't."""
        return not self._look.has_ended or self._look.cooldown.is_over(now)

    def _current(self) -> Flow[tuple[KeySet, bool]]:
        """The keys, and whether they were read for this very call."""
        known = self._keys
        if known is not None:
            now = self.clock()
            stale = now < known.expires_at + STALE and not self._reading.is_over(now)
            if known.issued_at <= now < known.expires_at or stale:
                return known, False
        elif self._keys_refused is not None and not self._reading.is_over(self.clock()):
            raise self._keys_refused.again()
        return (yield from self._newer(known, self._read_keys)), True

    def _looked_at_again(self, keys: KeySet, *, at_once: bool) -> Flow[KeySet]:
        """The keys as a new look finds them; callers that come while a look is under way share it."""
        look = self._look
        now = self.clock()
        if at_once or look.cooldown.is_over(now):
            look = self._look = _Look(now)
        elif look.has_ended:
            return self._keys or keys  # the look may have ended since the caller read them
        return (yield from self._newer(keys, lambda: self._read_for(look)))

    def _read_for(self, look: _Look) -> Flow[KeySet]:
        """Read the keys once for a look. A caller that joins after a look has failed doesn't start another."""
        if look.has_ended:
            raise CredentialUnavailableError(
                "issuer_unavailable", f"the keys of {self.url} were asked for a moment ago"
            )
        try:
            self._keys = yield from self._read_keys()
        except AgentIdentityError:
            look.has_ended = True  # an interrupted look goes on with the next caller
            raise
        look.has_ended = True  # after the keys are in place: callers that see the end use them
        return self._keys

    def _newer(self, known: KeySet | None, start: Callable[[], Flow[KeySet]]) -> Flow[KeySet]:
        self._reading.start(self.clock())
        key = digest_of(("keys", self.id, "" if known is None else repr(known.issued_at)))
        try:
            self._keys = yield from self._or_stale(Shared(key, start), known)
        except CredentialRejectedError as error:
            self._keys_refused = error.again()
            raise
        return self._keys

    def _read_keys(self) -> Flow[KeySet]:
        place = self._jwks
        if place is None:
            # Guarded for itself: what failed three times isn't tried three times again for the keys' sake.
            place = (yield from self.endpoints()).jwks
        read = lambda: read_keys(self.url, place, self.clock, use=self._key_use)  # noqa: E731 - a flow to be made twice
        return (yield from self._guarded(read))

    def _or_stale(self, ask: Shared[E], last: E | None) -> Flow[E]:
        try:
            return (yield from shared(ask))
        except CredentialUnavailableError:
            if last is None or self.clock() >= last.expires_at + STALE:
                raise
            return last

    def _guarded(self, once: Callable[[], Flow[T]], attempts: int = ATTEMPTS) -> Flow[T]:
        """Ask unless the issuer isn't asked for now, and keep count of how it goes."""
        attempt = 1
        while True:
            self.breaker.check(self.url)
            try:
                value = yield from once()
            except CredentialUnavailableError as error:
                if error.code != "issuer_unavailable":
                    self.breaker.failed()
                if attempt >= attempts:
                    raise
                failure = error
            except CredentialRejectedError:
                self.breaker.answered()
                raise
            else:
                self.breaker.answered()
                return value
            yield from wait_for(failure, attempt)
            attempt += 1
