# SPDX-License-Identifier: Apache-2.0
"""A tool lets its credential slip in every kind of result: no message, callback, event or checkpoint shows it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool, ToolException
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from agent_identity import AgentIdentity, current_credential
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.testing import assert_no_leak
from agent_identity_langchain import IdentityMiddleware, guarded_tool_node, protect
from agent_identity_langchain.demo.agents import FakeModel

BILLING = "https://billing.example"
RULE: dict[str, Any] = {"resource": BILLING, "scopes": ["invoices:read"]}
CALL: Any = {"name": "echo", "args": {"customer": "ACME"}, "id": "toolu_1", "type": "tool_call"}
tokens: list[str] = []


class Watch(BaseCallbackHandler):
    """Keeps all that callbacks are told, as a tracer does."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda *args, **kwargs: self.seen.append(repr((name, args, kwargs)))


class Answer(BaseModel):
    """A model of pydantic."""

    text: str


@dataclass
class Row:
    """A dataclass."""

    text: str


class Service:
    """An object whose text shows what it was made of."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__


def message(text: str, **more: Any) -> ToolMessage:
    return ToolMessage(text, tool_call_id="toolu_1", **more)


def raising(error: Exception) -> Any:
    raise error


def with_note(text: str) -> Any:
    error = ValueError("failed")
    error.add_note(text)
    raise error


def with_cause(text: str) -> Any:
    raise ValueError("failed") from RuntimeError(text)


KINDS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "JSON": lambda text: json.dumps({"authorization": text}),
    "bytes": str.encode,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "mapping": lambda text: {"headers": {"authorization": text}},
    "key": lambda text: {text: 1},
    "list": lambda text: [text, (text,)],
    "blocks": lambda text: [{"type": "text", "text": text}],
    "pydantic": lambda text: Answer(text=text),
    "dataclass": Row,
    "object": Service,
    "document": lambda text: Document(text, metadata={"source": text}),
    "message": message,
    "message's fields": lambda text: message(
        "seen", artifact={"x": text}, additional_kwargs={"x": text}, response_metadata={"x": text}
    ),
    "command": lambda text: Command(update={"messages": [message(text)]}),
    "command's messages": lambda text: Command(
        update={"messages": [message("seen"), HumanMessage(text)]}
    ),
    "artifact": lambda text: ("seen", {"headers": text}),
    "interrupt": lambda text: interrupt({"headers": text}),
    "exception": lambda text: raising(ValueError(text)),
    "tool exception": lambda text: raising(ToolException(text)),
    "note": with_note,
    "cause": with_cause,
}


@pytest.fixture
def identity() -> Iterator[AgentIdentity]:
    tokens.clear()
    with AgentIdentity("bot", authority=Authority(), ledger=MemoryLedger()) as made:
        yield made


def sent() -> str:
    tokens.append(current_credential().reveal())
    return f"sent {current_credential().headers('GET', BILLING)}"


def tool_of(kind: str, is_async: bool) -> StructuredTool:
    def echo(customer: str) -> Any:
        """Ask the service."""
        return KINDS[kind](sent())

    async def aecho(customer: str) -> Any:
        """Ask the service."""
        return KINDS[kind](sent())

    made = {"coroutine": aecho} if is_async else {"func": echo}
    form = "content_and_artifact" if kind == "artifact" else "content"
    tool = StructuredTool.from_function(**made, name="echo", response_format=form)
    tool.handle_tool_error = True
    return tool


def agent(identity: AgentIdentity, tool: StructuredTool, saver: InMemorySaver) -> Any:
    guard = IdentityMiddleware(identity, rules={"echo": RULE})
    return create_agent(
        FakeModel(turns=[AIMessage("", tool_calls=[CALL]), AIMessage("done")]),
        [tool],
        middleware=[guard],
        checkpointer=saver,
    )


def protected(identity: AgentIdentity, tool: StructuredTool, saver: InMemorySaver) -> Any:
    return graph_of(ToolNode([protect(tool, **RULE)]), saver)


def guarded(identity: AgentIdentity, tool: StructuredTool, saver: InMemorySaver) -> Any:
    return graph_of(guarded_tool_node(identity, [tool], {"echo": RULE}), saver)


def graph_of(node: ToolNode, saver: InMemorySaver) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [AIMessage("", tool_calls=[CALL])]})
    graph.add_node("tools", node)
    graph.set_entry_point("model")
    graph.add_edge("model", "tools")
    return graph.compile(checkpointer=saver)


async def events(graph: Any, config: Any) -> list[Any]:
    return [event async for event in graph.astream_events(GO, config, version="v2")]


GO: Any = {"messages": [("user", "go")]}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("make", [agent, protected, guarded])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_leaves_a_tool_shows_its_credential(
    identity: AgentIdentity, kind: str, make: Any, is_async: bool
) -> None:
    saver, watch = InMemorySaver(), Watch()
    graph = make(identity, tool_of(kind, is_async), saver)
    config: Any = {"configurable": {"thread_id": "1"}, "callbacks": [watch]}
    raised: list[Exception] = []
    told: list[Any] = []
    with identity.on_behalf_of("user:alice", purpose="p"):
        try:
            told = (
                asyncio.run(events(graph, config))
                if is_async
                else list(
                    graph.stream(GO, config, stream_mode=["updates", "values", "tasks", "debug"])
                )
            )
        except (ValueError, TypeError, ToolException) as error:
            raised.append(error)
        states = [repr(state) for state in graph.get_state_history(config)]
    assert tokens
    assert len(tokens[0]) > 200
    assert any("toolu_1" in state for state in states)
    kept = [repr(saver.storage), repr(saver.writes), repr(saver.blobs), *states]
    assert_no_leak(tokens, *raised, *map(repr, told), *watch.seen, *kept)
