# SPDX-License-Identifier: Apache-2.0
"""The one HTTP door: absolute deadlines, a cap on bodies, no redirects, no proxy, no netrc, https except loopback.

One pooled sync client an identity and one async client an event loop. An authority that lives in this process is reached
through the same clients, by a transport that calls it instead of a socket.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final, Protocol

import httpcore
import httpx

from agent_identity.errors import DeniedError, TransportError
from agent_identity.flow import HttpRequest, HttpResponse
from agent_identity.http.deadline import DeadlineBackend, deadline_at
from agent_identity.uris import is_loopback, origin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

__all__ = ["Handler", "Transport"]

BODY_LIMIT: Final = 1024 * 1024
DEADLINE: Final = 10.0
_REDIRECT_STATUS: Final = range(300, 400)


class Handler(Protocol):
    """A server in this process: one request in, one answer out."""

    def __call__(self, request: HttpRequest, /) -> HttpResponse: ...


class Transport:
    """Answers `HttpRequest`s. Thread-safe; after a fork the child opens connections of its own.

    `in_process` maps origins to servers that live in this process. `body_limit` is bytes.
    """

    def __init__(
        self, in_process: Mapping[str, Handler] | None = None, *, body_limit: int = BODY_LIMIT
    ) -> None:
        self._in_process = dict(in_process or {})
        self._body_limit = body_limit
        self._open()
        _transports.add(self)

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._sync: dict[str, httpx.Client] = {}
        self._async: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[str, httpx.AsyncClient]
        ] = weakref.WeakKeyDictionary()

    def exchange(self, request: HttpRequest, deadline: float) -> HttpResponse:
        """One exchange; `deadline` is a moment on the monotonic clock, for everything included.

        Raises:
            TransportError: it failed, took too long, or the answer is outside the limits.
        """
        client = self._client(self._place(request))
        failure: TransportError
        try:
            with (
                deadline_at(deadline),
                client.stream(
                    request.method,
                    request.url,
                    headers=_sent(request),
                    content=request.body or None,
                ) as response,
            ):
                return self._read(response, response.iter_raw())
        except TransportError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - the seam: whatever a transport raises becomes ours, once
            failure = _failed(error)
        # Raised here and not in `except`: the frames below hold the request with its secrets.
        raise failure.with_traceback(None)

    async def aexchange(self, request: HttpRequest, deadline: float) -> HttpResponse:
        """The async twin of `exchange`."""
        client = self._aclient(self._place(request))
        failure: TransportError
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                async with client.stream(
                    request.method,
                    request.url,
                    headers=_sent(request),
                    content=request.body or None,
                ) as response:
                    return await self._aread(response, response.aiter_raw())
        except TransportError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - see `exchange`
            failure = _failed(error)
        raise failure.with_traceback(None)

    def network(self) -> httpx.BaseTransport:
        """The pooled sync transport, for a client that is handed out and may be closed by whoever got it."""
        return _Borrowed(self._client("network"))

    def anetwork(self) -> httpx.AsyncBaseTransport:
        """The pooled async transport of the running loop, likewise."""
        return _ABorrowed(self._aclient("network"))

    def close(self) -> None:
        """Close the sync connections. Async ones close with their loop, or by `aclose` inside it."""
        with self._lock:
            clients, self._sync = list(self._sync.values()), {}
        for client in clients:
            client.close()

    async def aclose(self) -> None:
        """Close the running loop's connections, and the sync ones."""
        for client in self._async.pop(asyncio.get_running_loop(), {}).values():
            await client.aclose()
        self.close()

    def _place(self, request: HttpRequest) -> str:
        try:
            place = origin(request.url)
        except DeniedError as error:
            raise TransportError(error.code, str(error), remedy=error.remedy) from None
        if place in self._in_process:
            return place
        if not request.url.startswith("https://") and not is_loopback(request.url):
            raise TransportError(
                "insecure_url", f"{place} isn't https, and only loopback may do without"
            )
        return "network"

    def _client(self, place: str) -> httpx.Client:
        with self._lock:
            client = self._sync.get(place)
            if client is None:
                handler = self._in_process.get(place)
                transport = _InProcess(handler) if handler else _Network()
                client = httpx.Client(transport=transport, trust_env=False, timeout=None)  # noqa: S113 - every exchange has a deadline of its own
                self._sync[place] = client
            return client

    def _aclient(self, place: str) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._lock:
            clients = self._async.setdefault(loop, {})
            client = clients.get(place)
            if client is None:
                handler = self._in_process.get(place)
                transport = (
                    _InProcess(handler)
                    if handler
                    else httpx.AsyncHTTPTransport(verify=_tls(), trust_env=False)
                )
                client = httpx.AsyncClient(transport=transport, trust_env=False, timeout=None)  # noqa: S113 - every exchange has a deadline of its own
                clients[place] = client
            return client

    def _read(self, response: httpx.Response, chunks: Iterator[bytes]) -> HttpResponse:
        if response.status_code in _REDIRECT_STATUS:
            return _redirect(response)
        _check_head(response, self._body_limit)
        body = bytearray()
        for chunk in chunks:
            body += chunk
            _check_size(len(body), self._body_limit)
        return _received(response, bytes(body))

    async def _aread(self, response: httpx.Response, chunks: AsyncIterator[bytes]) -> HttpResponse:
        if response.status_code in _REDIRECT_STATUS:
            return _redirect(response)
        _check_head(response, self._body_limit)
        body = bytearray()
        async for chunk in chunks:
            body += chunk
            _check_size(len(body), self._body_limit)
        return _received(response, bytes(body))


