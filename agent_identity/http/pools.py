# SPDX-License-Identifier: Apache-2.0
"""Connection pools: separate ones for issuers, for tools and for discovered URLs, and for each client certificate.

Sync pools belong to the process; each async pool belongs to one event loop and closes with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from agent_identity.forks import start_over_in_child
from agent_identity.http.backends import (
    AsyncBackend,
    DeadlineBackend,
    addresses_of,
    check_addresses,
)
from agent_identity.http.network import AsyncNetwork, Network, client_context, tls

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Iterable

    from agent_identity.values import Certificate

ISSUERS: Final = "issuers"
TOOLS: Final = "tools"
DISCOVERED: Final = "discovered"
"""For URLs that a peer named: no connections to private addresses."""

_CERTIFICATES: Final = 16

P = TypeVar("P")


class _Place(NamedTuple):
    """The key of a pool: its name (one of those above), and its certificate."""

    name: str
    shown: str


class Pools:
    """All pools of one identity. Thread-safe; a forked child opens its own connections."""

    def __init__(
        self,
        *,
        allow_private: frozenset[str],
        authorities: str | None,
        resolve: Callable[[str, int], Iterable[str]],
    ) -> None:
        self._allow_private = allow_private
        self._authorities = authorities
        self._resolve = resolve
        self.start_over()
        start_over_in_child(self)

    def start_over(self) -> None:
        """Reset; also in a forked child, since sockets and locks are the parent's."""
        self._lock = threading.Lock()
        self._sync: OrderedDict[_Place, Network] = OrderedDict()
        self._loops: dict[int, _LoopPools] = {}

    def context(self, certificate: Certificate | None) -> ssl.SSLContext:
        """The TLS context of connections: trusted authorities, and the client certificate.

        Raises:
            ConfigurationError: the certificate or the configured authorities can't be used.
        """
        if certificate is None:
            return tls(self._authorities)
        return client_context(certificate, self._authorities)

    def get(self, name: str, certificate: Certificate | None) -> Network:
        """The sync pool with this name and certificate."""
        place = _place(name, certificate)
        with self._lock:
            pool = self._sync.get(place)
            if pool is not None:
                self._sync.move_to_end(place)
                return pool
        fresh = self._open(name, certificate)
        with self._lock:
            pool = self._sync.setdefault(place, fresh)
            evicted = _evict(self._sync)
        for each in evicted:
            each.close()
        return pool

    async def aget(self, name: str, certificate: Certificate | None) -> AsyncNetwork:
        """The running loop's pool with this name and certificate."""
        pools = self._of_this_loop()
        place = _place(name, certificate)
        pool = pools.open.get(place)  # no lock: only this loop's thread uses these pools
        if pool is None:
            fresh = await asyncio.to_thread(self._aopen, name, certificate)
            pool = pools.open.setdefault(place, fresh)
        pools.open.move_to_end(place)
        for evicted in _evict(pools.open):
            await evicted.aclose()
        await pools.close_with_loop()
        return pool

    def close(self) -> None:
        """Close the sync connections. Async ones close with their loop, or by `aclose` inside it."""
        with self._lock:
            pools, self._sync = list(self._sync.values()), OrderedDict()
        for pool in pools:
            pool.close()

    async def aclose(self) -> None:
        """Close the running loop's connections, and the sync ones."""
        with self._lock:
            pools = self._loops.pop(id(asyncio.get_running_loop()), None)
        if pools is not None:
            await pools.aclose()
        self.close()

    def _of_this_loop(self) -> _LoopPools:
        loop = asyncio.get_running_loop()
        with self._lock:
            # A loop that was closed abruptly leaves its pools here; dropping them closes their sockets.
            gone = [key for key, pools in self._loops.items() if pools.is_gone()]
            for key in gone:
                del self._loops[key]
            pools = self._loops.get(id(loop))
            if pools is None:
                pools = self._loops[id(loop)] = _LoopPools(loop)
            return pools

    def _open(self, name: str, certificate: Certificate | None) -> Network:
        find = self._public_addresses if name == DISCOVERED else addresses_of
        return Network(self.context(certificate), DeadlineBackend(find))

    def _public_addresses(self, host: str, port: int) -> list[str]:
        return check_addresses(host, self._resolve(host, port), self._allow_private)

    def _aopen(self, name: str, certificate: Certificate | None) -> AsyncNetwork:
        find = self._public_addresses if name == DISCOVERED else None
        return AsyncNetwork(self.context(certificate), AsyncBackend(find))


def _place(name: str, certificate: Certificate | None) -> _Place:
    if certificate is None:
        return _Place(name, "")
    bundle = hashlib.sha256(certificate.bundle.encode()).hexdigest()
    return _Place(name, f"{certificate.thumbprint} {bundle}")


def _evict(pools: OrderedDict[_Place, P]) -> list[P]:
    """Remove and return the least recently used pools of certificates: certificates rotate, and old pools must go."""
    with_certificate = [place for place in pools if place.shown]
    return [pools.pop(place) for place in with_certificate[:-_CERTIFICATES]]


class _LoopPools:
    """The pools of one event loop, closed when it shuts down.

    `asyncio.run` closes its async generators while the loop still runs. That is the only moment at which a library can close
    resources of a loop that it doesn't own.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.open: OrderedDict[_Place, AsyncNetwork] = OrderedDict()
        self._loop = weakref.ref(loop)
        self._at_the_end: AsyncGenerator[None, None] | None = None

    def is_gone(self) -> bool:
        loop = self._loop()
        return loop is None or loop.is_closed()

    async def close_with_loop(self) -> None:
        if self._at_the_end is None:
            self._at_the_end = self._close_at_the_end()
            await anext(self._at_the_end)

    async def aclose(self) -> None:
        pools, self.open = list(self.open.values()), OrderedDict()
        for pool in pools:
            await pool.aclose()
        if self._at_the_end is not None:
            await self._at_the_end.aclose()

    async def _close_at_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._at_the_end = None
            await self.aclose()
