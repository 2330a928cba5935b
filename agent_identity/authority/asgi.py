# SPDX-License-Identifier: Apache-2.0
"""The authority as an ASGI 3 application. Limits are checked before anything is parsed.

On loopback a page in the user's browser can reach the port under another name (DNS rebinding). There the `Host` must be the
issuer's, and so must an `Origin` if there is one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from agent_identity.authority.requests import BODY_LIMIT, OAuthError
from agent_identity.errors import DeniedError, VerificationError
from agent_identity.flow import HttpRequest, HttpResponse
from agent_identity.uris import is_loopback
from agent_identity.verify.asgi import (
    BODY_TIMEOUT,
    GoneError,
    body_of,
    check_header_order,
    respond,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent_identity.authority.endpoints import Endpoints
    from agent_identity.verify.asgi import Message, Receive, Send


_HEADERS_LIMIT: Final = 96 * 1024
_HEADERS: Final = 100
_STATUS: Final = {"body_too_large": 413, "body_too_slow": 408}


class AsgiApp:
    """`uvicorn.run(authority.asgi())`, or any other ASGI server. `body_timeout` is seconds, ten if it is left out."""

    def __init__(
        self,
        handle: Callable[[HttpRequest], HttpResponse],
        endpoints: Endpoints,
        *,
        body_timeout: float | None = None,
    ) -> None:
        self._handle = handle
        self._body_timeout = BODY_TIMEOUT if body_timeout is None else body_timeout
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
                body = await body_of(scope, receive, BODY_LIMIT, self._body_timeout)
                request = self._build_request(scope, headers, body)
            except DeniedError as error:
                status = _STATUS[error.code]
                response = OAuthError("invalid_request", error.code, status=status).response()
            except OAuthError as error:
                response = error.response()
            except GoneError:
                return
            else:
                response = await asyncio.to_thread(self._handle, request)
            length = {"content-length": str(len(response.body))}
            await respond(send, response.status, {**response.headers, **length}, response.body)

    def _read_headers(self, scope: Message) -> dict[str, str]:
        """The headers as they are before the body is read: a server may append its trailers to the same list."""
        try:
            check_header_order(scope["headers"], _SINGLE_NAMES)
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


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
