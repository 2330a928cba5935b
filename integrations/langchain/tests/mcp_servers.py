# SPDX-License-Identifier: Apache-2.0
"""A real MCP server over streamable HTTP, and one over stdio, which verify the calls that they get."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import uvicorn
from mcp.server.fastmcp import Context, FastMCP

from agent_identity import AgentIdentity, AgentIdentityError
from agent_identity.verify import Verifier

META = "dev.agent-identity/"


def stdio_connection() -> Any:
    """The connection to this file as a server: it writes the `_meta` and the arguments of each call into the file `path`."""
    return {"transport": "stdio", "command": sys.executable, "args": [__file__]}


def verify_meta(verifier: Verifier, params: Any, token: str | None) -> Any:
    """What is verified of the `params` of a call by their `_meta`."""
    return verifier.verify_call(
        params["_meta"][f"{META}assertion"],
        params["_meta"][f"{META}delegation"],
        tool=params["name"],
        args=params.get("arguments", {}),
        scopes=["invoices:read"] if token else (),
        token=token,
    )


class Billing:
    """A server that verifies each call of a tool twice: by the headers, and by `_meta` with the token."""

    def __init__(self, identity: AgentIdentity) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/mcp"
        self.verifier: Verifier = identity.verifier(audience=self.url)
        self.ran: list[str] = []
        self.calls: list[Any] = []
        """What was verified of each `tools/call`."""
        self.headers: list[dict[str, str]] = []
        self.methods: list[str] = []
        """Of all requests, in their order."""
        self.signed: set[str] = set()
        """Those that carried a token, an assertion or a chain."""
        self.mcp = FastMCP("billing")

        @self.mcp.tool()
        async def list_invoices(customer: str) -> str:
            """List a customer's invoices."""
            self.ran.append(customer)
            if customer == "nobody":
                raise ValueError("no such customer")
            if customer == "slow":
                await asyncio.sleep(60)
            return f"2 invoices of {customer}"

        self.app = self.mcp.streamable_http_app()
        config = uvicorn.Config(
            self._verify,
            host="127.0.0.1",
            port=port,
            log_level="error",
            ws="none",
            interface="asgi3",
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> Self:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *args: object) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join()

    async def _verify(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, is_whole = b"", scope["method"] != "POST"
        while not is_whole:
            part = await receive()
            body, is_whole = body + part.get("body", b""), not part.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        message = json.loads(body) if body else {}
        method = message.get("method", scope["method"])
        self.methods.append(method)
        if "authorization" in headers or b"agent-identity" in body.lower():
            self.signed.add(method)
        if method == "tools/call":
            try:
                verified = self.verifier.verify_request(
                    "POST", self.url, headers, body, scopes=["invoices:read"]
                )
                token = headers["authorization"].partition(" ")[2]
                by_meta = verify_meta(self.verifier, message["params"], token)
            except AgentIdentityError as error:
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": error.code.encode()})
                return
            assert by_meta.call.id == verified.call.id
            self.calls.append(by_meta)
            self.headers.append(headers)
        messages = iter([{"type": "http.request", "body": body}])

        async def again() -> Any:
            return next(messages, None) or await receive()

        await self.app(scope, again, send)


if __name__ == "__main__":
    files = FastMCP("files")

    @files.tool()
    def write(path: str, ctx: Context) -> str:  # type: ignore[type-arg]
        """Write a file."""
        meta = ctx.request_context.meta
        params = {"name": "write", "arguments": {"path": path}}
        known = {} if meta is None else meta.model_dump(by_alias=True, exclude_none=True)
        Path(path).write_text(json.dumps({**params, "_meta": known}, default=str))
        return "written"

    files.run()
