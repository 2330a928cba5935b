# SPDX-License-Identifier: Apache-2.0
"""The HTTP door against real servers on loopback, sync and async alike."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import respx

from agent_identity.errors import TransportError
from agent_identity.flow import HttpRequest, HttpResponse
from agent_identity.http.transport import Transport
from agent_identity.testing import assert_no_leak

SECRET = "canary-token-0123456789abcdef"
Serve = Callable[[socket.socket, bytes], None]


@contextlib.contextmanager
def server(answer: Serve) -> Iterator[tuple[str, list[bytes]]]:
    """A server of raw bytes: `answer` gets the connection and the request's head, `received` keeps all heads."""
    received: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            head = b""
            while b"\r\n\r\n" not in head:
                data = connection.recv(65536)
                if not data:
                    return
                head += data
            received.append(head)
            answer(connection, head)

    def accept() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
    finally:
        stop.set()
        listener.close()


def replies(body: bytes, status: str = "200 OK", **headers: str) -> Serve:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())

    def answer(connection: socket.socket, head: bytes) -> None:
        length = f"content-length: {len(body)}\r\n"
        connection.sendall(f"HTTP/1.1 {status}\r\n{lines}{length}\r\n".encode() + body)

    return answer


def sync_exchange(transport: Transport, request: HttpRequest, seconds: float) -> HttpResponse:
    return transport.exchange(request, time.monotonic() + seconds)


def async_exchange(transport: Transport, request: HttpRequest, seconds: float) -> HttpResponse:
    async def go() -> HttpResponse:
        try:
            return await transport.aexchange(request, time.monotonic() + seconds)
        finally:
            await transport.aclose()

    return asyncio.run(go())


@pytest.fixture(params=[sync_exchange, async_exchange], ids=["sync", "async"])
def exchange(request: pytest.FixtureRequest) -> Iterator[Callable[..., HttpResponse]]:
    transport = Transport()

    def go(url: str, seconds: float = 60.0, **parts: Any) -> HttpResponse:
        asked = HttpRequest(parts.pop("method", "GET"), url, **parts)
        return request.param(transport, asked, seconds)

    yield go
    transport.close()


def test_an_exchange_brings_status_headers_and_body(exchange) -> None:
    with server(replies(b"hello", X_Thing="1")) as (url, received):
        answer = exchange(f"{url}/path?q=1", method="POST", headers={"X-Mine": "2"}, body=b"abc")
    assert (answer.status, answer.headers["x-thing"], answer.body) == (200, "1", b"hello")
    head = received[0].lower()
    assert head.startswith(b"post /path?q=1 http/1.1")
    assert b"x-mine: 2" in head
    assert b"accept-encoding: identity" in head


@pytest.mark.parametrize("where", ["head", "body"])
def test_D02_one_byte_every_so_often_is_cut_at_the_absolute_deadline(exchange, where) -> None:
    """Each single read is short; only a deadline for the whole exchange ends it."""

    def drip(connection: socket.socket, head: bytes) -> None:
        if where == "body":
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
        for _ in range(1_200):
            connection.sendall(b"a")
            if is_over.wait(0.05):
                return

    is_over = threading.Event()
    with server(drip) as (url, _):
        with pytest.raises(TransportError) as caught:
            exchange(url, seconds=0.4)
        is_over.set()
    assert caught.value.code == "deadline_exceeded"


def test_a_connection_that_nobody_answers_ends_at_the_deadline(exchange) -> None:
    is_over = threading.Event()
    with server(lambda connection, head: is_over.wait(60)) as (url, _):
        with pytest.raises(TransportError, match="deadline"):
            exchange(url, seconds=0.3)
        assert not is_over.is_set()
        is_over.set()


def endless(connection: socket.socket, head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"a" * 0x10000 + b"\r\n")


def lying(connection: socket.socket, head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\nabc")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (replies(b"a" * (1024 * 1024 + 1)), "body_too_large"),
        (endless, "body_too_large"),
        (lying, "body_too_large"),
        (replies(gzip.compress(b"\0" * 50_000_000), content_encoding="gzip"), "encoded_body"),
    ],
    ids=["one byte too many", "endless chunks", "false length", "gzip bomb"],
)
def test_D04_a_body_beyond_the_cap_is_cut_and_memory_stays_flat(exchange, answer, code) -> None:
    with server(answer) as (url, _):
        with contextlib.suppress(TransportError):
            exchange(url)  # what httpx loads on first use isn't the body's memory
        tracemalloc.start()
        try:
            with pytest.raises(TransportError) as caught:
                exchange(url)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert caught.value.code == code
    assert peak < 4 * 1024 * 1024


