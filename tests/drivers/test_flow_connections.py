# SPDX-License-Identifier: Apache-2.0
"""The connections of flows: when one is used again, and what a peer can do to the next exchange."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpcore
import pytest

from agent_identity.errors import TransportError
from agent_identity.flow import HttpRequest, HttpResponse
from agent_identity.http.transport import Transport

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: ([0-9]+)", head)
    return end != b"" and len(body) >= (0 if length is None else int(length[1]))


class Peer:
    """A server of raw bytes: each connection answers its requests by `script`, one after another; None closes it."""

    def __init__(self, *script: bytes | None) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.is_closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            for answer in self._script:
                if answer is None:
                    break
                data = b""
                while not _is_whole(data):
                    more = connection.recv(65536)
                    if not more:
                        return
                    data += more
                self.requests.append(data)
                connection.sendall(answer)
        self.is_closed.set()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    opened: list[Peer] = []

    def peer(*script: bytes | None) -> Peer:
        opened.append(Peer(*script))
        return opened[-1]

    yield peer
    for each in opened:
        each.close()


Exchange = Callable[..., HttpResponse]


@pytest.fixture(params=["sync", "async"])
def exchange(request: pytest.FixtureRequest) -> Iterator[Exchange]:
    """Exchanges of one transport, one after another in one loop."""
    transport = Transport()
    with asyncio.Runner() as loop:

        def go(url: str, seconds: float = 20.0, **parts: Any) -> HttpResponse:
            asked = HttpRequest(parts.pop("method", "GET"), url, **parts)
            if request.param == "sync":
                return transport.exchange(asked, time.monotonic() + seconds)
            return loop.run(transport.aexchange(asked, time.monotonic() + seconds))

        yield go
        loop.run(transport.aclose())


def test_a_connection_is_used_again_after_each_response(exchange: Exchange, peers: Any) -> None:
    peer = peers(OK, OK, OK)
    assert [exchange(peer.url).body for _ in range(3)] == [b"ok"] * 3
    assert peer.connections == 1


def test_a_connection_that_its_peer_has_closed_gets_no_request(
    exchange: Exchange, peers: Any
) -> None:
    peer = peers(OK, None)
    assert exchange(peer.url).body == b"ok"
    assert peer.is_closed.wait(20)
    time.sleep(0.05)
    assert exchange(peer.url).body == b"ok"
    assert peer.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nlocation: https://evil.example/\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
    ],
    ids=["redirect", "compressed", "too large", "to be closed"],
)
def test_a_response_that_isnt_read_to_its_end_ends_its_connection(
    exchange: Exchange, peers: Any, answer: bytes
) -> None:
    """Otherwise the next request would read the rest of it as its own response."""
    peer = peers(answer, OK)
    with contextlib.suppress(TransportError):
        exchange(peer.url)
    with contextlib.suppress(TransportError):
        exchange(peer.url)
    assert peer.connections == 2


def test_informational_responses_are_skipped(exchange: Exchange, peers: Any) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    assert exchange(peers(hints + hints + OK).url).body == b"ok"


def test_a_request_has_its_headers_in_order_and_its_length(exchange: Exchange, peers: Any) -> None:
    peer = peers(OK)
    exchange(peer.url, method="POST", headers={"DPoP": "p"}, body=b"a=b")
    host = peer.url.removeprefix("http://").removesuffix("/").encode()
    assert peer.requests == [
        b"POST / HTTP/1.1\r\nHost: " + host + b"\r\nUser-Agent: agent-identity-sdk\r\nDPoP: p\r\n"
        b"Accept-Encoding: identity\r\nContent-Length: 3\r\n\r\na=b"
    ]


@pytest.mark.parametrize("value", ["a\r\nX-Injected: 1", "a\nb", "a\0b", "ä"])
def test_a_header_that_cant_be_sent_sends_nothing_and_costs_no_connection(
    exchange: Exchange, peers: Any, value: str
) -> None:
    peer = peers(OK, OK)
    for _ in range(101):  # one more than the pool has connections
        with pytest.raises(TransportError, match="the exchange failed"):
            exchange(peer.url, headers={"X": value})
    assert exchange(peer.url).body == b"ok"
    assert len(peer.requests) == 1


def test_a_head_without_end_is_refused(exchange: Exchange, peers: Any) -> None:
    endless = b"HTTP/1.1 200 OK\r\n" + b"x-filler: " + b"a" * 300_000
    with pytest.raises(TransportError, match="RemoteProtocolError"):
        exchange(peers(endless).url)


def test_repeated_headers_are_joined_and_named_in_lower_case(
    exchange: Exchange, peers: Any
) -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\nX-B: \xff\r\ncontent-length: 0\r\n\r\n"
    headers = exchange(peers(answer).url).headers
    assert (headers["x-a"], headers["x-b"]) == ("1, 2", "ÿ")


def test_a_large_body_arrives_whole(exchange: Exchange, peers: Any) -> None:
    body = bytes(range(256)) * 4096
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
    assert exchange(peers(head + body).url).body == body


def test_a_pool_that_raises_StopIteration_forges_nothing(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forge(self: object, request: object) -> httpcore.Response:
        raise StopIteration("forged")

    async def aforge(self: object, request: object) -> httpcore.Response:
        return forge(self, request)

    monkeypatch.setattr("agent_identity.http.network.Network.send", forge)
    monkeypatch.setattr("agent_identity.http.network.AsyncNetwork.send", aforge)
    with pytest.raises((TransportError, RuntimeError)):
        exchange("https://a.invalid/")


def test_a_peer_that_speaks_no_tls_is_a_typed_error(exchange: Exchange, peers: Any) -> None:
    url = peers(None).url.replace("http://", "https://")
    with pytest.raises(TransportError, match="the exchange failed: ConnectError"):
        exchange(url)


def test_an_exchange_that_missed_its_deadline_ends_its_connection(
    exchange: Exchange, peers: Any
) -> None:
    """The rest of its answer may still come, and must not reach another request."""
    peer = peers(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", OK)
    for _ in range(2):
        with pytest.raises(TransportError, match="deadline"):
            exchange(peer.url, seconds=0.3)
    assert peer.connections == 2


def test_many_threads_share_the_pool_and_each_gets_its_own_answer(peers: Any) -> None:
    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(65536):
                path = data.split(b" ")[1]
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(path) + path
                )

    peer = peers()
    peer._serve = serve
    transport = Transport()
    wrong: list[bytes] = []

    def ask(number: int) -> None:
        for turn in range(20):
            path = f"{number}-{turn}"
            url = f"{peer.url}{path}"
            body = transport.exchange(HttpRequest("GET", url), time.monotonic() + 60).body
            if body != f"/{path}".encode():
                wrong.append(body)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    transport.close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("part", [b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"])
def test_a_loop_that_is_closed_amid_an_exchange_leaves_nothing_behind_that_complains(
    peers: Any, part: bytes
) -> None:
    peer = peers(part, OK)
    complaints: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, complaints.append
    try:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # of the task that never ended
        request = HttpRequest("GET", peer.url)
        task = loop.create_task(Transport().aexchange(request, time.monotonic() + 60))
        loop.run_until_complete(asyncio.sleep(0.2))
        assert not task.done()
        loop.close()
        del task
        gc.collect()
    finally:
        sys.unraisablehook = before
    assert [str(each.exc_value) for each in complaints] == []  # type: ignore[attr-defined]
