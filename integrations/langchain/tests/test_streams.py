# SPDX-License-Identifier: Apache-2.0
"""Streams of LangChain whose session is entered inside a generator: one alone, two that are read in turn, one that outlives its session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool as langchain_tool

from agent_identity import AgentIdentity, NoSessionError, Session, current_session
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger
from agent_identity_langchain import IdentityMiddleware

STEPS = 3
acted: list[tuple[str, str]] = []
"""The user that a call was meant for, and whom it acted for."""


@pytest.fixture(autouse=True)
def _nothing_acted() -> None:
    acted.clear()


@langchain_tool
def look(user: str) -> str:
    """Look something up."""
    acted.append((user, current_session().principal.sub))
    return "seen"


@langchain_tool
async def alook(user: str) -> str:
    """Look something up, async."""
    await asyncio.sleep(0)
    acted.append((user, current_session().principal.sub))
    return "seen"


class FakeModel(GenericFakeChatModel):
    """Calls one tool again and again."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> FakeModel:
        return self


def model_for(user: str, name: str) -> FakeModel:
    def turn(number: int) -> AIMessage:
        call = {"name": name, "args": {"user": user}, "id": f"{user}_{number}", "type": "tool_call"}
        return AIMessage("", tool_calls=[call])

    return FakeModel(messages=iter([*map(turn, range(STEPS)), AIMessage("done")]))


@pytest.fixture
def identity() -> Iterator[AgentIdentity]:
    with AgentIdentity("bot", authority=Authority(), ledger=MemoryLedger()) as made:
        yield made


def graph_for(identity: AgentIdentity, user: str, name: str = "look", **more: Any) -> Any:
    tools = [alook if name == "alook" else look]
    middleware = [IdentityMiddleware(identity, rules={name: {}})]
    return create_agent(model_for(user, name), tools, middleware=middleware, **more)


MESSAGES = {"messages": [("user", "go")]}


def steps(identity: AgentIdentity, user: str, *, is_carried: bool = False) -> Generator[None]:
    graph = graph_for(identity, user, **({"context_schema": Session} if is_carried else {}))
    with identity.on_behalf_of(f"user:{user}", purpose="p") as session:
        more = {"context": session} if is_carried else {}
        for _ in graph.stream(MESSAGES, stream_mode="updates", **more):
            yield


async def asteps(
    identity: AgentIdentity, user: str, *, is_carried: bool = False
) -> AsyncGenerator[None]:
    more = {"context_schema": Session} if is_carried else {}
    graph = graph_for(identity, user, "alook", **more)
    async with identity.on_behalf_of(f"user:{user}", purpose="p") as session:
        carried = {"context": session} if is_carried else {}
        async for _ in graph.astream(MESSAGES, stream_mode="updates", **carried):
            yield


def test_a_stream_that_enters_its_own_session_acts_as_it(identity: AgentIdentity) -> None:
    for _ in steps(identity, "alice"):
        pass
    assert acted == [("alice", "alice")] * STEPS


async def test_an_async_stream_that_enters_its_own_session_acts_as_it(
    identity: AgentIdentity,
) -> None:
    """As a web handler streams: each user in a task of their own."""

    async def handler(user: str) -> None:
        async for _ in asteps(identity, user):
            pass

    await asyncio.gather(handler("alice"), handler("bob"))
    assert sorted(acted) == [("alice", "alice")] * STEPS + [("bob", "bob")] * STEPS


@pytest.mark.parametrize("is_carried", [False, True], ids=["found", "carried"])
def test_two_streams_that_are_read_in_turn_never_act_for_each_other(
    identity: AgentIdentity, is_carried: bool
) -> None:
    streams = {user: steps(identity, user, is_carried=is_carried) for user in ("alice", "bob")}
    refused: list[str] = []
    while streams:
        for user, stream in list(streams.items()):
            try:
                next(stream)
            except StopIteration:
                del streams[user]
            except NoSessionError as error:
                refused.append(error.code)
                del streams[user]
    assert all(meant == actual for meant, actual in acted)
    assert set(refused) <= ({"session_suspended"} if not is_carried else set())
    if is_carried:
        assert len(acted) == 2 * STEPS


@pytest.mark.parametrize("is_carried", [False, True], ids=["found", "carried"])
async def test_two_async_streams_that_are_read_in_turn_never_act_for_each_other(
    identity: AgentIdentity, is_carried: bool
) -> None:
    streams = {user: asteps(identity, user, is_carried=is_carried) for user in ("alice", "bob")}
    refused: list[str] = []
    while streams:
        for user, stream in list(streams.items()):
            try:
                await anext(stream)
            except StopAsyncIteration:
                del streams[user]
            except NoSessionError as error:
                refused.append(error.code)
                del streams[user]
    assert all(meant == actual for meant, actual in acted)
    assert set(refused) <= ({"session_suspended"} if not is_carried else set())
    if is_carried:
        assert len(acted) == 2 * STEPS


def test_a_stream_that_outlives_its_carried_session_says_that_it_has_ended(
    identity: AgentIdentity,
) -> None:
    graph = graph_for(identity, "alice", context_schema=Session)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        stream = graph.stream(MESSAGES, stream_mode="updates", context=session)
        next(stream)
    with pytest.raises(NoSessionError) as refusal:
        list(stream)
    assert refusal.value.code == "session_ended"