def test_a_body_of_exactly_the_cap_is_read(exchange) -> None:
    with server(replies(b"a" * (1024 * 1024))) as (url, _):
        assert len(exchange(url).body) == 1024 * 1024


@pytest.mark.parametrize("status", ["301 X", "302 X", "303 X", "307 X", "308 X"])
def test_a_redirect_is_followed_nowhere(exchange, status) -> None:
    with server(replies(b"")) as (elsewhere, reached):
        redirect = replies(b"", status, location=f"{elsewhere}/?t={SECRET}")
        with server(redirect) as (url, _):
            answer = exchange(url, method="POST", body=SECRET.encode())
    assert (answer.status, answer.headers, answer.body) == (int(status[:3]), {}, b"")
    assert reached == []


@pytest.mark.parametrize(
    "url",
    [
        "http://idp.example/token",
        "http://localhost:80@evil.example/",
        "ftp://127.0.0.1/",
        "http://127.0.0.1.evil.example/",
    ],
)
def test_anything_but_https_is_refused_unless_it_is_loopback(exchange, url) -> None:
    with pytest.raises(TransportError) as caught:
        exchange(url)
    assert caught.value.code in ("insecure_url", "url_malformed")


def test_proxies_and_netrc_of_the_environment_have_no_effect(
    exchange, monkeypatch, tmp_path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login eve password eve\n")
    netrc.chmod(0o600)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    with server(replies(b"direct")) as (url, received):
        assert exchange(url).body == b"direct"
    assert b"authorization" not in received[0].lower()


@pytest.mark.parametrize(
    "answer",
    [
        lambda connection, head: connection.close(),
        lambda connection, head: connection.sendall(b"not http at all\r\n\r\n"),
        lambda connection, head: connection.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"
        ),
    ],
    ids=["closed", "garbage", "truncated"],
)
def test_a_broken_peer_is_a_typed_error_that_holds_no_secret(exchange, answer) -> None:
    with server(answer) as (url, _), pytest.raises(TransportError) as caught:
        exchange(
            f"{url}/x",
            method="POST",
            headers={"Authorization": f"Bearer {SECRET}"},
            body=SECRET.encode(),
        )
    assert caught.value.retryable
    assert_no_leak([SECRET], caught.value)


def test_a_closed_port_is_a_typed_error(exchange) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransportError) as caught:
        exchange(f"http://127.0.0.1:{port}")
    assert caught.value.code == "exchange_failed"


def test_a_transport_that_raises_StopIteration_forges_nothing(monkeypatch) -> None:
    def forge(self: object, request: object) -> httpx.Response:
        raise StopIteration("forged")

    async def aforge(self: object, request: object) -> httpx.Response:
        return forge(self, request)

    monkeypatch.setattr("agent_identity.http.network.Network.handle_request", forge)
    monkeypatch.setattr("agent_identity.http.network.AsyncNetwork.handle_async_request", aforge)
    for exchange in (sync_exchange, async_exchange):
        with pytest.raises((TransportError, RuntimeError)):
            exchange(Transport(), HttpRequest("GET", "https://a.invalid/"), 5.0)


async def test_async_code_uses_httpx_as_it_is() -> None:
    """respx stands in for httpx's own transport: what reaches it is what httpx would send."""
    transport = Transport()
    with respx.mock:
        route = respx.post("https://idp.example/token").mock(
            return_value=httpx.Response(200, json={"ok": True})
        )
        answer = await transport.aexchange(
            HttpRequest("POST", "https://idp.example/token", {"DPoP": "p"}, b"a=b"),
            time.monotonic() + 5,
        )
        assert answer.body == b'{"ok":true}'
        assert route.calls.last.request.headers["dpop"] == "p"
        assert route.calls.last.request.content == b"a=b"
    await transport.aclose()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_connections_are_pooled_and_a_forked_child_opens_its_own() -> None:
    connections: list[int] = []

    def keep_alive(connection: socket.socket, head: bytes) -> None:
        connections.append(id(connection))
        while True:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            head = b""
            while b"\r\n\r\n" not in head:
                data = connection.recv(65536)
                if not data:
                    return
                head += data

    transport = Transport()
    with server(keep_alive) as (url, _):
        for _ in range(3):
            assert sync_exchange(transport, HttpRequest("GET", url), 5.0).body == b"ok"
        assert len(connections) == 1
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(Exception):
                code = (
                    0 if sync_exchange(transport, HttpRequest("GET", url), 5.0).body == b"ok" else 1
                )
            os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(connections) == 2
        assert sync_exchange(transport, HttpRequest("GET", url), 5.0).body == b"ok"
        assert len(connections) == 2
    transport.close()
