# SPDX-License-Identifier: Apache-2.0
"""Redirects, over real sockets: no header of the library's goes to another place, whatever a client is told to follow."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import ipaddress
import logging
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import yarl
from cryptography import x509

from agent_identity import (
    AgentIdentity,
    DeniedError,
    current_credential,
    current_session,
    tool,
)
from agent_identity.errors import LedgerError
from agent_identity.http import aiohttp_middleware, httpx2_auth, requests_auth
from agent_identity.provenance.memory import MemoryLedger

OURS = {"authorization", "dpop", "agent-assertion", "agent-delegation", "txn-token", "x-api-key"}
REDIRECTS = (301, 302, 303, 307, 308)


# -- one way of sending for each client ------------------------------------------------------------------------------


def by_httpx(method: str, url: str, **how: Any) -> int:
    with httpx.Client(
        auth=current_credential(), follow_redirects=True, trust_env=False, **how
    ) as client:
        return client.request(
            method, url, content=b"body" if method == "POST" else None
        ).status_code


def by_session_http(method: str, url: str) -> int:
    with current_session().http() as client:
        content = b"body" if method == "POST" else None
        return client.request(method, url, content=content, follow_redirects=True).status_code


def by_httpx2(method: str, url: str, **how: Any) -> int:
    auth = httpx2_auth(current_credential())
    with httpx2.Client(auth=auth, follow_redirects=True, trust_env=False, **how) as client:
        return client.request(
            method, url, content=b"body" if method == "POST" else None
        ).status_code


def by_requests(method: str, url: str, **how: Any) -> int:
    auth = requests_auth(current_credential())
    data = b"body" if method == "POST" else None
    with requests.Session() as client:
        client.trust_env = False
        return client.request(method, url, auth=auth, data=data, timeout=5, **how).status_code


async def by_httpx_async(method: str, url: str, **how: Any) -> int:
    async with httpx.AsyncClient(
        auth=current_credential(), follow_redirects=True, trust_env=False, **how
    ) as client:
        content = b"body" if method == "POST" else None
        return (await client.request(method, url, content=content)).status_code


async def by_session_ahttp(method: str, url: str) -> int:
    async with current_session().ahttp() as client:
        content = b"body" if method == "POST" else None
        answer = await client.request(method, url, content=content, follow_redirects=True)
        return answer.status_code


async def by_httpx2_async(method: str, url: str, **how: Any) -> int:
    auth = httpx2_auth(current_credential())
    async with httpx2.AsyncClient(
        auth=auth, follow_redirects=True, trust_env=False, **how
    ) as client:
        content = b"body" if method == "POST" else None
        return (await client.request(method, url, content=content)).status_code


async def by_aiohttp(method: str, url: str) -> int:
    middlewares = [aiohttp_middleware(current_credential())]
    async with aiohttp.ClientSession(middlewares=middlewares) as client:
        data = b"body" if method == "POST" else None
        async with client.request(method, url, data=data) as response:
            return response.status


SYNC = (by_httpx, by_session_http, by_httpx2, by_requests)
ASYNC = (by_httpx_async, by_session_ahttp, by_httpx2_async, by_aiohttp)
EVERY = [pytest.param(send, id=send.__name__) for send in (*SYNC, *ASYNC)]
HTTPX = [
    pytest.param(send, id=send.__name__)
    for send in (by_httpx, by_httpx2, by_httpx_async, by_httpx2_async)
]
WITHOUT_EVENTS = [
    pytest.param(by_httpx, httpx, id="httpx"),
    pytest.param(by_httpx2, httpx2, id="httpx2"),
    pytest.param(by_httpx_async, httpx, id="httpx-async"),
    pytest.param(by_httpx2_async, httpx2, id="httpx2-async"),
]


def sent_by(send: Any, identity: AgentIdentity, resource: str, *asked: Any, **how: Any) -> Any:
    """What one tool call gives that sends a request, and the records of its session."""
    opened = how.pop("opened", None) or (lambda: identity.on_behalf_of("user:alice", purpose="p"))

    @tool(name="sends", resource=resource, scopes=["read"])
    def sends() -> Any:
        return send(*asked, **how)

    @tool(name="sends", resource=resource, scopes=["read"])
    async def asends() -> Any:
        return await send(*asked, **how)

    async def in_loop() -> Any:
        async with opened() as session:
            return await outcome_of(asends()), session.records()

    if send in ASYNC:
        return asyncio.run(in_loop())
    with opened() as session:
        try:
            return sends(), session.records()
        except DeniedError as error:
            return error, session.records()


async def outcome_of(call: Any) -> Any:
    try:
        return await call
    except DeniedError as error:
        return error


def route(place: Any) -> None:
    """Let a service redirect by path: `place.routes["/api/a"] = (307, location)`; the rest it verifies."""
    verifies = place.answer
    place.routes, place.asked = {}, []

    def answer(method: str, path: str, headers: Any, body: bytes) -> Any:
        place.asked.append(f"{method} {path}")
        if path in place.routes:
            status, location = place.routes[path]
            return status, {"location": location}
        return verifies(method, path, headers, body)

    place.answer = answer


@pytest.fixture(autouse=True)
def routed(service: Any, other: Any) -> None:
    route(service)
    route(other)


@pytest.fixture
def tls_service(make_service: Any, make_ca: Any) -> Any:
    authority = make_ca()
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(authority.issue("service", address))
    made = make_service(tls=shown)
    made.trusted = lambda: ssl.create_default_context(cafile=authority.file)
    route(made)
    return made


def carried(service: Any) -> set[str]:
    """The library's headers that a server was sent."""
    return {name.lower() for head in service.heads for name in head} & OURS


