# SPDX-License-Identifier: Apache-2.0
"""The sign-in of a person: the prompt that is shown, and the loopback address for the browser's redirect (RFC 8252 §7.3).

A prompt is shown only after its links and its code have been checked. A loopback address has one port, one path and one visit.
"""

from __future__ import annotations

import secrets
import socket
import sys
import threading
from concurrent.futures import Future
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialRejectedError,
    CredentialUnavailableError,
    is_interrupt,
)
from agent_identity.flow import Callback
from agent_identity.uris import is_safe_link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent_identity.values import Prompt


def show_prompt(prompt: Prompt, on_interaction: Callable[[Prompt], object]) -> object:
    """Call `on_interaction` with a prompt. Only https links, and http links to loopback, are passed on.

    Raises:
        CredentialRejectedError: `unsafe_link`.
        CredentialUnavailableError: `interaction_failed`, the callback failed.
    """
    links = (prompt.authorization_url, prompt.verification_uri, prompt.verification_uri_complete)
    if not all(link is None or is_safe_link(link) for link in links) or not _plain(prompt):
        raise CredentialRejectedError(
            "unsafe_link", f"{prompt.issuer} sent a link or a code that isn't safe to show"
        )
    failure: CredentialUnavailableError
    try:
        return on_interaction(prompt)
    except AgentIdentityError:
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        failure = _interaction_failed(prompt, error)
    raise failure


async def await_prompt(prompt: Prompt, result: Awaitable[object]) -> None:
    """Wait for an async callback.

    Raises:
        CredentialUnavailableError: `interaction_failed`, the callback failed.
    """
    failure: CredentialUnavailableError
    try:
        await result
    except AgentIdentityError:
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        failure = _interaction_failed(prompt, error)
    else:
        return
    raise failure


def _interaction_failed(prompt: Prompt, error: Exception) -> CredentialUnavailableError:
    return CredentialUnavailableError(
        "interaction_failed",
        f"on_interaction failed for a sign-in at {prompt.issuer}: {type(error).__name__}",
        remedy="check the function that was passed as on_interaction",
    )


def _plain(prompt: Prompt) -> bool:
    """Whether the code is printable ASCII."""
    code = prompt.user_code
    return code is None or (code.isascii() and code.isprintable())


def on_terminal(prompt: Prompt) -> None:
    """Print a prompt on the terminal, with Rich if that is installed.

    Raises:
        ConfigurationError: `no_terminal`, stderr isn't a terminal.
    """
    if not sys.stderr.isatty():
        raise ConfigurationError(
            "no_terminal",
            f"a person has to sign in at {prompt.issuer}, and there is no terminal to show the prompt",
            remedy="pass on_interaction, or choose a source that needs no person",
        )
    lines = _lines(prompt)
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra
        from rich.panel import Panel  # noqa: PLC0415 - an extra
        from rich.text import Text  # noqa: PLC0415 - an extra
    except ImportError:
        sys.stderr.write("\n".join(("", *lines, "")))
        return
    panel = Panel(Text("\n".join(lines)), title="agent-identity", expand=False)
    Console(stderr=True, soft_wrap=True).print(panel)


def _lines(prompt: Prompt) -> list[str]:
    until = datetime.fromtimestamp(prompt.expires_at, UTC).astimezone().strftime("%H:%M:%S")
    lines = [f"Sign in at {prompt.issuer}, until {until}."]
    if prompt.authorization_url is not None:
        lines.append(f"Open: {prompt.authorization_url}")
    if prompt.verification_uri is not None:
        lines.append(f"Open: {prompt.verification_uri_complete or prompt.verification_uri}")
    if prompt.user_code is not None:
        lines.append(f"Code: {prompt.user_code}")
    if prompt.kind == "ciba":
        lines.append("Look at your device, and answer there.")
    return lines


Members: TypeAlias = tuple[tuple[str, str], ...]

_ANYWHERE: Final = "http://127.0.0.1/callback"
_LONGEST: Final = 8192
_PAGE: Final = (
    b"<!doctype html><meta charset=utf-8><title>agent-identity</title>"
    b"<p>You can close this window and go back to your program."
)


class Listener:
    """Waits for one visit at a loopback URI, until it is closed; without a port in the URI, at a free one.

    `callback` is a future of the response. Any page in the person's browser can send requests here. A request with another
    `Host`, `Origin`, path or method, as part of a page, that `accepts` refuses, or after the first visit, is refused and
    changes nothing.
    """

    def __init__(
        self, accepts: Callable[[Members], bool] = lambda _: True, redirect_uri: str | None = None
    ) -> None:
        """Open the port.

        Raises:
            CredentialUnavailableError: `redirect_port_taken`, another program listens there.
        """
        place = urlsplit(redirect_uri or _ANYWHERE)
        name, port = place.hostname or "", place.port or 0
        self._accepts = accepts
        self.callback: Future[Callback] = Future()
        self.callback.set_running_or_notify_cancel()
        self._lock = threading.Lock()
        self._server = _open_server(name, port)
        self._server.listener = self
        host = f"[{name}]" if ":" in name else name
        self.host: str = f"{host}:{self._server.server_port}"
        self.path: str = place.path
        self.redirect_uri: str = f"http://{self.host}{self.path}"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="agent-identity-listener",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, query: str) -> tuple[int, bytes]:
        """Accept the query of a redirect. Return the status and the page to answer with."""
        try:
            members = tuple(
                parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=32)
            )
        except ValueError:
            return 400, b"unexpected request"
        if not self._accepts(members):
            return 400, b"unexpected request"
        with self._lock:
            if self.callback.done():
                return 410, b"this address was already used"
            self.callback.set_result(Callback(self.redirect_uri, members))
        return 200, _PAGE


def _open_server(name: str, port: int) -> _Server:
    kind = _Server6 if ":" in name else _Server
    address = "127.0.0.1" if name == "localhost" else name
    try:
        return kind((address, port), _Visit)
    except OSError as error:
        raise CredentialUnavailableError(
            "redirect_port_taken",
            f"the sign-in can't come back to port {port} of {name}: {error.strerror}",
            remedy="end the program that listens there, or register another redirect_uri",
        ) from None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    listener: Listener

    def server_bind(self) -> None:
        """Bind without the DNS lookup of `HTTPServer.server_bind`."""
        TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore broken connections: a printed traceback would contain the authorization code."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Visit(BaseHTTPRequestHandler):
    timeout = 5  # seconds until an idle connection is closed
    server_version = "agent-identity"
    sys_version = ""

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)  # noqa: S101 - the one server that is given this class
        listener = self.server.listener
        path, _, query = self.path.partition("?")
        hosts = self.headers.get_all("Host", [])
        origins = self.headers.get_all("Origin", [])
        if len(hosts) != 1 or not secrets.compare_digest(hosts[0].encode(), listener.host.encode()):
            self._respond(421, b"wrong host")
        elif any(origin != f"http://{listener.host}" for origin in origins):
            self._respond(403, b"wrong origin")
        elif path != listener.path or len(self.path) > _LONGEST:
            self._respond(404, b"not found")
        elif self.headers.get("Sec-Fetch-Dest", "document") != "document":
            self._respond(403, b"not a top-level page")
        else:
            self._respond(*listener.take(query))

    def _respond(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it has in the library
        """Log nothing: the request line contains the code."""
