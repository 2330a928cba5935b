# SPDX-License-Identifier: Apache-2.0
"""Calls over one connection: for whom each is, what the server gets, and what is on record."""

from __future__ import annotations

import asyncio
from typing import Any

from agent_identity import AgentIdentity
from agent_identity_mcp import connect
from agent_identity_mcp.generations import is_error

PURPOSE = "close the October books"


def kinds_of(session: Any) -> list[str]:
    return [each.kind for each in session.records() if each.kind.startswith("call.")]


async def test_a_call_reaches_its_server_with_token_chain_and_assertion(
    identity: AgentIdentity, billing: Any
) -> None:
    async with (
        connect(billing.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        result = await client.call_tool("list_invoices", {"customer": "ACME"})
        assert result.content[0].text == "10 invoices of ACME"
        assert not is_error(result)
        assert kinds_of(session) == ["call.intended", "call.completed"]
    (call,) = billing.calls()
    assert call.problem is None
    assert call.verified.principal.sub == "alice"
    assert call.token is not None
    assert call.token.partition(" ")[2] not in call.body.decode()
    for other in billing.others():
        assert other.token is None
        assert not any(name.startswith("dev.agent-identity/") for name in other.meta)
    (pinned,) = [r for r in identity.ledger.session_records(session.id) if r.kind == "tool.pinned"][
        :1
    ]
    assert pinned.to_dict()["server"] == billing.url
    await asyncio.sleep(0)
