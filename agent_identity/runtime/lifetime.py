# SPDX-License-Identifier: Apache-2.0
"""The lifetime of a session: from entering its block until it is left, expires or is revoked, or until its parent ends.

It also holds what ends with the session: acquired tokens, hand-overs, and the lives of child sessions.
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

F = TypeVar("F", bound="Callable[..., Any]")

SKEW: Final = 60
"""Seconds by which a verifier may believe a grant for longer than it lasts."""

_FEW: Final = 8


class HeldTokens:
    """The tokens that a session has acquired and that have to be revoked. Thread-safe; a closed one accepts no more."""

    __slots__ = ("_enough", "_held", "_is_closed", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[tuple[Revoker | None, Issued]] = []
        self._enough = _FEW
        self._is_closed = False

    def add(self, issuer: Revoker | None, issued: Issued, now: float) -> bool:
        """Add a token; False if the session has ended meanwhile, and the caller has to revoke the token."""
        with self._lock:
            if not self._is_closed:
                if (
                    len(self._held) >= self._enough
                ):  # rarely, so that a long session doesn't read its list each time
                    self._held = [each for each in self._held if each[1].expires_at > now]
                    self._enough = 2 * len(self._held) + _FEW
                self._held.append((issuer, issued))
            return not self._is_closed

    def close(self) -> list[tuple[Revoker | None, Issued]]:
        """Return all tokens, to be revoked."""
        with self._lock:
            held, self._held = self._held, []
            self._is_closed = True
            return held


class Life:
    """The life of one session, below that of its parent. `expires_at` and the results of `clock` are Unix seconds.

    It is `new` until it begins, then `open`, or `handed` if it was handed over to another process, and at last `revoked` or
    `ended`. Setting the clock back doesn't lengthen it.
    """

    def __init__(
        self, session_id: str, above: Life | None, expires_at: float, clock: Callable[[], float]
    ) -> None:
        self.state: Literal["new", "open", "handed", "revoked", "ended"] = "new"
        self.expires_at: float = expires_at
        self.handed: tuple[Grant, ...] | None = None
        self.tokens: HeldTokens = HeldTokens()
        self.reaches: dict[tuple[str, frozenset[str]], Any] = {}
        """The `Reach` of each resource and scopes."""
        self.cache_keys: set[bytes] = set()
        """The cache keys of this session's grants and credentials; no other session uses them."""
        self.secrets: dict[int, Revealing] = {}
        """The acquired secrets; they are scrubbed from texts for as long as the session lives."""
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
        """The children that have begun, by id."""
        self._handovers: dict[str, Life] = {}
        """Hand-overs by id, until they or this life end. This may be the only reference to them."""

    def begin(self) -> None:
        """Open the session.

        Raises:
            ConfigurationError: it was opened before.
            DeniedError: its parent has ended.
        """
        if self.state != "new":
            raise ConfigurationError(
                "session_reused",
                "the session was already entered once",
                remedy="open another session",
            )
        if self.above is not None:
            self.above.check(self._clock())
            self.above.add(self)
        self.end_by(self.expires_at)
        # Without a `with` statement, only `end` ends it.
        if self._handle is None or self._handle() is None:
            self._handle, self._handles_gone = None, []
        self.state = "open"

    def end_by(self, expires_at: float) -> None:
        """Let it expire at `expires_at`, if that is earlier than before."""
        self.expires_at = min(self.expires_at, expires_at)
        ends = time.monotonic() + (self.expires_at - self._clock())
        self.ends_monotonic = min(self.ends_monotonic, ends)

    def follow(self, handle: object) -> None:
        """End with the block whose exit method is `handle`: the `with` statement holds it until the block is left.

        An interrupt at the first instruction of `__exit__` keeps its body from running. The handle is collected all the same,
        and a callback without Python code notes that.
        """
        gone: list[object] = []
        self._handle, self._handles_gone = weakref.ref(handle, gone.append), gone

    def hand_over(self, holder: object) -> None:
        """Mark it as handed over, and keep its session, `holder`, alive until it ends.

        Raises:
            DeniedError: it or its parent ended while the hand-over was signed.
        """
        self.state = "handed"
        self._holder = holder
        if self.above is not None:
            self.above.hold(self)
        self.check_handed()

    def end(self) -> bool:
        """End it; False if it had already ended."""
        was_acting = self._stop("ended")
        self._is_over = True
        if self.above is not None:
            self.above.forget(self)
        return was_acting

    def revoke(self, error: RevokedError | None = None) -> bool:
        """Revoke it; False if it had already ended. From now on calls raise `error`.

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
        """Whether its block was entered and not left. It may have expired, or been revoked, all the same."""
        if self._is_over or self._handles_gone:
            return False
        return self.state in ("open", "revoked")

    @property
    def is_left(self) -> bool:
        """Whether its block was left."""
        return self._is_over or bool(self._handles_gone)

    def check(self, now: float) -> None:
        """Check that it and all its parents last at `now` (Unix seconds).

        Raises:
            NoSessionError: it never began.
            DeniedError: it has ended or expired.
        """
        level: Life | None = self
        monotonic = time.monotonic()
        while level is not None:
            if level.state != "open" or level._handles_gone:  # noqa: SLF001 - the same class
                raise _closed_error(level)
            if now >= level.expires_at or monotonic >= level.ends_monotonic:
                raise DeniedError(
                    "session_expired",
                    "the session has expired",
                    remedy="open another session, or pass a longer expires_in",
                )
            level = level.above

    def check_handed(self) -> None:
        """Check that the hand-over may still be sent.

        Raises:
            DeniedError: it or one of its parents has ended.
        """
        now = self._clock()
        if self.state != "handed":
            raise _closed_error(self)
        if self.above is not None:
            self.above.check(now)
        if now >= self.expires_at:
            raise DeniedError("session_expired", "the hand-over has expired")

    def close_tokens(self) -> list[tuple[Revoker | None, Issued]]:
        """Return the tokens of it and of all sessions below, to be revoked; no more tokens are accepted."""
        tokens = self.tokens.close()
        for below in self._lives_below():
            tokens += below.close_tokens()
        return tokens

    def forget_cached(self) -> set[bytes]:
        """Forget the credentials of it and of all sessions below; return their cache keys."""
        keys = set(self.cache_keys)
        self.reaches.clear()
        self.cache_keys.clear()
        for below in self._lives_below():
            keys |= below.forget_cached()
        return keys

    def list_handovers(self) -> list[Grant]:
        """Return the grants that it and the sessions below have handed over; they have to be revoked with it."""
        grants = [] if self.handed is None else [self.handed[0]]
        for below in self._lives_below():
            grants += below.list_handovers()
        return grants

    def add(self, below: Life) -> None:
        """Add a child that has begun; the reference is weak."""
        if len(self._below) >= self._purged:
            for other, reference in list(self._below.items()):
                if reference() is None:
                    self._below.pop(other, None)
            self._purged = max(64, 2 * len(self._below))
        self._below[below.id] = weakref.ref(below)

    def hold(self, handover: Life) -> None:
        """Add a hand-over, and remove the expired ones."""
        now = self._clock()
        for other in list(self._handovers.values()):
            if now >= other.expires_at + SKEW:
                self.forget(other)
        self.add(handover)
        self._handovers[handover.id] = handover

    def forget(self, below: Life) -> None:
        """Remove a child or hand-over that has ended."""
        self._below.pop(below.id, None)
        self._handovers.pop(below.id, None)

    def start_over(self) -> None:
        """Forget all tokens in a forked child process: the parent process revokes them."""
        self.tokens = HeldTokens()
        self.reaches.clear()
        self.cache_keys.clear()

    def _stop(self, state: Literal["revoked", "ended"]) -> bool:
        was_acting = self.state in ("open", "handed")
        if was_acting:
            self.state = state
            self._holder = None
        return was_acting

    def _lives_below(self) -> list[Life]:
        references = list(self._below.values())
        return [life for reference in references if (life := reference()) is not None]


def exit_method(function: F) -> F:
    """Let `__exit__` or `__aexit__` of an object with a `_life` give each `with` statement a handle of its own (`Life.follow`)."""
    return _ExitMethod(function)  # type: ignore[return-value]  # as a method it is called like the function


class _ExitMethod:
    """A method that a `with` statement looks up before it calls `__enter__`, and holds until its block is left."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __get__(self, owner: Any, kind: type | None = None) -> Callable[..., Any]:
        if owner is None:
            return self._function
        handle = functools.partial(self._function, owner)
        life: Life = owner._life  # noqa: SLF001 - a method of that class
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
            "the session was handed over to another process and can't be used in this one",
            remedy="send it to that agent with inject(…)",
        )
    if life.state == "revoked":
        if life.revoked_by is not None:
            return life.revoked_by.copy()
        return RevokedError("session_revoked", "the session was revoked")
    return DeniedError(
        "session_ended", "the session has ended", remedy="keep the work inside its `with` block"
    )


