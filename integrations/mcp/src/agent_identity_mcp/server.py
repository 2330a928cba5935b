# SPDX-License-Identifier: Apache-2.0
"""Servers that know who is asking: each `tools/call` is verified before its tool runs.

`VerifyMiddleware` is for streamable HTTP, `verify_calls` for stdio. A tool gets its `VerifiedCall` from `verified_call()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from agent_identity import ConfigurationError, DeniedError, VerificationError
from agent_identity.canonical import args_digest
from agent_identity.delegation.carriers import DECLARED_LABELS, DECLARED_SCOPES
from agent_identity.jose import loads_object
from agent_identity.values import scope_set
from agent_identity.verify import Carrier, RefusedError
from agent_identity.verify.asgi import (
    BODY_LIMIT,
    BODY_TIMEOUT,
    CALL,
    DECIDING,
    GoneError,
    body_of,
    check_header_order,
    fix_headers,
    headers_of,
    path_of,
    replay_body,
    respond,
    url_of,
)
from agent_identity.verify.messages import has_statements
from agent_identity_mcp.call_handlers import (
    ADMITTED,
    Admitted,
    CallRefusedError,
    handler_of,
    verified_call,
)
from agent_identity_mcp.call_handlers import Message as Sent

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from agent_identity.verify import Verifier
    from agent_identity.verify.asgi import Message, Send

__all__ = ["VerifyMiddleware", "tool_meta", "verified_call", "verify_calls"]

CALL_METHOD: Final = "tools/call"
_OPEN: Final = frozenset(
    {
        "initialize",
        "ping",
        "server/discover",
        "subscriptions/listen",
        "logging/setLevel",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
    }
)
"""Requests that need no principal. Notifications and responses to the server's own requests need none either."""

_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_BAD_REQUEST: Final = 400
_PARSE_ERROR, _INVALID_REQUEST, _METHOD_NOT_FOUND = -32700, -32600, -32601


def tool_meta(*, scopes: Iterable[str] = (), labels: Iterable[str] = ()) -> dict[str, Any]:
    """The `_meta` of a tool that requires scopes: `@server.tool(meta=tool_meta(scopes=["invoices:pay"]))`.

    The scopes are enforced. `labels` are only shown to those who configure a client, whose policy has labels of its own.

    Raises:
        ConfigurationError: the scopes are malformed.
    """
    return {DECLARED_SCOPES: sorted(scope_set(scopes)), DECLARED_LABELS: sorted(set(labels))}


def verify_calls(server: Any, verifier: Verifier) -> None:
    """Verify each call that a server gets without HTTP, as over stdio, before its tool runs.

    `server` is an `MCPServer` or a `FastMCP`; its requests over HTTP need `VerifyMiddleware`. A refused call gets a JSON-RPC error.

    Raises:
        ConfigurationError: the server can't be guarded.
    """
    handler_of(server).verifier = verifier


class VerifyMiddleware:
    """Verifies each `tools/call` that a server gets over HTTP before its tool runs: chain, assertions, token, arguments.

    `app` is the server's application, `server` the `MCPServer` or `FastMCP` itself, which declares the scopes of its tools. Listings,
    the handshake and notifications need no verification, and other methods are refused, unless `unverified` names them.
    `unverified={"tools/call"}` also accepts calls that carry no statement at all. `resource_metadata` is the URL of the server's
    metadata (RFC 9728); with it each call needs an access token. `public` are paths of the application that aren't MCP's.

    Raises:
        ConfigurationError: the server can't be guarded, or a value is invalid.
    """

    def __init__(
        self,
        app: Any,
        verifier: Verifier,
        *,
        server: Any,
        unverified: Collection[str] = (),
        resource_metadata: str | None = None,
        public: Collection[str] = (),
        body_limit: int = BODY_LIMIT,
        body_timeout: float = BODY_TIMEOUT,
    ) -> None:
        if isinstance(unverified, str) or isinstance(public, str):
            raise ConfigurationError("public", "public and unverified must be sets, not strings")
        self._app = app
        self._verifier = verifier
        self._handler = handler_of(server)
        self._unverified = frozenset(unverified)
        self._resource_metadata = resource_metadata
        self._public = frozenset(public)
        self._body_limit = body_limit
        self._body_timeout = body_timeout

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if kind == "lifespan" or (kind == "http" and self._is_free(scope)):
            await self._app(scope, receive, send)
            return
        if kind != "http":
            raise ConfigurationError("protocol_unknown", "only http can be verified")
        fix_headers(scope)
        message: dict[str, Any] = {}
        try:
            try:
                body = await body_of(scope, receive, self._body_limit, self._body_timeout)
                message = _read(body)
                await self._check(scope, message, body)
            except (VerificationError, DeniedError) as error:
                raise CallRefusedError.of(error) from error
        except GoneError:
            return
        except CallRefusedError as refused:
            await _answer(send, message.get("id"), refused)
            return
        await self._app(scope, replay_body(body, receive), send)

    def _is_free(self, scope: Message) -> bool:
        """Whether a request can't call a tool: it has no body, or goes to a public path."""
        path = scope["path"]
        is_public = path in self._public and path_of(scope) == path
        return is_public or scope["method"] in _BODILESS

    async def _check(self, scope: Message, message: dict[str, Any], body: bytes) -> None:
        """Verify a message if it calls a tool, and write into the scope what it may do.

        Raises:
            CallRefusedError: it can't reach the server.
            VerificationError: a header or the URL is malformed.
        """
        if message.get("method") != CALL_METHOD:
            if not self._is_open(message):
                raise CallRefusedError(
                    _METHOD_NOT_FOUND, "this method isn't open without verification"
                )
            return
        sent = Sent.of(message.get("params"))
        headers, call = headers_of(scope), None
        if CALL_METHOD not in self._unverified or has_statements(sent.meta, headers):
            check_header_order(scope["headers"], DECIDING)
            carrier = Carrier(scope["method"], url_of(scope), headers, body)
            call = await self._handler.verify(
                self._verifier, sent, carrier, self._resource_metadata
            )
        elif await self._handler.scopes_of(sent.tool):
            raise RefusedError(
                "chain_missing", "the tool requires scopes, and the call has no chain"
            )
        scope[CALL] = call
        scope[ADMITTED] = Admitted(sent.tool, args_digest(sent.arguments), call)

    def _is_open(self, message: dict[str, Any]) -> bool:
        method = message.get("method")
        if method is None:
            return "method" not in message  # a response to a request of the server
        if not isinstance(method, str):
            return False
        return method in _OPEN | self._unverified or method.startswith("notifications/")


def _read(body: bytes) -> dict[str, Any]:
    try:
        return loads_object(body)
    except VerificationError as error:
        if error.code == "json_not_object":
            code, text = _INVALID_REQUEST, "a message must be one JSON object, not a batch"
        else:
            code, text = _PARSE_ERROR, "the message isn't JSON, or is ambiguous"
        raise CallRefusedError(code, text, status=_BAD_REQUEST) from error


async def _answer(send: Send, name: object, refused: CallRefusedError) -> None:
    """Answer a message with a JSON-RPC error."""
    own = name if isinstance(name, str | int) else None
    body = orjson.dumps({"jsonrpc": "2.0", "id": own, "error": refused.error})
    headers = {**refused.headers, "Content-Type": "application/json", "Cache-Control": "no-store"}
    await respond(send, refused.status, headers | {"Content-Length": str(len(body))}, body)
