# SPDX-License-Identifier: Apache-2.0
"""The adapter contract under LangChain: `IdentityMiddleware` in an agent, and `protect` with a raw `ToolNode`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import interrupt

from agent_identity import AgentIdentity, DeniedError
from agent_identity.adapters import refusal_text
from agent_identity.testing.contract import Contract, Result, ToolCall
from agent_identity_langchain import IdentityMiddleware, protect


class FakeModel(GenericFakeChatModel):
    """Says what the script says."""

    bound: list[Any] = []
    shown: list[str] = []

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> FakeModel:
        self.bound.extend(tools)
        return self

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.shown.append(repr(messages))
        return super()._generate(messages, *args, **kwargs)


class Watch(BaseCallbackHandler):
    def __init__(self, shown: list[str]) -> None:
        self.on_tool_start = self.on_tool_end = self.on_tool_error = self.note
        self.shown = shown

    def note(self, *args: Any, **kwargs: Any) -> None:
        self.shown.append(repr((args, kwargs)))


class MiddlewareDriver:
    def __init__(self, identity: AgentIdentity) -> None:
        self.identity = identity
        self.shown: list[str] = []
        self.saver = InMemorySaver()
        self.rules: dict[str, Mapping[str, Any]] = {}
        self.runs = 0

    def make(self, function: Callable[..., Any], rule: Mapping[str, Any] | None) -> BaseTool:
        if rule is not None:
            self.rules[function.__name__] = rule
        return as_tool(function)

    def schema(self, tool: BaseTool) -> Mapping[str, Any]:
        model = FakeModel(messages=iter([AIMessage("done")]), bound=[], shown=[])
        self.agent(tool, model).invoke({"messages": [("user", "go")]}, self.config())
        return convert_to_openai_tool(model.bound[0])["function"]

    def agent(self, tool: BaseTool, model: Any) -> Any:
        middleware = [IdentityMiddleware(self.identity, rules=self.rules)]
        return create_agent(model, [tool], middleware=middleware, checkpointer=self.saver)

    def graph(self, tool: BaseTool, turns: Sequence[AIMessage]) -> tuple[Any, list[Any]]:
        script = iter([*turns, AIMessage("done")])
        return self.agent(tool, FakeModel(messages=script, shown=self.shown)), [("user", "go")]

    def config(self) -> Any:
        self.runs += 1
        watch = Watch(self.shown)
        return {"configurable": {"thread_id": str(self.runs)}, "callbacks": [watch]}

    def run(self, tool: BaseTool, calls: Sequence[ToolCall]) -> list[Result]:
        graph, messages = self.graph(tool, [turn(*calls)])
        return self.results(graph.invoke({"messages": messages}, self.config())["messages"])

    async def arun(self, tool: BaseTool, calls: Sequence[ToolCall]) -> list[Result]:
        graph, messages = self.graph(tool, [turn(*calls)])
        return self.results(
            (await graph.ainvoke({"messages": messages}, self.config()))["messages"]
        )

    def stream(self, tool: BaseTool, calls: Sequence[ToolCall]) -> Iterator[Result]:
        graph, messages = self.graph(tool, [turn(call) for call in calls])
        for update in graph.stream({"messages": messages}, self.config(), stream_mode="updates"):
            yield from self.results(update.get("tools", {}).get("messages", []))

    def results(self, messages: Sequence[Any]) -> list[Result]:
        self.shown.extend([repr(messages), repr(list(self.saver.list(None)))])
        told = [message for message in messages if isinstance(message, ToolMessage)]
        return [Result(m.tool_call_id, str(m.content), m.status == "error") for m in told]

    def interrupt(self, question: str) -> Any:
        return interrupt(question)


class ProtectDriver(MiddlewareDriver):
    def make(self, function: Callable[..., Any], rule: Mapping[str, Any] | None) -> BaseTool:
        return protect(as_tool(function), **(rule or {}))

    def schema(self, tool: BaseTool) -> Mapping[str, Any]:
        return convert_to_openai_tool(tool)["function"]

    def graph(self, tool: BaseTool, turns: Sequence[AIMessage]) -> tuple[Any, list[Any]]:
        graph = StateGraph(MessagesState)
        script = iter(turns)
        graph.add_node("model", lambda state: {"messages": [next(script, AIMessage("done"))]})
        graph.add_node("tools", ToolNode([tool], handle_tool_errors=told))
        graph.set_entry_point("model")
        graph.add_edge("tools", "model")
        graph.add_conditional_edges(
            "model", lambda s: "tools" if s["messages"][-1].tool_calls else "__end__"
        )
        return graph.compile(checkpointer=self.saver), [("user", "go")]


def told(error: DeniedError) -> str:
    return refusal_text(error)


def as_tool(function: Callable[..., Any]) -> BaseTool:
    kind = "coroutine" if inspect.iscoroutinefunction(function) else "func"
    return StructuredTool.from_function(**{kind: function})


def turn(*calls: ToolCall) -> AIMessage:
    return AIMessage(
        "", tool_calls=[{"name": c.name, "args": dict(c.arguments), "id": c.id} for c in calls]
    )


class TestMiddleware(Contract):
    @pytest.fixture
    def driver(self, identity: AgentIdentity) -> MiddlewareDriver:
        return MiddlewareDriver(identity)


class TestProtect(Contract):
    test_an_undescribed_tool_is_refused = None  # `protect` describes each tool

    @pytest.fixture
    def driver(self, identity: AgentIdentity) -> ProtectDriver:
        return ProtectDriver(identity)
