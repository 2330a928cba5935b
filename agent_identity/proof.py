# SPDX-License-Identifier: Apache-2.0
"""That a session's principal is who it says: by tokens that were verified, until those end, and by fresh ones after that.

One proof serves a session and all below it.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from agent_identity.errors import AgentIdentityError, DeniedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.flow import Flow

__all__ = ["Proof"]

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
        self._lasts(until)

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
                remedy="make another call, or get the credential anew: that verifies fresh ones first",
            )

    def anew(self) -> Flow[None]:
        """Have fresh tokens verified, once shortly before the old ones end, and always after that.

        Raises:
            AgentIdentityError: none came, or they name somebody else; nothing is reached.
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
            _log.warning("a principal isn't proven anew yet (%s)", error.code)
            return
        self._lasts(until)

    def _lasts(self, until: float) -> None:
        life = until - self._clock()
        self.until = until
        self._monotonic = time.monotonic() + life
        self._renews_at = until - max(_SPARE, min(300.0, 0.2 * life))
