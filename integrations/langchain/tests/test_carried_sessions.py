# SPDX-License-Identifier: Apache-2.0
"""A session in `configurable`: streams act as it, and no checkpoint, callback, event or model is shown anything of it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import tool as langchain_tool
from langgraph.checkpoint.memory import InMemorySaver

from agent_identity import AgentIdentity, NoSessionError, Session, current_session
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger
from agent_identity_langchain import IdentityMiddleware

acted: list[tuple[str, str]] = []
USERS = ("alice", "bob", "carol", "dave")


class FakeModel(GenericFakeChatModel):
    """Calls the tool twice in a row, and keeps what it was shown."""

    shown: list[Any] = []
    disable_streaming: bool = True

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> FakeModel:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.shown.append((messages, args, kwargs))
        return super()._generate(messages, *args, **kwargs)


def model_for(user: str) -> FakeModel:
    def turn(number: int) -> AIMessage:
        call = {"name": "look", "args": {"user": user}, "id": f"{user}_{number}"}
        return AIMessage("", tool_calls=[call])

    return FakeModel(messages=iter([turn(0), turn(1), AIMessage("done")]), shown=[])


@langchain_tool
def look(user: str) -> str:
    """Look something up."""
    acted.append((user, current_session().principal.sub))
    return "seen"


@pytest.fixture
def identity() -> Iterator[AgentIdentity]:
    acted.clear()
    with AgentIdentity("bot", authority=Authority(), ledger=MemoryLedger()) as made:
        yield made


class Watch(BaseCallbackHandler):
    """Keeps all that callbacks are told, as a tracer does."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda *args, **kwargs: self.seen.append(repr((name, args, kwargs)))


MESSAGES = {"messages": [("user", "go")]}


def graph_for(identity: AgentIdentity, model: FakeModel, **more: Any) -> Any:
    guard = IdentityMiddleware(identity, rules={"look": {}})
    return create_agent(model, [look], middleware=[guard], **more)


def carrying(session: Session, **more: Any) -> dict[str, Any]:
    return {"configurable": {"agent_identity_session": session, **more}}


def test_streams_that_are_read_in_turn_act_as_the_sessions_that_they_carry(
    identity: AgentIdentity,
) -> None:
    def steps(user: str) -> Iterator[None]:
        graph = graph_for(identity, model_for(user))
        with identity.on_behalf_of(f"user:{user}", purpose="p") as session:
            for _ in graph.stream(MESSAGES, carrying(session)):
                yield

    streams = [steps(user) for user in USERS]
    while streams:
        streams = [stream for stream in streams if next(stream, "end") is None]
    assert sorted(acted) == sorted((user, user) for user in USERS for _ in range(2))


def test_a_stream_that_outlives_its_session_says_that_it_has_ended(
    identity: AgentIdentity,
) -> None:
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        stream = graph_for(identity, model_for("alice")).stream(MESSAGES, carrying(session))
        next(stream)
    with (
        identity.on_behalf_of("user:bob", purpose="p"),
        pytest.raises(NoSessionError) as refusal,
    ):
        list(stream)
    assert refusal.value.code == "session_ended"
    assert acted == []


async def test_no_checkpoint_callback_event_or_model_shows_the_session(
    identity: AgentIdentity,
) -> None:
    model, saver, watch = model_for("alice"), InMemorySaver(), Watch()
    graph = graph_for(identity, model, checkpointer=saver)
    async with identity.on_behalf_of("user:alice", purpose="p") as session:
        config = {**carrying(session, thread_id="t"), "callbacks": [watch]}
        events = [event async for event in graph.astream_events(MESSAGES, config, version="v2")]
        marks = (session.id, session.txn, "agent_identity_session", "Session object")
        states = [
            repr(state.metadata)
            for state in graph.get_state_history(carrying(session, thread_id="t"))
        ]
        kept = [repr(saved.metadata) for saved in saver.list({"configurable": {"thread_id": "t"}})]
    assert acted == [("alice", "alice")] * 2
    stored = [repr(saver.storage), repr(saver.writes), repr(saver.blobs)]
    for place in (watch.seen, events, model.shown, stored, states, kept):
        assert place
        assert [mark for mark in marks if mark in repr(place)] == []


def test_a_session_is_not_pickled(identity: AgentIdentity) -> None:
    """A checkpointer with `pickle_fallback` would try."""
    with (
        identity.on_behalf_of("user:alice", purpose="p") as session,
        pytest.raises(TypeError),
    ):
        pickle.dumps(session)
