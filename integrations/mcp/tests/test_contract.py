# SPDX-License-Identifier: Apache-2.0
"""The adapter contract over MCP: a real `ClientSession` and a real server, with nothing but the wire between them left out.

The server's function runs in the task of the call, so that the contract's tools see the session of the caller.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import anyio
import pytest
from mcp import ClientSession

from agent_identity import AgentIdentity
from agent_identity.adapters import within
from agent_identity.testing.contract import Contract, Result, ToolCall
from agent_identity_mcp import guard
from agent_identity_mcp.generations import IS_SECOND, is_error, types

if IS_SECOND:
    from mcp.server import MCPServer as Server
else:
    from mcp.server.fastmcp import FastMCP as Server

LOCAL = "urn:example:server"


class FakeWire(ClientSession):
    """A session whose requests are answered by a server object in the same task."""

    def __init__(self, server: Any, shown: list[str]) -> None:
        self.server = server
        self.shown = shown
        self.streams: list[Any] = [
            *anyio.create_memory_object_stream(1),
            *anyio.create_memory_object_stream(1),
        ]
        super().__init__(self.streams[1], self.streams[2])

    async def send_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        asked = getattr(request, "root", request)
        if asked.method == "tools/list":
            return types.ListToolsResult(tools=await self.server.list_tools())
        arguments = asked.params.arguments or {}
        try:
            answer = await self.server.call_tool(asked.params.name, arguments)
        except Exception as error:
            content = [types.TextContent(type="text", text=str(error))]
            return types.CallToolResult(
                content=content, **{"is_error" if IS_SECOND else "isError": True}
            )
        if isinstance(answer, types.CallToolResult):
            return answer
        return types.CallToolResult(content=answer)

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


class McpDriver:
    def __init__(self, identity: AgentIdentity) -> None:
        self.identity = identity
        self.shown: list[str] = []

    def make(self, function: Callable[..., Any], rule: Mapping[str, Any] | None) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            server = Server("contract")
        server.add_tool(function, structured_output=False)
        rules: dict[str, Any] = {}
        if rule is not None:
            own = {key: value for key, value in rule.items() if key != "resource"}
            rules[function.__name__] = own
        return server, {"server": (rule or {}).get("resource", LOCAL), "rules": rules}

    def schema(self, tool: Any) -> Mapping[str, Any]:
        server, options = tool

        async def list_tools() -> Any:
            session = guard(FakeWire(server, self.shown), self.identity, **options)
            try:
                return await session.list_tools()
            finally:
                session.close()

        (listed,) = asyncio.run(list_tools()).tools
        parameters = listed.input_schema if IS_SECOND else listed.inputSchema
        return {"name": listed.name, "description": listed.description, "parameters": parameters}

    def run(self, tool: Any, calls: Sequence[ToolCall]) -> list[Result]:
        return asyncio.run(self.arun(tool, calls))

    async def arun(self, tool: Any, calls: Sequence[ToolCall]) -> list[Result]:
        server, options = tool
        session = guard(FakeWire(server, self.shown), self.identity, **options)

        async def call(asked: ToolCall) -> Result:
            with within(None, tool_call_id=asked.id):
                result = await session.call_tool(asked.name, dict(asked.arguments))
            self.shown.append(repr(result))
            text = "".join(part.text for part in result.content)
            return Result(asked.id, text, is_error(result))

        try:
            return list(await asyncio.gather(*map(call, calls)))
        finally:
            session.close()

    def stream(self, tool: Any, calls: Sequence[ToolCall]) -> Iterator[Result]:
        for call in calls:
            yield from self.run(tool, [call])

    def interrupt(self, question: str) -> Any:
        raise AssertionError(f"MCP has no interrupts, so none asks {question!r}")


class TestGuard(Contract):
    test_an_interrupt_passes_through_and_is_no_failure = None  # MCP has none
    # The digest is over what is sent; the server coerces it, and fills in its defaults.
    test_the_digest_is_over_the_arguments_that_the_function_received = None

    @pytest.fixture
    def driver(self, identity: AgentIdentity) -> McpDriver:
        return McpDriver(identity)
