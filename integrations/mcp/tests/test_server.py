# SPDX-License-Identifier: Apache-2.0
"""Servers that know who is asking, over streamable HTTP, and guarded clients that call them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from agent_identity import AgentIdentity, ConfigurationError
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.verify.asgi import verified_call as verified_call_of
from agent_identity_mcp import connect
from agent_identity_mcp.generations import IS_SECOND, is_error
from agent_identity_mcp.server import VerifyMiddleware, tool_meta, verified_call, verify_calls

if IS_SECOND:
    from mcp.server.mcpserver import Context
else:
    from mcp.server.fastmcp import Context

KINDS = ["mcp", *(["fastmcp"] if find_spec("fastmcp") else [])]
PURPOSE = "close the October books"
USERS = ("alice", "bob", "carol")
READ, PAY = "invoices:read", "invoices:pay"


def text_of(result: Any) -> str:
    return str(result.content[0].text)


def who() -> str:
    call = verified_call()
    assert call.call is not None
    return f"{call.call.tool} for {call.principal.sub} through {call.agent}, to {call.purpose}"


def add_tools(server: Any, context: Any) -> None:
    @server.tool()
    async def whoami(number: int = 0) -> str:
        """Say who is asking."""
        before = who()
        await asyncio.sleep(0.001 * (number % 5))
        assert who() == before
        return f"{number} {before}"

    @server.tool()
    async def greet() -> str:
        """Greet everybody."""
        return "hello"

    @server.tool()
    def whoami_sync() -> str:
        """Say who is asking."""
        return who()

    @server.tool(meta=tool_meta(scopes=[PAY], labels=["moves:money"]))
    async def pay() -> str:
        """Pay."""
        return "paid"

    async def whose(ctx: Any) -> str:
        """Say whose request it is."""
        return verified_call_of(ctx.request_context.request).principal.sub

    whose.__annotations__["ctx"] = context
    server.tool()(whose)


@pytest.fixture(params=KINDS)
def make_kind(request: Any, make: Any) -> Callable[..., tuple[Any, Callable[[], Any]]]:
    """Makes a server of mcp or of FastMCP with the tools, and what makes its application."""

    def made(*, is_stateful: bool = False) -> tuple[Any, Callable[[], Any]]:
        if request.param == "mcp":
            server, make_app = make(is_stateful=is_stateful)
            add_tools(server, Context)
            return server, make_app
        import fastmcp

        server = fastmcp.FastMCP("billing")
        add_tools(server, fastmcp.Context)
        options = {"stateless_http": not is_stateful, "json_response": True}
        return server, lambda: server.http_app(**options)

    return made


@pytest.fixture
def serve(start: Any, make_kind: Any) -> Callable[..., Any]:
    def served(identity: AgentIdentity | None, *, is_stateful: bool = False, **options: Any) -> Any:
        server, make_app = make_kind(is_stateful=is_stateful)
        app = make_app()
        watched = start(app)

        def verify(own: AgentIdentity) -> None:
            verifier = own.verifier(audience=watched.url)
            watched.app = VerifyMiddleware(app, verifier, server=server, **options)

        watched.verify_calls_of = verify
        if identity is not None:
            verify(identity)
        return watched

    return served


@contextlib.contextmanager
def agent_of(watched: Any, scopes: Iterable[str]) -> Iterator[AgentIdentity]:
    """An agent with these scopes at a server, which trusts it."""
    resources = {watched.url: list(scopes)}
    with AgentIdentity(
        "bot", authority=Authority(), ledger=MemoryLedger(), resources=resources
    ) as made:
        watched.verify_calls_of(made)
        yield made


async def test_a_tool_knows_by_whom_it_is_called(identity: AgentIdentity, serve: Any) -> None:
    watched = serve(identity)
    async with connect(watched.url, identity=identity) as client:
        async with identity.on_behalf_of("user:alice", purpose=PURPOSE) as session:
            agent = session.chain[0]
            whom = f"for alice through {agent}, to {PURPOSE}"
            assert text_of(await client.call_tool("whoami", {"number": 1})) == f"1 whoami {whom}"
            assert text_of(await client.call_tool("whoami_sync", {})) == f"whoami_sync {whom}"
            assert text_of(await client.call_tool("whose", {})) == "alice"


@pytest.mark.parametrize("is_stateful", [False, True])
async def test_three_principals_in_parallel_are_told_apart(
    identity: AgentIdentity, serve: Any, *, is_stateful: bool
) -> None:
    watched = serve(identity, is_stateful=is_stateful)
    options = {"mode": "legacy"} if IS_SECOND and is_stateful else {}
    shares = IS_SECOND and not is_stateful

    async def turn(client: Any, user: str) -> list[str]:
        async with identity.on_behalf_of(f"user:{user}", purpose=PURPOSE):
            calls = (client.call_tool("whoami", {"number": number}) for number in range(30))
            return [text_of(each) for each in await asyncio.gather(*calls)]

    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connect(watched.url, identity=identity, **options))
            for _ in range(1 if shares else 3)
        ]
        turns = (turn(clients[n % len(clients)], user) for n, user in enumerate(USERS))
        told = await asyncio.gather(*turns)
    for user, lines in zip(USERS, told, strict=True):
        assert [line.partition(" ")[0] for line in lines] == [str(n) for n in range(30)]
        assert all(f"for {user} through " in line for line in lines)


async def test_a_tool_gets_the_scopes_that_it_declares(serve: Any) -> None:
    """Within its limits, the client steps up to what the server's challenge names."""
    watched = serve(None)
    rules: Any = {"*": {}, "pay": {"scopes": [READ]}}
    with agent_of(watched, [READ, PAY]) as agent:
        async with (
            connect(watched.url, identity=agent, rules=rules) as client,
            agent.on_behalf_of("user:alice", purpose=PURPOSE) as session,
        ):
            (listed,) = [t for t in (await client.list_tools()).tools if t.name == "pay"]
            assert listed.meta["dev.agent-identity/scopes"] == [PAY]
            assert listed.meta["dev.agent-identity/labels"] == ["moves:money"]
            assert text_of(await client.call_tool("pay", {})) == "paid"
            kinds = [each.kind for each in session.records()]
    assert "credential.stepped_up" in kinds
    assert len(watched.calls()) == 2


