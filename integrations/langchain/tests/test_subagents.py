# SPDX-License-Identifier: Apache-2.0
"""Sub-agents of LangChain, LangGraph and deepagents: each acts in a session of its own, and no tool runs unguarded in any."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypedDict

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ToolRetryMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import StructuredTool
from langchain_core.tools import tool as langchain_tool
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command

from agent_identity import (
    AgentIdentity,
    ConfigurationError,
    Decision,
    DeniedError,
    NoSessionError,
    current_session,
    tool,
)
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger
from agent_identity_langchain import IdentityMiddleware, protect

GO = {"messages": [("user", "go")]}
ROOT = "urn:agent-identity:agent:bot"
ran: list[Any] = []


def uri(name: str) -> str:
    return f"urn:agent-identity:agent:{name}"


class FakeModel(GenericFakeChatModel):
    """Makes the calls of its script."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> FakeModel:
        return self


Calls = list[tuple[str, dict[str, Any]]]


def says(*turns: Calls, prefix: str = "toolu") -> FakeModel:
    """A model that makes these calls, turn by turn, and then is done."""
    messages = [
        AIMessage(
            "",
            tool_calls=[
                {"name": name, "args": args, "id": f"{prefix}_{number}_{at}", "type": "tool_call"}
                for at, (name, args) in enumerate(calls)
            ],
        )
        for number, calls in enumerate(turns)
    ]
    return FakeModel(messages=itertools.chain(messages, itertools.repeat(AIMessage("done"))))


@langchain_tool
def look(what: str) -> str:
    """Look something up."""
    ran.append((what, current_session().agent, current_session().principal.sub))
    return f"saw {what}"


@langchain_tool
async def alook(what: str) -> str:
    """Look something up, async."""
    await asyncio.sleep(0)
    ran.append((what, current_session().agent, current_session().principal.sub))
    return f"saw {what}"


@langchain_tool
def pay(number: str) -> str:
    """Pay an invoice."""
    ran.append(number)
    return "paid"


def no_payments(request: Any) -> Decision:
    if request.resource.id == "pay":
        return Decision.deny("no payments", policy_id="no-payments")
    return Decision.permit()


@pytest.fixture
def identity() -> Iterator[AgentIdentity]:
    ran.clear()
    with AgentIdentity(
        "bot", authority=Authority(), ledger=MemoryLedger(), policy=no_payments
    ) as made:
        yield made


def guard(identity: AgentIdentity, **more: Any) -> IdentityMiddleware:
    return IdentityMiddleware(identity, rules={"*": {}}, **more)


def calls_of(identity: AgentIdentity, ref: Any) -> list[tuple[Any, ...]]:
    calls = identity.who_triggered(ref).calls
    return [(call["tool"], call["agent"], call["outcome"], call["code"]) for call in calls]


def parents_of(identity: AgentIdentity, session: Any) -> dict[str, str | None]:
    """The tool of the parent of each tool's calls."""
    calls = identity.who_triggered(session).calls
    names = {call["call_id"]: call["tool"] for call in calls}
    return {call["tool"]: names.get(call["parent"]) for call in calls}


def results(state: dict[str, Any]) -> list[ToolMessage]:
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


def run(agent: Any, is_async: bool, **more: Any) -> Any:
    return asyncio.run(agent.ainvoke(GO, **more)) if is_async else agent.invoke(GO, **more)


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def asks(inner: Any, name: str = "ask", *, is_async: bool = False) -> StructuredTool:
    """An agent as a tool, as LangChain's documentation writes it."""

    def ask(question: str) -> str:
        return str(inner.invoke({"messages": [("user", question)]})["messages"][-1].content)

    async def aask(question: str) -> str:
        state = await inner.ainvoke({"messages": [("user", question)]})
        return str(state["messages"][-1].content)

    return StructuredTool.from_function(
        func=None if is_async else ask,
        coroutine=aask if is_async else None,
        name=name,
        description="Ask another agent.",
    )


