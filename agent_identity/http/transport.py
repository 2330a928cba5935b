# SPDX-License-Identifier: Apache-2.0
"""The one HTTP door: absolute deadlines, a cap on bodies, no redirects, no proxy, no netrc, https except loopback.

One pooled sync client an identity and one async client an event loop. An authority that lives in this process is reached
through the same clients, by a transport that calls it instead of a socket.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

import httpcore
import httpx

from agent_identity.errors import DeniedError, TransportError
from agent_identity.flow import HttpRequest, HttpResponse
from agent_identity.forks import start_over_in_child
from agent_identity.http.addresses import AsyncGuardedBackend, GuardedBackend, addresses_of
from agent_identity.http.deadline import DeadlineBackend, deadline_at
from agent_identity.http.quiet import without_headers
from agent_identity.http.seams import AsyncNetwork, InProcess, Network, client_context, tls
from agent_identity.uris import is_loopback, origin
from agent_identity.values import Certificate

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping

__all__ = ["CERTIFICATE", "Handler", "Transport"]

BODY_LIMIT: Final = 1024 * 1024
DEADLINE: Final = 10.0
CERTIFICATE: Final = "agent_identity.certificate"
"""The extension of an httpx request that names the certificate its connection has to show."""

_REDIRECT_STATUS: Final = range(300, 400)
_CERTIFICATES: Final = 16
_METADATA_HOSTS: Final = frozenset({"169.254.169.254", "metadata.google.internal"})
"""Where clouds answer what a workload is; they speak plain http and nothing else."""


class Handler(Protocol):
    """A server in this process: one request in, one answer out."""

    def __call__(self, request: HttpRequest, /) -> HttpResponse: ...


class _Place(NamedTuple):
    """Which client serves a request: `name` is an origin in this process, `network`, or `discovered`."""

    name: str
    thumbprint: str = ""

    @property
    def is_guarded(self) -> bool:
        return self.name == "discovered"


_NETWORK: Final = _Place("network")


class Transport:
    """Answers `HttpRequest`s. Thread-safe; after a fork the child opens connections of its own.

    `in_process` maps origins to servers that live in this process. `body_limit` is bytes. `allow_private` are hosts that may
    be in a private network though a peer named them; `resolve` finds the addresses of such a host. `authorities` is a file of
    certificate authorities (PEM) that are trusted beside the public ones.
    """

    def __init__(
        self,
        in_process: Mapping[str, Handler] | None = None,
        *,
        body_limit: int = BODY_LIMIT,
        allow_private: frozenset[str] = frozenset(),
        authorities: str | None = None,
        resolve: Callable[[str, int], Iterable[str]] = addresses_of,
    ) -> None:
        self._in_process = dict(in_process or {})
        self._body_limit = body_limit
        self._allow_private = allow_private
        self._authorities = authorities
        self._resolve = resolve
        self.start_over()
        start_over_in_child(self)

    def start_over(self) -> None:
        """In a forked child, as at first: sockets and locks are the parent's."""
        self._lock = threading.Lock()
        self._sync: OrderedDict[_Place, httpx.Client] = OrderedDict()
        self._async: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopClients] = (
            weakref.WeakKeyDictionary()
        )

    def exchange(self, request: HttpRequest, deadline: float) -> HttpResponse:
        """One exchange; `deadline` is a moment on the monotonic clock, for everything included.

        Raises:
            TransportError: it failed, took too long, or the answer is outside the limits.
        """
        client = self._client(self._place(request), request.certificate)
        failure: TransportError
        try:
            with (
                without_headers(),
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
        client = await self._aclient(self._place(request), request.certificate)
        failure: TransportError
        try:
            with without_headers():
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    return await self._asent(client, request)
        except TransportError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - see `exchange`
            failure = _failed(error)
        raise failure.with_traceback(None)

    async def _asent(self, client: httpx.AsyncClient, request: HttpRequest) -> HttpResponse:
        async with client.stream(
            request.method, request.url, headers=_sent(request), content=request.body or None
        ) as response:
            return await self._aread(response, response.aiter_raw())

    def context(self, certificate: Certificate | None) -> ssl.SSLContext:
        """What a connection believes, and shows."""
        if certificate is None:
            return tls(self._authorities)
        return client_context(certificate, self._authorities)

    def network(self) -> httpx.BaseTransport:
        """The pooled sync transport, for a client that is handed out and may be closed by whoever got it."""
        return _Borrowed(self)

    def anetwork(self) -> httpx.AsyncBaseTransport:
        """The pooled async transport of whichever loop asks it, likewise."""
        return _AsyncBorrowed(self)

    def pool(self, certificate: Certificate | None) -> httpx.BaseTransport:
        """The sync connections that show this certificate, or none."""
        client = self._client(_to_network(certificate), certificate)
        return client._transport  # noqa: SLF001 - past the client's auth and hooks, to its pool # pyright: ignore[reportPrivateUsage]

    async def apool(self, certificate: Certificate | None) -> httpx.AsyncBaseTransport:
        """The running loop's connections that show this certificate, or none."""
        client = await self._aclient(_to_network(certificate), certificate)
        return client._transport  # noqa: SLF001 - see `pool` # pyright: ignore[reportPrivateUsage]

    def close(self) -> None:
        """Close the sync connections. Async ones close with their loop, or by `aclose` inside it."""
        with self._lock:
            clients, self._sync = list(self._sync.values()), OrderedDict()
        for client in clients:
            client.close()

    async def aclose(self) -> None:
        """Close the running loop's connections, and the sync ones."""
        clients = self._async.pop(asyncio.get_running_loop(), None)
        if clients is not None:
            await clients.aclose()
        self.close()

    def _place(self, request: HttpRequest) -> _Place:
        try:
            place = origin(request.url)
        except DeniedError as error:
            raise TransportError(error.code, str(error), remedy=error.remedy) from None
        if place in self._in_process:
            return _Place(place)
        plain = request.plain in _METADATA_HOSTS and place == f"http://{request.plain}"
        if not request.url.startswith("https://") and not plain and not is_loopback(request.url):
            raise TransportError(
                "insecure_url", f"{place} isn't https, and only loopback may do without"
            )
        if request.discovered:
            return _to_network(request.certificate)._replace(name="discovered")
        return _to_network(request.certificate)

    def _client(self, place: _Place, certificate: Certificate | None) -> httpx.Client:
        with self._lock:
            client = self._sync.get(place)
            if client is not None:
                self._sync.move_to_end(place)
                return client
        fresh = self._opened(place, certificate)
        with self._lock:
            client = self._sync.setdefault(place, fresh)
            evicted = _evicted(self._sync)
        for each in evicted:
            each.close()
        return client

    def _opened(self, place: _Place, certificate: Certificate | None) -> httpx.Client:
        handler = self._in_process.get(place.name)
        transport: httpx.BaseTransport
        if handler is not None:
            transport = InProcess(handler)
        else:
            backend: httpcore.NetworkBackend = DeadlineBackend()
            if place.is_guarded:
                backend = GuardedBackend(backend, self._allow_private, self._resolve)
            transport = Network(self.context(certificate), backend)
        return httpx.Client(transport=transport, trust_env=False, timeout=None)  # noqa: S113 - every exchange has a deadline of its own

    async def _aclient(self, place: _Place, certificate: Certificate | None) -> httpx.AsyncClient:
        """The running loop's client for a place."""
        loop = asyncio.get_running_loop()
        with self._lock:
            clients = self._async.setdefault(loop, _LoopClients())
        client = clients.open.get(place)  # from here on one loop's affair, and so one thread's
        if client is None:
            client = clients.open[place] = self._aopened(place, certificate)
        clients.open.move_to_end(place)
        for evicted in _evicted(clients.open):
            await evicted.aclose()
        await clients.close_with_loop()
        return client

    def _aopened(self, place: _Place, certificate: Certificate | None) -> httpx.AsyncClient:
        handler = self._in_process.get(place.name)
        transport: httpx.AsyncBaseTransport
        if handler is not None:
            transport = InProcess(handler)
        else:
            backend: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()  # pyright: ignore[reportAssignmentType]  # a stub for whoever has no anyio
            if place.is_guarded:
                backend = AsyncGuardedBackend(backend, self._allow_private, self._resolve)
            transport = AsyncNetwork(self.context(certificate), backend)
        return httpx.AsyncClient(transport=transport, trust_env=False, timeout=None)  # noqa: S113 - every exchange has a deadline of its own

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


C = TypeVar("C")


def _to_network(certificate: Certificate | None) -> _Place:
    if certificate is None:
        return _NETWORK
    bundle = hashlib.sha256(certificate.bundle.encode()).hexdigest()
    return _Place("network", f"{certificate.thumbprint} {bundle}")


def _evicted(open_clients: OrderedDict[_Place, C]) -> list[C]:
    """Take out the clients of certificates that were used longest ago: certificates rotate, and their connections go with them."""
    of_certificates = [place for place in open_clients if place.thumbprint]
    return [open_clients.pop(place) for place in of_certificates[:-_CERTIFICATES]]


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


class _Borrowed(httpx.BaseTransport):
    """The pool behind a client that somebody else closes; the pool stays open."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._transport.pool(_shown(request)).handle_request(request)


class _AsyncBorrowed(httpx.AsyncBaseTransport):
    """The async twin of `_Borrowed`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        pool = await self._transport.apool(_shown(request))
        return await pool.handle_async_request(request)


def _shown(request: httpx.Request) -> Certificate | None:
    found = request.extensions.get(CERTIFICATE)
    return found if isinstance(found, Certificate) else None


class _LoopClients:
    """The clients of one event loop, closed when it shuts down.

    `asyncio.run` finalises the async generators that its loop has seen, while the loop still runs: the one moment at which a
    library can close what belongs to a loop that isn't its own.
    """

    def __init__(self) -> None:
        self.open: OrderedDict[_Place, httpx.AsyncClient] = OrderedDict()
        self._at_the_end: AsyncGenerator[None, None] | None = None

    async def close_with_loop(self) -> None:
        if self._at_the_end is None:
            self._at_the_end = self._closing()
            await anext(self._at_the_end)

    async def aclose(self) -> None:
        clients, self.open = list(self.open.values()), OrderedDict()
        for client in clients:
            await client.aclose()
        if self._at_the_end is not None:
            await self._at_the_end.aclose()

    async def _closing(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._at_the_end = None
            await self.aclose()
