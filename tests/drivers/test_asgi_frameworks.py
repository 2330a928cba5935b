# SPDX-License-Identifier: Apache-2.0
"""The middleware in the frameworks that it is for, behind a real server, and called over real sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Any

import httpx
import litestar
import pytest
import uvicorn
from fastapi import Depends, FastAPI, WebSocket
from litestar.middleware import DefineMiddleware
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient, WebSocketDenialResponse

from agent_identity import AgentIdentityError, DeniedError, current_credential, tool
from agent_identity.verify import VerifiedCall
from agent_identity.verify.asgi import VerifyMiddleware, require, verified_call

TYPE = "urn:agent-identity:problem:"


@contextmanager
def serving(make: Any, **options: Any) -> Iterator[str]:
    """The application that `make(url)` gives, behind uvicorn on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            make(url), log_level="critical", ws="none", loop="asyncio", http="h11", **options
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


@pytest.fixture
def served(calling, clock) -> Any:
    """`with served(make) as caller`: the application, and an agent that calls it; `make` gets the verifier."""
    clock.now = time.time()

    @contextmanager
    def opened(make: Any, **options: Any) -> Iterator[Any]:
        verifier_options = options.pop("verifier", {})
        opening: list[Any] = []

        def made(url: str) -> Any:
            context = calling(url)
            caller = context.__enter__()
            opening.extend((context, caller))
            return make(caller.verifier(**verifier_options))

        with serving(made, **options):
            try:
                yield opening[1]
            finally:
                opening[0].__exit__(None, None, None)

    return opened


def get(caller: Any, target: str, **more: Any) -> httpx.Response:
    return httpx.get(
        caller.url + target, headers=caller.headers("GET", target, **more), trust_env=False
    )


def post(caller: Any, target: str, body: bytes, **more: Any) -> httpx.Response:
    return httpx.post(
        caller.url + target,
        headers=caller.headers("POST", target, body, **more) | {"content-type": "application/json"},
        content=body,
        trust_env=False,
    )


def kind(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    return response.json()["type"].removeprefix(TYPE)


def raw(caller: Any, target: str, headers: Any) -> bytes:
    """One request with these very bytes, and all of the answer."""
    host, port = caller.url.removeprefix("http://").split(":")
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "connection: close", "", ""]).encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


# -- FastAPI --------------------------------------------------------------------------------------------------------------

ran: list[str] = []


def fastapi(verifier: Any) -> FastAPI:
    ran.clear()
    app = FastAPI()

    @app.get("/invoices")
    def invoices(call: Annotated[VerifiedCall, Depends(require(scopes=["read"]))]) -> Any:
        return {"for": call.principal.sub, "tool": call.call and call.call.tool}

    @app.post("/pay")
    async def pay(
        payment: dict[str, int],
        call: Annotated[VerifiedCall, Depends(require(tool="pay", scopes=["pay"]))],
    ) -> Any:
        ran.append("pay")
        return {"for": call.principal.sub, "total": payment["total"]}

    @app.get("/files/{name:path}")
    def files(name: str, request: Request) -> Any:
        return {"name": name, "for": verified_call(request).principal.sub}

    @app.get("/healthz")
    def healthz() -> Any:
        return {"ok": True}

    @app.get("/forgotten", dependencies=[Depends(require())])
    def forgotten() -> None:
        ran.append("forgotten")

    @app.get("/broken")
    def broken() -> None:
        raise ZeroDivisionError

    @app.post("/upload")
    async def upload(request: Request) -> Any:
        return {"size": len(await request.body())}

    @app.websocket("/feed")
    async def feed(
        websocket: WebSocket, call: Annotated[VerifiedCall, Depends(require(scopes=["read"]))]
    ) -> None:
        await websocket.accept()
        await websocket.send_text(call.principal.sub)
        await websocket.close()

    app.add_middleware(
        VerifyMiddleware, verifier=verifier, public={"/healthz", "/forgotten"}, body_limit=100_000
    )
    return app


def test_fastapi_knows_who_calls(served) -> None:
    with served(fastapi) as caller:
        answer = get(caller, "/invoices?customer=ACME")
        assert (answer.status_code, answer.json()) == (200, {"for": "alice", "tool": "sign"})
        paid = post(caller, "/pay", b'{"total": 3}', scopes=("pay",), tool="pay")
        assert (paid.status_code, paid.json()) == (200, {"for": "alice", "total": 3})


