# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 connections of flows, sync and async: h11 reads and writes the messages, httpcore's pool gives out the connections.

httpcore's own connections take twice the processor time, and log every header that is received.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Final, TypedDict

import h11
import httpcore

if TYPE_CHECKING:
    import ssl

_READ: Final = 64 * 1024
_HEAD_LIMIT: Final = 100 * 1024
"""Bytes of the head of a response."""

_END: Final = h11.EndOfMessage()
_IDLE_SECONDS: Final = 30.0
"""How long an unused connection is kept."""


class Limits(TypedDict):
    """How many connections a pool has, and how long it keeps them."""

    max_connections: int
    max_keepalive_connections: int
    keepalive_expiry: float


LIMITS: Final[Limits] = {
    "max_connections": 100,
    "max_keepalive_connections": 20,
    "keepalive_expiry": _IDLE_SECONDS,
}


class _Messages:
    """The messages of one connection, without I/O, and whether it is free for the next exchange."""

    def __init__(self, origin: httpcore.Origin) -> None:
        self._origin = origin
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_LIMIT)
        self._claim = threading.Lock()
        self._idle_since: float | None = None
        self._is_closed = False

    # What httpcore's pool asks of a connection.

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        return origin == self._origin

    def is_available(self) -> bool:
        return self._idle_since is not None

    def is_idle(self) -> bool:
        return self._idle_since is not None

    def is_closed(self) -> bool:
        return self._is_closed

    def info(self) -> str:
        return f"{self._origin}, {'idle' if self.is_idle() else 'in use'}"

    def _has_expired(
        self, stream: httpcore.NetworkStream | httpcore.AsyncNetworkStream | None
    ) -> bool:
        """Whether it was unused for too long, or its peer has closed it: nothing else is sent to an idle client."""
        since = self._idle_since
        if since is None or stream is None:
            return False
        return time.monotonic() > since + _IDLE_SECONDS or bool(
            stream.get_extra_info("is_readable")
        )

    # One exchange.

    def _begin(self) -> None:
        """Claim the connection.

        Raises:
            httpcore.ConnectionNotAvailable: another thread has claimed it.
        """
        if self._is_closed or not self._claim.acquire(blocking=False):
            raise httpcore.ConnectionNotAvailable
        self._idle_since = None

    def _encode(self, request: httpcore.Request) -> bytes:
        """The whole request.

        Raises:
            h11.LocalProtocolError: it has a header that can't be sent.
        """
        head = h11.Request(
            method=request.method, target=request.url.target, headers=request.headers
        )
        assert isinstance(request.stream, Iterable)  # noqa: S101 - a flow's body is bytes
        events = (head, *[h11.Data(data=body) for body in request.stream if body], _END)
        return b"".join([self._h11.send(event) or b"" for event in events])

    def _read_head(self) -> h11.Response | None:
        """The head of the response, None where more data is needed.

        Raises:
            h11.RemoteProtocolError: it isn't HTTP.
        """
        while not isinstance(event := self._h11.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                return None
            if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:  # noqa: PLR2004 - a status of HTTP
                raise httpcore.RemoteProtocolError("the peer sent no response")
        return event

    def _read_body(self) -> bytes | None:
        """The next part of the body, empty where more data is needed; None at its end.

        Raises:
            h11.RemoteProtocolError: it isn't HTTP.
        """
        event = self._h11.next_event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        return b"" if event is h11.NEED_DATA else None

    def _end(self) -> bool:
        """End the exchange; False if the connection can't be used again: what came after the response would be the next one."""
        talk = self._h11
        if talk.our_state is not h11.DONE or talk.their_state is not h11.DONE:
            return False
        if talk.trailing_data[0]:
            return False
        self._h11.start_next_cycle()
        self._idle_since = time.monotonic()
        self._claim.release()
        return True


def _response(head: h11.Response, body: Body | AsyncBody) -> httpcore.Response:
    return httpcore.Response(head.status_code, headers=list(head.headers), content=body)


class Connection(_Messages, httpcore.ConnectionInterface):
    """One sync connection. TLS and every wait go through `backend`."""

    def __init__(
        self,
        origin: httpcore.Origin,
        context: ssl.SSLContext,
        backend: httpcore.NetworkBackend,
    ) -> None:
        super().__init__(origin)
        self._context = context
        self._backend = backend
        self._stream: httpcore.NetworkStream | None = None

    def has_expired(self) -> bool:
        return self._has_expired(self._stream)

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        self._begin()
        try:
            data = self._encode(request)
            stream = self._stream = self._stream or self._connect()
            with contextlib.suppress(
                httpcore.WriteError
            ):  # the peer may have answered before it closed
                stream.write(data)
            while (head := self._read_head()) is None:
                self._h11.receive_data(stream.read(_READ))
        except BaseException:
            self.close()
            raise
        return _response(head, Body(self))

    def _connect(self) -> httpcore.NetworkStream:
        host = self._origin.host.decode("ascii")
        stream = self._backend.connect_tcp(host, self._origin.port)
        if self._origin.scheme != b"https":
            return stream
        self._context.set_alpn_protocols(["http/1.1"])
        return stream.start_tls(self._context, host)

    def read(self) -> Iterator[bytes]:
        """The body of the response."""
        assert self._stream is not None  # noqa: S101 - there is a response
        while (part := self._read_body()) is not None:
            if part:
                yield part
            else:
                self._h11.receive_data(self._stream.read(_READ))

    def release(self) -> None:
        """End the exchange. A connection whose response wasn't read to its end is closed."""
        if not self._end():
            self.close()

    def close(self) -> None:
        self._is_closed = True
        if self._stream is not None:
            self._stream.close()


class Body:
    """The body of a response; closing it frees the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __iter__(self) -> Iterator[bytes]:
        return self._connection.read()

    def close(self) -> None:
        self._connection.release()


class AsyncConnection(_Messages, httpcore.AsyncConnectionInterface):
    """The async twin of `Connection`. Its exchanges end by cancellation, and closing it never waits."""

    def __init__(
        self,
        origin: httpcore.Origin,
        context: ssl.SSLContext,
        backend: httpcore.AsyncNetworkBackend,
    ) -> None:
        super().__init__(origin)
        self._context = context
        self._backend = backend
        self._stream: httpcore.AsyncNetworkStream | None = None

    def has_expired(self) -> bool:
        return self._has_expired(self._stream)

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        self._begin()
        try:
            data = self._encode(request)
            stream = self._stream = self._stream or await self._connect()
            with contextlib.suppress(
                httpcore.WriteError
            ):  # the peer may have answered before it closed
                await stream.write(data)
            while (head := self._read_head()) is None:
                self._h11.receive_data(await stream.read(_READ))
        except BaseException:
            await self.aclose()
            raise
        return _response(head, AsyncBody(self))

    async def _connect(self) -> httpcore.AsyncNetworkStream:
        host = self._origin.host.decode("ascii")
        stream = await self._backend.connect_tcp(host, self._origin.port)
        if self._origin.scheme != b"https":
            return stream
        self._context.set_alpn_protocols(["http/1.1"])
        return await stream.start_tls(self._context, host)

    async def read(self) -> AsyncIterator[bytes]:
        """The body of the response."""
        assert self._stream is not None  # noqa: S101 - there is a response
        while (part := self._read_body()) is not None:
            if part:
                yield part
            else:
                self._h11.receive_data(await self._stream.read(_READ))

    async def release(self) -> None:
        """End the exchange. A connection whose response wasn't read to its end is closed."""
        if not self._end():
            await self.aclose()

    async def aclose(self) -> None:
        self._is_closed = True
        if self._stream is not None:
            await self._stream.aclose()


class AsyncBody:
    """The async twin of `Body`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._connection.read()

    async def aclose(self) -> None:
        await self._connection.release()


class FlowPool(httpcore.ConnectionPool):
    """The sync connections of flows."""

    def __init__(self, context: ssl.SSLContext, backend: httpcore.NetworkBackend) -> None:
        super().__init__(ssl_context=context, network_backend=backend, **LIMITS)
        self._context = context
        self._backend = backend

    def create_connection(self, origin: httpcore.Origin) -> httpcore.ConnectionInterface:
        return Connection(origin, self._context, self._backend)


class AsyncFlowPool(httpcore.AsyncConnectionPool):
    """The async connections of flows, in one event loop."""

    def __init__(self, context: ssl.SSLContext, backend: httpcore.AsyncNetworkBackend) -> None:
        super().__init__(ssl_context=context, network_backend=backend, **LIMITS)
        self._context = context
        self._backend = backend

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        return AsyncConnection(origin, self._context, self._backend)
