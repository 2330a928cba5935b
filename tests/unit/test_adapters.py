# SPDX-License-Identifier: Apache-2.0
"""The interface for integrations: which session a call belongs to, and what a framework is told."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agent_identity import (
    AgentIdentity,
    DeniedError,
    RevokedError,
    current_session,
    tool,
)
from agent_identity.adapters import (
    below,
    refusal_for_model,
    refusal_text,
    within,
)
from agent_identity.authority import Authority
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
