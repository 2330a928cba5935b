# SPDX-License-Identifier: Apache-2.0
"""How long a session acts: from where its block is entered, until it is left, its time is up, or it or one above it is ended.

What has to be ended with it hangs here too: tokens that were acquired for it, grants that were handed over, and the lives below.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    DeniedError,
    NoSessionError,
    RevokedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.source import Revoker
    from agent_identity.delegation.grant import Grant
    from agent_identity.flow import Flow
    from agent_identity.redaction import Revealing

__all__ = ["SKEW", "Life", "Proof", "exit_method"]

F = TypeVar("F", bound="Callable[..., Any]")

SKEW: Final = 60
"""Seconds by which a verifier may believe a grant for longer than it lasts."""


class Taken:
    """What was acquired for one session, until it is given back. Thread-safe; once closed it takes nothing more."""

    __slots__ = ("_held", "_is_closed", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[tuple[Revoker | None, Issued]] = []
        self._is_closed = False

    def add(self, issuer: Revoker | None, issued: Issued, now: float) -> bool:
        """Remember what was acquired; False when the session has ended meanwhile, and it is to be given back at once."""
        with self._lock:
            if not self._is_closed:
                self._held = [each for each in self._held if each[1].expires_at > now]
                self._held.append((issuer, issued))
            return not self._is_closed

    def close(self) -> list[tuple[Revoker | None, Issued]]:
        """All of it, to be given back."""
        with self._lock:
            held, self._held = self._held, []
            self._is_closed = True
            return held


class Life:
    """The life of one session, below that of its parent. `expires_at` and what `clock` gives are Unix seconds.

    It is `new` until it begins, then `open`, or `handed` to another process, which acts by it in place of this one; `revoked` or
    `ended` after that. A clock that is set back lengthens none.
    """

    def __init__(
        self, session_id: str, above: Life | None, expires_at: float, clock: Callable[[], float]
    ) -> None:
        self.state: Literal["new", "open", "handed", "revoked", "ended"] = "new"
        self.expires_at: float = expires_at
        self.handed: tuple[Grant, ...] | None = None
        self.taken: Taken = Taken()
        self.reaches: dict[tuple[str, frozenset[str]], Any] = {}
        """What was acquired, a `Reach` by resource and scopes."""
        self.cache_keys: set[bytes] = set()
        """The keys under which it is cached; they are this session's alone."""
        self.secrets: dict[int, Revealing] = {}
        """What was acquired, so that it is searched for in texts for as long as the session lives."""
        self.id: Final = session_id
        self.above: Life | None = above
        self._clock = clock
        self.ends_monotonic: float = float("inf")
        self.revoked_by: RevokedError | None = None
        self._is_over = False
        self._holder: object = None
        self._handle: weakref.ReferenceType[object] | None = None
        self._handles_gone: list[object] = []
        self._purged = 64
        self._below: dict[str, weakref.ReferenceType[Life]] = {}
        """Those that began, by id."""
        self._hands: dict[str, Life] = {}
        """Hand-overs by id, held until they or this life end: nobody else may hold them, and they end with it."""

    def begin(self) -> None:
        """Open it.

        Raises:
            ConfigurationError: it was opened before.
            DeniedError: the one above has ended.
        """
        if self.state != "new":
            raise ConfigurationError(
                "session_reused", "a session is entered once", remedy="open another one"
            )
        if self.above is not None:
            self.above.check(self._clock())
            self.above.add(self)
        self.end_by(self.expires_at)
        if (
            self._handle is None or self._handle() is None
        ):  # no `with` statement: `end` alone ends it
            self._handle, self._handles_gone = None, []
        self.state = "open"

    def end_by(self, expires_at: float) -> None:
        """It ends then, or sooner where that was said before."""
        self.expires_at = min(self.expires_at, expires_at)
        ends = time.monotonic() + (self.expires_at - self._clock())
        self.ends_monotonic = min(self.ends_monotonic, ends)

    def follow(self, handle: object) -> None:
        """End with the block whose way out is `handle`: the `with` statement holds it until the block is left.

        An interrupt at the first instruction of `__exit__` keeps its body from running. The handle is gone all the same, and a
        callback without Python code notes that.
        """
        gone: list[object] = []
        self._handle, self._handles_gone = weakref.ref(handle, gone.append), gone

    def hand_over(self, holder: object) -> None:
        """From here on another process acts by what was `handed`; `holder`, its session, lives as long as it acts.

        Raises:
            DeniedError: it ended while that was signed, or the one above did.
        """
        self.state = "handed"
        self._holder = holder
        if self.above is not None:
            self.above.hold(self)
        self.check_handed()

    def end(self) -> bool:
        """End it; False where it had ended before."""
        was_acting = self._stop("ended")
        self._is_over = True
        if self.above is not None:
            self.above.forget(self)
        return was_acting

    def revoke(self, error: RevokedError | None = None) -> bool:
        """End it before its time; False where it had ended before, and there is nothing left to revoke.

        `error` is what calls raise from here on.

        Raises:
            NoSessionError: it never began.
        """
        if self.state == "new":
            raise _closed_error(self)
        if error is not None and self.state in ("open", "handed"):
            self.revoked_by = error
        was_handed = self.state == "handed"
        was_acting = self._stop("revoked")
        if was_handed and self.above is not None:
            self.above.forget(self)
        return was_acting

    @property
    def is_open(self) -> bool:
        """Whether its block was entered and not left; time, parent or revocation may have ended it all the same."""
        if self._is_over or self._handles_gone:
            return False
        return self.state in ("open", "revoked")

    @property
    def is_left(self) -> bool:
        """Whether its block was left."""
        return self._is_over or bool(self._handles_gone)

    def check(self, now: float) -> None:
        """Pass while it and every one above it lasts at `now`.

        Raises:
            NoSessionError: it never began.
            DeniedError: it ended, or its time is up.
        """
        level: Life | None = self
        monotonic = time.monotonic()
        while level is not None:
            if level.state != "open" or level._handles_gone:  # noqa: SLF001 - one of its own
                raise _closed_error(level)
            if now >= level.expires_at or monotonic >= level.ends_monotonic:
                raise DeniedError(
                    "session_expired",
                    "the session's time is up",
                    remedy="open another one, or ask for a later end with expires_in",
                )
            level = level.above

    def check_handed(self) -> None:
        """Pass while what was handed over is worth sending.

        Raises:
            DeniedError: it, or one above it, has ended.
        """
        now = self._clock()
        if self.state != "handed":
            raise _closed_error(self)
        if self.above is not None:
            self.above.check(now)
        if now >= self.expires_at:
            raise DeniedError("session_expired", "the time of what was handed over is up")

    def close_taken(self) -> list[tuple[Revoker | None, Issued]]:
        """What was acquired for it, and for every one below: to be given back, and nothing more is taken."""
        taken = self.taken.close()
        for below in self._lives_below():
            taken += below.close_taken()
        return taken

    def forget_cached(self) -> set[bytes]:
        """Let go of what was cached for it and for every one below; the answer is the keys."""
        keys = set(self.cache_keys)
        self.reaches.clear()
        self.cache_keys.clear()
        for below in self._lives_below():
            keys |= below.forget_cached()
        return keys

    def list_handovers(self) -> list[Grant]:
        """What was handed over here and below: it ends with it, as far as the word of that reaches."""
        found = [] if self.handed is None else [self.handed[0]]
        for below in self._lives_below():
            found += below.list_handovers()
        return found

    def add(self, below: Life) -> None:
        """One begins below, for as long as somebody holds it."""
        if len(self._below) >= self._purged:
            for other, reference in list(self._below.items()):
                if reference() is None:
                    self._below.pop(other, None)
            self._purged = max(64, 2 * len(self._below))
        self._below[below.id] = weakref.ref(below)

    def hold(self, hand: Life) -> None:
        """Keep a hand-over; what is worth nothing any more is let go."""
        now = self._clock()
        for other in list(self._hands.values()):
            if now >= other.expires_at + SKEW:
                self.forget(other)
        self.add(hand)
        self._hands[hand.id] = hand

    def forget(self, below: Life) -> None:
        """One below has ended."""
        self._below.pop(below.id, None)
        self._hands.pop(below.id, None)

    def start_over(self) -> None:
        """In a forked child: what was acquired is the parent's to give back."""
        self.taken = Taken()
        self.reaches.clear()
        self.cache_keys.clear()

    def _stop(self, state: Literal["revoked", "ended"]) -> bool:
        was_acting = self.state in ("open", "handed")
        if was_acting:
            self.state = state
            self._holder = None
        return was_acting

    def _lives_below(self) -> list[Life]:
        if not self._below:
            return []
        found = [reference() for reference in list(self._below.values())]
        return [life for life in found if life is not None]


