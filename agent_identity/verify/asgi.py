# SPDX-License-Identifier: Apache-2.0
"""ASGI 3: middleware that verifies requests for Starlette, FastAPI, Litestar and others, and how a request is read from ASGI.

Only verified requests, and those to public paths, reach the application. The headers are verified first; the body is read only
if they pass, and is then verified and passed on. No framework is imported.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote, unquote

from agent_identity.delegation.carriers import ASSERTION, DELEGATION, HANDOVER
from agent_identity.errors import (
    ConfigurationError,
    DeniedError,
    InvalidAssertionError,
    VerificationError,
)
from agent_identity.verify.problems import Problem, RefusedError, problem
from agent_identity.verify.require import CALL, REFUSALS, Refusals, require, verified_call

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from agent_identity.verify.result import VerifiedCall
    from agent_identity.verify.verifier import Verifier

__all__ = ["CALL", "RefusedError", "VerifyMiddleware", "require", "verified_call"]

BODY_LIMIT: Final = 1024 * 1024
BODY_TIMEOUT: Final = 10.0
DECIDING: Final = frozenset(
    name.lower().encode()
    for name in ("Host", "Authorization", "DPoP", ASSERTION, DELEGATION, HANDOVER)
)
_PUBLIC: Final = re.compile(r"/[A-Za-z0-9._~/-]*")


class VerifyMiddleware:
    """Verifies each request, and each websocket handshake, before the application gets it.

    `public` are the paths that need no verification, exactly as sent. `body_limit` is in bytes, `body_timeout` is the seconds
    for receiving a whole body. The `VerifiedCall` is in the scope under `CALL`: `verified_call(request)` returns it, `require`
    checks it against a handler's requirements.

    Raises:
        ConfigurationError: a public path isn't written as it is sent, or a limit is invalid.
    """

    def __init__(
        self,
        app: Callable[[Any, Any, Any], Awaitable[None]],
        verifier: Verifier,
        *,
        public: Collection[str] = (),
        body_limit: int = BODY_LIMIT,
        body_timeout: float = BODY_TIMEOUT,
    ) -> None:
        if isinstance(public, str) or not all(_PUBLIC.fullmatch(path) for path in public):
            raise ConfigurationError(
                "public", "public must be a set of whole paths, as sent, without escapes"
            )
        if body_limit < 0:
            raise ConfigurationError("body_limit", "body_limit must be a number of bytes")
        if not 0 < body_timeout < float("inf"):
            raise ConfigurationError("body_timeout", "body_timeout must be seconds greater than 0")
        self._app = app
        self._verifier = verifier
        self._public = frozenset(public)
        self._body_limit = body_limit
        self._body_timeout = body_timeout

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._app(scope, receive, send)
            return
        if kind not in ("http", "websocket"):
            raise ConfigurationError("protocol_unknown", "only http and websocket can be verified")
        fix_headers(scope)
        if self._is_public(scope):
            await self._hand_on(scope, receive, send, None)
            return
        try:
            call, body = await self._verify(scope, receive)
        except (VerificationError, DeniedError) as error:
            await _answer(scope, send, problem(error))
        except GoneError:
            return
        else:
            seen = replay_body(body, receive) if kind == "http" else receive
            await self._hand_on(scope, seen, send, call)

    def _is_public(self, scope: Message) -> bool:
        """Whether the path is public, both as sent and as the application will route it."""
        path = scope["path"]
        return path in self._public and path_of(scope) == path

    async def _verify(self, scope: Message, receive: Receive) -> tuple[VerifiedCall, bytes]:
        """Verify a request. Return the call and the body, which is read only if the headers pass."""
        if not any(name.lower() == DELEGATION.lower().encode() for name, _ in scope["headers"]):
            raise InvalidAssertionError("chain_missing", "the request carries no delegation")
        check_header_order(scope["headers"], DECIDING)
        examined = await self._verifier.aexamine_request(
            scope.get("method", "GET"),  # a websocket's handshake has no other
            url_of(scope),
            headers_of(scope),
            scopes=(),
        )
        body = b""
        if scope["type"] == "http":
            body = await body_of(scope, receive, self._body_limit, self._body_timeout)
        return self._verifier.admit_request(examined, body), body

    async def _hand_on(
        self, scope: Message, receive: Receive, send: Send, call: VerifiedCall | None
    ) -> None:
        """Run the application. A refusal of `require` is answered here, even if the framework swallowed the exception."""
        refusals = Refusals()
        scope[CALL] = call
        scope[REFUSALS] = refusals
        answer = _Answer(send, refusals)
        try:
            await self._app(scope, receive, answer.send)
        except RefusedError as error:
            if answer.is_started or error not in refusals:
                raise
        except ExceptionGroup as group:  # from a framework's task group
            if answer.is_started or group.split(lambda each: each in refusals)[1] is not None:
                raise
        if refusals and not answer.is_started:
            first = refusals[0]
            await _answer(scope, send, problem(first, scopes=first.scopes))


class _Answer:
    """Passes the application's response on, unless the request was refused before the response began."""

    def __init__(self, send: Send, refusals: Refusals) -> None:
        self._send = send
        self._refusals = refusals
        self.is_started = False

    async def send(self, message: Message) -> None:
        if self._refusals and not self.is_started:
            return
        self.is_started = True
        await self._send(message)


