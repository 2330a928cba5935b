# SPDX-License-Identifier: Apache-2.0
"""The part of `agent-identity demo` over MCP: a server that knows who is asking, and a call of its tool."""

from __future__ import annotations

import contextlib
import threading
import warnings
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from agent_identity.cli.authority.serve import listening
from agent_identity_mcp.connecting import connect
from agent_identity_mcp.generations import IS_SECOND
from agent_identity_mcp.server import VerifyMiddleware, tool_meta, verified_call

if IS_SECOND:
    from mcp.server import MCPServer as Server
else:
    from mcp.server.fastmcp import FastMCP as Server

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from agent_identity import AgentIdentity
    from agent_identity.verify import Verifier

__all__ = ["send_statement", "serving"]

_SCOPES: Final = ("statements:send",)
_LABELS: Final = ("sends:external",)
_STOP: Final = 5.0


@contextlib.contextmanager
def serving(make_verifier: Callable[[str], Verifier]) -> Generator[str]:
    """Serve on loopback while the block runs; yields the server's URL. `make_verifier` makes the verifier for it."""
    listener = listening()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    server, app = _make_server()
    verified = VerifyMiddleware(app, make_verifier(url), server=server)
    config = uvicorn.Config(verified, log_level="critical", lifespan="on", ws="none")
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield url
    finally:
        runner.should_exit = True
        thread.join(_STOP)
        listener.close()


async def send_statement(identity: AgentIdentity, url: str, customer: str, total: str) -> str:
    """Call the tool in the current session, over a connection of its own; returns the server's answer."""
    rules = {"send_statement": {"scopes": _SCOPES, "labels": _LABELS}}
    async with connect(url, identity=identity, rules=rules) as client:
        result = await client.call_tool("send_statement", {"customer": customer, "total": total})
        return str(result.content[0].text)


def _make_server() -> tuple[Any, Any]:
    options: dict[str, Any] = {"json_response": True, "stateless_http": True}
    if IS_SECOND:
        server: Any = Server("statements", log_level="CRITICAL")
        app = server.streamable_http_app(**options)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mcp 1.24 with newer pydantic-settings
            server = Server("statements", log_level="CRITICAL", **options)
        app = server.streamable_http_app()

    @server.tool(meta=tool_meta(scopes=_SCOPES, labels=_LABELS))
    def send_statement(customer: str, total: str) -> str:
        """Send a customer the month's statement."""
        call = verified_call()
        agent = call.agent.rpartition(":")[2]
        return f"{total} to {customer}, asked for {call.principal.sub} by {agent}"

    return server, app
