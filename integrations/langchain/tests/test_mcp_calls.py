# SPDX-License-Identifier: Apache-2.0
"""MCP tools through the real langchain-mcp-adapters: what a real server over streamable HTTP and stdio receives."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import uvicorn
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools
from mcp.server.fastmcp import FastMCP

from agent_identity import (
    AgentIdentity,
    AgentIdentityError,
    ConfigurationError,
    DeniedError,
    NoSessionError,
)
from agent_identity.authority import Authority
from agent_identity.canonical import args_digest
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.verify import Verifier
from agent_identity_langchain import IdentityMiddleware, protect
from agent_identity_langchain.mcp import CallAuth


class Billing:
    """A server whose every request is verified, except those that carry nothing and call no tool."""

    def __init__(self, identity: AgentIdentity) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/mcp"
        self.verifier: Verifier = identity.verifier(audience=self.url)
        self.ran: list[str] = []
        self.calls: list[Any] = []
        """What was verified of each `tools/call`."""
        self.others: list[tuple[bytes, bool]] = []
        """The other requests' bodies, and whether they were signed."""
        made = FastMCP("billing", stateless_http=False)

        @made.tool()
        def list_invoices(customer: str) -> str:
            """List a customer's invoices."""
            self.ran.append(customer)
            return f"2 invoices of {customer}"

        self.app = made.streamable_http_app()
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
        body = b""
        message: Any = {"more_body": scope["method"] == "POST"}
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
        is_signed = any(name == "authorization" for name, _ in headers)
        is_call = b'"tools/call"' in body
        if is_signed or is_call:
            try:
                verified = self.verifier.verify_request(
                    scope["method"], self.url, headers, body, scopes=["invoices:read"]
                )
            except AgentIdentityError as error:
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": error.code.encode()})
                return
            if is_call:
                self.calls.append(verified)
        if not is_call:
            self.others.append((body, is_signed))
        messages = iter([{"type": "http.request", "body": body}])

        async def again() -> Any:
            return next(messages, None) or await receive()

        await self.app(scope, again, send)


