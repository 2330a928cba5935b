# SPDX-License-Identifier: Apache-2.0
"""Retries and the circuit breaker for issuers.

A single-use request is sent once; any other at most three times, within the one deadline.
"""

from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from agent_identity.credentials.cache import Cooldown
from agent_identity.errors import CredentialUnavailableError, TransportError
from agent_identity.flow import pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.flow import Flow

ATTEMPTS: Final = 3
LONGEST_WAIT: Final = 3600.0
_FIRST_PAUSE: Final = 0.2
_FAILURES: Final = 5
_OPEN: Final = 30.0
_DIGITS: Final = 9


class Breaker:
    """A circuit breaker: after five failures in a row an issuer gets no requests for thirty seconds; then one caller tries it.

    The trial is a time and not a flag: a caller that gives up its trial doesn't block the others.
    """

    __slots__ = ("_failures", "_lock", "_monotonic", "_open")

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._open = Cooldown(_OPEN)

    def check(self, issuer: str) -> None:
        """Refuse a request while the breaker is open.

        Raises:
            CredentialUnavailableError: `issuer_unavailable`; `.retry_after` says when the next trial is.
        """
        with self._lock:
            now = self._monotonic()
            if self._failures < _FAILURES or self._open.claim(now):
                return
            left = self._open.started + _OPEN - now
        raise CredentialUnavailableError(
            "issuer_unavailable",
            f"{issuer} failed {_FAILURES} times in a row; requests to it are paused",
            retry_after=left,
        )

    def note_failure(self) -> None:
        with self._lock:
            self._failures += 1
            self._open.start(self._monotonic())

    def note_answer(self) -> None:
        """Close the breaker. A refusal counts as an answer, too."""
        with self._lock:
            self._failures = 0


def wait_for(error: CredentialUnavailableError, attempt: int) -> Flow[None]:
    """Wait after attempt number `attempt` (from 1): for the issuer's Retry-After, else for a random part of a growing pause.

    Raises:
        CredentialUnavailableError: `error` itself, if the wait doesn't fit the deadline.
    """
    seconds = error.retry_after
    if seconds is None:
        seconds = random.uniform(0.0, _FIRST_PAUSE * 2**attempt)  # noqa: S311 - spreads load, guards nothing
    try:
        yield from pause(seconds)
    except TransportError:
        raise error from error.__cause__  # the cause of the failure, not of the missed wait


def retry_after(value: str | None, now: float) -> float | None:
    """The seconds in a Retry-After header, which may be a date (RFC 9110 §10.2.3); an hour at most, None for an invalid one."""
    if value is None or not value.isascii():
        return None
    if value.isdigit() and len(value) <= _DIGITS:
        return min(float(value), LONGEST_WAIT)
    if value.isdigit():
        return LONGEST_WAIT
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = (moment - datetime.fromtimestamp(now, UTC)).total_seconds()
    return min(max(0.0, seconds), LONGEST_WAIT)
