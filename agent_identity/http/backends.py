# SPDX-License-Identifier: Apache-2.0
"""How httpcore connects: sync waits end at an absolute deadline, and URLs that a peer named lead to the public network only.

A timeout per read isn't enough: a peer that sends one byte every half second never exceeds it. A connection goes to the checked
address itself, so that DNS rebinding has no effect.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpcore

from agent_identity.errors import TransportError

if TYPE_CHECKING:
    import ssl
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


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """httpcore's async backend. `find` returns the addresses of a host and port to try; None leaves that to anyio."""

    def __init__(self, find: Callable[[str, int], Iterable[str]] | None) -> None:
        self._inner: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()  # pyright: ignore[reportAttributeAccessIssue,reportAssignmentType]  # a stub if anyio isn't installed
        self._find = find

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError("the host has no address")
        for address in [host] if self._find is None else await self._resolve(host, port):
            try:
                stream = await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, OSError) as error:
                failure = error
            else:
                return _AsyncStream(stream)
        raise failure

    async def _resolve(self, host: str, port: int) -> list[str]:
        assert self._find is not None  # noqa: S101 - the caller's condition
        try:
            return [*await anyio.to_thread.run_sync(self._find, host, port, abandon_on_cancel=True)]
        except OSError as error:
            raise httpcore.ConnectError(type(error).__name__) from None

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


_SENT_AT_ONCE: Final = 64 * 1024
"""Bytes that are kept back until an answer is read."""


class _AsyncStream(httpcore.AsyncNetworkStream):
    """A stream on which a request's head is sent together with its body, when an answer is read."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._unsent = bytearray()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with contextlib.suppress(httpcore.WriteError):  # the peer may have answered before
            await self._flush(timeout)
        return await self._inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._unsent += buffer
        if len(self._unsent) > _SENT_AT_ONCE:
            await self._flush(timeout)

    async def _flush(self, timeout: float | None) -> None:
        if self._unsent:
            unsent, self._unsent = bytes(self._unsent), bytearray()
            await self._inner.write(unsent, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _AsyncStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


_current = threading.local()


class DeadlineAt:
    """In this block, the socket waits of this thread end at `moment` on the monotonic clock."""

    __slots__ = ("_before", "_moment")

    def __init__(self, moment: float) -> None:
        self._moment = moment

    def __enter__(self) -> None:
        self._before: float | None = getattr(_current, "moment", None)
        _current.moment = self._moment

    def __exit__(self, *_: object) -> None:
        _current.moment = self._before


def _time_left(timeout: float | None) -> float | None:
    moment: float | None = getattr(_current, "moment", None)
    if moment is None:
        return timeout
    left = moment - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the deadline has passed")
    return left if timeout is None else min(timeout, left)


class DeadlineBackend(httpcore.NetworkBackend):
    """httpcore's sync backend with the exchange's deadline for every wait, name resolution included.

    `find` returns the addresses of a host and port, in the order in which to try them.
    """

    def __init__(self, find: Callable[[str, int], Iterable[str]]) -> None:
        self._inner = httpcore.SyncBackend()
        self._find = find

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        until = None if (left := _time_left(timeout)) is None else time.monotonic() + left
        addresses = self._resolve(host, port, left)
        failure: Exception = httpcore.ConnectError("the host has no address")
        for tried, address in enumerate(addresses):
            # The time left is divided among the remaining addresses, so that an unreachable one can't use it all.
            share = None if until is None else (until - time.monotonic()) / (len(addresses) - tried)
            if share is not None and share <= 0:
                raise httpcore.ConnectTimeout("the deadline has passed")
            try:
                stream = self._inner.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout, OSError) as error:
                failure = error
            else:
                return _DeadlineStream(stream)
        raise failure

    def _resolve(self, host: str, port: int, seconds: float | None) -> list[str]:
        """Resolve a host in a separate thread, since the system's resolver has no timeout."""
        addresses: Future[list[str]] = Future()

        def look() -> None:
            try:
                addresses.set_result(list(self._find(host, port)))
            except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
                addresses.set_exception(error)

        threading.Thread(target=look, name="agent-identity-resolver", daemon=True).start()
        try:
            return addresses.result(seconds)
        except OSError as error:  # an unknown name, or a timeout
            kind = httpcore.ConnectError if addresses.done() else httpcore.ConnectTimeout
            raise kind(type(error).__name__) from None


class _DeadlineStream(httpcore.NetworkStream):
    """A stream whose reads and writes keep the deadline. A request's head is sent together with its body, when an answer is read."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner
        self._unsent = bytearray()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with contextlib.suppress(httpcore.WriteError):  # the peer may have answered before
            self._flush(timeout)
        return self._inner.read(max_bytes, _time_left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._unsent += buffer
        if len(self._unsent) > _SENT_AT_ONCE:
            self._flush(timeout)

    def _flush(self, timeout: float | None) -> None:
        if self._unsent:
            unsent, self._unsent = bytes(self._unsent), bytearray()
            self._inner.write(unsent, _time_left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(
            self._inner.start_tls(ssl_context, server_hostname, _time_left(timeout))
        )

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
