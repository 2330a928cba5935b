# SPDX-License-Identifier: Apache-2.0
"""Real servers of the installed generation of mcp over streamable HTTP, each watched: who called what, with which headers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from agent_identity import AgentIdentity
from agent_identity.verify import Verifier
from agent_identity_mcp.generations import IS_SECOND

from .example_issuer import ExampleProvider, settings

META = "dev.agent-identity/"

if IS_SECOND:
    from mcp.server import MCPServer as Server
else:
    from mcp.server.fastmcp import FastMCP as Server


def pytest_configure(config: pytest.Config) -> None:
    if not IS_SECOND:  # mcp 1 leaves streams open when a connection breaks
        config.addinivalue_line("filterwarnings", "ignore:.*Memory:ResourceWarning")
        config.addinivalue_line(
            "filterwarnings", "ignore:.*Memory:pytest.PytestUnraisableExceptionWarning"
        )


@dataclass
class Seen:
    """One request as the server got it."""

    method: str
    headers: dict[str, str]
    body: bytes
    message: dict[str, Any]
    verified: Any = None
    problem: str | None = None

    @property
    def rpc(self) -> str:
        return str(self.message.get("method", self.method))

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization")

    @property
    def meta(self) -> dict[str, Any]:
        return self.message.get("params", {}).get("_meta", {})


@dataclass
class Watched:
    """A server on loopback. `answer` may change each JSON answer, or give one of its own before the server sees the request."""

    app: Any
    url: str = ""
    verifier: Verifier | None = None
    seen: list[Seen] = field(default_factory=list)
    change: Callable[[Seen, Any], Any] | None = None
    instead: Callable[[Seen], tuple[int, dict[str, str], bytes] | None] | None = None

    def calls(self) -> list[Seen]:
        return [each for each in self.seen if each.rpc == "tools/call"]

    def others(self) -> list[Seen]:
        return [each for each in self.seen if each.rpc != "tools/call"]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        message: Any = {}
        with contextlib.suppress(ValueError):  # of an attacker
            message = json.loads(body)
        if not isinstance(message, dict):
            message = {}
        request = Seen(scope["method"], headers, body, message)
        self.seen.append(request)
        if self.verifier is not None and request.rpc == "tools/call":
            self.verify(request)
        own = None if self.instead is None else self.instead(request)
        if own is not None:
            await answer(send, *own)
            return
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Any:
            for part in given:
                return part
            return await receive()

        if self.change is None:
            await self.app(scope, replay, send)
            return
        await self.changed(request, scope, replay, send)

    async def changed(self, request: Seen, scope: Any, receive: Any, send: Any) -> None:
        start: dict[str, Any] = {}
        parts: list[bytes] = []

        async def keep(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start":
                start.update(event)
            else:
                parts.append(event.get("body", b""))

        await self.app(scope, receive, keep)
        body = b"".join(parts)
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        if headers.get("content-type", "").startswith("application/json") and self.change and body:
            body = json.dumps(self.change(request, json.loads(body))).encode()
        headers["content-length"] = str(len(body))
        await answer(send, start["status"], headers, body)

    def verify(self, request: Seen) -> None:
        assert self.verifier is not None
        try:
            params = request.message["params"]
            by_request = self.verifier.verify_request(
                request.method, self.url, request.headers, request.body, scopes=()
            )
            token = None if request.token is None else request.token.partition(" ")[2]
            request.verified = self.verifier.verify_call(
                params["_meta"][f"{META}assertion"],
                params["_meta"][f"{META}delegation"],
                tool=params["name"],
                args=params.get("arguments", {}),
                scopes=(),
                token=token,
            )
            assert by_request.call.id == request.verified.call.id
        except Exception as error:
            request.problem = f"{type(error).__name__} {getattr(error, 'code', '')} {error}"


async def answer(
    send: Callable[[Any], Awaitable[None]], status: int, headers: dict[str, str], body: bytes
) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def make_server(
    name: str = "billing", *, is_stateful: bool = False, **own: Any
) -> tuple[Any, Callable[[], Any]]:
    """A server of the installed generation, and what makes its ASGI application."""
    if IS_SECOND:
        server: Any = Server(name, **own)
        options = {"json_response": True, "stateless_http": not is_stateful}
        return server, lambda: server.streamable_http_app(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mcp 1.24 with newer pydantic-settings
        server = Server(name, json_response=True, stateless_http=not is_stateful, **own)
    return server, server.streamable_http_app


@contextlib.contextmanager
def serving(app: Any, port: int = 0) -> Iterator[Watched]:
    watched = Watched(app)
    config = uvicorn.Config(watched, host="127.0.0.1", port=port, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    watched.url = f"http://127.0.0.1:{port}/mcp"
    try:
        yield watched
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)


def add_billing(server: Any) -> None:
    """The tools that most tests call."""

    @server.tool()
    async def list_invoices(customer: str, limit: int = 10) -> str:
        """List a customer's invoices."""
        return f"{limit} invoices of {customer}"

    @server.tool()
    async def fail() -> str:
        """Fail."""
        raise ValueError("no such customer")

    @server.tool()
    async def wait(seconds: float) -> str:
        """Wait."""
        await asyncio.sleep(seconds)
        return "waited"


@pytest.fixture
def billing(identity: AgentIdentity) -> Iterator[Watched]:
    """A server with the tools of `add_billing` that verifies each call."""
    server, make_app = make_server()
    add_billing(server)
    with serving(make_app()) as watched:
        watched.verifier = identity.verifier(audience=watched.url)
        yield watched


@pytest.fixture
def start() -> Iterator[Callable[..., Watched]]:
    """Starts servers for one test: `start(app)`, or `start(app, port)`."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(serving(*arguments))


@pytest.fixture
def make() -> Callable[..., tuple[Any, Callable[[], Any]]]:
    return make_server


def free_origin() -> tuple[str, int]:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port = tried.getsockname()[1]
    return f"http://127.0.0.1:{port}", port


def add_tool(server: Any) -> None:
    @server.tool()
    async def list_invoices(customer: str) -> str:
        """List a customer's invoices."""
        return f"invoices of {customer}"


@pytest.fixture
def provider() -> ExampleProvider:
    return ExampleProvider()


@pytest.fixture
def reference(make: Any, start: Any, provider: ExampleProvider) -> Callable[..., Any]:
    """A server with the authorization server of the mcp package."""

    def run(**options: Any) -> Any:
        origin, port = free_origin()
        own = {"auth_server_provider": provider, "auth": settings(origin)}
        server, make_app = make(**own, **options)
        add_tool(server)
        return start(make_app(), port)

    return run