# -- to a stranger ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("send", EVERY)
def test_I06_a_redirect_to_a_stranger_is_refused_before_anything_is_sent(
    bot: AgentIdentity, service: Any, other: Any, send: Any, status: int
) -> None:
    service.routes["/api/a"] = (status, f"{other.origin}/taken")
    error, records = sent_by(send, bot, service.url, "POST", f"{service.url}/a")
    assert isinstance(error, DeniedError)
    assert error.code == "foreign_url"
    assert other.heads == []
    refused = [record for record in records if record.kind == "credential.refused"]
    assert [record.body for record in refused] == [
        {"resource": service.url, "place": other.origin, "code": "foreign_url"}
    ]
    assert refused[0].call_id == error.call_id is not None


@pytest.mark.parametrize("send", EVERY)
def test_I06_the_second_hop_is_refused_like_the_first(
    bot: AgentIdentity, service: Any, other: Any, send: Any
) -> None:
    service.routes["/api/a"] = (307, f"{service.url}/b")
    service.routes["/api/b"] = (307, f"{other.origin}/taken")
    other.routes["/taken"] = (307, f"{service.url}/c")
    error, _ = sent_by(send, bot, service.url, "GET", f"{service.url}/a")
    assert isinstance(error, DeniedError)
    assert error.code == "foreign_url"
    assert service.asked == ["GET /api/a", "GET /api/b"]
    assert other.heads == []


@pytest.mark.parametrize("send", EVERY)
@pytest.mark.parametrize("target", ["/admin", "/apix", "/", "/api/../admin", "/api/%2e%2e/admin"])
def test_I06_a_path_beside_the_resource_is_another_place(
    bot: AgentIdentity, service: Any, send: Any, target: str
) -> None:
    service.routes["/api/a"] = (302, target)
    error, _ = sent_by(send, bot, service.url, "GET", f"{service.url}/a")
    assert isinstance(error, DeniedError)
    assert error.code == "foreign_url"
    assert service.asked == ["GET /api/a"]


@pytest.mark.parametrize("send", EVERY)
def test_I06_another_scheme_or_name_of_the_same_host_is_another_place(
    bot: AgentIdentity, service: Any, send: Any
) -> None:
    elsewhere = (
        service.url.replace("http:", "https:"),
        service.url.replace("127.0.0.1", "localhost"),
    )
    for location in elsewhere:
        service.routes["/api/a"] = (307, location)
        error, _ = sent_by(send, bot, service.url, "GET", f"{service.url}/a")
        assert isinstance(error, DeniedError)
        assert error.code == "foreign_url"
    assert service.asked == ["GET /api/a"] * 2


@pytest.mark.parametrize("send", EVERY)
def test_I06_a_redirect_after_a_nonce_is_refused_too(
    bot: AgentIdentity, service: Any, other: Any, send: Any
) -> None:
    """A client that was made to send twice copies the headers of the first time."""
    service.nonces.append("n-1")
    verifies = service.answer

    def answer(method: str, path: str, headers: Any, body: bytes) -> Any:
        status, found = verifies(method, path, headers, body)
        return (status, found) if status == 401 else (307, {"location": f"{other.origin}/taken"})

    service.answer = answer
    error, _ = sent_by(send, bot, service.url, "GET", f"{service.url}/a")
    assert isinstance(error, DeniedError)
    assert error.code == "foreign_url"
    assert len(service.heads) == 2
    assert other.heads == []


