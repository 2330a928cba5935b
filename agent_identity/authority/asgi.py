# SPDX-License-Identifier: Apache-2.0
"""The authority behind a web server: raw ASGI 3, which only translates. Limits are checked before anything is parsed.

On loopback, a page in the user's browser can reach the authority under another host name (DNS rebinding). There the `Host`
header has to be the issuer's, and so does `Origin` if it is present.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from agent_identity.authority.requests import BODY_LIMIT, OAuthError
from agent_identity.errors import VerificationError
from agent_identity.flow import HttpRequest, HttpResponse
from agent_identity.uris import is_loopback
from agent_identity.verify.asgi import check_placed

if TYPE_CHECKING:
    from agent_identity.authority.endpoints import Endpoints

__all__ = ["AsgiApp"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_HEADERS_LIMIT: Final = 96 * 1024
_HEADERS: Final = 100
_BODY_SECONDS: Final = 10.0


class AsgiApp:
    """`uvicorn.run(authority.asgi())`, or any other ASGI server. `body_timeout` is in seconds; the default is ten."""

    def __init__(
        self,
        handle: Callable[[HttpRequest], HttpResponse],
        endpoints: Endpoints,
        *,
        body_timeout: float | None = None,
    ) -> None:
        self._handle = handle
        self._body_timeout = _BODY_SECONDS if body_timeout is None else body_timeout
        self._origin = endpoints.origin
        self._is_guarded = is_loopback(endpoints.issuer) or endpoints.origin.endswith(".invalid")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _serve_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            try:
                headers = self._read_headers(scope)
                async with asyncio.timeout(self._body_timeout):
                    body = await _read_body(scope, receive)
                request = self._build_request(scope, headers, body)
            except TimeoutError:
                response = OAuthError("invalid_request", "body_too_slow", status=408).response()
            except OAuthError as error:
                response = error.response()
            except _DisconnectedError:
                return
            else:
                response = await asyncio.to_thread(self._handle, request)
            await _send(response, send)

    def _read_headers(self, scope: Message) -> dict[str, str]:
        """Read the headers before the body: a server may append trailers to the same list."""
        try:
            check_placed(scope["headers"], _SINGLE_NAMES)
        except VerificationError as error:
            raise OAuthError("invalid_request", error.code) from None
        headers = _join_headers(scope["headers"])
        if "host" in headers:
            self._check_names(headers)
        return headers

    def _build_request(self, scope: Message, headers: dict[str, str], body: bytes) -> HttpRequest:
        self._check_names(headers)
        raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
        path = raw.partition(b"?")[0].decode("latin-1")
        query = scope.get("query_string", b"").decode("latin-1")
        url = f"{self._origin}{path}?{query}" if query else f"{self._origin}{path}"
        return HttpRequest(scope["method"], url, headers, body)

    def _check_names(self, headers: dict[str, str]) -> None:
        if not self._is_guarded:
            return
        if f"://{headers.get('host', '').lower()}" != self._origin[self._origin.index("://") :]:
            raise OAuthError("invalid_request", "host_mismatch", status=421)
        if headers.get("origin", self._origin) != self._origin:
            raise OAuthError("invalid_request", "origin_mismatch", status=403)


class _DisconnectedError(Exception):
    """The client disconnected before its request was complete."""


def _join_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Join repeated headers; refuse those of `_SINGLE`, which a proxy in front could read differently."""
    pairs = list(raw)
    size = sum(len(name) + len(value) for name, value in pairs)
    if size > _HEADERS_LIMIT or len(pairs) > _HEADERS:
        raise OAuthError("invalid_request", "headers_too_large", status=431)
    headers: dict[str, str] = {}
    for name, value in pairs:
        lowered = name.decode("latin-1").lower()
        if lowered in headers and lowered in _SINGLE:
            raise OAuthError("invalid_request", "header_repeated")
        text = value.decode("latin-1")
        headers[lowered] = f"{headers[lowered]}, {text}" if lowered in headers else text
    return headers


_SINGLE: Final = frozenset(
    {
        "agent-delegation",
        "authorization",
        "content-length",
        "content-type",
        "dpop",
        "host",
        "origin",
    }
)


_SINGLE_NAMES: Final = frozenset(name.encode() for name in _SINGLE)


async def _read_body(scope: Message, receive: Receive) -> bytes:
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and not _is_short(value):
            raise OAuthError("invalid_request", "body_too_large", status=413)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _DisconnectedError
        body += message.get("body", b"")
        if len(body) > BODY_LIMIT:
            raise OAuthError("invalid_request", "body_too_large", status=413)
        if not message.get("more_body", False):
            return bytes(body)


def _is_short(content_length: bytes) -> bool:
    digits = content_length.lstrip(b"0") or b"0"
    return digits.isdigit() and len(digits) <= len(str(BODY_LIMIT)) and int(digits) <= BODY_LIMIT


async def _send(response: HttpResponse, send: Send) -> None:
    headers = [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in response.headers.items()
    ]
    length = (b"content-length", str(len(response.body)).encode())
    await send(
        {"type": "http.response.start", "status": response.status, "headers": [*headers, length]}
    )
    await send({"type": "http.response.body", "body": response.body})


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
