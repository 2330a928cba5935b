# SPDX-License-Identifier: Apache-2.0
"""The MCP server of the demo, over streamable HTTP on loopback. It verifies each call, and what else is signed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from mcp.server.fastmcp import (  # type: ignore[attr-defined,unused-ignore]  # of mcp 1
    FastMCP,
)

from agent_identity import AgentIdentityError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from agent_identity import AgentIdentity
    from agent_identity.verify import VerifiedCall, Verifier

__all__ = ["BillingService", "serving"]

INVOICES: Final = {"ACME": ["1200.00", "480.50"], "Globex": ["9900.00"]}


class BillingService:
    """An ASGI app; `seen` has what was verified of each call of a tool."""

    def __init__(self, verifier: Verifier, url: str) -> None:
        server = FastMCP("billing", stateless_http=True, json_response=True, log_level="CRITICAL")
        server.tool()(list_invoices)
        self._app = server.streamable_http_app()
        self._verifier = verifier
        self._url = url
        self.seen: list[VerifiedCall] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request. Listing the tools needs no credential."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, has_more = b"", scope["method"] == "POST"
        while has_more:
            message = await receive()
            body, has_more = body + message.get("body", b""), message.get("more_body", False)
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        is_call = b'"tools/call"' in body
        if is_call or any(name == "authorization" for name, _ in headers):
            try:
                verified = self._verifier.verify_request(
                    scope["method"], self._url, headers, body, scopes=["invoices:read"]
                )
            except AgentIdentityError as error:
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": error.code.encode()})
                return
            if is_call:
                self.seen.append(verified)
        messages = iter([{"type": "http.request", "body": body}])

        async def again() -> Any:
            return next(messages, None) or await receive()

        await self._app(scope, again, send)


def list_invoices(customer: str) -> str:
    """List the totals of a customer's invoices."""
    return ", ".join(INVOICES.get(customer, []))


@contextlib.contextmanager
def serving(identity: AgentIdentity) -> Generator[tuple[str, BillingService]]:
    """Serve the MCP server in a thread of its own while the block runs; yields its URL."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        service = BillingService(identity.verifier(audience=url), url)
        config = uvicorn.Config(
            _as_asgi3(service), log_level="critical", ws="none", interface="asgi3"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield url, service
        finally:
            server.should_exit = True
            thread.join()


def _as_asgi3(service: BillingService) -> Callable[..., Any]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await service(scope, receive, send)

    return app
