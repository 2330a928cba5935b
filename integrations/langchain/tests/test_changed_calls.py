# SPDX-License-Identifier: Apache-2.0
"""Middleware that retries, changes arguments or swaps the tool; structured output, batch: what ran is what is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ToolRetryMiddleware, wrap_tool_call
from langchain.agents.structured_output import ToolStrategy
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_core.tools import tool as langchain_tool
from pydantic import BaseModel

from agent_identity import AgentIdentity, current_session
from agent_identity import tool as describe
from agent_identity.authority import Authority
from agent_identity.canonical import args_digest
from agent_identity.jose import loads_object, unverified
from agent_identity.provenance.memory import MemoryLedger
from agent_identity_langchain import IdentityMiddleware, protect

ran: list[Any] = []


class FakeModel(GenericFakeChatModel):
    """Follows a script."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> FakeModel:
        return self


def says(*calls: tuple[str, dict[str, Any]]) -> FakeModel:
    turns = [
        AIMessage("", tool_calls=[{"name": name, "args": args, "id": f"toolu_{at}"}])
        for at, (name, args) in enumerate(calls)
    ]
    return FakeModel(messages=iter([*turns, AIMessage("done")]))


@langchain_tool
def look(customer: str) -> str:
    """Look something up."""
    ran.append(("look", customer, current_session().principal.sub))
    return f"seen {customer}"


@langchain_tool
def other(customer: str) -> str:
    """Look something else up."""
    ran.append(("other", customer, current_session().principal.sub))
    return f"other {customer}"


@pytest.fixture
def identity() -> Iterator[AgentIdentity]:
    ran.clear()
    with AgentIdentity("bot", authority=Authority(), ledger=MemoryLedger()) as made:
        yield made


GO = {"messages": [("user", "go")]}
LOOK = ("look", {"customer": "ACME"})


def run_agent(
    identity: AgentIdentity, rules: Any, *middleware: Any, tools: Any = (look, other)
) -> tuple[list[ToolMessage], list[tuple[str, str]]]:
    """The tool messages of one run, and the tool and the digest of each intent."""
    guard = IdentityMiddleware(identity, rules=rules)
    before = [made for made in middleware if made is not INSIDE]
    inside = [replaced] if INSIDE in middleware else []
    agent = create_agent(says(LOOK), list(tools), middleware=[*before, guard, *inside])
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = agent.invoke(GO)
        found = [r.to_dict() for r in session.records() if r.kind == "call.intended"]
    messages = [message for message in state["messages"] if isinstance(message, ToolMessage)]
    return messages, [(record["tool"], digest_of(record)) for record in found]


def digest_of(record: dict[str, Any]) -> str:
    claims = loads_object(unverified(record["assertion"]).payload)
    assert claims["call"]["tool"] == record["tool"]
    return str(claims["call"]["args_hash"])


@wrap_tool_call
def replaced(request: Any, handler: Any) -> Any:
    """Gives every call other arguments."""
    changed = {**request.tool_call, "args": {"customer": "Globex"}}
    return handler(request.override(tool_call=changed))


INSIDE = object()
"""`replaced`, registered after ours."""


@pytest.mark.parametrize("where", [replaced, INSIDE], ids=["outside", "inside"])
def test_changed_arguments_are_recorded_as_the_tool_got_them(
    identity: AgentIdentity, where: Any
) -> None:
    _, intents = run_agent(identity, {"*": {}}, where)
    assert ran == [("look", "Globex", "alice")]
    assert intents == [("look", args_digest({"customer": "Globex"}))]


class Swapping(AgentMiddleware[Any, Any]):
    """Runs another tool."""

    def __init__(self, tool: Any) -> None:
        super().__init__()
        self.tool = tool

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(tool=self.tool))

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        return await handler(request.override(tool=self.tool))


def test_a_swapped_tool_is_recorded_as_itself(identity: AgentIdentity) -> None:
    _, intents = run_agent(identity, {"look": {}, "other": {}}, Swapping(other))
    assert ran == [("other", "ACME", "alice")]
    assert [name for name, _ in intents] == ["other"]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_an_unguarded_tool_that_middleware_inside_ours_runs_instead_is_refused(
    identity: AgentIdentity, is_async: bool
) -> None:
    guard = IdentityMiddleware(identity, rules={"*": {}})
    agent = create_agent(says(LOOK), [look, other], middleware=[guard, Swapping(other)])
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = asyncio.run(agent.ainvoke(GO)) if is_async else agent.invoke(GO)  # type: ignore[arg-type]
        kinds = [r.kind for r in session.records() if r.kind.startswith("call.")]
    (message,) = [each for each in state["messages"] if isinstance(each, ToolMessage)]
    assert ran == []
    assert (message.status, "tool_unguarded" in message.content) == ("error", True)
    assert kinds == ["call.denied"]
    (call,) = identity.who_triggered("toolu_0").calls
    assert (call["tool"], call["code"]) == ("other", "tool_unguarded")


