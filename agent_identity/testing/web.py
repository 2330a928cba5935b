# SPDX-License-Identifier: Apache-2.0
"""A web server on loopback for tests. It keeps the requests, and can misbehave by script."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable


class Received(NamedTuple):
    """One received request. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"<Received {self.method} {self.path.partition('?')[0]}>"


class FakeResponse(NamedTuple):
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes


Script: TypeAlias = "Callable[[Received, Callable[[bytes], None]], None]"


class FakeWeb:
    """A server on a free loopback port, which runs until `close`. `received` has all requests.

    `scripts` maps a path to a script that runs there instead of `answer` (see `hostile`).
    """

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.scripts: dict[str, Script] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.web = self
        self.url: str = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.01},
            name="agent-identity-fake-web",
            daemon=True,
        )
        self._thread.start()

    def answer(self, request: Received) -> FakeResponse:
        """The response to a request for a path without a script. Subclasses override it."""
        del request
        return FakeResponse(200, {}, b"{}")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    web: FakeWeb

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect, which many tests do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet

    def _handle(self) -> None:
        assert isinstance(self.server, _Server)  # noqa: S101 - the one server that is given this class
        web = self.server.web
        length = int(self.headers.get("content-length", 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Received(self.command, self.path, headers, self.rfile.read(length))
        web.received.append(request)
        script = web.scripts.get(self.path.partition("?")[0])
        if script is not None:
            self.close_connection = True
            script(request, self._write)
            return
        answer = web.answer(request)
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815 - the names of http.server

    @property
    def _write(self) -> Callable[[bytes], None]:
        def write(data: bytes) -> None:
            self.wfile.write(data)
            self.wfile.flush()

        return write

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of http.server
        """Log nothing, since request lines may have codes."""
