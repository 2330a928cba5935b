# SPDX-License-Identifier: Apache-2.0
"""The interface for integrations: which session a call belongs to, and remote tools, whose arguments go over a wire."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agent_identity import (
    AgentIdentity,
    DeniedError,
    NoSessionError,
    RevokedError,
    current_session,
    tool,
)
from agent_identity.adapters import (
    Tool,
    below,
    check_unchanged,
    refusal_for_model,
    refusal_text,
    tool_of,
    within,
    wrap_keywords,
)
from agent_identity.authority import Authority
from agent_identity.canonical import args_digest
from agent_identity.jose import loads_object, unverified
from agent_identity.provenance import spans
from agent_identity.provenance.memory import MemoryLedger


@pytest.fixture
def identity() -> Iterator[AgentIdentity]:
    with AgentIdentity("bot", authority=Authority(), ledger=MemoryLedger()) as made:
        yield made


# -- which session -----------------------------------------------------------------------------------------------------


def acting() -> str:
    return current_session().agent.rpartition(":")[2]


def test_a_carried_session_replaces_that_of_the_code_around(identity: AgentIdentity) -> None:
    with (
        identity.on_behalf_of("user:alice", purpose="p") as alice,
        identity.on_behalf_of("user:bob", purpose="p"),
        within(alice),
    ):
        assert current_session() is alice


def test_a_carried_session_does_not_replace_a_delegate_that_its_tool_opened(
    identity: AgentIdentity,
) -> None:
    acted: list[str] = []

    @tool
    def ask() -> None:
        with current_session().delegate("archive-bot") as child:
            with within(session):
                acted.append(acting())
            with child.delegate("scanner"), within(session):
                acted.append(acting())
        with within(session):
            acted.append(acting())

    with identity.on_behalf_of("user:alice", purpose="p") as session:
        ask()
        with session.delegate("archive-bot"), within(session):
            acted.append(acting())
    assert acted == ["archive-bot", "scanner", "bot", "bot"]


# -- remote tools --------------------------------------------------------------------------------------------------------


async def test_keywords_are_digested_as_they_are_sent(identity: AgentIdentity) -> None:
    sent: dict[str, Any] = {"customer": "ACME", "self": 1, "function": [2]}

    async def send(**arguments: Any) -> dict[str, Any]:
        check_unchanged("remote", arguments)
        return arguments

    remote = wrap_keywords(send, Tool("remote"))
    assert inspect.iscoroutinefunction(remote)
    assert tool_of(remote) is not None
    async with identity.on_behalf_of("user:alice", purpose="p") as session:
        assert await remote(**sent) == sent
        (intent,) = [r.to_dict() for r in session.records() if r.kind == "call.intended"]
    claims = loads_object(unverified(intent["assertion"]).payload)
    assert claims["call"]["args_hash"] == args_digest(sent)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("other", {"customer": "ACME"}), ("remote", {"customer": "Globex"}), ("remote", {})],
)
async def test_another_tool_or_other_arguments_are_not_the_running_call(
    identity: AgentIdentity, name: str, arguments: dict[str, Any]
) -> None:
    async def send(**_: Any) -> None:
        check_unchanged(name, arguments)

    async with identity.on_behalf_of("user:alice", purpose="p"):
        with pytest.raises(DeniedError) as raised:
            await wrap_keywords(send, Tool("remote"))(customer="ACME")
    assert raised.value.code == "call_changed"


def test_no_call_runs_outside_of_tools(identity: AgentIdentity) -> None:
    with pytest.raises(NoSessionError):
        check_unchanged("remote", {})
    with identity.on_behalf_of("user:alice", purpose="p"), pytest.raises(DeniedError) as raised:
        check_unchanged("remote", {})
    assert raised.value.code == "call_changed"


# -- spans -----------------------------------------------------------------------------------------------------------


def test_a_block_below_a_span_has_it_as_the_current_one() -> None:
    ids = trace.SpanContext(7, 8, is_remote=False)
    before = trace.get_current_span()
    with below(trace.NonRecordingSpan(ids)), below(None), below("no span"):
        assert trace.get_current_span().get_span_context() == ids
    assert trace.get_current_span() is before


def test_a_call_leaves_the_operation_to_a_framework_that_executes_the_tool_elsewhere(
    identity: AgentIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LangSmith's span of the call may not be there yet; that of a run around it is."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("agent_identity"))

    @tool
    def inner() -> None:
        """Be called by a tool."""

    @tool
    def outer() -> None:
        """Call a tool."""
        inner()

    ids = trace.SpanContext(7, 8, is_remote=False, trace_flags=trace.TraceFlags(1))
    around = trace.NonRecordingSpan(ids)
    with identity.on_behalf_of("user:alice", purpose="p"):
        with below(around, executes_tool=True):
            outer()
        with below(around):
            inner()
    operations = [
        (each.name, (each.attributes or {}).get("gen_ai.operation.name"))
        for each in exporter.get_finished_spans()
    ]
    assert operations == [
        ("execute_tool inner", "execute_tool"),  # the framework has no span for it
        ("execute_tool outer", None),
        ("execute_tool inner", "execute_tool"),
    ]


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_refusal_for_a_model_says_nothing_of_the_policy() -> None:
    error = RevokedError("gone", "alice left the company", remedy="ask Bob", policy_id="p1")
    error.call_id = "call_1"
    error.__cause__ = DeniedError("inner", "alice left the company")
    copy = refusal_for_model(error)
    assert type(copy) is RevokedError
    assert str(copy) == refusal_text(copy) == refusal_text(error)
    assert (copy.code, copy.policy_id, copy.call_id) == ("gone", "p1", "call_1")
    assert "company" not in "".join(traceback.format_exception(copy))
    assert str(error) == "alice left the company"