def test_the_log_names_both_places(
    bot: AgentIdentity, service: Any, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    service.routes["/api/a"] = (307, f"{other.origin}/taken?session=s3cret")
    with caplog.at_level(logging.WARNING, "agent_identity"):
        sent_by(by_httpx, bot, service.url, "GET", f"{service.url}/a")
    (line,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert service.url in line
    assert other.origin in line
    assert "s3cret" not in line


# -- within the resource ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("send", EVERY)
def test_a_redirect_within_the_resource_is_signed_anew_and_verifies(
    bot: AgentIdentity, service: Any, send: Any, status: int
) -> None:
    service.routes["/api/a"] = (status, "/api/b")
    service.routes["/api/b"] = (307, f"{service.url}/c?x=1")
    found, records = sent_by(send, bot, service.url, "POST", f"{service.url}/a")
    assert found == 200
    method = "POST" if status in (307, 308) else "GET"
    assert service.asked == ["POST /api/a", f"{method} /api/b", f"{method} /api/c?x=1"]
    for name in ("Agent-Assertion", "DPoP"):
        assert len({head[name] for head in service.heads}) == 3
    assert not [record for record in records if record.kind == "credential.refused"]


@pytest.mark.parametrize("send", EVERY)
def test_a_redirect_to_the_very_same_url_is_signed_anew(
    bot: AgentIdentity, service: Any, send: Any
) -> None:
    """An assertion is good once, and the server that redirects may have used it."""
    verifies = service.answer
    answers = iter([(303, {"location": "/api/a"})])
    service.answer = lambda *asked: next(answers, None) or verifies(*asked)
    found, _ = sent_by(send, bot, service.url, "GET", f"{service.url}/a")
    assert found == 200
    assert len({head["Agent-Assertion"] for head in service.heads}) == 2


# -- clients that follow nothing -------------------------------------------------------------------------------------


def test_a_client_that_follows_nothing_gets_the_redirect_itself(
    bot: AgentIdentity, service: Any, other: Any
) -> None:
    service.routes["/api/a"] = (307, f"{other.origin}/taken")

    @tool(resource=service.url, scopes=["read"])
    def asks() -> list[int]:
        url, credential = f"{service.url}/a", current_credential()
        return [
            httpx.get(url, auth=credential).status_code,
            httpx2.get(url, auth=httpx2_auth(credential)).status_code,
            requests.get(
                url, auth=requests_auth(credential), allow_redirects=False, timeout=5
            ).status_code,
        ]

    with bot.on_behalf_of("user:alice", purpose="p") as session:
        assert asks() == [307] * 3
        assert "credential.refused" not in [record.kind for record in session.records()]
    assert other.heads == []


def test_I06_the_next_request_that_a_client_prepares_is_held_to_the_resource_too(
    bot: AgentIdentity, service: Any, other: Any
) -> None:
    service.routes["/api/a"] = (307, f"{other.origin}/taken")

    @tool(resource=service.url, scopes=["read"])
    def asks() -> list[str]:
        url, credential, codes = f"{service.url}/a", current_credential(), []
        with httpx.Client() as one, httpx2.Client() as two, requests.Session() as three:
            following = [
                (one, one.get(url, auth=credential).next_request),
                (two, two.get(url, auth=httpx2_auth(credential)).next_request),
                (three, three.get(url, auth=requests_auth(credential), allow_redirects=False).next),
            ]
            for client, request in following:
                with pytest.raises(DeniedError) as caught:
                    client.send(request)
                codes.append(caught.value.code)
        return codes

    with bot.on_behalf_of("user:alice", purpose="p"):
        assert asks() == ["foreign_url"] * 3
    assert other.heads == []


# -- legacy credentials ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("send", EVERY)
def test_I06_an_api_key_in_a_header_of_its_own_goes_nowhere_else(
    service: Any, other: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, send: Any
) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "key").write_text("canary-api-key\n")
    path = tmp_path / "agent-identity.toml"
    path.write_text(
        f'[agent]\nname = "bot"\n[resources."{service.url}"]\nsource = "api-key"\n'
        'secret = "file:key"\nheader = "X-Api-Key"\n'
        '[policy]\nengine = "grants-only"\n[ledger]\nurl = "memory:"\n'
    )
    for file in (path, tmp_path / "key"):
        file.chmod(0o600)
    service.routes["/api/a"] = (307, f"{service.url}/b")
    service.routes["/api/b"] = (307, f"{other.origin}/taken")
    with AgentIdentity.from_config(path) as identity:
        opened = lambda: identity.autonomous(trigger="cron:nightly", purpose="p")
        error, _ = sent_by(send, identity, service.url, "GET", f"{service.url}/a", opened=opened)
    assert isinstance(error, DeniedError)
    assert error.code == "foreign_url"
    assert [head["X-Api-Key"] for head in service.heads] == ["canary-api-key"] * 2
    assert other.heads == []


# -- what a user's own trace function sees ---------------------------------------------------------------------------


@pytest.mark.parametrize("client", [httpx, httpx2], ids=lambda module: module.__name__)
def test_a_users_own_trace_function_is_called_first_and_gets_every_event(
    bot: AgentIdentity, service: Any, other: Any, client: Any
) -> None:
    events: list[str] = []
    service.routes["/api/a"] = (307, f"{other.origin}/taken")

    async def notes(name: str, info: object) -> None:
        events.append(name)

    def auth() -> Any:
        credential = current_credential()
        return credential if client is httpx else httpx2_auth(credential)

    @tool(resource=service.url, scopes=["read"])
    def asks(path: str) -> object:
        own = {"trace": lambda name, info: events.append(name)}
        with client.Client(auth=auth(), follow_redirects=True) as one:
            request = one.build_request("GET", service.url + path, extensions=own)
            answer = one.send(request)
            assert request.extensions["trace"] is own["trace"]
            return answer.status_code

    @tool(resource=service.url, scopes=["read"])
    async def asks_async(path: str) -> object:
        async with client.AsyncClient(auth=auth(), follow_redirects=True) as one:
            answer = await one.get(service.url + path, extensions={"trace": notes})
            return answer.status_code

    async def in_loop(path: str) -> object:
        async with bot.on_behalf_of("user:alice", purpose="p"):
            return await asks_async(path)

    def in_thread(path: str) -> object:
        with bot.on_behalf_of("user:alice", purpose="p"):
            return asks(path)

    for way in (in_thread, lambda path: asyncio.run(in_loop(path))):
        events.clear()
        assert way("/b") == 200
        assert "http11.send_request_headers.started" in events
        assert "http11.receive_response_body.complete" in events
        events.clear()
        with pytest.raises(DeniedError):
            way("/a")
        assert events[-1] == "connection.connect_tcp.started"  # which went no further
        assert events.count("connection.connect_tcp.complete") == 1
    assert other.heads == []


# -- transports that report nothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("send", "client"), WITHOUT_EVENTS)
def test_where_a_transport_reports_nothing_the_refusal_comes_with_the_answer_and_is_recorded(
    bot: AgentIdentity, send: Any, client: Any
) -> None:
    resource, seen = "https://billing.example/api", []

    def handler(request: Any) -> Any:
        seen.append(request.url.host)
        moved = {"/api/a": "https://evil.example/b", "/b": "https://billing.example/api/c"}
        location = moved.get(request.url.path)
        return (
            client.Response(200)
            if location is None
            else client.Response(307, headers={"location": location})
        )

    transport = client.MockTransport(handler)
    error, records = sent_by(send, bot, resource, "GET", f"{resource}/a", transport=transport)
    assert isinstance(error, DeniedError)
    assert error.code == "foreign_url"
    assert "evil.example" in seen
    refused = [record.body for record in records if record.kind == "credential.refused"]
    assert [body["place"] for body in refused] == ["https://evil.example"]


# -- behind a forward proxy ------------------------------------------------------------------------------------------


class Proxy:
    """A forward proxy on loopback: whole URLs for http, CONNECT for https; `carried` is what it was sent to pass on."""

    def __init__(self) -> None:
        outer = self
        self.asked: list[str] = []
        self.heads: list[dict[str, str]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append(f"{self.command} {self.path}")
                outer.heads.append(dict(self.headers))
                place, _, below = self.path.removeprefix("http://").partition("/")
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                onward = http.client.HTTPConnection(place, timeout=5)
                onward.request(self.command, f"/{below}", body, dict(self.headers))
                answer = onward.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("server", "date"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                onward.close()

            do_POST = do_GET

            def do_CONNECT(self) -> None:
                outer.asked.append(f"CONNECT {self.path}")
                outer.heads.append(dict(self.headers))
                host, _, port = self.path.partition(":")
                with socket.create_connection((host, int(port)), timeout=5) as onward:
                    self.send_response(200)
                    self.end_headers()
                    ends = {self.connection: onward, onward: self.connection}
                    while True:
                        ready, _, _ = select.select([*ends], [], [], 5)
                        chunks = [(ends[one], one.recv(65536)) for one in ready]
                        if not chunks or not all(chunk for _, chunk in chunks):
                            break
                        for end, chunk in chunks:
                            end.sendall(chunk)
                self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        serve = self._server.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


@pytest.mark.parametrize("send", [*HTTPX, pytest.param(by_requests, id="by_requests")])
def test_behind_a_forward_proxy_the_target_names_the_place(
    bot: AgentIdentity, service: Any, other: Any, proxy: Proxy, send: Any
) -> None:
    how = {"proxies": {"http": proxy.url}} if send is by_requests else {"proxy": proxy.url}
    service.routes["/api/a"] = (307, f"{service.url}/b")
    found, _ = sent_by(send, bot, service.url, "POST", f"{service.url}/a", **how)
    assert found == 200
    assert proxy.asked == [f"POST {service.url}/a", f"POST {service.url}/b"]
    service.routes["/api/b"] = (307, f"{other.origin}/taken")
    error, _ = sent_by(send, bot, service.url, "POST", f"{service.url}/a", **how)
    assert isinstance(error, DeniedError)
    assert error.code == "foreign_url"
    assert other.heads == []
    assert not [asked for asked in proxy.asked if other.origin in asked]


@pytest.mark.parametrize("send", HTTPX)
def test_a_tunnel_through_a_proxy_carries_no_header_of_ours_and_ends_at_the_resource(
    bot: AgentIdentity, proxy: Proxy, tls_service: Any, other: Any, send: Any
) -> None:
    tls_service.routes["/api/a"] = (307, f"{tls_service.url}/b")
    how = {"proxy": proxy.url, "verify": tls_service.trusted()}
    found, _ = sent_by(send, bot, tls_service.url, "GET", f"{tls_service.url}/a", **how)
    assert found == 200
    assert all(asked.startswith("CONNECT 127.0.0.1:") for asked in proxy.asked)
    assert carried(proxy) == set()
    tls_service.routes["/api/b"] = (307, f"{other.origin}/taken")
    error, _ = sent_by(send, bot, tls_service.url, "GET", f"{tls_service.url}/a", **how)
    assert isinstance(error, DeniedError)
    assert error.code == "foreign_url"
    assert other.heads == []
    assert carried(proxy) == set()


# -- a ledger that can't be written ----------------------------------------------------------------------------------


class Stuck(MemoryLedger):
    """Refuses one kind of record."""

    def append(self, draft: Any, /) -> None:
        if draft.kind == "credential.refused":
            raise LedgerError("ledger_busy", "somebody else writes")
        super().append(draft)


@pytest.mark.parametrize("send", EVERY)
def test_a_refusal_that_cannot_be_recorded_is_a_refusal_all_the_same(
    make_identity: Any, send: Any, service: Any, other: Any
) -> None:
    bot = make_identity(ledger=Stuck())
    service.routes["/api/a"] = (307, f"{other.origin}/taken")
    error, _ = sent_by(send, bot, service.url, "GET", f"{service.url}/a")
    assert isinstance(error, DeniedError)
    assert error.code == "foreign_url"
    assert other.heads == []


async def by_moved_aiohttp(method: str, url: str, elsewhere: str) -> int:
    async def move(request: Any, handler: Any) -> Any:
        request.url = yarl.URL(elsewhere)
        return await handler(request)

    middlewares = [aiohttp_middleware(current_credential()), move]
    async with (
        aiohttp.ClientSession(middlewares=middlewares) as client,
        client.request(method, url) as response,
    ):
        return response.status


def test_a_middleware_that_moves_a_request_is_refused_as_soon_as_its_answer_shows_that(
    service: Any, other: Any, identity: AgentIdentity
) -> None:
    """A middleware of aiohttp that runs after ours can't be seen before; it is too late for the headers, and on record."""
    outcome, records = moved_by(by_moved_aiohttp, identity, service.url, other.url)
    assert (type(outcome), outcome.code) == (DeniedError, "foreign_url")
    assert [each.body["code"] for each in records if each.kind == "credential.refused"] == [
        "foreign_url"
    ]


def moved_by(send: Any, identity: AgentIdentity, resource: str, elsewhere: str) -> Any:
    @tool(name="sends", resource=resource, scopes=["read"])
    async def sends() -> Any:
        return await send("GET", f"{resource}/a", f"{elsewhere}/b")

    async def in_loop() -> Any:
        async with identity.on_behalf_of("user:alice", purpose="p") as session:
            return await outcome_of(sends()), session.records()

    return asyncio.run(in_loop())
