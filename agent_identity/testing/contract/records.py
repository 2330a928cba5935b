# SPDX-License-Identifier: Apache-2.0
"""What is on record of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent_identity.canonical import args_digest
from agent_identity.jose import loads_object, unverified
from agent_identity.testing.contract.driver import (
    MODES,
    RULE,
    ToolCall,
    kinds_of,
    list_invoices,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.identity import AgentIdentity
    from agent_identity.testing.contract.driver import Driver


class Records:
    """Behaviours of the adapter contract."""

    @MODES
    def test_each_call_has_one_intent_and_one_outcome(
        self, identity: AgentIdentity, driver: Driver, mode: str
    ) -> None:
        tool = driver.make(list_invoices, RULE)
        calls = [ToolCall(f"call_{n}", "list_invoices", {"customer": "ACME"}) for n in range(3)]
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            assert len(run(driver, mode, tool, *calls)) == len(calls)
            assert sorted(kinds_of(session)) == ["call.completed"] * 3 + ["call.intended"] * 3
        assert len({str(each["call_id"]) for each in identity.who_triggered(session).calls}) == 3

    def test_the_digest_is_over_the_arguments_that_the_function_received(
        self, identity: AgentIdentity, driver: Driver
    ) -> None:
        received: list[dict[str, Any]] = []

        def lists(customer: str, limit: int = 10) -> str:
            """List."""
            received.append({"customer": customer, "limit": limit})
            return "listed"

        tool = driver.make(lists, RULE)
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            driver.run(tool, [ToolCall("call_1", "lists", {"customer": "A", "limit": "3"})])
            driver.run(tool, [ToolCall("call_2", "lists", {"customer": "A"})])
            made = [each.to_dict() for each in session.records() if each.kind == "call.intended"]
        claims = [loads_object(unverified(str(each["assertion"])).payload) for each in made]
        digests = [claim["call"]["args_hash"] for claim in claims]  # type: ignore[index,call-overload]
        assert received
        assert digests == [args_digest(each) for each in received]

    def test_a_call_is_found_by_the_models_own_id(
        self, identity: AgentIdentity, driver: Driver
    ) -> None:
        tool = driver.make(list_invoices, RULE)
        with identity.on_behalf_of("user:alice", purpose="p"):
            driver.run(tool, [ToolCall("call_1", "list_invoices", {"customer": "ACME"})])
        (call,) = identity.who_triggered("call_1").calls
        assert (call["tool"], call["outcome"]) == ("list_invoices", "completed")

    @MODES
    def test_the_span_of_a_call_is_below_the_frameworks(
        self,
        identity: AgentIdentity,
        driver: Driver,
        mode: str,
        spans: Callable[[], Sequence[Any]],
    ) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - the fixture has found it

        tool = driver.make(list_invoices, RULE)
        with (
            identity.on_behalf_of("user:alice", purpose="p"),
            trace.get_tracer("framework").start_as_current_span("framework") as outer,
        ):
            run(driver, mode, tool, ToolCall("1", "list_invoices", {"customer": "ACME"}))
        by_id = {each.context.span_id: each for each in spans()}
        (call,) = [each for each in by_id.values() if each.name == "execute_tool list_invoices"]
        attributes = [each.attributes.get("gen_ai.operation.name") for each in by_id.values()]
        assert attributes.count("execute_tool") == 1
        while call.name != "framework":
            assert call.parent is not None, "a span of ours is a root"
            call = by_id[call.parent.span_id]
        assert call.context.span_id == outer.get_span_context().span_id
