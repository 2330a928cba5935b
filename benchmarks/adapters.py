# SPDX-License-Identifier: Apache-2.0
"""Rows for adapters: what the wrapper costs beside the framework's own work. They need the framework."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from agent_identity import AgentIdentity, Decision
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger
from benchmarks.measure import ROUNDS, Figure, reference, seconds

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

LANGCHAIN = all(map(find_spec, ("agent_identity_langchain", "langchain")))
MCP = all(map(find_spec, ("agent_identity_mcp", "mcp")))
NAMES = (
    *(("langchain_tool", "langchain_agent") if LANGCHAIN else ()),
    *(("mcp_client", "mcp_server") if MCP else ()),
)
PERMIT = Decision.permit(policy_id="bench")


def langchain_tool() -> Figure:
    from agent_identity_langchain import protect

    tool = _tool()
    guarded = protect(tool)
    call: Any = {"name": "look", "args": {"customer": "ACME"}, "id": "1", "type": "tool_call"}
    return _beside(
        "LangChain: protect, over a tool of its own",
        lambda: guarded.invoke(call),
        lambda: tool.invoke(call),
        calls=50,
    )


def langchain_agent() -> Figure:
    from langchain.agents import create_agent
    from langchain_core.messages import AIMessage

    from agent_identity_langchain import IdentityMiddleware
    from agent_identity_langchain.demo.agents import FakeModel

    call: Any = {"name": "look", "args": {"customer": "ACME"}, "id": "1", "type": "tool_call"}
    model = FakeModel(turns=[AIMessage("", tool_calls=[call]), AIMessage("done")])
    identity = _identity()
    guard = IdentityMiddleware(identity, rules={"look": {}})
    guarded = create_agent(model, [_tool()], middleware=[guard])
    plain = create_agent(model, [_tool()])
    state: Any = {"messages": [("user", "go")]}
    return _beside(
        "LangChain: IdentityMiddleware, over an agent's run with one call",
        lambda: guarded.invoke(state),
        lambda: plain.invoke(state),
        calls=5,
        identity=identity,
    )


def mcp_client() -> Figure:
    return _mcp("MCP: guard, over a call over HTTP", is_verified=False)


def mcp_server() -> Figure:
    return _mcp("MCP: guard and VerifyMiddleware, over the same call", is_verified=True)


def _mcp(path: str, *, is_verified: bool) -> Figure:
    """A call over an open connection to a stateless server in this process."""
    from agent_identity_mcp import connect

    identity = _identity()
    loop = asyncio.new_event_loop()
    plain_url, verified_url = _serve_mcp(None), _serve_mcp(identity)
    url = verified_url if is_verified else plain_url
    stack = contextlib.AsyncExitStack()  # never closed: the process ends with its connections open
    opening = stack.enter_async_context(connect(url, identity=identity))
    guarded = loop.run_until_complete(opening)
    plain = loop.run_until_complete(stack.enter_async_context(_plain_client(plain_url)))
    arguments = {"customer": "ACME"}
    return _beside(
        path,
        lambda: loop.run_until_complete(guarded.call_tool("look", arguments)),
        lambda: loop.run_until_complete(plain.call_tool("look", arguments)),
        calls=10,
        identity=identity,
    )


def _serve_mcp(identity: AgentIdentity | None) -> str:
    """Serve a tool over streamable HTTP until the process ends; verified with an identity. Returns the URL."""
    import uvicorn

    from agent_identity.cli.authority.serve import listening
    from agent_identity_mcp.generations import IS_SECOND
    from agent_identity_mcp.server import VerifyMiddleware

    options: dict[str, Any] = {"json_response": True, "stateless_http": True}
    if IS_SECOND:
        from mcp.server import MCPServer

        server: Any = MCPServer("bench", log_level="CRITICAL")
        app = server.streamable_http_app(**options)
    else:
        from mcp.server.fastmcp import FastMCP

        server = FastMCP("bench", log_level="CRITICAL", **options)
        app = server.streamable_http_app()

    @server.tool()
    async def look(customer: str) -> str:
        """Look something up."""
        return customer

    listener = listening()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    if identity is not None:
        app = VerifyMiddleware(app, identity.verifier(url), server=server)
    runner = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
    threading.Thread(target=runner.run, args=([listener],), daemon=True).start()
    return url


@contextlib.asynccontextmanager
async def _plain_client(url: str) -> AsyncGenerator[Any]:
    from agent_identity_mcp.generations import IS_SECOND

    if IS_SECOND:
        from mcp import Client

        async with Client(url) as client:
            yield client
        return
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async with streamable_http_client(url) as streams, ClientSession(*streams[:2]) as session:
        await session.initialize()
        yield session


def _tool() -> Any:
    from langchain_core.tools import StructuredTool

    def look(customer: str) -> str:
        """Look something up."""
        return customer

    return StructuredTool.from_function(look)


def _identity() -> AgentIdentity:
    return AgentIdentity(
        "bot", authority=Authority(), ledger=MemoryLedger(), policy=lambda request: PERMIT
    )


def _beside(
    path: str,
    wrapped: Callable[[], object],
    bare: Callable[[], object],
    calls: int,
    identity: AgentIdentity | None = None,
) -> Figure:
    """What the wrapper adds, in multiples of what the framework takes without it: medians over shuffled rounds."""
    r = reference()
    times: dict[str, list[float]] = {"r": [], "bare": [], "wrapped": []}
    turns = [("r", r, 200), ("bare", bare, calls), ("wrapped", wrapped, calls)]
    with identity or _identity() as made, made.on_behalf_of("user:alice", purpose="measure"):
        wrapped()
        for _ in range(ROUNDS):
            random.shuffle(turns)
            for name, function, count in turns:
                times[name].append(seconds(function, count))
    own = statistics.median(times["bare"])
    pairs = zip(times["wrapped"], times["bare"], strict=True)
    added = statistics.median(guarded - plain for guarded, plain in pairs)
    unit = statistics.median(times["r"])
    note = f"{added * 1e6:.0f} µs ({added / unit:.1f} r) over {own * 1e6:.0f} µs"
    return Figure(path, added / own, "x", None, note)


ROWS = (langchain_tool, langchain_agent, mcp_client, mcp_server)
