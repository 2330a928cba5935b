# SPDX-License-Identifier: Apache-2.0
"""Servers that answer a call with 401 or 403: more scopes within the limits, and no broken connection otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agent_identity import AgentIdentity
from agent_identity.authority import Authority
from agent_identity.jose import loads_object, unverified
from agent_identity.provenance.memory import MemoryLedger
from agent_identity_mcp import connect
from agent_identity_mcp.generations import is_error

PURPOSE = "close the October books"
READ, WRITE = "invoices:read", "invoices:write"


def text_of(result: Any) -> str:
    return str(result.content[0].text)


def challenge(scope: str) -> tuple[int, dict[str, str], bytes]:
    header = f'Bearer error="insufficient_scope", scope="{scope}"'
    return 403, {"www-authenticate": header}, b""


@pytest.fixture
def agent(billing: Any) -> Iterator[AgentIdentity]:
    """An agent that may read and write at the server."""
    resources = {billing.url: [READ, WRITE]}
    with AgentIdentity(
        "bot", authority=Authority(), ledger=MemoryLedger(), resources=resources
    ) as made:
        billing.verifier = made.verifier(audience=billing.url)
        yield made


def claims_of(request: Any) -> dict[str, Any]:
    return dict(loads_object(unverified(request.meta["dev.agent-identity/assertion"]).payload))


async def test_a_server_that_requires_more_scopes_gets_them_and_a_new_assertion(
    agent: AgentIdentity, billing: Any
) -> None:
    billing.instead = lambda request: (
        challenge(f"{READ} {WRITE}")
        if request.rpc == "tools/call" and len(billing.calls()) == 1
        else None
    )
    rules: Any = {"*": {}, "list_invoices": {"scopes": [READ]}}
    async with (
        connect(billing.url, identity=agent, rules=rules) as client,
        agent.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        result = await client.call_tool("list_invoices", {"customer": "ACME"})
        assert text_of(result) == "10 invoices of ACME"
        kinds = [each.kind for each in session.records()]
    first, second = billing.calls()
    assert [each.problem for each in (first, second)] == [None, None]
    assert (first.verified.scopes, second.verified.scopes) == ({READ}, {READ, WRITE})
    assert first.token != second.token
    assert claims_of(first)["ath"] != claims_of(second)["ath"]
    assert claims_of(second)["jti"] == f"{claims_of(first)['jti']}.r1"
    assert kinds.count("call.intended") == kinds.count("call.completed") == 1
    assert "credential.stepped_up" in kinds


async def test_a_server_gets_no_more_than_the_limits_allow(
    agent: AgentIdentity, billing: Any
) -> None:
    billing.instead = lambda request: (
        challenge("admin")
        if request.rpc == "tools/call" and request.message["params"]["name"] == "list_invoices"
        else None
    )
    async with (
        connect(billing.url, identity=agent) as client,
        agent.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        refused = await client.call_tool("list_invoices", {"customer": "ACME"})
        assert is_error(refused)
        assert "scope_not_configured" in text_of(refused)
        assert "admin" not in text_of(refused)
        assert not is_error(await client.call_tool("wait", {"seconds": 0}))
        kinds = [each.kind for each in session.records() if each.kind.startswith("call.")]
    assert kinds == ["call.intended", "call.failed", "call.intended", "call.completed"]
    assert len(billing.calls()) == 2


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_a_status_breaks_no_connection(
    agent: AgentIdentity, billing: Any, status: int
) -> None:
    billing.instead = lambda request: (
        (status, {}, b"")
        if request.rpc == "tools/call" and request.message["params"]["name"] == "list_invoices"
        else None
    )
    async with (
        connect(billing.url, identity=agent) as client,
        agent.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        with pytest.raises(Exception, match=r"refused|error response") as raised:
            await client.call_tool("list_invoices", {"customer": "ACME"})
        assert type(raised.value).__name__.lower() == "mcperror"
        assert not is_error(await client.call_tool("wait", {"seconds": 0}))
        kinds = [each.kind for each in session.records() if each.kind.startswith("call.")]
    assert kinds == ["call.intended", "call.failed", "call.intended", "call.completed"]


async def test_a_changed_request_is_not_signed(agent: AgentIdentity, billing: Any) -> None:
    """Something between our guard and the HTTP client changes the arguments."""
    async with (
        connect(billing.url, identity=agent) as client,
        agent.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        below = getattr(client, "session", client)
        writing = below._dispatcher if hasattr(below, "_dispatcher") else below
        stream = writing._write_stream
        send = stream.send

        async def change(message: Any) -> None:
            text = getattr(message.message, "root", message.message)
            if text.method == "tools/call" and text.params["name"] == "list_invoices":
                text.params["arguments"]["limit"] = 1000
            await send(message)

        writing._write_stream = type(
            "Changed",
            (),
            {"send": staticmethod(change), "__getattr__": lambda _, name: getattr(stream, name)},
        )()
        refused = await client.call_tool("list_invoices", {"customer": "ACME"})
        assert "call_changed" in text_of(refused)
        assert not is_error(await client.call_tool("wait", {"seconds": 0}))
        writing._write_stream = stream
        assert [each.kind for each in session.records()].count("call.failed") == 1
    (call,) = billing.calls()
    assert call.message["params"]["name"] == "wait"
