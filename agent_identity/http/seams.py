# SPDX-License-Identifier: Apache-2.0
"""What stands behind our httpx clients: sockets with a deadline, a server of this process, or a pool that stays open."""

from __future__ import annotations

import functools
import ssl
from typing import TYPE_CHECKING

import httpcore
import httpx

from agent_identity.flow import HttpRequest, HttpResponse
from agent_identity.http.deadline import DeadlineBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["Borrowed", "InProcess", "Network", "tls"]


@functools.cache
def tls() -> ssl.SSLContext:
    context = httpx.create_ssl_context(trust_env=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Network(httpx.BaseTransport):
    """Sync connections whose every read, write and connect ends at the deadline of the exchange it serves."""

    def __init__(self) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls(),
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


class InProcess(httpx.BaseTransport, httpx.AsyncBaseTransport):
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
        return httpx.Response(answer.status, headers=dict(answer.headers), stream=_Answered(answer))


class _Answered(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of an answer, held in the value that doesn't show it."""

    def __init__(self, answer: HttpResponse) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        yield self._answer.body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._answer.body


class Borrowed(httpx.BaseTransport):
    """The pool behind a client that somebody else closes; the pool stays open."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._client._transport.handle_request(request)  # noqa: SLF001 - past the client's auth and hooks, to its pool # pyright: ignore[reportPrivateUsage]
