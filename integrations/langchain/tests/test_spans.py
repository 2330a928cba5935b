# SPDX-License-Identifier: Apache-2.0
"""Our span below the one that an instrumentation has open, in the three ways in which they open theirs.

The handlers here set what the instrumentations set that were run beside the middleware: openinference-instrumentation-langchain
0.1.80 and opentelemetry-instrumentation-langchain 0.62.4 (OpenLLMetry). LangSmith is the real one, in its OpenTelemetry mode.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.tools import tool as langchain_tool
from langchain_core.tracers import LangChainTracer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langsmith import Client
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agent_identity import AgentIdentity
from agent_identity.authority import Authority
from agent_identity.provenance import spans
from agent_identity.provenance.memory import MemoryLedger
from agent_identity_langchain import IdentityMiddleware, framework_spans, protect
from agent_identity_langchain.demo.agents import FakeModel

OPERATION = "gen_ai.operation.name"
PROVIDER = TracerProvider()
FOREIGN = PROVIDER.get_tracer("framework")


@langchain_tool
def look(customer: str) -> str:
    """Look something up."""
    return customer


@langchain_tool
async def alook(customer: str) -> str:
    """Look something up, async."""
    return customer


class Keeping(BaseCallbackHandler):
    """Keeps the span of each run and makes none current, like OpenInference's tracer."""

    run_inline = True

    def __init__(self) -> None:
        self.spans: dict[Any, Any] = {}

    def on_chain_start(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        self.spans[run_id] = FOREIGN.start_span("chain")

    def on_chain_end(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        self.spans.pop(run_id).end()

    def on_tool_start(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        attributes = {"openinference.span.kind": "TOOL", "tool.name": "look"}
        self.spans[run_id] = FOREIGN.start_span("look", attributes=attributes)

    def on_tool_end(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        self.spans.pop(run_id).end()

    def get_span(self, run_id: Any) -> Any:
        return self.spans.get(run_id)


class Attaching(BaseCallbackHandler):
    """Makes the span of a tool current, like OpenLLMetry's handler."""

    run_inline = True

    def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
        attributes = {"traceloop.span.kind": "tool", OPERATION: "execute_tool"}
        self.span = FOREIGN.start_span("execute_tool look", attributes=attributes)
        self.token = context.attach(trace.set_span_in_context(self.span))

    def on_tool_end(self, *args: Any, **kwargs: Any) -> None:
        context.detach(self.token)
        self.span.end()


class Failing(BaseCallbackHandler):
    """A tracer that can't tell a span."""

    def get_span(self, run_id: Any) -> Any:
        raise RuntimeError("no span")


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentIdentity]:
    monkeypatch.setattr(spans, "_tracer", PROVIDER.get_tracer("agent_identity"))
    with AgentIdentity("bot", authority=Authority(), ledger=MemoryLedger()) as made:
        yield made


@pytest.fixture
def finished() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    processor = SimpleSpanProcessor(exporter)
    PROVIDER.add_span_processor(processor)
    yield exporter
    processor.shutdown()


@contextlib.contextmanager
def langsmith_tracer(**more: Any) -> Iterator[LangChainTracer]:
    """LangSmith's own tracer in its OpenTelemetry mode; nothing leaves the process."""
    client = Client(
        api_url="http://127.0.0.1:9",
        api_key="none",
        tracing_mode="otel",
        otel_tracer_provider=PROVIDER,
        **more,
    )
    yield LangChainTracer(client=client)
    client.flush()
    client.cleanup()


def in_an_agent(identity: AgentIdentity, name: str, *outer: Any) -> Any:
    turn = AIMessage("", tool_calls=[{"name": name, "args": {"customer": "A"}, "id": "toolu_0"}])
    model = FakeModel(turns=[turn, AIMessage("done")])
    guard = IdentityMiddleware(identity, rules={"*": {}})
    agent = create_agent(model, [look, alook], middleware=[*outer, guard])
    return agent, {"messages": [("user", "go")]}


def in_a_plain_node(identity: AgentIdentity, name: str) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("tools", ToolNode(protect([look, alook])))
    builder.add_edge(START, "tools")
    turn = AIMessage("", tool_calls=[{"name": name, "args": {"customer": "A"}, "id": "toolu_0"}])
    return builder.compile(), {"messages": [turn]}


WAYS = pytest.mark.parametrize("way", [in_an_agent, in_a_plain_node])


async def run(identity: AgentIdentity, way: Any, *handlers: Any, is_async: bool = False) -> None:
    graph, state = way(identity, "alook" if is_async else "look")
    async with identity.on_behalf_of("user:alice", purpose="p"):
        if is_async:
            await graph.ainvoke(state, {"callbacks": list(handlers)})
        else:
            graph.invoke(state, {"callbacks": list(handlers)})


def split(exporter: InMemorySpanExporter) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """Our span, which is one, and the framework's."""
    found = exporter.get_finished_spans()
    (ours,) = [s for s in found if s.instrumentation_scope.name == "agent_identity"]
    return ours, [s for s in found if s is not ours]


@WAYS
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_ours_nests_below_a_span_that_a_tracer_keeps(
    identity: AgentIdentity, finished: InMemorySpanExporter, way: Any, is_async: bool
) -> None:
    await run(identity, way, Keeping(), is_async=is_async)
    ours, others = split(finished)
    (theirs,) = [span for span in others if span.name == "look"]
    assert ours.parent is not None
    assert ours.parent.span_id == theirs.context.span_id
    assert ours.attributes[OPERATION] == "execute_tool"
    assert ours.attributes["gen_ai.tool.call.id"] == "toolu_0"
    assert not trace.get_current_span().get_span_context().is_valid


@WAYS
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_ours_leaves_the_operation_to_a_span_that_executes_the_tool(
    identity: AgentIdentity, finished: InMemorySpanExporter, way: Any, is_async: bool
) -> None:
    await run(identity, way, Attaching(), is_async=is_async)
    ours, (theirs,) = split(finished)
    assert ours.parent.span_id == theirs.context.span_id
    assert OPERATION not in ours.attributes
    assert ours.attributes["gen_ai.tool.call.id"] == "toolu_0"


@WAYS
async def test_ours_nests_below_a_span_that_only_its_ids_stand_for(
    identity: AgentIdentity, finished: InMemorySpanExporter, way: Any
) -> None:
    """LangSmith exports its spans later, and makes one current that has only the ids."""
    ids = trace.SpanContext(7, 8, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(ids)):
        await run(identity, way)
    ours, _ = split(finished)
    assert (ours.parent.trace_id, ours.parent.span_id) == (7, 8)


@WAYS
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_ours_nests_below_a_span_of_langsmith(
    identity: AgentIdentity, finished: InMemorySpanExporter, way: Any, is_async: bool
) -> None:
    with langsmith_tracer() as tracer:
        await run(identity, way, tracer, is_async=is_async)
    ours, others = split(finished)
    (theirs,) = [s for s in others if s.attributes.get(OPERATION) == "execute_tool"]
    assert ours.parent is not None
    assert ours.parent.span_id in {s.context.span_id for s in others}
    assert ours.context.trace_id == theirs.context.trace_id
    assert OPERATION not in ours.attributes
    assert ours.attributes["gen_ai.tool.call.id"] == "toolu_0"


def flushing(tracer: LangChainTracer) -> AgentMiddleware[Any, Any]:
    class Flushing(AgentMiddleware[Any, Any]):
        """Has LangSmith's spans opened before the model is asked."""

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            await asyncio.to_thread(tracer.client.flush)
            return await handler(request)

    return Flushing()


async def test_no_call_waits_where_langsmith_has_a_span_open(
    identity: AgentIdentity, finished: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framework_spans, "_LONGEST", 0)
    with langsmith_tracer() as tracer:
        agent, state = in_an_agent(identity, "alook", flushing(tracer))
        async with identity.on_behalf_of("user:alice", purpose="p"):
            await agent.ainvoke(state, {"callbacks": [tracer]})
    ours, others = split(finished)
    assert ours.parent is not None
    assert ours.parent.span_id in {s.context.span_id for s in others}
    operations = [s.attributes.get(OPERATION) for s in finished.get_finished_spans()]
    assert operations.count("execute_tool") == 1


async def test_no_call_waits_for_a_span_of_a_trace_that_langsmith_leaves_out(
    identity: AgentIdentity, finished: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framework_spans, "_LONGEST", 3600)
    with langsmith_tracer(tracing_sampling_rate=0) as tracer:
        await run(identity, in_an_agent, tracer)
    ours, others = split(finished)
    assert others == []
    assert ours.attributes[OPERATION] == "execute_tool"


async def test_a_refusal_nests_below_the_nearest_span_that_langsmith_has_open(
    identity: AgentIdentity, finished: InMemorySpanExporter
) -> None:
    with langsmith_tracer() as tracer:
        agent, state = in_an_agent(identity, "lock", flushing(tracer))
        async with identity.on_behalf_of("user:alice", purpose="p"):
            await agent.ainvoke(state, {"callbacks": [tracer]})
    ours, others = split(finished)
    assert ours.attributes["error.type"] == "tool_unknown"
    assert ours.parent.span_id in {s.context.span_id for s in others}


async def test_a_refused_call_nests_below_the_node_that_refused_it(
    identity: AgentIdentity, finished: InMemorySpanExporter
) -> None:
    agent, state = in_an_agent(identity, "lock")
    async with identity.on_behalf_of("user:alice", purpose="p"):
        agent.invoke(state, {"callbacks": [Keeping()]})
    ours, others = split(finished)
    assert ours.attributes["error.type"] == "tool_unknown"
    assert ours.parent is not None
    assert ours.parent.span_id in {span.context.span_id for span in others}


@WAYS
async def test_a_tracer_that_fails_changes_no_call(
    identity: AgentIdentity, finished: InMemorySpanExporter, way: Any
) -> None:
    with FOREIGN.start_as_current_span("outer") as outer:
        await run(identity, way, Failing())
    ours, _ = split(finished)
    assert ours.parent.span_id == outer.get_span_context().span_id
    assert identity.who_triggered("toolu_0").outcome == "completed"


@WAYS
async def test_a_call_is_found_by_the_ids_of_its_span(
    identity: AgentIdentity, finished: InMemorySpanExporter, way: Any
) -> None:
    await run(identity, way, Keeping())
    ours, _ = split(finished)
    assert identity.who_triggered(f"{ours.context.span_id:016x}").outcome == "completed"
    (call,) = identity.who_triggered("toolu_0").calls
    assert call["trace_id"] == f"{ours.context.trace_id:032x}"