_SPARE: Final = 1.0
"""Seconds before its end in which a proof is not used for new grants."""

_log: Final = logging.getLogger("agent_identity")


class Proof:
    """Until when the principal is proven: `until` is Unix seconds, infinity if no token is needed."""

    __slots__ = ("_clock", "_monotonic", "_renew", "_renews_at", "until")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._renew: Callable[[], Flow[float]] | None = None
        self.until: float = float("inf")
        self._monotonic = float("inf")
        self._renews_at = float("inf")

    def set(self, until: float, renew: Callable[[], Flow[float]] | None) -> None:
        """Store the end of the verified tokens. `renew` verifies fresh tokens and returns their end, None if there are none."""
        self._renew = renew
        self._set_until(until)

    def holds(self, now: float) -> bool:
        """Whether it holds at `now` (Unix seconds), by both the wall clock and the monotonic clock."""
        return now < self.until and time.monotonic() < self._monotonic

    def check(self, now: float) -> None:
        """Check that it holds at `now`.

        Raises:
            DeniedError: `principal_outdated`.
        """
        if not self.holds(now):
            raise DeniedError(
                "principal_outdated",
                "the principal's tokens have expired",
                remedy="make another call, or get another credential: both verify fresh tokens first",
            )

    def renew_if_due(self) -> Flow[None]:
        """Verify fresh tokens: once shortly before the old ones end, and always after that.

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
            _log.warning("a principal's fresh tokens could not be verified yet (%s)", error.code)
            return
        self._set_until(until)

    def _set_until(self, until: float) -> None:
        life = until - self._clock()
        self.until = until
        self._monotonic = time.monotonic() + life
        self._renews_at = until - max(_SPARE, min(300.0, 0.2 * life))