def test_fastapi_refuses_by_kind(served) -> None:
    with served(fastapi) as caller:
        lacks = post(caller, "/pay", b'{"total": 3}', tool="pay")
        assert (lacks.status_code, kind(lacks), lacks.json()["scope"]) == (
            403,
            "insufficient_scope",
            "pay",
        )
        other = post(caller, "/pay", b'{"total": 3}', scopes=("pay",))
        assert (other.status_code, kind(other)) == (403, "forbidden")
        nobody = httpx.get(caller.url + "/invoices", trust_env=False)
        assert (nobody.status_code, kind(nobody)) == (401, "credentials_required")
        assert ran == []


def test_what_is_public_and_what_is_not(served) -> None:
    with served(fastapi) as caller:
        assert httpx.get(caller.url + "/healthz", trust_env=False).json() == {"ok": True}
        forgotten = httpx.get(caller.url + "/forgotten", trust_env=False)
        assert (forgotten.status_code, kind(forgotten), ran) == (401, "credentials_required", [])
        for path in ("/healthz/", "/docs", "/openapi.json", "/unknown", "/%68ealthz"):
            assert raw(caller, path, [("host", "127.0.0.1")]).startswith(b"HTTP/1.1 401 "), path


def test_an_applications_own_error_is_a_500_as_ever(served) -> None:
    with served(fastapi) as caller:
        answer = get(caller, "/broken")
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")


def test_our_own_client_steps_up_to_the_scopes_that_it_is_told_within_the_sessions(served) -> None:
    with served(fastapi) as caller:

        @tool(resource=caller.url, scopes=["read"])
        def pay() -> httpx.Response:
            client = httpx.Client(auth=current_credential(), trust_env=False)
            with client:
                return client.post(f"{caller.url}/pay", json={"total": 5})

        with caller.identity.on_behalf_of("user:alice", purpose="p", scopes=["read", "pay"]):
            answer = pay()
        assert (answer.status_code, answer.json()) == (200, {"for": "alice", "total": 5})
        with pytest.raises(DeniedError) as caught:
            pay()  # nothing allows that session more than the tool's own scopes
        assert caught.value.code == "scope_not_granted"


def test_large_and_chunked_bodies_arrive_whole_and_too_large_ones_not_at_all(served) -> None:
    with served(fastapi) as caller:
        body = bytes(range(256)) * 300
        assert post(caller, "/upload", body).json() == {"size": len(body)}
        chunks = httpx.post(
            f"{caller.url}/upload",
            headers=caller.headers("POST", "/upload", body),
            content=(body[at : at + 1000] for at in range(0, len(body), 1000)),
            trust_env=False,
        )
        assert chunks.json() == {"size": len(body)}
        whole = body * 2
        headers = caller.headers("POST", "/upload", whole)
        for content in (whole, iter([whole[:90_000], whole[90_000:]])):
            large = httpx.post(
                f"{caller.url}/upload", headers=headers, content=content, trust_env=False
            )
            assert (large.status_code, kind(large)) == (413, "too_large")


