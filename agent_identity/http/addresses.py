# SPDX-License-Identifier: Apache-2.0
"""Where a URL that a peer named may lead: to the public network, and nowhere inside ours.

The address that was checked is the one that is connected to, so a name that resolves otherwise a moment later gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Final

import anyio
import httpcore

from agent_identity.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["AsyncGuardedBackend", "addresses_of", "checked", "is_public"]


_EMBEDDING: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")
)
"""IPv6 networks whose last four bytes are an IPv4 address: both NAT64 prefixes, compatible and translated addresses."""

_PLATFORM: Final = frozenset({"168.63.129.16"})
"""Where a cloud answers its own machines under a public address."""

_INSIDE: Final = tuple(
    ipaddress.IPv6Network(network) for network in ("fec0::/10", "64:ff9b:1::/48")
)
"""Networks that are somebody's own, whatever this version of Python says of them."""


def addresses_of(host: str, port: int) -> list[str]:
    """The addresses that the system finds for a host, in its order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether an address is one of the public network; whatever embeds another address is judged by that one too."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return found.is_global and not found.is_multicast and address not in _PLATFORM
    inner = found.ipv4_mapped or found.sixtofour
    if any(found in network for network in _EMBEDDING):
        inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    if (inner is not None and not is_public(str(inner))) or any(found in own for own in _INSIDE):
        return False
    return (inner is not None or found.is_global) and not found.is_multicast


def checked(host: str, found: Iterable[str], allowed: frozenset[str]) -> list[str]:
    """The addresses of a host that a peer named; `allowed` are hosts that may be private.

    Raises:
        TransportError: `private_address`.
    """
    addresses = list(found)
    if host not in allowed and not all(is_public(address) for address in addresses):
        raise TransportError(
            "private_address",
            f"{host} was named by a peer and leads into a private network",
            remedy="if that is right, list the host in [http] allow_private",
        )
    return addresses


class AsyncGuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses alone. `allowed` are hosts that may be private, `resolve` finds addresses of a host."""

    def __init__(
        self,
        inner: httpcore.AsyncNetworkBackend,
        allowed: frozenset[str],
        resolve: Callable[[str, int], Iterable[str]] = addresses_of,
    ) -> None:
        self._inner = inner
        self._allowed = allowed
        self._resolve = resolve

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            found = await anyio.to_thread.run_sync(
                self._resolve, host, port, abandon_on_cancel=True
            )
        except OSError as error:
            raise httpcore.ConnectError(type(error).__name__) from None
        failure: Exception = httpcore.ConnectError("the host has no address")
        for address in checked(host, found, self._allowed):
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, OSError) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)
