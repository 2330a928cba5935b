# SPDX-License-Identifier: Apache-2.0
"""Requests as raw bytes behind uvicorn, with either of its parsers: trailers aren't headers, and slow bodies aren't waited for."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import httpx2
import pytest
import requests
import uvicorn

from agent_identity.adapters import Tool
from agent_identity.authority import Authority
from agent_identity.http import httpx2_auth, requests_auth
from agent_identity.keys.signing import SigningKey
from agent_identity.verify import MemoryReplay
from agent_identity.verify.asgi import VerifyMiddleware, verified_call

BODY = b'{"total":5}'
CHUNKED = ("transfer-encoding", "chunked")
DECIDING = ("Agent-Assertion", "Agent-Delegation", "Authorization", "DPoP")


class App:
    """Answers 200, and keeps what reached it."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert verified_call(scope).principal.sub == "alice"
        while (await receive()).get("more_body"):
            pass
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@contextmanager
def serving(make: Callable[[str], Any], parser: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            make(url), log_level="critical", ws="none", loop="asyncio", http=parser, lifespan="off"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            limit = time.monotonic() + 60
            while not server.started and time.monotonic() < limit:
                time.sleep(0.01)  # uvicorn has no event for it
            assert server.started
            yield url
        finally:
            server.should_exit = True
            thread.join(10)


class Service:
    """A service that verifies, an agent that calls it, and what reached the application."""

    def __init__(self, caller: Any, app: App, replay: MemoryReplay) -> None:
        self.caller = caller
        self.app = app
        self.replay = replay

    def headers(self, body: bytes = BODY) -> dict[str, str]:
        return self.caller.headers("POST", "/pay", body)

    def connect(self) -> socket.socket:
        host, port = self.caller.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=10)

    def send(self, start: bytes, *body: bytes, apart: bool = False) -> int:
        """The status of the answer to a request, see `exchange`."""
        with self.connect() as connection:
            return exchange(connection, start, *body, apart=apart)


def exchange(connection: socket.socket, start: bytes, *body: bytes, apart: bool) -> int:
    """The status of the answer; `apart` sends the body only once the server has begun to read it, and says so by 100."""
    if apart:
        connection.sendall(start[:-2] + lines(("expect", "100-continue")) + b"\r\n")
        if (status := status_of(connection)) != 100:
            return status
        start = b""
    connection.sendall(start + b"".join(body))
    return status_of(connection)


def status_of(connection: socket.socket) -> int:
    answer = b""
    while not answer.endswith(b"\r\n") and (piece := connection.recv(1)):
        answer += piece
    status = int(answer.split()[1])
    if status == 100:
        connection.recv(2)  # the empty line behind it
    return status