def test_a_client_that_hangs_up_in_its_body_harms_nobody(served) -> None:
    with served(fastapi) as caller:
        host, port = caller.url.removeprefix("http://").split(":")
        headers = caller.headers("POST", "/upload", b"whole")
        lines = ["POST /upload HTTP/1.1", f"host: {host}:{port}", "content-length: 5"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall("\r\n".join([*lines, "", "who"]).encode())
        assert get(caller, "/invoices").status_code == 200


@pytest.mark.parametrize("path", ["/files/a%2Fb", "/files/a%20b", "/files//a", "/files/%C3%A9"])
def test_a_path_is_verified_as_it_was_sent(served, path: str) -> None:
    with served(fastapi) as caller:
        headers = [*caller.signed_anyhow("GET", path).items(), ("host", caller.url[7:])]
        answer = raw(caller, path, headers)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"for":"alice"' in answer


@pytest.mark.parametrize(
    ("signed", "sent"),
    [
        ("/files/a", "/files/x/../a"),
        ("/files/a", "/files/x/%2e%2e/a"),
        ("/files/a", "/./files/a"),
        ("/files/a", "/files//a"),
        ("/files/a/b", "/files/a%2Fb"),
        ("/files/a?x=1", "/files/a?x=1#&x=2"),
        ("/files/a", "/files/a#b"),
    ],
)
def test_a_path_that_was_sent_otherwise_than_signed_is_refused(
    served, signed: str, sent: str
) -> None:
    with served(fastapi) as caller:
        headers = [*caller.headers("GET", signed).items(), ("host", caller.url[7:])]
        answer = raw(caller, sent, headers)
        assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 "))
        assert b"alice" not in answer


@pytest.mark.parametrize("name", ["Agent-Assertion", "Agent-Delegation", "Authorization", "DPoP"])
def test_a_header_that_comes_twice_on_the_wire_is_refused(served, name: str) -> None:
    with served(fastapi) as caller:
        headers = caller.headers("GET", "/invoices")
        pairs = [*headers.items(), (name, headers[name]), ("host", caller.url[7:])]
        assert raw(caller, "/invoices", pairs).startswith(b"HTTP/1.1 401 ")


def test_one_captured_request_is_let_in_once_of_fifty(served) -> None:
    with served(fastapi) as caller:
        headers = caller.headers("GET", "/invoices")
        with httpx.Client(trust_env=False) as client, ThreadPoolExecutor(10) as pool:
            asked = [
                pool.submit(client.get, f"{caller.url}/invoices", headers=headers)
                for _ in range(50)
            ]
            answers = [each.result() for each in asked]
        assert sorted(answer.status_code for answer in answers) == [200] + [401] * 49
        bodies = {answer.text.partition('"instance"')[0] for answer in answers}
        assert len(bodies) == 2


def test_a_prefix_that_a_proxy_took_away_is_signed_too(served) -> None:
    with served(fastapi, root_path="/api") as caller:
        headers = caller.headers("GET", "/api/invoices")
        for path, status in (("/api/invoices", 401), ("/invoices", 200)):
            answer = httpx.get(caller.url + path, headers=headers, trust_env=False)
            assert answer.status_code == status, path


def test_a_websocket_is_verified_and_required_of(calling, clock) -> None:
    clock.now = time.time()
    with calling("http://testserver") as caller:
        client = TestClient(fastapi(caller.verifier()))
        headers = caller.headers("GET", "/feed")
        with client.websocket_connect("/feed", headers=headers) as feed:
            assert feed.receive_text() == "alice"
        paying = caller.headers("GET", "/feed", scopes=("pay",))
        for refused, status in ((headers, 401), ({}, 401), (paying, 403)):
            with pytest.raises(WebSocketDenialResponse) as caught:
                with client.websocket_connect("/feed", headers=refused):
                    pass
            assert caught.value.status_code == status


def test_an_exception_handler_of_the_application_does_not_turn_a_refusal_into_an_answer(
    served,
) -> None:
    def make(verifier: Any) -> FastAPI:
        app = fastapi(verifier)

        @app.exception_handler(AgentIdentityError)
        async def handle(request: Request, error: Exception) -> Response:
            return PlainTextResponse(f"all is well: {error}")

        return app

    with served(make) as caller:
        lacks = post(caller, "/pay", b'{"total": 3}', tool="pay")
        assert (lacks.status_code, kind(lacks)) == (403, "insufficient_scope")


def test_a_middleware_of_the_application_changes_nothing(served) -> None:
    def make(verifier: Any) -> FastAPI:
        app = fastapi(verifier)

        async def stamped(request: Request, call_next: Any) -> Response:
            response = await call_next(request)
            response.headers["x-stamp"] = "1"
            return response

        app.user_middleware.append(Middleware(BaseHTTPMiddleware, dispatch=stamped))
        return app

    with served(make) as caller:
        assert get(caller, "/invoices").headers["x-stamp"] == "1"
        assert kind(post(caller, "/pay", b'{"total": 3}', tool="pay")) == "insufficient_scope"


def test_fastapi_without_the_middleware_refuses(served) -> None:
    def make(verifier: Any) -> FastAPI:
        app = fastapi(verifier)
        app.user_middleware.clear()
        return app

    with served(make) as caller:
        answer = get(caller, "/invoices")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("DPoP ")


# -- Starlette ------------------------------------------------------------------------------------------------------------


@require(scopes=["read"])
async def starlette_async(request: Request) -> Response:
    return PlainTextResponse(verified_call(request).principal.sub)


@require(scopes=["read"])
def starlette_sync(request: Request) -> Response:
    return PlainTextResponse(verified_call(request.scope).principal.sub)


class StarletteView(HTTPEndpoint):
    @require(scopes=["read"])
    async def get(self, request: Request) -> Response:
        return PlainTextResponse(verified_call(request).principal.sub)

    @require(scopes=["pay"])
    def post(self, request: Request) -> Response:
        raise AssertionError


ROUTES = [
    Route("/async", starlette_async),
    Route("/sync", starlette_sync),
    Route("/view", StarletteView),
]


def starlette(verifier: Any) -> Starlette:
    app = Starlette(routes=[*ROUTES, Mount("/below", routes=ROUTES)])
    app.add_middleware(VerifyMiddleware, verifier=verifier)
    return app


@pytest.mark.parametrize(
    "path", ["/async", "/sync", "/view", "/below/async", "/below/sync", "/below/view"]
)
def test_starlettes_handlers_of_every_kind_are_held_to_what_they_require(served, path) -> None:
    with served(starlette) as caller:
        answer = get(caller, path)
        assert (answer.status_code, answer.text) == (200, "alice")
        lacks = get(caller, path, scopes=("pay",))
        assert (lacks.status_code, kind(lacks)) == (403, "insufficient_scope")
        assert httpx.get(caller.url + path, trust_env=False).status_code == 401


def test_a_method_of_a_view_has_scopes_of_its_own(served) -> None:
    with served(starlette) as caller:
        assert kind(post(caller, "/view", b"")) == "insufficient_scope"


def test_a_sub_application_verifies_by_the_whole_path(served) -> None:
    def make(verifier: Any) -> Starlette:
        return Starlette(
            routes=[Mount("/below", starlette(verifier)), Mount("/open", routes=ROUTES)]
        )

    with served(make) as caller:
        assert get(caller, "/below/async").text == "alice"
        headers = caller.headers("GET", "/async")
        answer = httpx.get(f"{caller.url}/below/async", headers=headers, trust_env=False)
        assert kind(answer) == "refused"
        assert get(caller, "/open/async").status_code == 401
        assert get(caller, "/open/view").status_code == 401


# -- Litestar -------------------------------------------------------------------------------------------------------------


@litestar.get("/guarded", guards=[require(scopes=["read"])])
async def litestar_guarded(request: litestar.Request[Any, Any, Any]) -> str:
    return verified_call(request).principal.sub


@litestar.get("/decorated")
@require(scopes=["read"])
async def litestar_decorated(request: litestar.Request[Any, Any, Any]) -> str:
    return verified_call(request).principal.sub


@litestar.get("/sync", sync_to_thread=False)
@require(scopes=["read"])
def litestar_sync(request: litestar.Request[Any, Any, Any]) -> str:
    return verified_call(request).principal.sub


@litestar.post("/upload")
async def litestar_upload(request: litestar.Request[Any, Any, Any]) -> int:
    return len(await request.body())


HANDLERS = [litestar_guarded, litestar_decorated, litestar_sync, litestar_upload]


# `logging_config=None`: Litestar's own sends all logs of this process through a queue, whose lock a fork leaves locked.
def in_litestar(verifier: Any) -> Any:
    return litestar.Litestar(
        HANDLERS,
        middleware=[DefineMiddleware(VerifyMiddleware, verifier=verifier)],
        logging_config=None,
    )


def around_litestar(verifier: Any) -> Any:
    return VerifyMiddleware(litestar.Litestar(HANDLERS, logging_config=None), verifier)


@pytest.mark.parametrize("make", [in_litestar, around_litestar])
@pytest.mark.parametrize("path", ["/guarded", "/decorated", "/sync"])
def test_litestars_handlers_are_held_to_what_they_require(served, make, path) -> None:
    with served(make) as caller:
        answer = get(caller, path)
        assert (answer.status_code, answer.text) == (200, "alice")
        lacks = get(caller, path, scopes=("pay",))
        assert (lacks.status_code, kind(lacks)) == (403, "insufficient_scope")
        assert lacks.headers["www-authenticate"].endswith('"')
        nobody = httpx.get(caller.url + path, trust_env=False)
        assert (nobody.status_code, kind(nobody)) == (401, "credentials_required")
        body = b"x" * 5000
        assert post(caller, "/upload", body).text == "5000"


@pytest.mark.parametrize("path", ["/guarded", "/decorated", "/sync"])
def test_litestar_without_the_middleware_refuses(served, path) -> None:
    with served(lambda _: litestar.Litestar(HANDLERS, logging_config=None)) as caller:
        assert get(caller, path).status_code == 401


# -- and without any ------------------------------------------------------------------------------------------------------


def test_importing_the_middleware_loads_no_framework() -> None:
    code = (
        "import sys, agent_identity.verify.asgi;"
        "print({'fastapi', 'starlette', 'litestar', 'httpx'} & {n.partition('.')[0] for n in sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