def exit_method(function: F) -> F:
    """Make `__exit__` or `__aexit__` of an object with a `_life` give each `with` statement a handle of its own (`Life.follow`)."""
    return _ExitMethod(function)  # type: ignore[return-value]  # as a method it is called like the function


class _ExitMethod:
    """A method that a `with` statement looks up before it calls `__enter__`, and holds until its block is left."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __get__(self, owner: Any, kind: type | None = None) -> Callable[..., Any]:
        if owner is None:
            return self._function
        handle = functools.partial(self._function, owner)
        life: Life = owner._life  # noqa: SLF001 - of the class whose method this is
        if life.state == "new":
            life.follow(handle)
        return handle


def _closed_error(life: Life) -> AgentIdentityError:
    if life.state == "new":
        return NoSessionError(
            "session_not_entered",
            "the session has not been entered",
            remedy="use it with `with` or `async with`",
        )
    if life.state == "handed":
        return DeniedError(
            "handed_over",
            "the session was handed over to another process, and nobody acts by it here",
            remedy="write it beside a call to that agent with inject(…)",
        )
    if life.state == "revoked":
        if life.revoked_by is not None:
            return life.revoked_by.again()
        return RevokedError("session_revoked", "the session was revoked")
    return DeniedError(
        "session_ended", "the session has ended", remedy="keep the work inside its `with` block"
    )


_SPARE: Final = 1.0
"""Seconds before its end from which a proof serves for nothing new."""

_log: Final = logging.getLogger("agent_identity")


class Proof:
    """Until when the principal is proven: `until` is Unix seconds, forever where it takes no token. `clock` gives those too."""

    __slots__ = ("_clock", "_monotonic", "_renew", "_renews_at", "until")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._renew: Callable[[], Flow[float]] | None = None
        self.until: float = float("inf")
        self._monotonic = float("inf")
        self._renews_at = float("inf")

    def given(self, until: float, renew: Callable[[], Flow[float]] | None) -> None:
        """Tokens were verified; `renew` verifies fresh ones and says until when those prove it, None where none can be had."""
        self._renew = renew
        self._set_until(until)

    def holds(self, now: float) -> bool:
        """Whether it holds at `now` (Unix seconds), by the wall clock and by the monotonic one."""
        return now < self.until and time.monotonic() < self._monotonic

    def check(self, now: float) -> None:
        """Pass while it holds at `now`.

        Raises:
            DeniedError: `principal_outdated`.
        """
        if not self.holds(now):
            raise DeniedError(
                "principal_outdated",
                "the tokens that proved whom this session acts for have ended",
                remedy="make another call, or get the credential renew_if_due: that verifies fresh ones first",
            )

    def renew_if_due(self) -> Flow[None]:
        """Have fresh tokens verified, once shortly before the old ones end, and always after that.

        Raises:
            AgentIdentityError: there are no fresh tokens, or they name another principal.
        """
        now = self._clock()
        holds = self.holds(now + _SPARE)
        if self._renew is None or (holds and now < self._renews_at):
            return
        self._renews_at = self.until
        try:
            until = yield from self._renew()
        except AgentIdentityError as error:
            if not holds:
                raise
            _log.warning("a principal isn't proven renew_if_due yet (%s)", error.code)
            return
        self._set_until(until)

    def _set_until(self, until: float) -> None:
        life = until - self._clock()
        self.until = until
        self._monotonic = time.monotonic() + life
        self._renews_at = until - max(_SPARE, min(300.0, 0.2 * life))