@pytest.mark.parametrize("is_described", [False, True], ids=["protected", "decorated"])
def test_a_guarded_tool_that_middleware_inside_ours_runs_instead_is_recorded_as_itself(
    identity: AgentIdentity, is_described: bool
) -> None:
    swapped = StructuredTool.from_function(describe(other.func)) if is_described else protect(other)
    guard = IdentityMiddleware(identity, rules={"*": {}})
    agent = create_agent(says(LOOK), [look], middleware=[guard, Swapping(swapped)])
    with identity.on_behalf_of("user:alice", purpose="p"):
        agent.invoke(GO)  # type: ignore[arg-type]
    assert ran == [("other", "ACME", "alice")]
    (call,) = identity.who_triggered("toolu_0").calls
    assert (call["tool"], call["outcome"]) == ("other", "completed")


def test_middleware_inside_ours_may_run_another_tool_of_the_agent_through_the_runtime(
    identity: AgentIdentity,
) -> None:
    class Choosing(Swapping):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            (chosen,) = [each for each in request.runtime.tools if each.name == "other"]
            return handler(request.override(tool=chosen))

    guard = IdentityMiddleware(identity, rules={"*": {}})
    agent = create_agent(says(LOOK), [look, other], middleware=[guard, Choosing(None)])
    with identity.on_behalf_of("user:alice", purpose="p"):
        agent.invoke(GO)  # type: ignore[arg-type]
    assert ran == [("other", "ACME", "alice")]
    assert [call["tool"] for call in identity.who_triggered("toolu_0").calls] == ["other"]


def test_each_attempt_of_a_retried_call_has_its_own_record(identity: AgentIdentity) -> None:
    @langchain_tool
    def flaky(customer: str) -> str:
        """Look something up, at the third attempt."""
        ran.append(customer)
        if len(ran) < 3:
            raise TimeoutError("not yet")
        return "seen"

    retry = ToolRetryMiddleware(max_retries=3, initial_delay=0, jitter=False)
    guard = IdentityMiddleware(identity, rules={"flaky": {}})
    agent = create_agent(says(("flaky", {"customer": "ACME"})), [flaky], middleware=[retry, guard])
    with identity.on_behalf_of("user:alice", purpose="p"):
        agent.invoke(GO)
    outcomes = [call["outcome"] for call in identity.who_triggered("toolu_0").calls]
    assert ran == ["ACME"] * 3
    assert outcomes == ["failed", "failed", "completed"]


class Answer(BaseModel):
    """The answer."""

    total: int


def test_structured_output_is_no_tool_call(identity: AgentIdentity) -> None:
    guard = IdentityMiddleware(identity, rules={"look": {}})
    agent = create_agent(
        says(LOOK, ("Answer", {"total": 3})),
        [look],
        middleware=[guard],
        response_format=ToolStrategy(Answer),
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = agent.invoke(GO)
        tools = [r.to_dict()["tool"] for r in session.records() if r.kind == "call.intended"]
    assert state["structured_response"] == Answer(total=3)
    assert tools == ["look"]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_each_run_of_a_batch_acts_as_the_session_that_it_carries(
    identity: AgentIdentity, is_async: bool
) -> None:
    users = ("alice", "bob", "carol")
    guard = IdentityMiddleware(identity, rules={"look": {}})
    turns = [AIMessage("", tool_calls=[{"name": "look", "args": {"customer": "A"}, "id": "one"}])]
    model = FakeModel(messages=iter(turns * len(users) + [AIMessage("done")] * len(users)))
    agent = create_agent(model, [look], middleware=[guard])
    sessions = [identity.on_behalf_of(f"user:{user}", purpose="p") for user in users]
    for session in sessions:
        session.__enter__()
    configs = [{"configurable": {"agent_identity_session": session}} for session in sessions]
    if is_async:
        asyncio.run(agent.abatch([GO] * len(users), configs))
    else:
        agent.batch([GO] * len(users), configs)
    for session in reversed(sessions):
        session.__exit__(None, None, None)
    counts = [len([r for r in s.records() if r.kind == "call.intended"]) for s in sessions]
    assert sum(counts) == len(ran)
    for session, count in zip(sessions, counts, strict=True):
        assert len([1 for *_, sub in ran if sub == session.principal.sub]) == count
