# SPDX-License-Identifier: Apache-2.0
"""Drives flows: sends their HTTP requests, shares answers by cache and single flight, appends records to the ledger.

There is a sync and an async version of the same few lines; the flows are written once. `Surroundings` handles secrets,
prompts, sign-ins and SVIDs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from agent_identity.credentials.cache import Cache, Refusals
from agent_identity.errors import (
    AgentIdentityError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import Append, Blocking, HttpRequest, Pause, Shared, Visit, arun, run
from agent_identity.forks import start_over_in_child
from agent_identity.http.single_flight import SingleFlight
from agent_identity.http.surroundings import Surroundings

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator

    from agent_identity.flow import Answer, Ask, Draft, Expiring
    from agent_identity.http.transport import Transport
    from agent_identity.values import Certificate

DEADLINE: Final = 10.0

_log: Final = logging.getLogger("agent_identity")


class Appender(Protocol):
    """Commits records."""

    def append(self, draft: Draft, /) -> None: ...

    async def aappend(self, draft: Draft, /) -> None: ...


class World:
    """Drives the flows of one identity. Thread-safe, fork-safe, usable from several event loops.

    `deadline` is the seconds for one acquisition, all its requests included; if a person is involved, the ask has its own
    limit. `monotonic` is the clock for lifetimes in the cache.
    """

    def __init__(
        self,
        transport: Callable[[], Transport],
        ledger: Appender,
        *,
        surroundings: Surroundings | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        deadline: float = DEADLINE,
    ) -> None:
        self._open_transport = transport
        self._transport: Transport | None = None
        self._opening = threading.Lock()
        self._ledger = ledger
        self._clock = clock
        self._monotonic = monotonic
        self.deadline: float = deadline
        self.surroundings: Surroundings = surroundings or Surroundings()
        self.cache: Cache = Cache()
        self.refusals: Refusals = Refusals()
        self.flights: SingleFlight[Expiring] = SingleFlight()
        self._renewals: set[asyncio.Task[None]] = set()
        self._closing: set[threading.Event] = set()
        start_over_in_child(self)

    @property
    def transport(self) -> Transport:
        """The HTTP transport, made on first use."""
        if self._transport is None:
            with self._opening:
                if self._transport is None:
                    self._transport = self._open_transport()
        return self._transport

    def context(self, certificate: Certificate | None) -> ssl.SSLContext:
        """A TLS context for a user's own client, with this certificate, if any, and this identity's authorities."""
        return self.transport.context(certificate)

    def answer(self, ask: Ask) -> Answer:
        """Answer one ask in sync code."""
        return self._answer_by(ask, float("inf"))

    async def aanswer(self, ask: Ask) -> Answer:
        """Answer one ask in async code."""
        return await self._aanswer_by(ask, float("inf"))

    def drop(self, key: bytes) -> None:
        """Forget the answer or refusal of a key."""
        self.cache.drop(key)
        self.refusals.drop(key)

    @contextlib.contextmanager
    def closing(self) -> Generator[None]:
        """A block that `close` waits for, up to the deadline."""
        done = threading.Event()
        self._closing.add(done)
        try:
            yield
        finally:
            self._closing.discard(done)
            done.set()

    def close(self) -> None:
        ends = time.monotonic() + self.deadline
        for done in list(self._closing):
            done.wait(max(0.0, ends - time.monotonic()))
        self.surroundings.close()
        if self._transport is not None:
            self._transport.close()

    async def aclose(self) -> None:
        await asyncio.to_thread(self.surroundings.close)
        if self._transport is not None:
            await self._transport.aclose()

    def start_over(self) -> None:
        """In a forked child: use nothing that the parent acquired."""
        self.cache.start_over()
        self.refusals.start_over()
        self.flights.forget()
        self._renewals = set()
        self._closing = set()
        self._opening = threading.Lock()

    def _end(self, ask: HttpRequest | Shared[Expiring], outer: float) -> float:
        """The deadline of an ask: its own limit, or the outer deadline if that is earlier."""
        patience = ask.patience if isinstance(ask, Shared) else None
        own = self.deadline if patience is None else patience
        return min(outer, time.monotonic() + own)

    def _answer_by(self, ask: Ask, deadline: float) -> Answer:
        if isinstance(ask, Shared):
            return self._fetch(ask, self._end(ask, deadline))
        if isinstance(ask, HttpRequest):
            return self.transport.exchange(ask, self._end(ask, deadline))
        if isinstance(ask, Visit):
            return self.surroundings.visit(
                ask, lambda inner: self._answer_by(inner, deadline), deadline
            )
        if isinstance(ask, Append):
            self._ledger.append(ask.draft)
        elif isinstance(ask, Blocking):
            ask.work()
        elif isinstance(ask, Pause):
            time.sleep(_pause_within(ask.seconds, deadline))
        else:
            return self.surroundings.answer(ask, deadline)
        return None

    def _fetch(self, ask: Shared[Expiring], deadline: float) -> Expiring:
        value = self._from_cache(ask, self._renew)
        if value is not None:
            return value
        left = deadline - time.monotonic()
        return self.flights.fetch(ask.key, lambda: self._lead(ask, deadline), left, once=ask.once)

    def _lead(self, ask: Shared[Expiring], deadline: float) -> Expiring:
        self._check_time_left(ask, deadline)
        landed = self._just_landed(ask)
        if landed is not None:
            return landed
        try:
            value = run(ask.start(), lambda inner: self._answer_by(inner, deadline))
        except AgentIdentityError as error:
            self.refusals.note(ask.key, error, self._monotonic())
            raise
        return self._keep(ask, value)

    def _renew(self, ask: Shared[Expiring]) -> None:
        """Renew early in a separate thread. The caller uses the value that is still valid."""

        def renew() -> None:
            deadline = time.monotonic() + self.deadline
            try:
                self.flights.fetch(ask.key, lambda: self._lead(ask, deadline), self.deadline)
            except Exception as error:  # noqa: BLE001 - the current value is still used
                _log_failed_renewal(error)

        threading.Thread(target=renew, name="agent-identity-renewal", daemon=True).start()

    async def _aanswer_by(self, ask: Ask, deadline: float) -> Answer:
        if isinstance(ask, Shared):
            return await self._afetch(ask, self._end(ask, deadline))
        if isinstance(ask, HttpRequest):
            return await self.transport.aexchange(ask, self._end(ask, deadline))
        if isinstance(ask, Visit):
            return await self.surroundings.avisit(
                ask, lambda inner: self._aanswer_by(inner, deadline)
            )
        if isinstance(ask, Append):
            await self._ledger.aappend(ask.draft)
        elif isinstance(ask, Blocking):
            await asyncio.to_thread(ask.work)
        elif isinstance(ask, Pause):
            await asyncio.sleep(_pause_within(ask.seconds, deadline))
        else:
            return await self.surroundings.aanswer(ask)
        return None

    async def _afetch(self, ask: Shared[Expiring], deadline: float) -> Expiring:
        value = self._from_cache(ask, self._arenew)
        if value is not None:
            return value
        left = deadline - time.monotonic()
        return await self.flights.afetch(ask.key, lambda: self._alead(ask, deadline), left)

    async def _alead(self, ask: Shared[Expiring], deadline: float) -> Expiring:
        self._check_time_left(ask, deadline)
        landed = self._just_landed(ask)
        if landed is not None:
            return landed
        try:
            value = await arun(ask.start(), lambda inner: self._aanswer_by(inner, deadline))
        except AgentIdentityError as error:
            self.refusals.note(ask.key, error, self._monotonic())
            raise
        return self._keep(ask, value)

    def _arenew(self, ask: Shared[Expiring]) -> None:
        """Renew early in a separate task."""

        async def renew() -> None:
            deadline = time.monotonic() + self.deadline
            try:
                await self.flights.afetch(
                    ask.key, lambda: self._alead(ask, deadline), self.deadline
                )
            except Exception as error:  # noqa: BLE001 - the current value is still used
                _log_failed_renewal(error)

        task = asyncio.create_task(renew())
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)

    def _from_cache(
        self, ask: Shared[Expiring], renew: Callable[[Shared[Expiring]], None]
    ) -> Expiring | None:
        """Return a cached value, and start its early renewal if due (never one that needs a person).

        Raises:
            CredentialError: this request was refused a moment ago.
        """
        monotonic = self._monotonic()
        entry = self.cache.get(ask.key)
        if entry is not None:
            now = self._clock()
            if entry.is_fresh(now, monotonic):
                return entry.value
            if entry.is_usable(now, monotonic):
                early = ask.patience is None and not self.flights.is_flying(ask.key)
                if early and self.cache.claim_renewal(ask.key, monotonic):
                    renew(ask)
                return entry.value
        self.refusals.check(ask.key, monotonic)
        return None

    def _check_time_left(self, ask: Shared[Expiring], deadline: float) -> None:
        """Refuse to start a single-use request with too little time left: its answer would be lost."""
        own = self.deadline if ask.patience is None else min(self.deadline, ask.patience)
        if ask.once and deadline - time.monotonic() < own / 2:
            raise CredentialUnavailableError(
                "deadline_exceeded", "its turn came too late to finish within the deadline"
            )

    def _just_landed(self, ask: Shared[Expiring]) -> Expiring | None:
        """Return the answer, or raise the refusal, of a flight that landed just before this one started; else None."""
        monotonic = self._monotonic()
        entry = self.cache.get(ask.key)
        if entry is not None and entry.is_fresh(self._clock(), monotonic):
            return entry.value
        if entry is None:
            self.refusals.check(ask.key, monotonic)
        return None

    def _keep(self, ask: Shared[Expiring], value: Expiring) -> Expiring:
        self.cache.put(ask.key, value, now=self._clock(), monotonic=self._monotonic())
        return value


def _log_failed_renewal(error: Exception) -> None:
    code = error.code if isinstance(error, AgentIdentityError) else type(error).__name__
    _log.warning(
        "a credential could not be renewed early (%s); the current one is still used", code
    )


def _pause_within(seconds: float, deadline: float) -> float:
    if time.monotonic() + seconds > deadline:
        raise TransportError("deadline_exceeded", "the pause is longer than the time left")
    return max(0.0, seconds)
