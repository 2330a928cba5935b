# SPDX-License-Identifier: Apache-2.0
"""Calls over one connection: for whom each is, what the server gets, how it ends, and what is on record."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import anyio
import pytest

from agent_identity import AgentIdentity, ConfigurationError, NoSessionError
from agent_identity.canonical import args_digest
from agent_identity.jose import loads_object, unverified
from agent_identity_mcp import connect, guard
from agent_identity_mcp.generations import IS_SECOND, is_error

PURPOSE = "close the October books"
USERS = ("alice", "bob", "carol")
CALLS = 300


def kinds_of(session: Any) -> list[str]:
    return [each.kind for each in session.records() if each.kind.startswith("call.")]


def text_of(result: Any) -> str:
    return str(result.content[0].text)


async def test_a_call_reaches_its_server_with_token_chain_and_assertion(
    identity: AgentIdentity, billing: Any
) -> None:
    async with (
        connect(billing.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        result = await client.call_tool("list_invoices", {"customer": "ACME"})
        assert (text_of(result), is_error(result)) == ("10 invoices of ACME", False)
        assert kinds_of(session) == ["call.intended", "call.completed"]
        (pinned, *_) = [each for each in session.records() if each.kind == "tool.pinned"]
        assert pinned.to_dict()["server"] == billing.url
    (call,) = billing.calls()
    assert call.problem is None
    assert call.verified.principal.sub == "alice"
    assert call.token.partition(" ")[2] not in call.body.decode()
    assert "traceparent" not in call.meta or call.meta["traceparent"].startswith("00-")
    for other in billing.others():
        assert other.token is None
        assert not any(name.startswith("dev.agent-identity/") for name in other.meta)


async def test_parallel_calls_of_three_principals_have_a_token_and_an_assertion_each(
    identity: AgentIdentity, billing: Any
) -> None:
    async def call(client: Any, user: str, number: int) -> None:
        result = await client.call_tool("list_invoices", {"customer": user, "limit": number})
        assert text_of(result) == f"{number} invoices of {user}"

    async def turn(client: Any, user: str) -> list[str]:
        async with identity.on_behalf_of(f"user:{user}", purpose=PURPOSE) as session:
            numbers = range(CALLS // len(USERS))
            await asyncio.gather(*(call(client, user, number) for number in numbers))
            return kinds_of(session)

    async with connect(billing.url, identity=identity) as client:
        recorded = await asyncio.gather(*(turn(client, user) for user in USERS))
    assert all(
        sorted(kinds) == ["call.completed"] * 100 + ["call.intended"] * 100 for kinds in recorded
    )
    calls = billing.calls()
    assert len(calls) == CALLS
    assert [each.problem for each in calls if each.problem] == []
    tokens: dict[str, str] = {}
    for each in calls:
        user = each.message["params"]["arguments"]["customer"]
        assert each.verified.principal.sub == user
        assert tokens.setdefault(each.token, user) == user
        assert each.token.partition(" ")[2] not in each.body.decode()
    assert len(tokens) == len(USERS)
    assert len({each.headers["agent-assertion"] for each in calls}) == CALLS
    assert len({each.meta["dev.agent-identity/assertion"] for each in calls}) == CALLS
    listings = [each for each in billing.others() if each.rpc == "tools/list"]
    assert len(listings) == 1
    assert [
        each for each in billing.others() if each.token or "agent-assertion" in each.headers
    ] == []


async def test_a_stateful_connection_belongs_to_its_first_principal_and_chain(
    identity: AgentIdentity, make: Any, start: Any
) -> None:
    """Case I18."""
    server, make_app = make(is_stateful=True)

    @server.tool()
    async def look() -> str:
        """Look."""
        return "seen"

    watched = start(make_app())
    options = {"mode": "legacy"} if IS_SECOND else {}
    async with connect(watched.url, identity=identity, **options) as client:
        async with identity.on_behalf_of("user:alice", purpose=PURPOSE) as session:
            assert text_of(await client.call_tool("look", {})) == "seen"
            async with session.delegate("archive-bot"):
                other_chain = await client.call_tool("look", {})
        async with identity.on_behalf_of("user:alice", purpose="again"):
            assert text_of(await client.call_tool("look", {})) == "seen"
        async with identity.on_behalf_of("user:bob", purpose=PURPOSE) as session:
            other = await client.call_tool("look", {})
            (record,) = [
                each.to_dict() for each in session.records() if each.kind.startswith("call.")
            ]
    for refused in (other_chain, other):
        assert is_error(refused)
        assert "connection_owned" in text_of(refused)
    assert (record["kind"], record["code"], record["resource"]) == (
        "call.denied",
        "connection_owned",
        watched.url,
    )
    assert len(watched.calls()) == 2


async def test_a_tool_that_fails_is_on_record_as_failed(
    identity: AgentIdentity, billing: Any
) -> None:
    async with (
        connect(billing.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        result = await client.call_tool("fail", {})
        assert is_error(result)
        assert "Error executing tool fail" in text_of(result)
        outcome = session.records()[-1].to_dict()
        assert (outcome["kind"], outcome["error"]) == ("call.failed", "tool_error")


async def test_the_servers_own_error_passes_through(identity: AgentIdentity, billing: Any) -> None:
    billing.change = lambda request, answer: (
        {"jsonrpc": "2.0", "id": answer["id"], "error": {"code": -32603, "message": "out of order"}}
        if request.rpc == "tools/call"
        else answer
    )
    async with (
        connect(billing.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        with pytest.raises(Exception, match="out of order") as raised:
            await client.call_tool("list_invoices", {"customer": "ACME"})
        assert type(raised.value).__name__.lower() == "mcperror"
        assert kinds_of(session) == ["call.intended", "call.failed"]


@pytest.mark.parametrize("way", ["task", "scope"])
async def test_a_cancelled_call_is_on_record_as_cancelled(
    identity: AgentIdentity, billing: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = identity.ledger.aappend

    async def append_slowly(draft: Any) -> None:
        await asyncio.sleep(0.01)  # a cancelled scope would end the recording here
        await append(draft)

    monkeypatch.setattr(identity.ledger, "aappend", append_slowly)
    async with (
        connect(billing.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        await client.call_tool("wait", {"seconds": 0})
        if way == "scope":
            with anyio.move_on_after(0.2):
                await client.call_tool("wait", {"seconds": 60})
        else:
            task = asyncio.create_task(client.call_tool("wait", {"seconds": 60}))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert kinds_of(session)[2:] == ["call.intended", "call.cancelled"]
        assert text_of(await client.call_tool("wait", {"seconds": 0})) == "waited"


async def test_progress_is_reported(identity: AgentIdentity, make: Any, start: Any) -> None:
    if IS_SECOND:
        from mcp.server.mcpserver import Context
    else:
        from mcp.server.fastmcp import Context
    server, _ = make(is_stateful=True)

    async def work(ctx: Any) -> str:
        await ctx.report_progress(1, 2)
        return "worked"

    work.__annotations__["ctx"] = Context
    server.tool()(work)
    # Progress needs a stream.
    if IS_SECOND:
        app = server.streamable_http_app()
    else:
        server.settings.json_response = False
        app = server.streamable_http_app()
    watched = start(app)
    heard: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async with (
        connect(watched.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE),
    ):
        for _ in range(100):  # mcp 1.24 reports it on another stream, which opens when it does
            result = await client.call_tool("work", {}, progress_callback=hear)
            assert text_of(result) == "worked"
            if heard:
                break
            await asyncio.sleep(0.05)
    assert heard[:1] == [1.0]


async def test_the_digest_is_over_the_arguments_as_they_are_sent(
    identity: AgentIdentity, make: Any, start: Any
) -> None:
    server, make_app = make()

    @server.tool()
    async def call(arguments: dict[str, Any], due: str) -> str:
        """Call."""
        return due

    watched = start(make_app())
    watched.verifier = identity.verifier(audience=watched.url)
    given = {"arguments": {"a": None, "b": (1, 2)}, "due": dt.date(2026, 10, 31)}
    async with (
        connect(watched.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        await client.call_tool("call", given)
        (intent,) = [each for each in session.records() if each.kind == "call.intended"]
    (sent,) = watched.calls()
    assert sent.problem is None
    claims = loads_object(unverified(str(intent.to_dict()["assertion"])).payload)
    digest = claims["call"]["args_hash"]  # type: ignore[index,call-overload]
    assert digest == args_digest(sent.message["params"]["arguments"])


async def test_a_server_with_an_api_key_gets_the_key_and_no_delegation(
    billing: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILLING_KEY", "a-key-of-billing-0123456789")
    file = tmp_path / "agent-identity.toml"
    file.write_text(
        '[agent]\nname = "bot"\n[policy]\nengine = "grants-only"\n'
        f'[resources."{billing.url}"]\nsource = "api-key"\nsecret = "env:BILLING_KEY"\n'
        'header = "X-Api-Key"\n'
    )
    file.chmod(0o600)
    billing.verifier = None
    with AgentIdentity.from_config(file, state_dir=tmp_path / "state") as identity:
        async with (
            connect(billing.url, identity=identity) as client,
            identity.on_behalf_of("user:alice", purpose=PURPOSE),
        ):
            assert not is_error(await client.call_tool("wait", {"seconds": 0}))
    (call,) = billing.calls()
    assert call.headers["x-api-key"] == "a-key-of-billing-0123456789"
    assert not any(name.startswith("agent-") for name in call.headers)
    assert {name for name in call.meta if name.startswith("dev.agent-identity/")} == {
        "dev.agent-identity/request"
    }
    assert not any("x-api-key" in each.headers for each in billing.others())


async def test_a_call_without_a_session_is_not_sent(identity: AgentIdentity, billing: Any) -> None:
    async with connect(billing.url, identity=identity) as client:
        tools = await client.list_tools()
        assert {each.name for each in tools.tools} == {"list_invoices", "fail", "wait"}
        with pytest.raises(NoSessionError):
            await client.call_tool("list_invoices", {"customer": "ACME"})
    assert billing.calls() == []


async def test_an_identity_lends_its_connection_to_no_other(
    identity: AgentIdentity, billing: Any, tmp_path: Any
) -> None:
    with AgentIdentity.embedded("other", state_dir=tmp_path) as other:
        async with (
            connect(billing.url, identity=identity) as client,
            other.on_behalf_of("user:alice", purpose=PURPOSE),
        ):
            assert "foreign_session" in text_of(await client.call_tool("wait", {"seconds": 0}))
    assert billing.calls() == []


async def test_what_policy_denies_is_not_sent(billing: Any, tmp_path: Any) -> None:
    asked: list[Any] = []

    def decide(request: Any) -> bool:
        asked.append((request.resource.id, set(request.resource.properties["labels"])))
        return "moves:money" not in request.resource.properties["labels"]

    rules = {
        "list_invoices": {"scopes": ["invoices:read"], "labels": ["reads:finance"]},
        "wait": {"labels": ["moves:money"]},
    }
    with AgentIdentity.embedded("bot", state_dir=tmp_path, policy=decide) as identity:
        billing.verifier = identity.verifier(audience=billing.url)
        async with (
            connect(billing.url, identity=identity, rules=rules) as client,
            identity.on_behalf_of("user:alice", purpose=PURPOSE) as session,
        ):
            assert not is_error(await client.call_tool("list_invoices", {"customer": "ACME"}))
            assert "policy_denied" in text_of(await client.call_tool("wait", {"seconds": 0}))
            assert "tool_undescribed" in text_of(await client.call_tool("fail", {}))
            assert "tool_unknown" in text_of(await client.call_tool("pay#all", {}))
            assert kinds_of(session)[2:] == ["call.denied"] * 3
    (call,) = billing.calls()
    assert call.verified.scopes == {"invoices:read"}
    assert asked == [
        (f"{billing.url}#list_invoices", {"reads:finance"}),
        (f"{billing.url}#wait", {"moves:money"}),
    ]


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ({"list_invoices": {"resource": "https://x.example"}}, "rule_malformed"),
        ({"pay": {}, "*": {}}, "rule_unmatched"),
    ],
)
async def test_a_rule_that_fits_nothing_is_an_error(
    identity: AgentIdentity, billing: Any, rules: Any, code: str
) -> None:
    async with identity.on_behalf_of("user:alice", purpose=PURPOSE):
        with pytest.raises((ConfigurationError, BaseExceptionGroup)) as raised:
            async with connect(billing.url, identity=identity, rules=rules) as client:
                await client.call_tool("wait", {"seconds": 0})
    error: Any = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert error.code == code
    assert billing.calls() == []


async def test_a_connection_is_guarded_once(identity: AgentIdentity, billing: Any) -> None:
    async with (
        connect(billing.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        below = client.session if IS_SECOND else client
        assert guard(below, identity, server=billing.url) is below
        await client.call_tool("wait", {"seconds": 0})
        await below.call_tool("wait", {"seconds": 0})
        assert kinds_of(session) == ["call.intended", "call.completed"] * 2
        with pytest.raises(ConfigurationError, match="already guarded"):
            guard(below, identity, server="https://other.example")
    assert [each.problem for each in billing.calls()] == [None, None]


async def test_a_revoked_session_refuses_its_calls_and_no_others(
    identity: AgentIdentity, billing: Any
) -> None:
    async with connect(billing.url, identity=identity) as client:
        async with identity.on_behalf_of("user:alice", purpose=PURPOSE) as session:
            await client.call_tool("wait", {"seconds": 0})
            await session.arevoke("enough")
            refused = await client.call_tool("wait", {"seconds": 0})
            assert "session_revoked" in text_of(refused)
        async with identity.on_behalf_of("user:alice", purpose=PURPOSE):
            assert not is_error(await client.call_tool("wait", {"seconds": 0}))
