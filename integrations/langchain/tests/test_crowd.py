# SPDX-License-Identifier: Apache-2.0
"""40 agents of 20 principals at once: parallel calls, sub-agents and streams that are read in turn, and nothing crosses."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool as langchain_tool
from langgraph.checkpoint.memory import InMemorySaver

from agent_identity import AgentIdentity, Session, current_credential, current_session
from agent_identity.authority import Authority
from agent_identity.jose import loads_object, unverified
from agent_identity.provenance.memory import MemoryLedger
from agent_identity_langchain import IdentityMiddleware

AGENTS = range(40)
PARALLEL = 4
BILLING = "https://billing.example"
RULE = {"resource": BILLING, "scopes": ["invoices:read"]}
Seen = tuple[str, str, str, str]


class FakeModel(GenericFakeChatModel):
    """Follows a script."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> FakeModel:
        return self


def user_of(agent: int) -> str:
    return f"user{agent % 20}"


def says(*turns: Sequence[tuple[str, dict[str, Any]]]) -> FakeModel:
    numbers = itertools.count()
    made = [
        AIMessage(
            "",
            tool_calls=[
                {"name": name, "args": args, "id": f"toolu_{next(numbers)}"} for name, args in calls
            ],
        )
        for calls in turns
    ]
    return FakeModel(messages=itertools.chain(made, itertools.repeat(AIMessage("done"))))


@pytest.fixture
def identity() -> Iterator[AgentIdentity]:
    with AgentIdentity("bot", authority=Authority(), ledger=MemoryLedger()) as made:
        yield made


class Crowd:
    """Agents that share one identity and one checkpointer; `seen` has what each tool saw."""

    def __init__(self, identity: AgentIdentity) -> None:
        self.identity = identity
        self.saver = InMemorySaver()
        self.seen: list[Seen] = []

    def note(self, owner: str) -> str:
        """Whose call it should be, whose session and credential it has, and which agent acts."""
        session = current_session()
        token = loads_object(unverified(current_credential().reveal()).payload)
        self.seen.append(
            (owner, session.principal.sub, str(token["sub"]), session.agent.rpartition(":")[2])
        )
        return owner

    def agent(self, number: int, *, is_async: bool) -> Any:
        owner = user_of(number)

        if is_async:

            @langchain_tool
            async def read(owner: str) -> str:
                """Read invoices."""
                await asyncio.sleep(0.001 * (number % 3))
                return self.note(owner)

            @langchain_tool
            async def ask(question: str) -> str:
                """Ask a sub-agent."""
                state = await helper.ainvoke({"messages": [("user", question)]})
                return str(state["messages"][-1].content)
        else:

            @langchain_tool
            def read(owner: str) -> str:
                """Read invoices."""
                return self.note(owner)

            @langchain_tool
            def ask(question: str) -> str:
                """Ask a sub-agent."""
                state = helper.invoke({"messages": [("user", question)]})
                return str(state["messages"][-1].content)

        def guard(**more: Any) -> IdentityMiddleware:
            return IdentityMiddleware(self.identity, rules={"read": RULE, **more})

        calls = [("read", {"owner": owner})] * PARALLEL
        helper = create_agent(says(calls), [read], middleware=[guard()], name="helper")
        return create_agent(
            says([*calls, ("ask", {"question": "?"})], calls),
            [read, ask],
            middleware=[guard(ask={})],
            checkpointer=self.saver,
        )

    def check(self, sessions: list[Session]) -> None:
        """Nothing crossed: what the tools saw, and what is on record."""
        mine = [("bot", 2 * PARALLEL), ("helper", PARALLEL)]
        expected = {
            (user, user, user, agent): 2 * count
            for user in map(user_of, range(20))
            for agent, count in mine
        }
        assert Counter(self.seen) == expected
        for number, session in zip(AGENTS, sessions, strict=True):
            trace = self.identity.who_triggered(session)
            assert (trace.principal.sub, trace.verified) == (user_of(number), True)  # type: ignore[union-attr]
            made = Counter((c["tool"], c["agent"].rpartition(":")[2]) for c in trace.calls)
            assert made == {
                ("read", "bot"): 2 * PARALLEL,
                ("ask", "bot"): 1,
                ("read", "helper"): PARALLEL,
            }
            asked = {c["call_id"] for c in trace.calls if c["tool"] == "ask"}
            below = {c["parent"] for c in trace.calls if c["agent"].endswith("helper")}
            assert below == asked
            assert {c["outcome"] for c in trace.calls} == {"completed"}


def config(number: int, **more: Any) -> Any:
    return {"configurable": {"thread_id": str(number), **more}}


GO: Any = {"messages": [("user", "go")]}


async def test_async_agents_at_once_never_cross(identity: AgentIdentity) -> None:
    crowd = Crowd(identity)

    async def act(number: int) -> Session:
        agent = crowd.agent(number, is_async=True)
        async with identity.on_behalf_of(f"user:{user_of(number)}", purpose="p") as session:
            await agent.ainvoke(GO, config(number))
        return session

    crowd.check(await asyncio.gather(*map(act, AGENTS)))


def test_agents_in_threads_never_cross(identity: AgentIdentity) -> None:
    crowd = Crowd(identity)

    def act(number: int) -> Session:
        agent = crowd.agent(number, is_async=False)
        with identity.on_behalf_of(f"user:{user_of(number)}", purpose="p") as session:
            agent.invoke(GO, config(number))
        return session

    with ThreadPoolExecutor(len(AGENTS)) as threads:
        crowd.check(list(threads.map(act, AGENTS)))


def test_streams_that_are_read_in_turn_never_cross(identity: AgentIdentity) -> None:
    crowd = Crowd(identity)
    sessions: dict[int, Session] = {}

    def steps(number: int) -> Generator[None]:
        agent = crowd.agent(number, is_async=False)
        with identity.on_behalf_of(f"user:{user_of(number)}", purpose="p") as session:
            sessions[number] = session
            for _ in agent.stream(GO, config(number, agent_identity_session=session)):
                yield

    streams = [steps(number) for number in AGENTS]
    while streams:
        streams = [stream for stream in streams if next(stream, "end") is None]
    crowd.check([sessions[number] for number in AGENTS])


async def test_async_streams_that_are_read_in_turn_never_cross(identity: AgentIdentity) -> None:
    crowd = Crowd(identity)
    sessions = [identity.on_behalf_of(f"user:{user_of(number)}", purpose="p") for number in AGENTS]
    streams = []
    for number, session in zip(AGENTS, sessions, strict=True):
        await session.__aenter__()
        carried = config(number, agent_identity_session=session)
        streams.append(crowd.agent(number, is_async=True).astream(GO, carried))
    while streams:
        ended = [stream for stream in streams if await anext(stream, None) is None]
        streams = [stream for stream in streams if stream not in ended]
    for session in reversed(sessions):
        await session.__aexit__(None, None, None)
    crowd.check(sessions)
