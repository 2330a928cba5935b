# SPDX-License-Identifier: Apache-2.0
"""Answers what flows ask: HTTP over the one door, shared values from cache and single flight, records to the ledger.

Two colours of the same few lines; the flows that they answer are written once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from agent_identity.credentials.cache import Cache
from agent_identity.flow import Append, HttpRequest, arun, run
from agent_identity.forks import start_over_in_child
from agent_identity.http.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.flow import Answer, Ask, Draft, Expiring, Shared
    from agent_identity.http.transport import Transport

__all__ = ["Appender", "World"]

DEADLINE: Final = 10.0


class Appender(Protocol):
    """Whatever commits records."""

    def append(self, draft: Draft, /) -> None: ...

    async def aappend(self, draft: Draft, /) -> None: ...


class World:
    """What one identity's flows are driven against. Thread-safe, fork-safe, usable from several event loops.

    `deadline` is seconds for one acquisition, with every request that it takes.
    """

    def __init__(
        self,
        transport: Callable[[], Transport],
        ledger: Appender,
        *,
        clock: Callable[[], float] = time.time,
        deadline: float = DEADLINE,
    ) -> None:
        self._open_transport = transport
        self._transport: Transport | None = None
        self._ledger = ledger
        self._clock = clock
        self._deadline = deadline
        self.cache: Cache = Cache()
        self.flights: SingleFlight[Expiring] = SingleFlight()
        self._renewals: set[asyncio.Task[None]] = set()
        start_over_in_child(self)

    @property
    def transport(self) -> Transport:
        """The HTTP door, opened when something is first asked of it."""
        if self._transport is None:
            self._transport = self._open_transport()
        return self._transport

    def answer(self, ask: Ask) -> Answer:
        """Answer one ask in sync code."""
        if isinstance(ask, Append):
            self._ledger.append(ask.draft)
            return None
        return self._answer_by(ask, time.monotonic() + self._deadline)

    async def aanswer(self, ask: Ask) -> Answer:
        """Answer one ask in async code."""
        if isinstance(ask, Append):
            await self._ledger.aappend(ask.draft)
            return None
        return await self._aanswer_by(ask, time.monotonic() + self._deadline)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def aclose(self) -> None:
        if self._transport is not None:
            await self._transport.aclose()

    def start_over(self) -> None:
        """In a forked child: nothing that the parent acquired is used there."""
        self.cache.start_over()
        self.flights.forget()
        self._renewals = set()

    def _answer_by(self, ask: Ask, deadline: float) -> Answer:
        if isinstance(ask, HttpRequest):
            return self.transport.exchange(ask, deadline)
        if isinstance(ask, Append):
            self._ledger.append(ask.draft)
            return None
        entry = self.cache.get(ask.key)
        if entry is not None:
            now, monotonic = self._clock(), time.monotonic()
            if entry.is_fresh(now, monotonic):
                return entry.value
            if entry.is_usable(now, monotonic):
                self._renew(ask, monotonic)
                return entry.value
        left = deadline - time.monotonic()
        return self.flights.fetch(ask.key, lambda: self._lead(ask, deadline), left)

    async def _aanswer_by(self, ask: Ask, deadline: float) -> Answer:
        if isinstance(ask, HttpRequest):
            return await self.transport.aexchange(ask, deadline)
        if isinstance(ask, Append):
            await self._ledger.aappend(ask.draft)
            return None
        entry = self.cache.get(ask.key)
        if entry is not None:
            now, monotonic = self._clock(), time.monotonic()
            if entry.is_fresh(now, monotonic):
                return entry.value
            if entry.is_usable(now, monotonic):
                self._arenew(ask, monotonic)
                return entry.value
        left = deadline - time.monotonic()
        return await self.flights.afetch(ask.key, lambda: self._alead(ask, deadline), left)

    def _lead(self, ask: Shared[Expiring], deadline: float) -> Expiring:
        # Whoever boards just after a flight has landed finds its answer here, and asks nobody.
        entry = self.cache.get(ask.key)
        if entry is not None and entry.is_fresh(self._clock(), time.monotonic()):
            return entry.value
        return self._keep(ask, run(ask.start(), lambda inner: self._answer_by(inner, deadline)))

    async def _alead(self, ask: Shared[Expiring], deadline: float) -> Expiring:
        entry = self.cache.get(ask.key)
        if entry is not None and entry.is_fresh(self._clock(), time.monotonic()):
            return entry.value
        flow = ask.start()
        return self._keep(ask, await arun(flow, lambda inner: self._aanswer_by(inner, deadline)))

    def _keep(self, ask: Shared[Expiring], value: Expiring) -> Expiring:
        self.cache.put(ask.key, value, now=self._clock(), monotonic=time.monotonic())
        return value

    def _renew(self, ask: Shared[Expiring], monotonic: float) -> None:
        """Renew early in a thread of its own; the caller goes on with what still serves."""
        if self.flights.flying(ask.key) or not self.cache.may_renew(ask.key, monotonic):
            return

        def renew() -> None:
            deadline = time.monotonic() + self._deadline
            try:
                self.flights.fetch(ask.key, lambda: self._lead(ask, deadline), self._deadline)
            except Exception:  # noqa: BLE001 - whatever it was, what still serves goes on serving
                self.cache.renewal_failed(ask.key, time.monotonic())

        threading.Thread(target=renew, name="agent-identity-renewal", daemon=True).start()

    def _arenew(self, ask: Shared[Expiring], monotonic: float) -> None:
        """Renew early in a task of its own."""
        if self.flights.flying(ask.key) or not self.cache.may_renew(ask.key, monotonic):
            return

        async def renew() -> None:
            deadline = time.monotonic() + self._deadline
            try:
                await self.flights.afetch(
                    ask.key, lambda: self._alead(ask, deadline), self._deadline
                )
            except Exception:  # noqa: BLE001 - whatever it was, what still serves goes on serving
                self.cache.renewal_failed(ask.key, time.monotonic())

        task = asyncio.create_task(renew())
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)
