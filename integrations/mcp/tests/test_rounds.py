# SPDX-License-Identifier: Apache-2.0
"""Calls in which the server asks the client: one record and one span over all rounds, and an assertion for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from agent_identity import AgentIdentity
from agent_identity.jose import loads_object, unverified
from agent_identity_mcp import connect
from agent_identity_mcp.generations import IS_SECOND, types

PURPOSE = "close the October books"


class Answer(BaseModel):
    approve: bool


async def answer(context: Any, params: Any) -> Any:
    return types.ElicitResult(action="accept", content={"approve": True})


def spans_of_calls(spans: Callable[[], Sequence[Any]]) -> list[Any]:
    return [each for each in spans() if each.name.startswith("execute_tool")]


@pytest.mark.skipif(not IS_SECOND, reason="mcp 1 knows no further rounds")
async def test_all_rounds_are_one_call_on_record(
    identity: AgentIdentity, make: Any, start: Any, spans: Callable[[], Sequence[Any]]
) -> None:
    from mcp.server.mcpserver import Elicit, Resolve

    server, make_app = make()

    async def ask(number: str) -> Any:
        return Elicit(f"pay {number}?", Answer)

    async def pay(number: str, answer: Any) -> str:
        """Pay an invoice."""
        return f"paid {number}: {answer.approve}"

    ask.__annotations__["return"] = Elicit[Answer]
    pay.__annotations__["answer"] = Annotated[Answer, Resolve(ask)]
    server.tool()(pay)
    watched = start(make_app())
    watched.verifier = identity.verifier(audience=watched.url)
    async with (
        connect(watched.url, identity=identity, elicitation_callback=answer) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        result = await client.call_tool("pay", {"number": "1041"})
        assert result.content[0].text == "paid 1041: True"
        kinds = [each.kind for each in session.records() if each.kind.startswith("call.")]
        assert kinds == ["call.intended", "call.completed"]
    rounds = watched.calls()
    assert [each.problem for each in rounds] == [None, None]
    ids = [
        loads_object(unverified(each.meta["dev.agent-identity/assertion"]).payload)["jti"]
        for each in rounds
    ]
    assert ids[1] == f"{ids[0]}.r1"
    assert len(spans_of_calls(spans)) == 1


async def test_an_elicitation_in_a_stateful_connection_is_answered(
    identity: AgentIdentity, make: Any, start: Any
) -> None:
    if IS_SECOND:
        from mcp.server.mcpserver import Context
    else:
        from mcp.server.fastmcp import Context
    server, _ = make(is_stateful=True)

    async def pay(number: str, ctx: Any) -> str:
        """Pay an invoice."""
        asked = await ctx.elicit(f"pay {number}?", schema=Answer)
        return f"paid {number}: {asked.data.approve}"

    pay.__annotations__["ctx"] = Context
    server.tool()(pay)
    if not IS_SECOND:
        server.settings.json_response = False
    watched = start(server.streamable_http_app())
    options = {"mode": "legacy"} if IS_SECOND else {}
    async with (
        connect(watched.url, identity=identity, elicitation_callback=answer, **options) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE) as session,
    ):
        result = await client.call_tool("pay", {"number": "1041"})
        assert result.content[0].text == "paid 1041: True"
        kinds = [each.kind for each in session.records() if each.kind.startswith("call.")]
        assert kinds == ["call.intended", "call.completed"]
    assert all(each.token is None for each in watched.others())


async def test_a_span_is_ours_and_mcps_is_below(
    identity: AgentIdentity, billing: Any, spans: Callable[[], Sequence[Any]]
) -> None:
    from opentelemetry import trace

    async with (
        connect(billing.url, identity=identity) as client,
        identity.on_behalf_of("user:alice", purpose=PURPOSE),
    ):
        with trace.get_tracer("framework").start_as_current_span("framework") as outer:
            await client.call_tool("list_invoices", {"customer": "ACME"})
            await client.call_tool("pay", {})
    ours, refused = spans_of_calls(spans)
    assert ours.parent.span_id == refused.parent.span_id == outer.get_span_context().span_id
    assert refused.attributes["agent_identity.decision"] == "deny"
    assert [each.attributes.get("gen_ai.operation.name") for each in (ours, refused)] == [
        "execute_tool"
    ] * 2
    (sent,) = billing.calls()
    trace_id, span_id = sent.meta["traceparent"].split("-")[1:3]
    assert trace_id == f"{ours.context.trace_id:032x}"
    if IS_SECOND:
        (client_span,) = [s for s in spans() if f"{s.context.span_id:016x}" == span_id]
        assert client_span.parent.span_id == ours.context.span_id
    else:
        assert span_id == f"{ours.context.span_id:016x}"
    assert identity.who_triggered(str(ours.attributes["agent_identity.call.id"])).calls
