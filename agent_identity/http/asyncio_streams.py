# SPDX-License-Identifier: Apache-2.0
"""The TCP and TLS streams of async flows, on asyncio itself.

anyio's, which httpcore brings along, give the loop a turn in every read and write. The time-outs of these methods aren't used:
an exchange has one deadline, and ends by cancellation.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from typing import TYPE_CHECKING, Any, Final

import httpcore

if TYPE_CHECKING:
    from collections.abc import Iterable

_BUFFERED: Final = 256 * 1024
"""Bytes that are received ahead of a reader."""
_EYEBALLS: Final = 0.25
"""Seconds before the next address of a host is tried too (RFC 8305)."""


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """Connects in the running loop."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the interface's
        local_address: str | None = None,  # noqa: ARG002 - the interface's
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002 - the interface's
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            _, stream = await loop.create_connection(
                _Stream, host, port, happy_eyeballs_delay=_EYEBALLS
            )
        except OSError as error:
            raise httpcore.ConnectError(type(error).__name__) from None
        return stream

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One connection: what was received and not read yet, and the one reader that waits."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._has_ended = False
        self._is_lost = False
        self._reader: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > _BUFFERED and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._has_ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_ended = True
        self._is_lost = exc is not None
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # What a connection calls.

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the interface's
        while not self._received and not self._has_ended:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        if self._is_lost and not self._received:
            raise httpcore.ReadError("the connection was lost")
        data = bytes(self._received[:max_bytes])
        del self._received[:max_bytes]
        if len(self._received) <= _BUFFERED and self._transport is not None:
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - the interface's
        if self._transport is None or self._transport.is_closing():
            raise httpcore.WriteError("the connection is closed")
        self._transport.write(buffer)

    async def aclose(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - the interface's
    ) -> httpcore.AsyncNetworkStream:
        assert self._transport is not None  # noqa: S101 - it is connected
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(
                self._transport, self, ssl_context, server_hostname=server_hostname
            )
        except (OSError, ssl.SSLError) as error:
            self._transport.abort()
            raise httpcore.ConnectError(type(error).__name__) from None
        except BaseException:
            self._transport.abort()
            raise
        if secured is None:
            raise httpcore.ConnectError("the connection was closed")
        self._transport = secured
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return bool(self._received) or self._has_ended or self._has_input()
        return None if self._transport is None else self._transport.get_extra_info(info)

    def _has_input(self) -> bool:
        """Whether the system has received something that the loop hasn't: it may not have run for a while."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        if sock is None:
            return True
        if not hasattr(select, "poll"):
            return bool(select.select([sock], [], [], 0)[0])
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
