# SPDX-License-Identifier: Apache-2.0
"""The HTTP transport of flows: absolute deadlines, a limit on bodies, no redirects, no proxy, no netrc, https except loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import httpcore
import httpx

from agent_identity.errors import AgentIdentityError, DeniedError, TransportError, is_interrupt
from agent_identity.flow import HttpRequest, HttpResponse
from agent_identity.http.backends import DeadlineAt, addresses_of
from agent_identity.http.pools import DISCOVERED, ISSUERS, TOOLS, Pools
from agent_identity.uris import is_loopback, origin
from agent_identity.values import Certificate

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable

BODY_LIMIT: Final = 1024 * 1024
DEADLINE: Final = 10.0
CERTIFICATE: Final = "agent_identity.certificate"
"""The extension of an httpx request with the TLS client certificate of its connection."""

_REDIRECT_STATUS: Final = range(300, 400)
_METADATA_HOSTS: Final = frozenset({"169.254.169.254", "metadata.google.internal"})
"""The metadata servers of clouds, which speak only plain http."""


class Transport:
    """Sends `HttpRequest`s. Thread-safe, fork-safe, usable from several event loops.

    `body_limit` is bytes. `allow_private` are hosts that may be in a private network although a peer named them; `resolve`
    returns the addresses of such a host. `authorities` is a PEM file of authorities that are trusted beside the public ones.
    """

    def __init__(
        self,
        *,
        body_limit: int = BODY_LIMIT,
        allow_private: frozenset[str] = frozenset(),
        authorities: str | None = None,
        resolve: Callable[[str, int], Iterable[str]] = addresses_of,
    ) -> None:
        self._body_limit = body_limit
        self.pools: Pools = Pools(
            allow_private=allow_private,
            authorities=authorities,
            resolve=resolve,
        )

    def exchange(self, request: HttpRequest, deadline: float) -> HttpResponse:
        """Send a request. `deadline` is a time on the monotonic clock for the whole exchange.

        Raises:
            TransportError: it failed, took too long, or the response exceeds a limit.
            ConfigurationError: the client certificate or the configured authorities can't be used.
        """
        name = self._pool_for(request)
        failure: Exception
        try:
            with _Quiet(), DeadlineAt(deadline):
                pool = self.pools.get(name, request.certificate)
                return self._read(pool.send(_to_httpcore(request, deadline)))
        except AgentIdentityError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - the seam: foreign errors are wrapped here, once
            failure = error if is_interrupt(error) else _transport_error(error)
        # Raised here and not in `except`: the frames below hold the request with its secrets.
        raise failure.with_traceback(None)

    async def aexchange(self, request: HttpRequest, deadline: float) -> HttpResponse:
        """The async twin of `exchange`."""
        name = self._pool_for(request)
        failure: Exception
        try:
            with _Quiet():
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    pool = await self.pools.aget(name, request.certificate)
                    sent = _to_httpcore(request, deadline)
                    return await self._aread(await pool.send(sent))
        except AgentIdentityError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - see `exchange`
            if _is_abandoned():
                raise GeneratorExit from None
            failure = error if is_interrupt(error) else _transport_error(error)
        raise failure.with_traceback(None)

    def context(self, certificate: Certificate | None) -> ssl.SSLContext:
        """The TLS context of connections: trusted authorities, and the client certificate.

        Raises:
            ConfigurationError: the certificate or the configured authorities can't be used.
        """
        return self.pools.context(certificate)

    def network(self) -> httpx.BaseTransport:
        """The sync connections of tools, for a client that its user may close: the pools stay open."""
        return _BorrowedPools(self.pools)

    def anetwork(self) -> httpx.AsyncBaseTransport:
        """The async twin of `network`, for the running loop."""
        return _AsyncBorrowedPools(self.pools)

    def close(self) -> None:
        """Close the sync connections. Async ones close with their loop, or by `aclose` inside it."""
        self.pools.close()

    async def aclose(self) -> None:
        """Close the running loop's connections, and the sync ones."""
        await self.pools.aclose()

    def _pool_for(self, request: HttpRequest) -> str:
        """The name of the pool for a request.

        Raises:
            TransportError: the URL is malformed, or isn't https.
        """
        place = _place_of(request.url)
        plain = request.plain in _METADATA_HOSTS and place.origin == f"http://{request.plain}"
        if not place.is_safe and not plain:
            raise TransportError(
                "insecure_url",
                f"{place.origin} isn't https; plain http is allowed on loopback only",
            )
        return DISCOVERED if request.discovered else ISSUERS

    def _read(self, response: httpcore.Response) -> HttpResponse:
        with contextlib.closing(response):
            if response.status in _REDIRECT_STATUS:
                return HttpResponse(
                    response.status
                )  # not followed; its headers and body aren't read
            headers = _read_headers(response, self._body_limit)
            body = bytearray()
            for chunk in response.iter_stream():
                body += chunk
                _check_size(len(body), self._body_limit)
            return HttpResponse(response.status, headers, bytes(body))

    async def _aread(self, response: httpcore.Response) -> HttpResponse:
        async with contextlib.aclosing(response):
            if response.status in _REDIRECT_STATUS:
                return HttpResponse(response.status)
            headers = _read_headers(response, self._body_limit)
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                _check_size(len(body), self._body_limit)
            return HttpResponse(response.status, headers, bytes(body))


