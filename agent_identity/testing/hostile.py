# SPDX-License-Identifier: Apache-2.0
"""How a server misbehaves: scripts for `FakeWeb.scripts`, each writing straight to the socket."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.testing.web import Received, Script

__all__ = [
    "answers",
    "drips",
    "echoes",
    "floods",
    "in_turn",
    "redirects",
    "says_nothing",
    "truncates",
    "wants_nonces",
]


_JSON = "application/json"


def answers(
    status: int,
    body: Mapping[str, Any] | bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    content_type: str = _JSON,
) -> Script:
    """Give this answer to every request."""
    return lambda _, write: write(_response(status, body, headers or {}, content_type))


def redirects(to: str, status: int = 307) -> Script:
    """Redirect every request to another URL."""
    return answers(status, b"", {"Location": to})


def echoes(status: int = 400) -> Script:
    """Send the request's body back, in an error's description and in a header."""

    def script(request: Received, write: Callable[[bytes], None]) -> None:
        echo = request.body.decode("utf-8", "replace")
        document = {"error": echo, "error_description": echo, "access_token": echo}
        write(_response(status, document, {"X-Echo": echo.replace("\n", " ")[:4000]}, _JSON))

    return script


def drips(seconds: float, body: bytes = b"x" * 10_000) -> Script:
    """Send one byte, wait, send the next."""

    def script(request: Received, write: Callable[[bytes], None]) -> None:
        del request
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {_JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
        write(head.encode())
        for at in range(len(body)):
            write(body[at : at + 1])
            time.sleep(seconds)

    return script


def floods(size: int, chunk: int = 65_536) -> Script:
    """Send so many bytes of white space, in chunks, without a Content-Length."""

    def script(request: Received, write: Callable[[bytes], None]) -> None:
        del request
        write(
            f"HTTP/1.1 200 OK\r\nContent-Type: {_JSON}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        piece = b"%x\r\n" % chunk + b" " * chunk + b"\r\n"
        for _ in range(size // chunk):
            write(piece)
        write(b"0\r\n\r\n")

    return script


def truncates(body: bytes = b'{"access_token": "abc", "token_ty') -> Script:
    """Send less than Content-Length says."""

    def script(request: Received, write: Callable[[bytes], None]) -> None:
        del request
        length = len(body) + 100
        write(
            f"HTTP/1.1 200 OK\r\nContent-Type: {_JSON}\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        write(body)

    return script


def says_nothing(seconds: float) -> Script:
    """Read the request, and don't answer."""
    return lambda _, _write: time.sleep(seconds)


def wants_nonces() -> Script:
    """Ask for a new DPoP nonce each time."""
    numbers = iter(range(1_000_000))

    def script(request: Received, write: Callable[[bytes], None]) -> None:
        del request
        nonce = {"DPoP-Nonce": f"nonce-{next(numbers)}"}
        write(_response(400, {"error": "use_dpop_nonce"}, nonce, _JSON))

    return script


def in_turn(*scripts: Script) -> Script:
    """Run the scripts one after the other, then the last one for every further request."""
    left = list(scripts)

    def script(request: Received, write: Callable[[bytes], None]) -> None:
        now = left.pop(0) if len(left) > 1 else left[0]
        now(request, write)

    return script


def _response(
    status: int, body: Mapping[str, Any] | bytes, headers: Mapping[str, str], content_type: str
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"Content-Type: {content_type}"]
    lines += [f"Content-Length: {len(data)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + data
