# SPDX-License-Identifier: Apache-2.0
"""The connections of flows and of httpx clients, and their TLS contexts."""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
import tempfile
from typing import TYPE_CHECKING, Final

import httpcore
import httpx

from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

    from agent_identity.values import Certificate

_CONNECTIONS: Final = 100
_KEPT: Final = 20
_IDLE: Final = 30.0


@functools.cache
def tls(authorities: str | None = None) -> ssl.SSLContext:
    """Return a context that trusts the public authorities, and those in the file `authorities` (PEM).

    Raises:
        ConfigurationError: `authorities_unusable`, the file holds no authorities.
    """
    return _context(authorities)


def client_context(certificate: Certificate, authorities: str | None = None) -> ssl.SSLContext:
    """Return a context with a client certificate, which also trusts the authorities in the certificate's bundle.

    The key isn't written to disk if the system has in-memory files.

    Raises:
        ConfigurationError: `certificate_unusable`, certificate, key and authorities can't be used together.
    """
    context = _context(authorities)
    if not _shows(context, certificate):
        raise ConfigurationError(
            "certificate_unusable",
            "the client certificate, its key and its authorities can't be used together",
            remedy="configure the chain, leaf first, and the unencrypted key of that leaf, both as PEM",
        )
    return context


def _shows(context: ssl.SSLContext, certificate: Certificate) -> bool:
    """Load a certificate into a context. Its frame holds the key, and is gone when the caller raises."""
    chain = certificate.chain.rstrip()
    with _file_with(f"{chain}\n{certificate.key.reveal()}".encode()) as path:
        try:
            context.load_cert_chain(path)
            if certificate.bundle:
                context.load_verify_locations(cadata=certificate.bundle)
        except (ssl.SSLError, OSError, ValueError):
            return False
    return True


def _context(authorities: str | None = None) -> ssl.SSLContext:
    context = httpx.create_ssl_context(trust_env=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authorities is None:
        return context
    try:
        context.load_verify_locations(cafile=authorities)
    except (ssl.SSLError, OSError):
        raise ConfigurationError(
            "authorities_unusable",
            f"{authorities} holds no certificate authorities",
            remedy="write them to the file as PEM, or correct [http] ca",
        ) from None
    return context


@contextlib.contextmanager
def _file_with(data: bytes) -> Generator[str]:
    """A private file with these bytes, since OpenSSL reads keys only from files."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("agent-identity", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile(prefix="agent-identity-") as file:  # made with mode 0600
        file.write(data)
        file.flush()
        yield file.name


class Network(httpx.BaseTransport):
    """Sync connections through our own backend, so that every wait ends at the deadline of its exchange.

    Flows use `send`: for them httpx's requests and responses would do nothing, and take a third of an exchange's time.
    """

    def __init__(self, context: ssl.SSLContext, backend: httpcore.NetworkBackend) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=_CONNECTIONS,
            max_keepalive_connections=_KEPT,
            keepalive_expiry=_IDLE,
            network_backend=backend,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.SyncByteStream)  # noqa: S101 - a sync client makes no other
        with _as_httpx_errors():
            response = self._pool.handle_request(_to_httpcore(request, request.stream))
        return _to_httpx(response, _Stream(response))

    def send(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request. The caller closes the response."""
        return self._pool.handle_request(request)

    def close(self) -> None:
        self._pool.close()


class AsyncNetwork(httpx.AsyncBaseTransport):
    """The async twin of `Network`."""

    def __init__(self, context: ssl.SSLContext, backend: httpcore.AsyncNetworkBackend) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=_CONNECTIONS,
            max_keepalive_connections=_KEPT,
            keepalive_expiry=_IDLE,
            network_backend=backend,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)  # noqa: S101 - an async client makes no other
        with _as_httpx_errors():
            response = await self._pool.handle_async_request(_to_httpcore(request, request.stream))
        return _to_httpx(response, _AsyncStream(response))

    async def send(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request. The caller closes the response."""
        return await self._pool.handle_async_request(request)

    async def aclose(self) -> None:
        await self._pool.aclose()


def _to_httpcore(
    request: httpx.Request, stream: httpx.SyncByteStream | httpx.AsyncByteStream
) -> httpcore.Request:
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        ),
        headers=request.headers.raw,
        content=stream,
        extensions=request.extensions,
    )


def _to_httpx(
    response: httpcore.Response, stream: httpx.SyncByteStream | httpx.AsyncByteStream
) -> httpx.Response:
    return httpx.Response(
        status_code=response.status,
        headers=response.headers,
        stream=stream,
        extensions=response.extensions,  # pyright: ignore[reportUnknownMemberType,reportUnknownArgumentType]  # open in httpcore
    )


@contextlib.contextmanager
def _as_httpx_errors() -> Generator[None]:
    """Raise httpcore's errors as their httpx counterparts, which users of our clients catch."""
    try:
        yield
    except (
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    ) as error:
        kind = getattr(httpx, type(error).__name__, httpx.TransportError)
        raise kind(str(error)) from error


class _Stream(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx_errors():
            yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


class _AsyncStream(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors():
            async for chunk in self._response.aiter_stream():
                yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()