def _to_httpcore(request: HttpRequest, deadline: float) -> httpcore.Request:
    place = _place_of(request.url)
    # A compressed body could expand a thousandfold, so it is neither requested nor accepted.
    named = {"User-Agent": "agent-identity-sdk", **request.headers, "Accept-Encoding": "identity"}
    headers = [(b"Host", place.host)]
    headers += [(name.encode("ascii"), value.encode("ascii")) for name, value in named.items()]
    if request.body or request.method == "POST":
        headers.append((b"Content-Length", str(len(request.body)).encode()))
    waiting = {"pool": max(0.0, deadline - time.monotonic())}
    return httpcore.Request(
        request.method,
        place.url,
        headers=headers,
        content=request.body,
        extensions={"timeout": waiting},
    )


class _Place(NamedTuple):
    """Where a request goes: its `Host`, the URL as httpcore takes it, and whether that is https or on loopback."""

    host: bytes
    url: httpcore.URL
    origin: str
    is_safe: bool


def _place_of(url: str) -> _Place:
    """The place of a URL. Only URLs without a query are kept: a query may hold a secret.

    Raises:
        TransportError: `url_malformed`.
    """
    try:
        return _parse_url(url) if "?" in url else _parse_url_cached(url)
    except DeniedError as error:
        raise TransportError(error.code, str(error), remedy=error.remedy) from None


def _parse_url(text: str) -> _Place:
    place, url = origin(text), httpx.URL(text)
    target = httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )
    return _Place(url.netloc, target, place, text.startswith("https://") or is_loopback(text))


_parse_url_cached: Final = lru_cache(256)(_parse_url)


def _read_headers(response: httpcore.Response, limit: int) -> dict[str, str]:
    """The response's headers, by names in lower case.

    Raises:
        TransportError: its body is compressed, or has more than `limit` bytes.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("ascii").lower(), _decode(raw_value)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise TransportError(
            "encoded_body", "the peer sent a compressed body, which wasn't requested"
        )
    length = headers.get("content-length", "")
    if length.isdigit():
        _check_size(int(length[:20]), limit)
    return headers


def _decode(value: bytes) -> str:
    """A header's value: UTF-8, else ISO-8859-1, which any bytes are."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("iso-8859-1")


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise TransportError("body_too_large", f"the peer's response has more than {limit} bytes")


def _is_abandoned() -> bool:
    """Whether the running coroutine is thrown away, after its loop was closed: httpcore's clean-up fails then, for lack of a loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def _transport_error(error: Exception) -> TransportError:
    """Wrap a foreign error. Its text may contain the URL or the peer's text, so only its type is named."""
    if isinstance(error, httpcore.TimeoutException | TimeoutError):
        return TransportError("deadline_exceeded", "the peer took longer than the deadline")
    return TransportError("exchange_failed", f"the exchange failed: {type(error).__name__}")


class _BorrowedPools(httpx.BaseTransport):
    """The pools behind a client whose `close` leaves them open."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._pools.get(TOOLS, _certificate_of(request)).handle_request(request)


class _AsyncBorrowedPools(httpx.AsyncBaseTransport):
    """The async twin of `_BorrowedPools`."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        pool = await self._pools.aget(TOOLS, _certificate_of(request))
        return await pool.handle_async_request(request)


def _certificate_of(request: httpx.Request) -> Certificate | None:
    certificate = request.extensions.get(CERTIFICATE)
    return certificate if isinstance(certificate, Certificate) else None


_ours: ContextVar[bool] = ContextVar("agent_identity_exchange", default=False)


class _Quiet:
    """In this block, httpcore logs no responses: they may echo our secrets. Other clients in the process aren't affected."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = _ours.set(True)

    def __exit__(self, *_: object) -> None:
        _ours.reset(self._token)


def _may_log(record: logging.LogRecord) -> bool:
    # A parse error is a response event, too: it quotes the line that failed.
    return not (_ours.get() and "receive_response" in record.getMessage())


for _name in ("http11", "http2"):
    logging.getLogger(f"httpcore.{_name}").addFilter(_may_log)
