# SPDX-License-Identifier: Apache-2.0
"""Checks the addresses of a URL that a peer named: it may lead to the public network, not into a private one.

The connection goes to the checked address itself, so that DNS rebinding has no effect.
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


_EMBEDDING: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")
)
"""IPv6 networks whose last four bytes are an IPv4 address: both NAT64 prefixes, compatible and translated addresses."""

_PLATFORM: Final = frozenset({"168.63.129.16"})
"""Public addresses that a cloud uses for its own machines' platform services."""

_INSIDE: Final = tuple(
    ipaddress.IPv6Network(network) for network in ("fec0::/10", "64:ff9b:1::/48")
)
"""Private networks that some versions of Python call global."""


def addresses_of(host: str, port: int) -> list[str]:
    """The addresses of a host, in the order of the system's resolver."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def is_public(address: str) -> bool:
    """Whether an address is public. An embedded IPv4 address must be public, too."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and address not in _PLATFORM
    inner = ip.ipv4_mapped or ip.sixtofour
    if any(ip in network for network in _EMBEDDING):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if (inner is not None and not is_public(str(inner))) or any(ip in own for own in _INSIDE):
        return False
    return (inner is not None or ip.is_global) and not ip.is_multicast


def check_addresses(host: str, resolved: Iterable[str], allowed: frozenset[str]) -> list[str]:
    """Return the addresses of a host that a peer named, if all are public. `allowed` are hosts that may be private.

    Raises:
        TransportError: `private_address`.
    """
    addresses = list(resolved)
    if host not in allowed and not all(is_public(address) for address in addresses):
        raise TransportError(
            "private_address",
            f"{host}, which a peer named, has a private address",
            remedy="if that is right, list the host in [http] allow_private",
        )
    return addresses


class AsyncGuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects only to checked addresses. `allowed` are hosts that may be private, `resolve` returns a host's addresses."""

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
            resolved = await anyio.to_thread.run_sync(
                self._resolve, host, port, abandon_on_cancel=True
            )
        except OSError as error:
            raise httpcore.ConnectError(type(error).__name__) from None
        failure: Exception = httpcore.ConnectError("the host has no address")
        for address in check_addresses(host, resolved, self._allowed):
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, OSError) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)