async def test_a_tool_whose_scopes_are_missing_does_not_run(serve: Any) -> None:
    watched = serve(None)
    with agent_of(watched, [READ]) as agent:
        async with (
            connect(watched.url, identity=agent) as client,
            agent.on_behalf_of("user:alice", purpose=PURPOSE),
        ):
            refused = await client.call_tool("pay", {})
            assert is_error(refused)
            assert "scope_not_configured" in text_of(refused)
            assert "whoami for alice" in text_of(await client.call_tool("whoami", {}))


async def test_a_client_without_statements_may_list_but_not_call(
    identity: AgentIdentity, serve: Any
) -> None:
    watched = serve(identity)
    async with plain_client(watched.url) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} >= {"pay", "whoami"}
    assert await refused_call(watched.url, "greet")
    assert await refused_call(watched.url, "pay")


async def refused_call(url: str, tool: str) -> bool:
    """Whether a call without statements is refused; mcp 1 ends the connection then."""
    try:
        async with plain_client(url) as client:
            await client.call_tool(tool, {})
    except Exception as error:  # an ExceptionGroup with mcp 1
        shown = "".join(traceback.format_exception(error))
        return "401" in shown or "Credentials are required" in shown
    return False


def plain_client(url: str) -> Any:
    if IS_SECOND:
        from mcp import Client

        return Client(url)

    @contextlib.asynccontextmanager
    async def opened() -> Any:
        from mcp import ClientSession
        from mcp.client.streamable_http import streamable_http_client

        async with streamable_http_client(url) as streams, ClientSession(*streams[:2]) as session:
            await session.initialize()
            yield session

    return opened()


async def test_calls_without_statements_run_only_where_that_is_named(
    identity: AgentIdentity, serve: Any
) -> None:
    """Not those of a tool with scopes; and a tool that asks by whom it is called learns that nobody is known."""
    watched = serve(identity, unverified={"tools/call"})
    async with plain_client(watched.url) as client:
        assert text_of(await client.call_tool("greet", {})) == "hello"
        assert is_error(asked := await client.call_tool("whoami", {}))
        assert "alice" not in text_of(asked)
        assert text_of(await client.call_tool("greet", {})) == "hello"
    assert await refused_call(watched.url, "pay")
    async with (
        connect(watched.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE),
    ):
        assert "for alice" in text_of(await client.call_tool("whoami", {}))


async def test_a_server_that_takes_tokens_says_where_they_are_issued(
    identity: AgentIdentity, serve: Any
) -> None:
    metadata = "https://billing.example/.well-known/oauth-protected-resource"
    watched = serve(identity, resource_metadata=metadata)
    async with (
        connect(watched.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE),
    ):
        assert "for alice" in text_of(await client.call_tool("whoami", {}))


async def test_fastmcps_application_takes_it_as_middleware(
    identity: AgentIdentity, start: Any
) -> None:
    fastmcp = pytest.importorskip("fastmcp", reason="needs mcp 1.30 or newer")
    from starlette.middleware import Middleware

    server = fastmcp.FastMCP("billing")
    add_tools(server, fastmcp.Context)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    verifier = identity.verifier(audience=f"http://127.0.0.1:{port}/mcp")
    middleware = [Middleware(VerifyMiddleware, verifier=verifier, server=server)]
    watched = start(server.http_app(stateless_http=True, middleware=middleware), port)
    assert await refused_call(watched.url, "greet")
    async with (
        connect(watched.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE),
    ):
        assert "for alice" in text_of(await client.call_tool("whoami", {}))


def test_only_a_server_with_tools_can_be_guarded(identity: AgentIdentity, make: Any) -> None:
    server, make_app = make()
    verifier = identity.verifier(audience="https://billing.example/mcp")
    for wrong in (object(), make_app()):
        with pytest.raises(ConfigurationError, match="isn't an MCPServer or a FastMCP"):
            VerifyMiddleware(None, verifier, server=wrong)
        with pytest.raises(ConfigurationError):
            verify_calls(wrong, verifier)
    with pytest.raises(ConfigurationError):
        VerifyMiddleware(None, verifier, server=server, unverified="tools/call")


async def test_a_guarded_server_runs_no_call_that_comes_another_way(
    identity: AgentIdentity, make: Any
) -> None:
    """As over stdio, where only `verify_calls` verifies."""
    server, make_app = make()
    add_tools(server, Context)
    verifier = identity.verifier(audience="https://billing.example/mcp")
    VerifyMiddleware(make_app(), verifier, server=server)
    async with in_memory(server) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} >= {"greet"}
        with pytest.raises(Exception, match="Credentials are required"):
            await client.call_tool("greet", {})


def in_memory(server: Any) -> Any:
    if IS_SECOND:
        from mcp import Client

        return Client(server)
    from mcp.shared.memory import create_connected_server_and_client_session

    return create_connected_server_and_client_session(server)
