# SPDX-License-Identifier: Apache-2.0
"""A request as an ASGI server hands it on: its URL as it was sent, its headers as pairs, its body within a limit.

A verifier compares the URL with what was signed, and the application routes by what the server decoded. Whatever the two could
read differently is refused here: a fragment, a dot segment, a `Host` that is none or comes twice.

Only headers count, and no trailers, which come after the body. uvicorn with httptools appends them to the list of headers that it
gave: before the application runs where all came in one packet, and else while the body is read.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, TypeAlias
from urllib.parse import quote, unquote

from agent_identity.errors import DeniedError, InvalidAssertionError, VerificationError

__all__ = [
    "GoneError",
    "Message",
    "Receive",
    "Send",
    "body_of",
    "check_placed",
    "fix_headers",
    "headers_of",
    "path_of",
    "replaying",
    "url_of",
]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_DOT_SEGMENT: Final = re.compile(r"[/\\]\.\.?(?:[/\\;]|\Z)")


class GoneError(Exception):
    """Whoever asked is gone before all of the body came."""


def url_of(scope: Message) -> str:
    """The whole URL as it was sent; that of a websocket is its handshake's.

    Raises:
        InvalidAssertionError: `url_malformed`, it has no one reading.
    """
    path, query = path_of(scope), scope.get("query_string", b"").decode("latin-1")
    scheme = _SCHEMES.get(scope.get("scheme", "http"))
    if scheme is None or not path.startswith("/") or "?" in path or "#" in path or "#" in query:
        raise _malformed("the request's target is no path and query")
    if _DOT_SEGMENT.search(unquote(path)) or _DOT_SEGMENT.search(scope["path"]):
        raise _malformed("the request's path has a dot segment")
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"host"]
    if len(hosts) != 1 or _HOST.fullmatch(hosts[0]) is None:
        raise _malformed("the request names no host, or not one")
    url = f"{scheme}://{hosts[0]}{path}"
    return f"{url}?{query}" if query else url


def path_of(scope: Message) -> str:
    """The path as it was sent, escapes and all, or where the server doesn't tell, as it would be written.

    Raises:
        InvalidAssertionError: `url_malformed`, it can't be written.
    """
    raw: bytes | None = scope.get("raw_path")
    if raw is not None:
        return raw.decode("latin-1")
    try:
        return quote(scope["path"], safe=_PATH)
    except UnicodeEncodeError:
        raise _malformed("the request's path has a lone surrogate") from None


_PATH: Final = "/!$&'()*+,;=:@"


def fix_headers(scope: Message) -> None:
    """Keep the headers as they are now: what a server appends to its list from now on is a trailer."""
    scope["headers"] = [*scope["headers"]]


def check_placed(headers: Iterable[tuple[bytes, bytes]], names: frozenset[bytes]) -> None:
    """Refuse headers of those names (lower case) that could be trailers, where the server may list these among the headers.

    There are trailers only in a chunked body, and before its `Transfer-Encoding` there can be none.

    Raises:
        VerificationError: `header_late`.
    """
    if "httptools" not in sys.modules:
        return
    sent = [name.lower() for name, _ in headers]
    if b"transfer-encoding" not in sent:
        return
    if not names.isdisjoint(sent[sent.index(b"transfer-encoding") :]):
        raise VerificationError(
            "header_late",
            "a header stands behind Transfer-Encoding, where this server puts trailers too",
            remedy="send the body with its length, or Transfer-Encoding as the last header",
        )


def headers_of(scope: Message) -> list[tuple[str, str]]:
    """The headers one by one, so that a repeated one is seen."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]


async def body_of(scope: Message, receive: Receive, limit: int, timeout: float) -> bytes:
    """The whole body; reading ends where it exceeds `limit` bytes, whatever its length was said to be, or takes `timeout` seconds.

    Raises:
        DeniedError: `body_too_large` or `body_too_slow`.
        GoneError: the client went away.
    """
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and _exceeds(value, limit):
            raise _too_large(limit)
    try:
        async with asyncio.timeout(timeout):
            return await _read(receive, limit)
    except TimeoutError:
        raise DeniedError(
            "body_too_slow", f"the request's body didn't come within {timeout:g} seconds"
        ) from None


async def _read(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


def replaying(body: bytes, receive: Receive) -> Receive:
    """The body once more, in one piece, and then whatever else the server says: that the client is gone."""
    kept: list[bytes] = [body]

    async def replayed() -> Message:
        if not kept:
            return await receive()
        return {"type": "http.request", "body": kept.pop(), "more_body": False}

    return replayed


def _exceeds(content_length: bytes, limit: int) -> bool:
    digits = content_length.lstrip(b"0") or b"0"
    return digits.isdigit() and (len(digits) > len(str(limit)) or int(digits) > limit)


def _too_large(limit: int) -> DeniedError:
    return DeniedError("body_too_large", f"the request's body has more than {limit} bytes")


def _malformed(what: str) -> InvalidAssertionError:
    return InvalidAssertionError("url_malformed", what)