ASK = ("ask", {"question": "?"})
TASK = ("task", {"description": "do it", "subagent_type": "researcher"})


# -- who acts --------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", ["researcher", None])
def test_an_agent_as_a_tool_acts_in_one_session_of_its_own(
    identity: AgentIdentity, is_async: bool, name: str | None
) -> None:
    """It has the name that it was given, or else that of the tool."""
    inner = create_agent(
        says([("look", {"what": "a"})] * 3, [("look", {"what": "b"})], prefix="inner"),
        [look],
        middleware=[guard(identity)],
        name=name,
    )
    outer = create_agent(
        says([ASK]), [asks(inner, is_async=is_async)], middleware=[guard(identity)]
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        run(outer, is_async)
    agent = uri(name or "ask")
    assert ran == [("a", agent, "alice")] * 3 + [("b", agent, "alice")]
    trace = identity.who_triggered("inner_0_0")
    assert [hop["agent"] for hop in trace.chain] == [ROOT, agent]
    assert parents_of(identity, session) == {"ask": None, "look": "ask"}
    opened = [r for r in identity.ledger.frame(session.txn) if r.kind == "session.opened"]
    assert len(opened) == 2
    below = identity.ledger.session_records(opened[1].session_id)
    assert [r.kind for r in below if r.kind.startswith("session.")] == [
        *("session.opened", "session.closed")
    ]


def test_a_tool_that_delegates_by_itself_is_left_to_it(identity: AgentIdentity) -> None:
    inner = create_agent(
        says([("look", {"what": "a"})]), [look], middleware=[guard(identity)], name="researcher"
    )

    @langchain_tool
    def ask(question: str) -> str:
        """Ask."""
        with current_session().delegate("named-by-hand"):
            return str(inner.invoke(GO)["messages"][-1].content)

    outer = create_agent(says([ASK], prefix="o"), [ask], middleware=[guard(identity)])
    with identity.on_behalf_of("user:alice", purpose="p"):
        outer.invoke(GO)
    assert ran == [("a", uri("named-by-hand"), "alice")]


@both
def test_a_tool_that_a_tool_of_the_same_agent_calls_acts_for_that_agent(
    identity: AgentIdentity, is_async: bool
) -> None:
    def ask(question: str) -> str:
        return str(protect(look).invoke({"what": question}))

    async def aask(question: str) -> str:
        return str(await protect(alook).ainvoke({"what": question}))

    made = StructuredTool.from_function(func=ask, coroutine=aask, name="ask", description="d")
    agent = create_agent(says([ASK]), [made], middleware=[guard(identity)], name="main")
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        run(agent, is_async)
    assert ran == [("?", ROOT, "alice")]
    assert parents_of(identity, session) == {"ask": None, "alook" if is_async else "look": "ask"}


def test_an_agent_three_levels_down_has_all_callers_in_its_chain(identity: AgentIdentity) -> None:
    lowest = create_agent(
        says([("look", {"what": "a"})], prefix="low"),
        [look],
        middleware=[guard(identity)],
        name="lowest",
    )
    middle = create_agent(
        says([ASK], prefix="mid"), [asks(lowest)], middleware=[guard(identity)], name="middle"
    )
    top = create_agent(says([ASK]), [asks(middle)], middleware=[guard(identity)], name="top")
    with identity.on_behalf_of("user:alice", purpose="p"):
        top.invoke(GO)
    chain = [hop["agent"] for hop in identity.who_triggered("low_0_0").chain]
    assert chain == [ROOT, uri("middle"), uri("lowest")]


def test_an_agent_that_calls_itself_is_refused_below_the_depth(identity: AgentIdentity) -> None:
    class Later:
        """The agent, which needs the tool first."""

        def invoke(self, state: Any) -> Any:
            return agents[0].invoke(state)

    agents: list[Any] = []
    ask = asks(Later())
    model = says([ASK], [ASK], [ASK], [ASK], [ASK])
    agents.append(create_agent(model, [ask], middleware=[guard(identity)], name="self"))
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        agents[0].invoke(GO)
    codes = [code for *_, code in calls_of(identity, session)]
    assert "actor_repeated" in codes


def test_agents_that_hand_work_to_each_other_act_in_sessions_of_their_own(
    identity: AgentIdentity,
) -> None:
    @langchain_tool
    def to_b() -> Command[Any]:
        """Hand on to b."""
        return Command(
            goto="b",
            graph=Command.PARENT,
            update={"messages": [ToolMessage("to b", tool_call_id="a_1_0")]},
        )

    a = create_agent(
        says([("look", {"what": "a"})], [("to_b", {})], prefix="a"),
        [look, to_b],
        middleware=[guard(identity)],
        name="a",
    )
    b = create_agent(
        says([("look", {"what": "b"})], [("look", {"what": "b"})], prefix="b"),
        [look],
        middleware=[guard(identity, agent="bee")],
        name="b",
    )

    class State(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    graph = StateGraph(State)
    graph.add_node("a", a, destinations=("b",))
    graph.add_node("b", b)
    graph.add_edge(START, "a")
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        graph.compile().invoke(GO)  # type: ignore[arg-type]
    assert ran == [("a", uri("a"), "alice"), ("b", uri("bee"), "alice"), ("b", uri("bee"), "alice")]
    records = list(identity.ledger.frame(session.txn))
    opened = [r.session_id for r in records if r.kind == "session.opened"]
    assert len(opened) == 3
    for each in opened:
        kinds = [r.kind for r in identity.ledger.session_records(each)]
        assert kinds.count("session.closed") == 1


# -- deepagents ------------------------------------------------------------------------------------------------------


def researcher(model: Any, **more: Any) -> dict[str, Any]:
    return {
        "name": "researcher",
        "description": "looks things up",
        "system_prompt": "look",
        "model": model,
        "tools": [look, pay],
        **more,
    }


INNER: tuple[Calls, ...] = ([("look", {"what": "a"}), ("pay", {"number": "1"})],)


@both
def test_a_deep_agents_own_sub_agents_are_guarded(identity: AgentIdentity, is_async: bool) -> None:
    middleware = guard(identity)
    agent = create_deep_agent(
        says([TASK]),
        [],
        middleware=[middleware],
        subagents=middleware.subagents([researcher(says(*INNER, prefix="sub"))]),
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        run(agent, is_async)
    assert ran == [("a", uri("researcher"), "alice")]
    assert sorted(calls_of(identity, session)) == [
        ("look", uri("researcher"), "completed", None),
        ("pay", uri("researcher"), "denied", "policy_denied"),
        ("task", ROOT, "completed", None),
    ]
    assert parents_of(identity, session) == {"task": None, "look": "task", "pay": "task"}


@both
def test_the_general_purpose_sub_agent_is_guarded_too(
    identity: AgentIdentity, is_async: bool
) -> None:
    middleware = guard(identity)
    model = says([("task", {"description": "do it", "subagent_type": "general-purpose"})], *INNER)
    agent = create_deep_agent(
        model, [look, pay], middleware=[middleware], subagents=middleware.subagents()
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        run(agent, is_async)
    assert ran == [("a", uri("general-purpose"), "alice")]
    assert sorted(calls_of(identity, session))[:2] == [
        ("look", uri("general-purpose"), "completed", None),
        ("pay", uri("general-purpose"), "denied", "policy_denied"),
    ]


@both
def test_parallel_sub_agents_act_in_sessions_of_their_own(
    identity: AgentIdentity, is_async: bool
) -> None:
    names = [f"r{n}" for n in range(4)]
    middleware = guard(identity)
    specs = [
        {**researcher(says([("look", {"what": name})] * 2, prefix=name)), "name": name}
        for name in names
    ]
    tasks = [("task", {"description": "do it", "subagent_type": name}) for name in names]
    agent = create_deep_agent(
        says(tasks), [], middleware=[middleware], subagents=middleware.subagents(specs)
    )
    with identity.on_behalf_of("user:alice", purpose="p"):
        run(agent, is_async)
    assert sorted(ran) == sorted((name, uri(name), "alice") for name in names * 2)


@both
def test_a_fork_of_deepagents_is_guarded(identity: AgentIdentity, is_async: bool) -> None:
    middleware = guard(identity)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.warns(Warning, match="fork"):
            agent = create_deep_agent(
                says([TASK]),
                [],
                middleware=[middleware],
                subagents=middleware.subagents(
                    [researcher(says(*INNER, prefix="sub"), mode="fork")]
                ),
            )
        run(agent, is_async)
    assert ran == [("a", uri("researcher"), "alice")]
    assert ("pay", uri("researcher"), "denied", "policy_denied") in calls_of(identity, session)


def test_a_rule_may_be_for_a_tool_that_only_a_sub_agent_has(identity: AgentIdentity) -> None:
    middleware = IdentityMiddleware(identity, rules={"*": {}, "look": {"labels": {"reads:web"}}})
    agent = create_deep_agent(
        says([TASK]),
        [],
        middleware=[middleware],
        subagents=middleware.subagents(
            [researcher(says(*INNER, prefix="sub"))], general_purpose=False
        ),
    )
    with identity.on_behalf_of("user:alice", purpose="p"):
        agent.invoke(GO)
    assert ran == [("a", uri("researcher"), "alice")]


def test_a_rule_that_names_no_tool_of_the_whole_agent_stops_it(identity: AgentIdentity) -> None:
    middleware = IdentityMiddleware(identity, rules={"*": {}, "lok": {}})
    agent = create_deep_agent(
        says([TASK]),
        [],
        middleware=[middleware],
        subagents=middleware.subagents([researcher(says(*INNER, prefix="sub"))]),
    )
    with (
        identity.on_behalf_of("user:alice", purpose="p"),
        pytest.raises(ConfigurationError) as raised,
    ):
        agent.invoke(GO)
    assert raised.value.code == "rule_unmatched"
    assert ran == []


def test_a_spec_keeps_its_own_guard_and_is_not_changed(identity: AgentIdentity) -> None:
    middleware, own = guard(identity), guard(identity)
    spec = researcher(says(), middleware=[own])
    plain = researcher(says())
    made = middleware.subagents([spec, {**plain, "name": "other"}])
    assert [each["name"] for each in made] == ["general-purpose", "researcher", "other"]
    assert made[1]["middleware"] == [own]
    assert "middleware" not in plain


def test_a_remote_sub_agent_is_refused_before_anything_runs(identity: AgentIdentity) -> None:
    with pytest.raises(ConfigurationError) as raised:
        guard(identity).subagents([{"name": "far", "description": "far away", "graph_id": "far"}])
    assert raised.value.code == "subagent_unguarded"
    assert "server" in str(raised.value)


# -- attacks: agents without our middleware --------------------------------------------------------------------------


def plain_agent(tools: Any = (look, pay), calls: Sequence[Calls] = INNER, **more: Any) -> Any:
    return create_agent(says(*calls, prefix="inner"), list(tools), **more)


def plain_graph(tools: Any = (look,)) -> Any:
    """A graph with a plain ToolNode."""

    class State(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    def model(state: State) -> Any:
        call = {"name": "look", "args": {"what": "a"}, "id": "raw_0", "type": "tool_call"}
        return {"messages": [AIMessage("", tool_calls=[call])]}

    graph = StateGraph(State)
    graph.add_node("model", model)
    graph.add_node("tools", ToolNode(list(tools), handle_tool_errors=True))
    graph.add_edge(START, "model")
    graph.add_edge("model", "tools")
    return graph.compile()


class Streamed:
    """An agent that is read as a stream."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def invoke(self, state: Any) -> Any:
        return list(self.inner.stream(state, stream_mode="values"))[-1]

    async def ainvoke(self, state: Any) -> Any:
        return [each async for each in self.inner.astream(state, stream_mode="values")][-1]


class WithoutCallbacks:
    """An agent that is given callbacks of its own, and so not ours."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def invoke(self, state: Any) -> Any:
        return self.inner.invoke(state, {"callbacks": []})

    async def ainvoke(self, state: Any) -> Any:
        return await self.inner.ainvoke(state, {"callbacks": [BaseCallbackHandler()]})


class Swallowing(AgentMiddleware[Any, Any]):
    """Goes on after each error of a tool."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        try:
            return handler(request)
        except Exception as error:
            return ToolMessage(repr(error), tool_call_id=request.tool_call["id"])

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        try:
            return await handler(request)
        except Exception as error:
            return ToolMessage(repr(error), tool_call_id=request.tool_call["id"])


PLAIN = {
    "agent": plain_agent,
    "async tools": lambda: plain_agent((alook,), [[("alook", {"what": "a"})]]),
    "parallel calls": lambda: plain_agent(calls=[[("look", {"what": "a"})] * 5]),
    "stream": lambda: Streamed(plain_agent()),
    "graph": plain_graph,
    "other callbacks": lambda: WithoutCallbacks(plain_agent()),
    "errors swallowed": lambda: plain_agent(middleware=[Swallowing()]),
    "retries": lambda: plain_agent(
        middleware=[ToolRetryMiddleware(max_retries=2, initial_delay=0, on_failure="continue")]
    ),
    "agent in an agent": lambda: plain_agent((asks(plain_agent()),), [[ASK]]),
}


@both
@pytest.mark.parametrize("kind", PLAIN)
def test_an_agent_without_the_middleware_runs_no_tool(
    identity: AgentIdentity, kind: str, is_async: bool
) -> None:
    if kind == "async tools" and not is_async:
        pytest.skip("an async tool isn't called in sync code")
    inner = PLAIN[kind]()
    outer = create_agent(
        says([ASK]), [asks(inner, is_async=is_async)], middleware=[guard(identity)]
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        run(outer, is_async)
    assert ran == []
    denied = [each for each in calls_of(identity, session) if each[2] == "denied"]
    assert denied
    assert {code for *_, code in denied} == {"tool_unguarded"}


@both
def test_a_refused_tool_is_recorded_once_and_told_to_the_calling_model(
    identity: AgentIdentity, is_async: bool
) -> None:
    inner = plain_agent((look,), [[("look", {"what": "a"})]], name="researcher")
    outer = create_agent(
        says([ASK]), [asks(inner, is_async=is_async)], middleware=[guard(identity)]
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = run(outer, is_async)
    assert calls_of(identity, session) == [
        ("ask", ROOT, "failed", None),
        ("look", uri("researcher"), "denied", "tool_unguarded"),
    ]
    assert parents_of(identity, session)["look"] == "ask"
    assert identity.who_triggered("inner_0_0").decision == "deny"
    (message,) = results(state)
    assert message.status == "error"
    assert "tool_unguarded" in message.content
    assert "subagents=" in message.content


@both
@pytest.mark.parametrize("is_compiled", [False, True], ids=["declared", "compiled"])
def test_a_deep_agent_that_forgets_its_sub_agents_runs_none_of_their_tools(
    identity: AgentIdentity, is_async: bool, is_compiled: bool
) -> None:
    spec: Any = (
        {"name": "researcher", "description": "d", "runnable": plain_agent()}
        if is_compiled
        else researcher(says(*INNER, prefix="inner"))
    )
    agent = create_deep_agent(says([TASK]), [], middleware=[guard(identity)], subagents=[spec])
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = run(agent, is_async)
    assert ran == []
    assert "tool_unguarded" in results(state)[0].content
    denied = [each for each in calls_of(identity, session) if each[2] == "denied"]
    assert {each[1] for each in denied} == {uri("researcher")}


@both
def test_a_compiled_sub_agent_whose_tools_are_protected_acts_under_its_name(
    identity: AgentIdentity, is_async: bool
) -> None:
    spec: Any = {
        "name": "researcher",
        "description": "d",
        "runnable": plain_agent((protect(look),), [[("look", {"what": "a"})]]),
    }
    middleware = guard(identity)
    agent = create_deep_agent(
        says([TASK]), [], middleware=[middleware], subagents=middleware.subagents([spec])
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        run(agent, is_async)
    assert ran == [("a", uri("researcher"), "alice")]
    assert identity.who_triggered("inner_0_0").calls[0]["tool"] == "look"
    assert parents_of(identity, session)["look"] == "task"


def test_a_tool_that_agent_identity_tool_guards_runs_in_a_plain_sub_agent(
    identity: AgentIdentity,
) -> None:
    def note(x: str) -> None:
        ran.append(x)

    ours = StructuredTool.from_function(func=tool(name="ours")(note), name="ours", description="d")
    inner = plain_agent((ours,), [[("ours", {"x": "a"})]])
    outer = create_agent(says([ASK]), [asks(inner)], middleware=[guard(identity)])
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        outer.invoke(GO)
    assert ran == ["a"]
    assert parents_of(identity, session) == {"ask": None, "ours": "ask"}


def test_a_tool_in_another_thread_that_has_only_the_callbacks_does_not_run(
    identity: AgentIdentity,
) -> None:
    inner = plain_agent()

    def ask(question: str, config: RunnableConfig) -> str:
        errors: list[BaseException] = []

        def work() -> None:
            try:
                inner.invoke(GO, {"callbacks": config["callbacks"]})
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return repr(errors)

    made = StructuredTool.from_function(func=ask, name="ask", description="d")
    outer = create_agent(says([ASK]), [made], middleware=[guard(identity)])
    with identity.on_behalf_of("user:alice", purpose="p"):
        state = outer.invoke(GO)
    assert ran == []
    assert "NoSessionError" in results(state)[0].content


def test_a_protected_tool_without_an_agent_lets_no_plain_agent_run(identity: AgentIdentity) -> None:
    made = protect(asks(plain_agent()))
    with (
        identity.on_behalf_of("user:alice", purpose="p"),
        pytest.raises(DeniedError) as raised,
    ):
        made.invoke({"question": "?"})
    assert raised.value.code == "tool_unguarded"
    assert ran == []


def test_a_tool_outside_of_all_guarded_tools_is_left_alone(identity: AgentIdentity) -> None:
    other = StructuredTool.from_function(func=lambda x: f"got {x}", name="other", description="d")
    with identity.on_behalf_of("user:alice", purpose="p"):
        protect(look).invoke({"what": "a"})
        assert other.invoke({"x": "1"}) == "got 1"
    assert other.invoke({"x": "1"}) == "got 1"


# -- attacks: time ---------------------------------------------------------------------------------------------------


@both
def test_a_revoked_principal_stops_a_running_sub_agent(
    identity: AgentIdentity, is_async: bool
) -> None:
    @langchain_tool
    def revoke() -> str:
        """Revoke."""
        threading.Thread(target=lambda: None).start()
        identity.revoke("user:alice", reason="gone")
        return "revoked"

    inner = create_agent(
        says([("revoke", {})], [("look", {"what": "a"})], prefix="inner"),
        [revoke, look],
        middleware=[guard(identity)],
        name="researcher",
    )
    outer = create_agent(
        says([ASK], [("look", {"what": "b"})]),
        [asks(inner, is_async=is_async), look],
        middleware=[guard(identity)],
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        run(outer, is_async)
    assert ran == []
    codes = [code for *_, code in calls_of(identity, session) if code]
    assert codes
    assert set(codes) <= {"principal_revoked", "session_revoked", "revoked"}


async def test_a_sub_agent_that_outlives_its_tool_call_runs_no_more_tools(
    identity: AgentIdentity,
) -> None:
    release, tasks = asyncio.Event(), []

    @langchain_tool
    async def wait() -> str:
        """Wait."""
        await release.wait()
        return "waited"

    inner = create_agent(
        says([("alook", {"what": "a"})], [("wait", {})], [("alook", {"what": "late"})]),
        [wait, alook],
        middleware=[guard(identity)],
        name="researcher",
    )
    untouched = create_agent(
        says([("alook", {"what": "never"})]), [alook], middleware=[guard(identity)], name="second"
    )

    async def later() -> Any:
        await release.wait()
        return await untouched.ainvoke(GO)

    @langchain_tool
    async def ask(question: str) -> str:
        """Ask."""
        tasks.append(asyncio.create_task(inner.ainvoke(GO)))
        tasks.append(asyncio.create_task(later()))
        for _ in range(500):
            await asyncio.sleep(0.001)
            if ran:
                break
        return "started"

    outer = create_agent(says([ASK], prefix="o"), [ask], middleware=[guard(identity)])
    async with identity.on_behalf_of("user:alice", purpose="p") as session:
        await outer.ainvoke(GO)
        release.set()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert ran == [("a", uri("researcher"), "alice")]
    assert isinstance(ended[0], NoSessionError | dict)
    assert ("alook", ROOT, "denied", "call_ended") in calls_of(identity, session)


@both
def test_twenty_principals_with_sub_agents_at_once_never_cross(
    identity: AgentIdentity, is_async: bool
) -> None:
    users = [f"u{n}" for n in range(20)]
    looks = alook if is_async else look
    middleware = guard(identity)

    class Model(FakeModel):
        """Answers by what the conversation says, so that all principals share one agent."""

        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            from langchain_core.outputs import ChatGeneration, ChatResult

            text = next(str(m.content) for m in messages if m.type == "human")
            done = any(m.type == "tool" for m in messages)
            user = text.rpartition(" ")[2]
            task = ("task", {"description": f"look {user}", "subagent_type": "researcher"})
            calls = [(looks.name, {"what": user})] * 2 if text.startswith("look") else [task] * 2
            made = [
                {"name": name, "args": args, "id": f"{user}_{at}", "type": "tool_call"}
                for at, (name, args) in enumerate(calls)
            ]
            message = AIMessage("done" if done else "", tool_calls=[] if done else made)
            return ChatResult(generations=[ChatGeneration(message=message)])

    model = Model(messages=iter(()))
    agent = create_deep_agent(
        model,
        [],
        middleware=[middleware],
        subagents=middleware.subagents([{**researcher(model), "tools": [looks]}]),
    )
    sessions: dict[str, Any] = {}

    async def arun(user: str) -> None:
        async with identity.on_behalf_of(f"user:{user}", purpose="p") as session:
            sessions[user] = session
            await agent.ainvoke({"messages": [("user", f"go {user}")]})

    def work(user: str) -> None:
        with identity.on_behalf_of(f"user:{user}", purpose="p") as session:
            sessions[user] = session
            agent.invoke({"messages": [("user", f"go {user}")]})

    async def everybody() -> None:
        await asyncio.gather(*map(arun, users))

    if is_async:
        asyncio.run(everybody())
    else:
        threads = [threading.Thread(target=work, args=(user,)) for user in users]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ran) == 4 * len(users)
    assert all(what == sub and agent == uri("researcher") for what, agent, sub in ran)
    for user in users:
        trace = identity.who_triggered(sessions[user])
        assert trace.principal.sub == user
        assert len(trace.calls) == 6
