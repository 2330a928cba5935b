# SPDX-License-Identifier: Apache-2.0
"""Interrupts of LangGraph: what runs again, what is recorded, and who may resume; in one process and after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_core.tools import tool as langchain_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt

from agent_identity import AgentIdentity, Decision, DeniedError, current_session
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger
from agent_identity_langchain import IdentityMiddleware, protect

GO = {"messages": [("user", "go")]}
CONFIG: Any = {"configurable": {"thread_id": "1"}}
ran: list[Any] = []


class FakeModel(GenericFakeChatModel):
    """Makes the calls of its script."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> FakeModel:
        return self


def asking(*calls: tuple[str, dict[str, Any]]) -> AIMessage:
    made = [
        {"name": name, "args": args, "id": f"toolu_{at}", "type": "tool_call"}
        for at, (name, args) in enumerate(calls)
    ]
    return AIMessage("", tool_calls=made)


def says(*calls: tuple[str, dict[str, Any]]) -> FakeModel:
    """A model that makes these calls in one turn, and then is done."""
    return FakeModel(
        messages=itertools.chain([asking(*calls)], itertools.repeat(AIMessage("done")))
    )


@langchain_tool
def ask(question: str) -> str:
    """Ask a person."""
    ran.append("asking")
    answer = interrupt(question)
    ran.append((answer, current_session().principal.sub))
    return f"they said {answer}"


@langchain_tool
def look(what: str) -> str:
    """Look something up."""
    ran.append(what)
    return f"saw {what}"


@langchain_tool
async def alook(what: str) -> str:
    """Look something up, async."""
    ran.append(what)
    return f"saw {what}"


@langchain_tool
async def aask(question: str) -> str:
    """Ask a person, async."""
    await asyncio.sleep(0.02)  # after its sibling
    ran.append("asking")
    answer = interrupt(question)
    ran.append((answer, current_session().principal.sub))
    return f"they said {answer}"


@pytest.fixture
def identity() -> Iterator[AgentIdentity]:
    ran.clear()
    with AgentIdentity("bot", authority=Authority(), ledger=MemoryLedger()) as made:
        yield made


def guard(identity: AgentIdentity) -> IdentityMiddleware:
    return IdentityMiddleware(identity, rules={"*": {}})


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def agent(identity: AgentIdentity, saver: Any, tools: Any, *calls: Any, **more: Any) -> Any:
    return create_agent(
        says(*calls),
        list(tools),
        middleware=[*more.pop("outer", ()), guard(identity)],
        checkpointer=saver,
        **more,
    )


def protected_node(identity: AgentIdentity, saver: Any, tools: Any, *calls: Any) -> Any:
    """A graph with a ToolNode of protected tools."""
    return graph_of(ToolNode([protect(each) for each in tools]), saver, *calls)


def wrapped_node(identity: AgentIdentity, saver: Any, tools: Any, *calls: Any) -> Any:
    """A graph with a ToolNode that the middleware's wrappers guard."""
    made = guard(identity)
    node = ToolNode(
        list(tools), wrap_tool_call=made.wrap_tool_call, awrap_tool_call=made.awrap_tool_call
    )
    return graph_of(node, saver, *calls)