class FakeModel(GenericFakeChatModel):
    """Follows a script."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> FakeModel:
        return self


def says(*customers: str) -> FakeModel:
    made = [
        {"name": "list_invoices", "args": {"customer": customer}, "id": f"toolu_{at}"}
        for at, customer in enumerate(customers)
    ]
    return FakeModel(messages=iter([AIMessage("", tool_calls=made), AIMessage("done")]))


@pytest.fixture
def identity() -> Iterator[AgentIdentity]:
    with AgentIdentity("bot", authority=Authority(), ledger=MemoryLedger()) as made:
        yield made


@pytest.fixture
def billing(identity: AgentIdentity) -> Iterator[Billing]:
    with Billing(identity) as server:
        yield server


def client_of(billing: Billing, **more: Any) -> MultiServerMCPClient:
    connection: Any = {"transport": "http", "url": billing.url, "auth": CallAuth()}
    return MultiServerMCPClient({"billing": connection}, **more)


def rules_for(billing: Billing) -> dict[str, Any]:
    return {"list_invoices": {"resource": billing.url, "scopes": ["invoices:read"]}}


GO = {"messages": [("user", "go")]}


async def run_agent(identity: AgentIdentity, rules: Any, tools: Any, *customers: str) -> list[Any]:
    guard = IdentityMiddleware(identity, rules=rules)
    agent = create_agent(says(*customers), tools, middleware=[guard])
    state = await agent.ainvoke(GO)
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


# -- streamable HTTP, a session for each call ------------------------------------------------------------------------


async def test_each_call_reaches_the_server_with_its_own_credential_and_assertion(
    identity: AgentIdentity, billing: Billing
) -> None:
    tools = await client_of(billing).get_tools()
    assert {is_signed for _, is_signed in billing.others} == {False}
    async with identity.on_behalf_of("user:alice", purpose="p") as session:
        messages = await run_agent(identity, rules_for(billing), tools, "ACME", "Globex")
        own = {r.call_id for r in session.records() if r.kind == "call.completed"}
    assert {message.status for message in messages} == {"success"}
    assert sorted(billing.ran) == ["ACME", "Globex"]
    assert {call.principal.sub for call in billing.calls} == {"alice"}
    assert {call.call.id for call in billing.calls} == own
    assert len(own) == 2
    for at in range(2):
        (call,) = identity.who_triggered(f"toolu_{at}").calls
        assert (call["resource"], call["outcome"]) == (billing.url, "completed")


async def test_the_digest_is_over_the_arguments_as_the_server_got_them(
    identity: AgentIdentity, billing: Billing
) -> None:
    tools = await client_of(billing).get_tools()
    async with identity.on_behalf_of("user:alice", purpose="p"):
        await run_agent(identity, rules_for(billing), tools, "ACME")
    (verified,) = billing.calls
    assert verified.call.tool == "list_invoices"
    assert verified.call.args_hash == args_digest({"customer": "ACME"})


async def test_parallel_calls_of_two_principals_never_cross(
    identity: AgentIdentity, billing: Billing
) -> None:
    tools = await client_of(billing).get_tools()

    async def act(user: str) -> None:
        async with identity.on_behalf_of(f"user:{user}", purpose="p"):
            await run_agent(identity, rules_for(billing), tools, user, user)

    await asyncio.gather(*map(act, ("alice", "bob", "carol")))
    digests = {(call.principal.sub, call.call.args_hash) for call in billing.calls}
    assert (len(billing.calls), len(digests)) == (6, 3)


async def test_a_protected_mcp_tool_needs_no_agent(
    identity: AgentIdentity, billing: Billing
) -> None:
    (made,) = protect(
        await client_of(billing).get_tools(), resource=billing.url, scopes=["invoices:read"]
    )
    async with identity.on_behalf_of("user:alice", purpose="p"):
        await made.ainvoke(
            {"name": made.name, "args": {"customer": "A"}, "id": "x", "type": "tool_call"}
        )
    assert identity.who_triggered("x").outcome == "completed"
    assert [call.principal.sub for call in billing.calls] == ["alice"]
    with pytest.raises(NoSessionError):
        await made.ainvoke({"customer": "A"})


@pytest.mark.parametrize("what", ["args", "name"])
async def test_a_call_that_an_interceptor_changes_is_not_sent(
    identity: AgentIdentity, billing: Billing, what: str
) -> None:
    async def change(request: Any, handler: Any) -> Any:
        changed: Any = {"args": {"customer": "Globex"}, "name": "pay"}
        return await handler(request.override(**{what: changed[what]}))

    tools = await client_of(billing, tool_interceptors=[change]).get_tools()
    async with identity.on_behalf_of("user:alice", purpose="p"):
        (message,) = await run_agent(identity, rules_for(billing), tools, "ACME")
    assert message.status == "error"
    assert "call_changed" in message.content
    assert (billing.ran, billing.calls) == ([], [])
    (call,) = identity.who_triggered("toolu_0").calls
    assert (call["outcome"], call["error"]) == ("failed", "DeniedError")


async def test_an_interceptor_cannot_send_another_token(
    identity: AgentIdentity, billing: Billing
) -> None:
    async def change(request: Any, handler: Any) -> Any:
        return await handler(request.override(headers={"Authorization": "Bearer other"}))

    tools = await client_of(billing, tool_interceptors=[change]).get_tools()
    async with identity.on_behalf_of("user:alice", purpose="p"):
        await run_agent(identity, rules_for(billing), tools, "ACME")
    assert billing.ran == ["ACME"]


async def test_a_credential_for_another_resource_is_not_sent(
    identity: AgentIdentity, billing: Billing
) -> None:
    tools = await client_of(billing).get_tools()
    rules = {"list_invoices": {"resource": "https://other.example"}}
    async with identity.on_behalf_of("user:alice", purpose="p"):
        (message,) = await run_agent(identity, rules, tools, "ACME")
    assert "foreign_url" in message.content
    assert not any(is_signed for _, is_signed in billing.others)
    assert (billing.ran, billing.calls) == ([], [])


async def test_an_unguarded_call_is_not_sent(identity: AgentIdentity, billing: Billing) -> None:
    (made,) = await client_of(billing).get_tools()
    async with identity.on_behalf_of("user:alice", purpose="p"):
        with pytest.raises(BaseExceptionGroup) as raised:
            await made.ainvoke({"customer": "ACME"})
    assert raised.group_contains(DeniedError, match="without a credential")
    assert (billing.ran, billing.calls) == ([], [])


# -- what is refused, and why ----------------------------------------------------------------------------------------


async def refusal(identity: AgentIdentity, url: str | None, tools: Any) -> ConfigurationError:
    rules = {tool.name: {"resource": url} for tool in tools}
    async with identity.on_behalf_of("user:alice", purpose="p"):
        try:
            await run_agent(identity, rules, tools, "ACME")
        except ConfigurationError as error:
            return error
    raise AssertionError("it ran")


async def test_a_tool_of_a_session_that_stays_open_is_refused(
    identity: AgentIdentity, billing: Billing
) -> None:
    async with client_of(billing).session("billing") as session:
        error = await refusal(identity, billing.url, await load_mcp_tools(session))
    assert error.code == "mcp_credential_unsent"
    assert "MultiServerMCPClient.get_tools" in str(error.remedy)
    assert (billing.ran, billing.calls) == ([], [])


async def test_a_tool_over_stdio_is_refused_with_a_resource_and_runs_as_a_local_one(
    identity: AgentIdentity, tmp_path: Path
) -> None:
    script = tmp_path / "server.py"
    script.write_text(
        "from mcp.server.fastmcp import FastMCP\n"
        "server = FastMCP('billing')\n"
        "@server.tool()\n"
        "def list_invoices(customer: str) -> str:\n"
        "    return f'2 invoices of {customer}'\n"
        "server.run()\n"
    )
    connection: Any = {"transport": "stdio", "command": sys.executable, "args": [str(script)]}
    tools = await MultiServerMCPClient({"billing": connection}).get_tools()
    error = await refusal(identity, "https://billing.example", tools)
    assert error.code == "mcp_credential_unsent"
    assert "streamable HTTP" in str(error.remedy)
    async with identity.on_behalf_of("user:alice", purpose="p"):
        (message,) = await run_agent(identity, {"list_invoices": {}}, tools, "ACME")
    assert message.status == "success"
    (call,) = identity.who_triggered("toolu_0").calls
    assert (call["resource"], call["outcome"]) == ("urn:agent-identity:local", "completed")


@pytest.mark.parametrize(
    ("connection", "more", "remedy"),
    [
        ({}, {}, "CallAuth()"),
        ({"auth": CallAuth()}, {"tool_name_prefix": True}, "prefix"),
    ],
)
async def test_a_connection_that_does_not_sign_is_refused(
    identity: AgentIdentity, billing: Billing, connection: Any, more: Any, remedy: str
) -> None:
    connection = {"transport": "http", "url": billing.url, **connection}
    tools = await MultiServerMCPClient({"billing": connection}, **more).get_tools()
    error = await refusal(identity, billing.url, tools)
    assert error.code == "mcp_credential_unsent"
    assert remedy in str(error.remedy)
    assert billing.ran == []


async def test_a_tool_without_a_resource_is_refused_on_a_connection_that_signs(
    identity: AgentIdentity, billing: Billing
) -> None:
    error = await refusal(identity, None, await client_of(billing).get_tools())
    assert error.code == "mcp_credential_unsent"
    assert "its resource" in str(error.remedy)
    assert billing.ran == []


async def test_a_sync_call_of_an_mcp_tool_is_not_made(
    identity: AgentIdentity, billing: Billing
) -> None:
    (made,) = protect(await client_of(billing).get_tools(), resource=billing.url)
    with identity.on_behalf_of("user:alice", purpose="p"), contextlib.suppress(NotImplementedError):
        made.invoke({"customer": "A"})
    assert billing.ran == []
