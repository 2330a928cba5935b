# SPDX-License-Identifier: Apache-2.0
"""The MCP server of the demo, over streamable HTTP on loopback. It verifies each call."""

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

from agent_identity_mcp.server import VerifyMiddleware, tool_meta, verified_call

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_identity import AgentIdentity
    from agent_identity.verify import VerifiedCall

__all__ = ["serving"]

INVOICES: Final = {"ACME": ["1200.00", "480.50"], "Globex": ["9900.00"]}


@contextlib.contextmanager
def serving(identity: AgentIdentity) -> Generator[tuple[str, list[VerifiedCall]]]:
    """Serve the MCP server in a thread of its own while the block runs; yields its URL, and what was verified of each call."""
    seen: list[VerifiedCall] = []
    options: dict[str, Any] = {"stateless_http": True, "json_response": True}
    made: Any = FastMCP("billing", log_level="CRITICAL", **options)

    def list_invoices(customer: str) -> str:
        """List the totals of a customer's invoices."""
        seen.append(verified_call())
        return ", ".join(INVOICES.get(customer, []))

    made.tool(meta=tool_meta(scopes=["invoices:read"]))(list_invoices)
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        verifier = identity.verifier(audience=url)
        app = VerifyMiddleware(made.streamable_http_app(), verifier, server=made)
        config = uvicorn.Config(app, log_level="critical", lifespan="on", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield url, seen
        finally:
            server.should_exit = True
            thread.join()