def lines(*headers: tuple[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers).encode()


def head(service: Service, *headers: tuple[str, str], path: str = "/pay") -> bytes:
    host = service.caller.url.removeprefix("http://")
    return f"POST {path} HTTP/1.1\r\nhost: {host}\r\n".encode() + lines(*headers) + b"\r\n"


def chunk(body: bytes = BODY) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


@pytest.fixture(params=["h11", "httptools"])
def open_service(request: pytest.FixtureRequest, calling: Any, clock: Any) -> Any:
    clock.now = time.time()

    @contextmanager
    def opened(allow: frozenset[str] = frozenset(), **options: Any) -> Iterator[Service]:
        app, made, replay = App(), [], MemoryReplay(clock=clock)

        def make(url: str) -> Any:
            context = calling(url)
            made.extend((context, context.__enter__()))
            return VerifyMiddleware(app, made[1].verifier(replay=replay, allow=allow), **options)

        with serving(make, request.param):
            try:
                yield Service(made[1], app, replay)
            finally:
                made[0].__exit__(None, None, None)

    return opened


@pytest.fixture
def service(open_service: Any) -> Iterator[Service]:
    with open_service() as made:
        yield made


@pytest.mark.parametrize("apart", [False, True], ids=["at-once", "apart"])
@pytest.mark.parametrize("late", [*DECIDING, None])
def test_a_trailer_is_no_header(service: Service, late: str | None, apart: bool) -> None:
    """RFC 9110 §6.5.1: trailers are merged into headers only where that is safe, which for credentials it isn't."""
    sent = service.headers()
    trailers = [(name, value) for name, value in sent.items() if late in (name, None)]
    before = [(name, value) for name, value in sent.items() if (name, value) not in trailers]
    status = service.send(
        head(service, *before, CHUNKED), chunk(), b"0\r\n" + lines(*trailers) + b"\r\n", apart=apart
    )
    assert (status, service.app.headers, len(service.replay)) == (401, [], 0)


def test_a_trailer_reaches_the_application_as_no_header(service: Service) -> None:
    sent = service.headers()
    end = b"0\r\n" + lines(("x-late", "1")) + b"\r\n"
    status = service.send(head(service, *sent.items(), CHUNKED), chunk(), end, apart=True)
    assert status == 200
    assert "x-late" not in service.app.headers[0]


@pytest.mark.parametrize("apart", [False, True], ids=["at-once", "apart"])
def test_headers_before_a_chunked_body_count(service: Service, apart: bool) -> None:
    end = b"0\r\n\r\n"
    sent = service.headers().items()
    assert service.send(head(service, *sent, CHUNKED), chunk(), end, apart=apart) == 200
    assert len(service.app.headers) == 1


@pytest.mark.parametrize("open_service", ["httptools"], indirect=True)
def test_headers_that_could_be_trailers_are_refused_and_the_log_says_why(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """Which of a chunked request's headers came before its body can't be told where a server lists trailers among them."""
    sent = service.headers().items()
    assert service.send(head(service, CHUNKED, *sent), chunk(), b"0\r\n\r\n") == 401
    assert "(header_late)" in caplog.text
    assert service.app.headers == []


def test_a_body_that_does_not_come_is_given_up(open_service: Any) -> None:
    with open_service(body_timeout=0.5) as service:
        sent = [*service.headers().items(), ("content-length", str(len(BODY)))]
        with service.connect() as connection:
            connection.sendall(head(service, *sent) + BODY[:3])
            assert status_of(connection) == 408
        assert (service.app.headers, len(service.replay)) == ([], 0)
        assert service.send(head(service, *sent), BODY) == 200


def test_a_request_that_cannot_pass_by_its_headers_is_answered_before_its_body(
    open_service: Any,
) -> None:
    with open_service(body_timeout=3600) as service:
        sent = service.headers() | {"content-length": str(len(BODY))}
        for changed in (
            {"Agent-Assertion": sent["Agent-Delegation"]},
            {"Authorization": "DPoP x"},
            {"DPoP": sent["Agent-Assertion"]},
        ):
            with service.connect() as connection:
                connection.sendall(head(service, *(sent | changed).items()))
                assert status_of(connection) == 401
        with service.connect() as connection:
            connection.sendall(head(service, *sent.items(), path="/other"))
            assert status_of(connection) == 401
        assert service.app.headers == []


@pytest.fixture(params=["h11", "httptools"])
def open_authority(request: pytest.FixtureRequest) -> Any:
    @contextmanager
    def opened(body_timeout: float = 10.0) -> Iterator[Authority]:
        made: list[Authority] = []

        def make(url: str) -> Any:
            made.append(Authority(issuer=url))
            return made[0].asgi(body_timeout=body_timeout)

        with serving(make, request.param):
            yield made[0]
        made[0].close()

    return opened


@pytest.fixture
def authority(open_authority: Any) -> Iterator[Authority]:
    with open_authority() as made:
        yield made


def ask(authority: Authority, start: bytes, *body: bytes, apart: bool = False) -> int:
    host, port = authority.issuer.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        return exchange(connection, start, *body, apart=apart)


@pytest.mark.parametrize("apart", [False, True], ids=["at-once", "apart"])
def test_an_authority_takes_no_credential_from_a_trailer(authority: Authority, apart: bool) -> None:
    token = ("authorization", f"Bearer {authority.registration_token().reveal()}")
    document = {"agent_id": "urn:x:bot", "jwks": {"keys": [SigningKey.generate().public_jwk]}}
    body = json.dumps(document).encode()
    host = ("host", authority.issuer.removeprefix("http://"))
    kind = ("content-type", "application/json")
    start, end = b"POST /register HTTP/1.1\r\n", b"0\r\n"
    before = start + lines(host, kind, CHUNKED) + b"\r\n"
    assert ask(authority, before, chunk(body), end + lines(token) + b"\r\n", apart=apart) in {
        400,
        401,
    }
    before = start + lines(host, kind, token, CHUNKED) + b"\r\n"
    assert ask(authority, before, chunk(body), end + b"\r\n", apart=apart) == 201


def test_an_authority_gives_up_a_body_that_does_not_come(open_authority: Any) -> None:
    with open_authority(0.2) as authority:
        host = ("host", authority.issuer.removeprefix("http://"))
        start = b"POST /token HTTP/1.1\r\n" + lines(host, ("content-length", "10"))
        assert ask(authority, start + b"\r\nabc") == 408


def test_an_authority_answers_a_rebound_name_before_the_body(authority: Authority) -> None:
    other = ("host", "evil.example")
    start = b"POST /token HTTP/1.1\r\n" + lines(other, ("content-length", "10")) + b"\r\n"
    assert ask(authority, start) == 421


def pieces() -> Iterator[bytes]:
    yield BODY


async def apieces() -> AsyncIterator[bytes]:
    yield BODY


@pytest.mark.parametrize("client", ["httpx", "httpx-async", "httpx2", "requests"])
def test_our_own_client_streams_to_a_service_behind_either_parser(
    open_service: Any, client: str
) -> None:
    """Its headers come before Transfer-Encoding, so that no parser can take them for trailers."""
    with (
        open_service(allow=frozenset({"unbound_body"})) as service,
        service.caller.session.call(
            Tool("pay", resource=service.caller.url, scopes=["read"]), {}
        ) as call,
    ):
        url = f"{service.caller.url}/pay"
        credential = call.credential()
        if client == "httpx":
            with httpx.Client(trust_env=False) as sync:
                status = sync.post(url, content=pieces(), auth=credential).status_code
        elif client == "httpx2":
            with httpx2.Client(trust_env=False) as other:
                status = other.post(url, content=pieces(), auth=httpx2_auth(credential)).status_code
        elif client == "requests":
            status = requests.post(
                url, data=pieces(), auth=requests_auth(credential), timeout=30
            ).status_code
        else:

            async def post() -> int:
                async with httpx.AsyncClient(trust_env=False) as asking:
                    return (await asking.post(url, content=apieces(), auth=credential)).status_code

            status = asyncio.run(post())
        assert (status, len(service.app.headers)) == (200, 1)
