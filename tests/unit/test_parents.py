# SPDX-License-Identifier: Apache-2.0
"""A call names the call in whose tool it was made, and a trace shows it there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_identity import AgentIdentity, DeniedError, current_session, tool


@tool
def leaf(x: int) -> int:
    return x


@pytest.fixture
def identity(tmp_path: Path) -> Iterator[AgentIdentity]:
    with AgentIdentity.embedded("planner", state_dir=tmp_path, ledger="memory:") as identity:
        yield identity


def calls_of(identity: AgentIdentity, session: Any) -> dict[str, Any]:
    """The calls by tool, or by tool and agent where several agents called it."""
    return {
        f"{call['tool']} {str(call['agent']).rpartition(':')[2]}": call
        for call in identity.who_triggered(session.id).calls
    }


def test_a_tool_that_calls_a_tool_is_its_parent(identity: AgentIdentity) -> None:
    @tool
    def outer() -> int:
        return leaf(1)

    with identity.on_behalf_of("user:alice", purpose="p") as session:
        outer()
        assert leaf(2) == 2
    first, inner, last = identity.who_triggered(session.id).calls
    assert (first["tool"], inner["tool"], last["tool"]) == ("outer", "leaf", "leaf")
    assert (first["parent"], inner["parent"], last["parent"]) == (None, first["call_id"], None)


def test_a_sub_agents_calls_stand_below_the_call_that_delegated(identity: AgentIdentity) -> None:
    @tool
    def research() -> None:
        with current_session().delegate("searcher", task="find it"):
            leaf(1)

    with identity.on_behalf_of("user:alice", purpose="p") as session:
        research()
    calls = calls_of(identity, session)
    assert calls["leaf searcher"]["parent"] == calls["research planner"]["call_id"]
    lines = [line.lstrip("│├└─ ") for line in str(identity.who_triggered(session.id)).splitlines()]
    order = ["planner", "✔ research", "searcher: find it", "✔ leaf"]
    places = [next(n for n, line in enumerate(lines) if line.startswith(each)) for each in order]
    assert places == sorted(places)
    indents = [
        len(line) - len(line.lstrip("│├└─ "))
        for line in str(identity.who_triggered(session.id)).splitlines()
    ]
    assert [indents[place] for place in places] == sorted({indents[place] for place in places})


def test_parallel_calls_have_the_parent_that_made_them(identity: AgentIdentity) -> None:
    @tool
    async def fan_out(name: str) -> None:
        await asyncio.gather(*(asyncio.to_thread(leaf, n) for n in range(5)))

    async def both() -> None:
        await asyncio.gather(fan_out("a"), fan_out("b"))

    with identity.on_behalf_of("user:alice", purpose="p") as session:
        asyncio.run(both())
    calls = identity.who_triggered(session.id).calls
    parents = [str(call["parent"]) for call in calls if call["tool"] == "leaf"]
    ids = [str(call["call_id"]) for call in calls if call["tool"] == "fan_out"]
    assert sorted(parents) == sorted(ids * 5)


def test_a_generator_is_the_parent_of_what_its_body_calls_alone(identity: AgentIdentity) -> None:
    @tool
    def stream() -> Iterator[int]:
        yield leaf(1)
        yield leaf(2)

    with identity.on_behalf_of("user:alice", purpose="p") as session:
        for number in stream():
            leaf(number + 10)
    calls = identity.who_triggered(session.id).calls
    (outer,) = (call["call_id"] for call in calls if call["tool"] == "stream")
    assert [call["parent"] for call in calls if call["tool"] == "leaf"] == [outer, None] * 2


def test_a_call_that_was_refused_names_its_parent(tmp_path: Path) -> None:
    def policy(request: Any) -> bool:
        return bool(request.resource.id != "leaf")

    @tool
    def outer() -> None:
        with pytest.raises(DeniedError):
            leaf(1)

    with AgentIdentity.embedded(
        "planner", state_dir=tmp_path, ledger="memory:", policy=policy
    ) as identity:
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            outer()
        calls = calls_of(identity, session)
    assert calls["leaf planner"]["outcome"] == "denied"
    assert calls["leaf planner"]["parent"] == calls["outer planner"]["call_id"]


def test_another_principals_session_has_no_parent_here(identity: AgentIdentity) -> None:
    sessions = []

    @tool
    def outer() -> None:
        with identity.on_behalf_of("user:bob", purpose="q") as session:
            sessions.append(session)
            leaf(1)

    with identity.on_behalf_of("user:alice", purpose="p"):
        outer()
    (call,) = identity.who_triggered(sessions[0].id).calls
    assert call["parent"] is None


def test_what_outlives_the_tool_is_no_child_of_it(identity: AgentIdentity) -> None:
    threads = []
    may_go = threading.Event()

    def later() -> None:
        assert may_go.wait(30)
        leaf(1)

    @tool
    def outer() -> None:
        threads.append(threading.Thread(target=current_session().bind(later)))
        threads[0].start()

    with identity.on_behalf_of("user:alice", purpose="p") as session:
        outer()
        may_go.set()
        threads[0].join()
    assert calls_of(identity, session)["leaf planner"]["parent"] is None
