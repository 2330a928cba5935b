# SPDX-License-Identifier: Apache-2.0
"""FastMCP's servers and client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from agent_identity import AgentIdentity, ConfigurationError
from agent_identity_mcp import CallAuth, connect, guard
from agent_identity_mcp.generations import is_error

fastmcp = pytest.importorskip("fastmcp", reason="needs mcp 1.30 or newer")
PURPOSE = "close the October books"


@pytest.fixture
def billing(identity: AgentIdentity, start: Any) -> Any:
    server = fastmcp.FastMCP("billing")

    @server.tool
    async def list_invoices(customer: str) -> str:
        """List a customer's invoices."""
        return f"invoices of {customer}"

    watched = start(server.http_app(stateless_http=True, json_response=True))
    watched.verifier = identity.verifier(audience=watched.url)
    return watched


def client_of(url: str, auth: CallAuth) -> Any:
    from fastmcp.client.transports import StreamableHttpTransport

    return fastmcp.Client(StreamableHttpTransport(url, auth=auth))


async def test_our_client_calls_a_server_of_fastmcp(identity: AgentIdentity, billing: Any) -> None:
    async with (
        connect(billing.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE),
    ):
        result = await client.call_tool("list_invoices", {"customer": "ACME"})
        assert not is_error(result)
    (call,) = billing.calls()
    assert call.problem is None


async def test_fastmcps_client_is_guarded_when_it_connects_again(
    identity: AgentIdentity, billing: Any, spans: Callable[[], Sequence[Any]]
) -> None:
    auth = CallAuth()
    client = client_of(billing.url, auth)
    with pytest.raises(ConfigurationError, match="isn't connected"):
        guard(client, identity, server=billing.url, auth=auth)
    for number in range(2):
        async with client, identity.on_behalf_of("user:alice", purpose=PURPOSE) as session:
            if number == 0:
                assert guard(client, identity, server=billing.url, auth=auth) is client
            result = await client.call_tool("list_invoices", {"customer": "ACME"})
            assert result.data == "invoices of ACME"
            refused = await client.call_tool("pay", {}, raise_on_error=False)
            assert "tool_unknown" in refused.content[0].text
            kinds = [each.kind for each in session.records() if each.kind.startswith("call.")]
            assert kinds == ["call.intended", "call.completed", "call.denied"]
    calls = billing.calls()
    assert [each.problem for each in calls] == [None, None]
    assert all(each.token for each in calls)
    assert not any(each.token for each in billing.others())
    ours = [each for each in spans() if each.name == "execute_tool list_invoices"]
    assert len(ours) == 2
    below = {each.parent.span_id for each in spans() if each.parent is not None}
    assert ours[0].context.span_id in below


async def test_the_session_of_fastmcps_client_is_guarded_too(
    identity: AgentIdentity, billing: Any
) -> None:
    """Other libraries call the session beside the client."""
    auth = CallAuth()
    async with (
        client_of(billing.url, auth) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        guard(client, identity, server=billing.url, auth=auth)
        await client.session.call_tool("list_invoices", {"customer": "ACME"})
        await client.call_tool("list_invoices", {"customer": "ACME"})
        kinds = [each.kind for each in session.records() if each.kind.startswith("call.")]
        assert kinds == ["call.intended", "call.completed"] * 2
    assert [each.problem for each in billing.calls()] == [None, None]
