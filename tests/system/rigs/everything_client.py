# SPDX-License-Identifier: Apache-2.0
"""`python everything_client.py STATE_DIR URL` or `STATE_DIR COMMAND…`: calls a tool of an MCP server through the guard.

It prints what the server answered and what is on record, as JSON. A test runs it under each generation of mcp.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from agent_identity import AgentIdentity
from agent_identity_mcp import connect, guard


@contextlib.asynccontextmanager
async def connected(identity: AgentIdentity, place: list[str]) -> AsyncIterator[Any]:
    if place[0].startswith("http"):
        async with connect(place[0], identity=identity) as client:
            yield client
        return
    server = StdioServerParameters(command=place[0], args=place[1:])
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        await session.initialize()
        yield guard(session, identity, server="urn:example:everything")


async def call(identity: AgentIdentity, place: list[str]) -> dict[str, Any]:
    async with connected(identity, place) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        async with identity.on_behalf_of("user:alice", purpose="try everything") as session:
            result = await client.call_tool("echo", {"message": "hello"})
            unknown = await client.call_tool("no-such-tool", {})
    trace = identity.who_triggered(session)
    return {
        "tools": names,
        "text": result.content[0].text,
        "unknown": unknown.content[0].text,
        "calls": [[each["tool"], each["outcome"]] for each in trace.calls],
        "verified": trace.verified,
    }


def main() -> None:
    folder, *place = sys.argv[1:]
    with AgentIdentity.embedded("everything-bot", state_dir=folder) as identity:
        sys.stdout.write(json.dumps(asyncio.run(call(identity, place))))


main()