def graph_of(node: Any, saver: Any, *calls: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("model", lambda state: {"messages": [asking(*calls)]})
    graph.add_node("tools", node)
    graph.add_edge(START, "model")
    graph.add_edge("model", "tools")
    return graph.compile(checkpointer=saver)


MAKERS = [agent, protected_node, wrapped_node]
every = pytest.mark.parametrize("make", MAKERS, ids=[each.__name__ for each in MAKERS])
both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
ASK = ("ask", {"question": "sure?"})
AASK = ("aask", {"question": "sure?"})


def run(graph: Any, given: Any, is_async: bool = False, config: Any = CONFIG) -> Any:
    if is_async:
        return asyncio.run(graph.ainvoke(given, config))
    return graph.invoke(given, config)


def contents(state: dict[str, Any]) -> list[str]:
    return [m.content for m in state["messages"] if isinstance(m, ToolMessage)]


def calls_of(identity: AgentIdentity, ref: Any) -> list[tuple[Any, ...]]:
    return [(c["tool"], c["outcome"]) for c in identity.who_triggered(ref).calls]


def intents(identity: AgentIdentity, session: Any) -> list[dict[str, Any]]:
    return [r.to_dict() for r in session.records() if r.kind == "call.intended"]


# -- siblings --------------------------------------------------------------------------------------------------------


@every
@both
def test_the_siblings_of_an_interrupted_call_run_and_are_recorded_once(
    identity: AgentIdentity, make: Any, is_async: bool
) -> None:
    tools = [aask, alook] if is_async else [ask, look]
    looks = [(tools[1].name, {"what": name}) for name in ("a", "b", "a")]
    calls = [looks[0], AASK if is_async else ASK, *looks[1:]]
    graph = make(identity, InMemorySaver(), tools, *calls)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        first = run(graph, GO, is_async)
        assert first["__interrupt__"][0].value == "sure?"
        second = run(graph, Command(resume="yes"), is_async)
        made = [each["tool"] for each in intents(identity, session)]
    assert contents(second) == ["saw a", "they said yes", "saw b", "saw a"]
    assert sorted(map(str, ran)) == sorted(["a", "b", "a", "asking", "asking", "('yes', 'alice')"])
    assert sorted(made) == sorted([tools[0].name] * 2 + [tools[1].name] * 3)
    for at in (0, 2, 3):
        assert len(identity.who_triggered(f"toolu_{at}").calls) == 1


@every
def test_two_interrupts_in_one_turn_are_answered_one_after_the_other(
    identity: AgentIdentity, make: Any
) -> None:
    @langchain_tool
    def twice(x: str) -> str:
        """Ask twice."""
        return f"{interrupt('one')} {interrupt('two')}"

    calls = [("twice", {"x": "1"}), ("look", {"what": "a"})]
    graph = make(identity, InMemorySaver(), [twice, look], *calls)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        run(graph, GO)
        run(graph, Command(resume="first"))
        state = run(graph, Command(resume="second"))
        made = intents(identity, session)
    assert contents(state) == ["first second", "saw a"]
    assert ran == ["a"]
    passes = [each for each in made if each["tool"] == "twice"]
    assert [each.get("continues") for each in passes] == [None, *[passes[0]["call_id"]] * 2]


@every
def test_a_result_that_the_checkpointer_cannot_write_is_not_made_twice(
    identity: AgentIdentity, make: Any
) -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd"

        def __reduce__(self) -> Any:
            raise TypeError("not to be written")

    @langchain_tool
    def odd(x: str) -> Any:
        """Return something odd."""
        ran.append(x)
        return Odd()

    graph = make(identity, InMemorySaver(), [odd, ask], ("odd", {"x": "1"}), ASK)
    with identity.on_behalf_of("user:alice", purpose="p"):
        run(graph, GO)
        with contextlib.suppress(DeniedError):  # `call_repeated`, in a ToolNode
            run(graph, Command(resume="yes"))
    assert ran.count("1") == 1


def test_a_call_that_a_wrapper_makes_twice_in_one_pass_runs_twice(identity: AgentIdentity) -> None:
    made = guard(identity)

    def wrapper(request: Any, handler: Any) -> Any:
        made.wrap_tool_call(request, handler)
        return made.wrap_tool_call(request, handler)

    node = ToolNode([look], wrap_tool_call=wrapper)
    graph = graph_of(node, InMemorySaver(), ("look", {"what": "a"}))
    with identity.on_behalf_of("user:alice", purpose="p"):
        run(graph, GO)
    assert ran == ["a", "a"]


async def test_a_sibling_that_still_runs_is_not_started_again(identity: AgentIdentity) -> None:
    """A raw ToolNode doesn't wait for its other calls when one interrupts."""
    go = asyncio.Event()

    @langchain_tool
    async def slow(x: str) -> str:
        """Be slow."""
        ran.append(x)
        await go.wait()
        return "slow"

    graph = protected_node(identity, InMemorySaver(), [slow, aask], ("slow", {"x": "1"}), AASK)
    async with identity.on_behalf_of("user:alice", purpose="p"):
        await graph.ainvoke(GO, CONFIG)
        with pytest.raises(DeniedError) as raised:
            await graph.ainvoke(Command(resume="yes"), CONFIG)
        go.set()
        await asyncio.sleep(0.05)
        state = await graph.ainvoke(Command(resume="yes"), CONFIG)
    assert raised.value.code == "call_running"
    assert contents(state) == ["slow", "they said yes"]
    assert ran.count("1") == 1


# -- what is recorded ------------------------------------------------------------------------------------------------


@every
@both
def test_the_second_pass_continues_the_first_call(
    identity: AgentIdentity, make: Any, is_async: bool
) -> None:
    graph = make(identity, InMemorySaver(), [aask if is_async else ask], AASK if is_async else ASK)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        run(graph, GO, is_async)
        run(graph, Command(resume="yes"), is_async)
        first, second = intents(identity, session)
    assert first["ref"] == "toolu_0"
    assert "continues" not in first
    assert second["continues"] == second["ref"] == first["call_id"]
    assert [outcome for _, outcome in calls_of(identity, session)] == ["cancelled", "completed"]
    trace = identity.who_triggered("toolu_0")
    assert (trace.decision, trace.outcome) == ("permit", "completed")
    assert [call["call_id"] for call in trace.calls] == [first["call_id"], second["call_id"]]
    assert identity.who_triggered(second["call_id"]).outcome == "completed"


@every
def test_policy_decides_again_when_a_call_is_resumed(make: Any) -> None:
    ran.clear()
    answers = iter([Decision.permit(), Decision.deny("not any more")])
    with AgentIdentity(
        "bot", authority=Authority(), ledger=MemoryLedger(), policy=lambda request: next(answers)
    ) as identity:
        graph = make(identity, InMemorySaver(), [ask], ASK)
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            run(graph, GO)
            with contextlib.suppress(DeniedError):  # a ToolNode stops
                state = run(graph, Command(resume="yes"))
                assert "policy_denied" in contents(state)[0]
        assert [each[1] for each in calls_of(identity, session)] == ["cancelled", "denied"]
    assert ran == ["asking"]


class Asking(AgentMiddleware[Any, Any]):
    """A user's own middleware that asks before each call."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        if interrupt("may I?") != "yes":
            return ToolMessage("no", tool_call_id=request.tool_call["id"])
        return handler(request)


def test_nothing_is_acquired_or_recorded_before_a_wrapper_interrupts(
    identity: AgentIdentity,
) -> None:
    made = IdentityMiddleware(
        identity, rules={"look": {"resource": "https://a.example", "scopes": ["a"]}}
    )
    graph = create_agent(
        says(("look", {"what": "a"})),
        [look],
        middleware=[Asking(), made],
        checkpointer=InMemorySaver(),
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        run(graph, GO)
        assert [r.kind for r in session.records()] == ["session.opened"]
        run(graph, Command(resume="yes"))
        assert len(intents(identity, session)) == 1
    assert ran == ["a"]


# -- who resumes -----------------------------------------------------------------------------------------------------


def asking_node(identity: AgentIdentity, saver: Any, tools: Any, *calls: Any) -> Any:
    """A ToolNode with a wrapper of the user inside ours."""
    made = guard(identity)

    def wrapper(request: Any, handler: Any) -> Any:
        def inner(request: Any) -> Any:
            interrupt("may I?")
            return handler(request)

        return made.wrap_tool_call(request, inner)

    return graph_of(ToolNode(list(tools), wrap_tool_call=wrapper), saver, *calls)


def approving(identity: AgentIdentity, saver: Any, tools: Any, *calls: Any) -> Any:
    """LangChain's own middleware asks."""
    middleware = HumanInTheLoopMiddleware(interrupt_on={each.name: True for each in tools})
    return agent(identity, saver, tools, *calls, outer=[middleware])


def asking_agent(identity: AgentIdentity, saver: Any, tools: Any, *calls: Any) -> Any:
    return agent(identity, saver, tools, *calls, outer=[Asking()])


APPROVED = {"decisions": [{"type": "approve"}]}
INTERRUPTING: list[Any] = [
    (agent, ask, ASK, "yes"),
    (protected_node, ask, ASK, "yes"),
    (wrapped_node, ask, ASK, "yes"),
    (asking_node, look, ("look", {"what": "a"}), "yes"),
    (asking_agent, look, ("look", {"what": "a"}), "yes"),
    (approving, look, ("look", {"what": "a"}), APPROVED),
]


@pytest.mark.parametrize(
    ("make", "tool", "call", "answer"),
    INTERRUPTING,
    ids=[each[0].__name__ for each in INTERRUPTING],
)
def test_another_principal_cannot_resume_and_the_owner_still_can(
    identity: AgentIdentity, make: Any, tool: Any, call: Any, answer: Any
) -> None:
    graph = make(identity, InMemorySaver(), [tool], call)
    with identity.on_behalf_of("user:alice", purpose="p"):
        run(graph, GO)
    before = list(ran)
    with (
        identity.on_behalf_of("user:mallory", purpose="p") as foreign,
        pytest.raises(DeniedError) as raised,
    ):
        run(graph, Command(resume=answer))
    assert raised.value.code == "resumed_by_another"
    assert ran == before
    assert [
        (r.kind, r.to_dict()["code"]) for r in foreign.records() if r.kind.startswith("call.")
    ] == [("call.denied", "resumed_by_another")]
    with identity.on_behalf_of("user:alice", purpose="p"):
        state = run(graph, Command(resume=answer))
    if make is approving:  # a node before the tools has taken mallory's answer
        assert "answered_by_another" in contents(state)[0]
    else:
        assert contents(state) == ["they said yes" if tool is ask else "saw a"]


@pytest.mark.parametrize("is_answered", [False, True])
@pytest.mark.parametrize(
    ("make", "tool", "call", "answer"),
    INTERRUPTING,
    ids=[each[0].__name__ for each in INTERRUPTING],
)
def test_the_answer_of_another_principal_never_counts(
    identity: AgentIdentity, make: Any, tool: Any, call: Any, answer: Any, is_answered: bool
) -> None:
    graph = make(identity, InMemorySaver(), [tool], call)
    with identity.on_behalf_of("user:alice", purpose="p"):
        run(graph, GO)
    with identity.on_behalf_of("user:mallory", purpose="p"), pytest.raises(DeniedError):
        run(graph, Command(resume=answer))
    ran.clear()
    with identity.on_behalf_of("user:alice", purpose="p"):
        state = run(graph, Command(resume="no") if is_answered else None)
    assert ("yes", "alice") not in ran
    assert "a" not in ran or (make is asking_node and is_answered)  # its wrapper ignores the answer
    if make is approving:
        assert "answered_by_another" in contents(state)[0]
    elif not is_answered:
        assert state["__interrupt__"]


@every
async def test_another_principal_cannot_resume_an_async_run(
    identity: AgentIdentity, make: Any
) -> None:
    graph = make(identity, InMemorySaver(), [aask, alook], AASK, ("alook", {"what": "a"}))
    async with identity.on_behalf_of("user:alice", purpose="p"):
        await graph.ainvoke(GO, CONFIG)
    async with identity.on_behalf_of("user:mallory", purpose="p"):
        with pytest.raises(DeniedError) as raised:
            await graph.ainvoke(Command(resume="yes"), CONFIG)
    assert raised.value.code == "resumed_by_another"
    assert ran in (["a", "asking"], ["asking", "a"])


@pytest.mark.parametrize("make", [protected_node, wrapped_node])
def test_another_principal_does_not_get_what_the_siblings_returned(
    identity: AgentIdentity, make: Any
) -> None:
    graph = make(identity, InMemorySaver(), [look, ask], ("look", {"what": "a"}), ASK)
    with identity.on_behalf_of("user:alice", purpose="p"):
        run(graph, GO)
    with identity.on_behalf_of("user:mallory", purpose="p"), pytest.raises(DeniedError):
        run(graph, Command(resume="yes"))
    assert contents(graph.get_state(CONFIG).values) == []


@every
def test_the_same_principal_may_resume_in_another_session(
    identity: AgentIdentity, make: Any
) -> None:
    graph = make(identity, InMemorySaver(), [ask], ASK)
    with identity.on_behalf_of("user:alice", purpose="p"):
        run(graph, GO)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = run(graph, Command(resume="yes"))
    assert contents(state) == ["they said yes"]
    trace = identity.who_triggered("toolu_0")
    assert trace.outcome == "completed"
    assert trace.calls == identity.who_triggered(session).calls


def test_another_principal_may_go_on_with_a_thread_that_nothing_interrupts(
    identity: AgentIdentity,
) -> None:
    """Two people who talk to one agent in one thread: each call belongs to the one whose message it answers."""
    turns = [asking(("look", {"what": "a"})), AIMessage("ok"), asking(("look", {"what": "b"}))]
    model = FakeModel(messages=itertools.chain(turns, itertools.repeat(AIMessage("done"))))
    graph = create_agent(model, [look], middleware=[guard(identity)], checkpointer=InMemorySaver())
    for user in ("alice", "bob"):
        with identity.on_behalf_of(f"user:{user}", purpose="p"):
            run(graph, GO)
    assert ran == ["a", "b"]


def test_a_cached_answer_of_the_model_carries_no_mark_of_another(identity: AgentIdentity) -> None:
    shared = asking(("look", {"what": "a"}))
    for user in ("alice", "bob"):
        model = FakeModel(messages=iter([shared, AIMessage("done")]))
        graph = create_agent(model, [look], middleware=[guard(identity)])
        with identity.on_behalf_of(f"user:{user}", purpose="p"):
            graph.invoke(GO)  # type: ignore[arg-type]
    assert ran == ["a", "a"]
    assert shared.response_metadata == {}


def test_no_mark_names_the_principal(identity: AgentIdentity) -> None:
    saver = InMemorySaver()
    for make in MAKERS:
        with identity.on_behalf_of("user:alice.unmistakable", purpose="p"):
            run(
                make(identity, saver, [ask], ASK),
                GO,
                config={"configurable": {"thread_id": make.__name__}},
            )
    assert "unmistakable" not in repr(saver.storage) + repr(dict(saver.writes))


@pytest.mark.parametrize("mark", ["", ".", "x", None, 7, "a.b"])
def test_a_broken_mark_is_refused(identity: AgentIdentity, mark: Any) -> None:
    broken = asking(("look", {"what": "a"}))
    broken.response_metadata["agent_identity_owner"] = mark
    made = guard(identity)
    node = ToolNode([look], wrap_tool_call=made.wrap_tool_call)
    with identity.on_behalf_of("user:alice", purpose="p"), pytest.raises(DeniedError) as raised:
        graph_of_message(node, broken).invoke(GO)
    assert raised.value.code == "resumed_by_another"
    assert ran == []


def graph_of_message(node: Any, message: AIMessage) -> Any:
    graph = StateGraph(State)
    graph.add_node("model", lambda state: {"messages": [message]})
    graph.add_node("tools", node)
    graph.add_edge(START, "model")
    graph.add_edge("model", "tools")
    return graph.compile()


# -- sub-agents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["alice", "mallory"])
def test_an_interrupt_in_a_sub_agent_is_resumed_by_its_principal_alone(
    identity: AgentIdentity, user: str
) -> None:
    inner = create_agent(
        FakeModel(
            messages=itertools.chain(
                [
                    AIMessage(
                        "",
                        tool_calls=[
                            {
                                "name": "look",
                                "args": {"what": "a"},
                                "id": "in_0",
                                "type": "tool_call",
                            },
                            {
                                "name": "ask",
                                "args": {"question": "sure?"},
                                "id": "in_1",
                                "type": "tool_call",
                            },
                        ],
                    )
                ],
                itertools.repeat(AIMessage("inner done")),
            )
        ),
        [look, ask],
        middleware=[guard(identity)],
        name="researcher",
    )

    def consult(question: str) -> str:
        return str(inner.invoke(GO)["messages"][-1].content)  # type: ignore[arg-type]

    made = StructuredTool.from_function(func=consult, name="consult", description="d")
    graph = agent(identity, InMemorySaver(), [made], ("consult", {"question": "?"}))
    with identity.on_behalf_of("user:alice", purpose="p"):
        assert run(graph, GO)["__interrupt__"]
    with identity.on_behalf_of(f"user:{user}", purpose="p") as session:
        if user == "alice":
            assert contents(run(graph, Command(resume="yes"))) == ["inner done"]
            trace = identity.who_triggered(session)
            parents = {call["call_id"]: call["tool"] for call in trace.calls}
            calls = [(c["tool"], parents.get(c["parent"]), c["outcome"]) for c in trace.calls]
            first, inside, again = calls[:1], calls[1:3], calls[3:]
            assert first == [("consult", None, "cancelled")]
            assert sorted(inside) == [
                ("ask", "consult", "cancelled"),
                ("look", "consult", "completed"),  # both run at the same time
            ]
            assert again == [("consult", None, "completed"), ("ask", "consult", "completed")]
            assert str(trace).count("continues call_") == 2
        else:
            with pytest.raises(DeniedError) as raised:
                run(graph, Command(resume="yes"))
            assert raised.value.code == "resumed_by_another"
    expected = ["a", "asking", *(["asking", ("yes", "alice")] if user == "alice" else [])]
    assert sorted(map(str, ran)) == sorted(map(str, expected))


# -- a restart -------------------------------------------------------------------------------------------------------


class FileSaver(InMemorySaver):
    """Keeps its checkpoints in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        if path.exists():
            storage, writes, blobs = pickle.loads(path.read_bytes())  # noqa: S301 - its own
            for thread, kept in storage.items():
                for namespace, checkpoints in kept.items():
                    self.storage[thread][namespace].update(checkpoints)
            for place, kept in writes.items():
                self.writes[place].update(kept)
            self.blobs.update(blobs)

    def close(self) -> None:
        storage = {thread: dict(kept) for thread, kept in self.storage.items()}
        kept = (storage, {k: dict(v) for k, v in self.writes.items()}, dict(self.blobs))
        self.path.write_bytes(pickle.dumps(kept))


def in_this_process(folder: Path, maker: str, user: str, answer: str | None) -> str:
    """One process of the restart: begin, or resume with an answer."""
    ran.clear()
    make = {each.__name__: each for each in MAKERS}[maker]
    saver = FileSaver(folder / "checkpoints")
    with AgentIdentity.embedded("bot", state_dir=folder / "state") as identity:
        calls = [("look", {"what": "a"}), ASK] if answer is None else []  # the model's script
        graph = make(identity, saver, [look, ask], *calls)
        try:
            with identity.on_behalf_of(f"user:{user}", purpose="p"):
                state = run(graph, GO if answer is None else Command(resume=answer))
            told = repr(contents(state))
        except DeniedError as error:
            told = error.code
        if answer == "yes" and user == "alice":
            told += f" {identity.who_triggered('toolu_0').outcome} {identity.who_triggered('toolu_1').outcome}"
    saver.close()
    return f"{ran} {told}"


@every
def test_an_interrupt_survives_the_process(make: Any, tmp_path: Path) -> None:
    def process(user: str, answer: str | None) -> str:
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_interrupts as t, pathlib\n"
            f"print(t.in_this_process(pathlib.Path({str(tmp_path)!r}), {make.__name__!r}, {user!r}, {answer!r}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    first = process("alice", None)
    assert "asking" in first
    assert "'a'" in first
    assert process("mallory", "yes") == "[] resumed_by_another"
    assert process("alice", "yes") == (
        "['asking', ('yes', 'alice')] ['saw a', 'they said yes'] completed completed"
    )