async def _answer(scope: Message, send: Send, answer: Problem) -> None:
    """Send a problem response. A websocket without the extension for that is closed, which servers turn into 403."""
    kind = "http.response"
    if scope["type"] == "websocket":
        kind = "websocket.http.response"
        if kind not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008})
            return
    await respond(send, answer.status, answer.headers, answer.body, kind=kind)


Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_DOT_SEGMENT: Final = re.compile(r"[/\\]\.\.?(?:[/\\;]|\Z)")


class GoneError(Exception):
    """The client disconnected before the whole body arrived."""


def url_of(scope: Message) -> str:
    """The whole URL as sent; for a websocket, that of its handshake.

    Raises:
        InvalidAssertionError: `url_malformed`, it is malformed or ambiguous.
    """
    path, query = path_of(scope), _query_of(scope)
    scheme = _SCHEMES.get(scope.get("scheme", "http"))
    if scheme is None or not path.startswith("/") or "?" in path or "#" in path or "#" in query:
        raise _malformed_url_error("the request's target isn't a path with an optional query")
    if _DOT_SEGMENT.search(unquote(path)) or _DOT_SEGMENT.search(scope["path"]):
        raise _malformed_url_error("the request's path has a dot segment")
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"host"]
    if len(hosts) != 1 or _HOST.fullmatch(hosts[0]) is None:
        raise _malformed_url_error("the request doesn't have exactly one valid Host header")
    return f"{scheme}://{hosts[0]}{target_of(scope)}"


def target_of(scope: Message) -> str:
    """The path as sent, with the query if there is one."""
    query = _query_of(scope)
    return f"{path_of(scope)}?{query}" if query else path_of(scope)


def _query_of(scope: Message) -> str:
    query: bytes = scope.get("query_string", b"")
    return query.decode("latin-1")


def path_of(scope: Message) -> str:
    """The path as sent, with its escapes; if the server doesn't provide it, the decoded path escaped again.

    Raises:
        InvalidAssertionError: `url_malformed`, it can't be escaped.
    """
    raw: bytes | None = scope.get("raw_path")
    if raw is not None:
        return raw.decode("latin-1")
    try:
        return quote(scope["path"], safe=_PATH)
    except UnicodeEncodeError:
        raise _malformed_url_error("the request's path has a lone surrogate") from None


_PATH: Final = "/!$&'()*+,;=:@"


def fix_headers(scope: Message) -> None:
    """Copy the list of headers: some servers append trailers to the original later."""
    scope["headers"] = [*scope["headers"]]


def check_header_order(headers: Iterable[tuple[bytes, bytes]], names: frozenset[bytes]) -> None:
    """Refuse headers with these names (lower case) that could be trailers, if the server lists trailers among the headers.

    Trailers exist only with `Transfer-Encoding`, and can't be listed before it.

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
            "a header comes after Transfer-Encoding, where this server also lists trailers",
            remedy="send the body with its length, or Transfer-Encoding as the last header",
        )


def headers_of(scope: Message) -> list[tuple[str, str]]:
    """The headers as a list, with repeated ones."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]


async def body_of(scope: Message, receive: Receive, limit: int, timeout: float) -> bytes:
    """Read the whole body, up to `limit` bytes (whatever Content-Length says) and for at most `timeout` seconds.

    Raises:
        DeniedError: `body_too_large` or `body_too_slow`.
        GoneError: the client disconnected.
    """
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and _exceeds(value, limit):
            raise _too_large_error(limit)
    try:
        async with asyncio.timeout(timeout):
            return await _read_body(receive, limit)
    except TimeoutError:
        raise DeniedError(
            "body_too_slow", f"the request's body didn't come within {timeout:g} seconds"
        ) from None


async def _read_body(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large_error(limit)
        if not message.get("more_body", False):
            return bytes(body)


async def respond(
    send: Send,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    kind: str = "http.response",
) -> None:
    """Send a whole response. Header names are sent in lower case, as ASGI requires."""
    pairs = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
    ]
    await send({"type": f"{kind}.start", "status": status, "headers": pairs})
    await send({"type": f"{kind}.body", "body": body, "more_body": False})


def replay_body(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body again, in one piece, and then the server's further messages."""
    kept: list[bytes] = [body]

    async def receive_again() -> Message:
        if not kept:
            return await receive()
        return {"type": "http.request", "body": kept.pop(), "more_body": False}

    return receive_again


def _exceeds(content_length: bytes, limit: int) -> bool:
    """Whether a length is more than the limit, or no number."""
    digits = content_length.lstrip(b"0") or b"0"
    return not digits.isdigit() or len(digits) > len(str(limit)) or int(digits) > limit


def _too_large_error(limit: int) -> DeniedError:
    return DeniedError("body_too_large", f"the request's body has more than {limit} bytes")


def _malformed_url_error(what: str) -> InvalidAssertionError:
    return InvalidAssertionError("url_malformed", what)