def _sent(request: HttpRequest) -> dict[str, str]:
    # A compressed answer could grow a thousandfold while it is read, so none is asked for, and none accepted.
    return {"User-Agent": "agent-identity-sdk", **request.headers, "Accept-Encoding": "identity"}


def _check_head(response: httpx.Response, limit: int) -> None:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise TransportError(
            "encoded_body", "the peer compressed its answer without being asked to"
        )
    length = response.headers.get("content-length", "")
    if length.isdigit():
        _check_size(int(length[:20]), limit)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise TransportError("body_too_large", f"the peer's answer is larger than {limit} bytes")


def _received(response: httpx.Response, body: bytes) -> HttpResponse:
    return HttpResponse(response.status_code, dict(response.headers), body)


def _redirect(response: httpx.Response) -> HttpResponse:
    # Followed nowhere and read no further; where it points to is the peer's text and of no use.
    return HttpResponse(response.status_code)


def _failed(error: Exception) -> TransportError:
    """Our word for a foreign failure. Its text is the peer's or holds the URL, so only its kind is told."""
    timeouts = (httpx.TimeoutException, httpcore.TimeoutException, TimeoutError)
    if isinstance(error, timeouts):
        return TransportError("deadline_exceeded", "the peer took longer than the deadline")
    return TransportError("exchange_failed", f"the exchange failed: {type(error).__name__}")


@functools.cache
def _tls() -> ssl.SSLContext:
    context = httpx.create_ssl_context(trust_env=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class _Network(httpx.BaseTransport):
    """Sync connections whose every read, write and connect ends at the deadline of the exchange it serves."""

    def __init__(self) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=_tls(),
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=30.0,
            network_backend=DeadlineBackend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.SyncByteStream)  # noqa: S101 - a sync client makes no other
        response = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Stream(response),
            extensions=response.extensions,  # pyright: ignore[reportUnknownMemberType,reportUnknownArgumentType]  # open in httpcore
        )

    def close(self) -> None:
        self._pool.close()


class _Stream(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


class _InProcess(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """httpx's own seam, with a server of this process behind it."""

    def __init__(self, handler: Callable[[HttpRequest], HttpResponse]) -> None:
        self._handler = handler

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._answer(request, request.read())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self._answer(request, await request.aread())

    def _answer(self, request: httpx.Request, body: bytes) -> httpx.Response:
        answer = self._handler(
            HttpRequest(request.method, str(request.url), dict(request.headers), body)
        )
        return httpx.Response(
            answer.status, headers=dict(answer.headers), stream=_Bytes(answer.body)
        )


class _Bytes(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        yield self._body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body


class _Borrowed(httpx.BaseTransport):
    """The pool behind a client that somebody else closes; the pool stays open."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._client._transport.handle_request(request)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


class _ABorrowed(httpx.AsyncBaseTransport):
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._client._transport.handle_async_request(request)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


_transports: weakref.WeakSet[Transport] = weakref.WeakSet()


def _after_fork() -> None:
    for transport in list(_transports):
        transport._open()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]  # sockets and locks are the parent's


os.register_at_fork(after_in_child=_after_fork)
