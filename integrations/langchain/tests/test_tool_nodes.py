# SPDX-License-Identifier: Apache-2.0
"""A raw StateGraph of the real langgraph: `guarded_tool_node`, and protected tools in a plain ToolNode."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.tools import BaseTool, BaseToolkit
from langchain_core.tools import tool as langchain_tool
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import InjectedState, InjectedStore, ToolNode, ToolRuntime
from langgraph.store.memory import InMemoryStore
from typing_extensions import TypedDict

from agent_identity import (
    AgentIdentity,
    ConfigurationError,
    Decision,
    NoSessionError,
    Session,
    current_session,
)
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger
from agent_identity_langchain import guarded_tool_node, protect

ran: list[Any] = []


class State(TypedDict):
    messages: Annotated[list[AnyMessage], operator.add]


@langchain_tool
def look(customer: str, limit: int = 10) -> str:
    """Look something up."""
    ran.append((customer, limit, current_session().principal.sub))
    return f"{limit} of {customer}"


@langchain_tool
async def alook(customer: str) -> str:
    """Look something up, async."""
    ran.append((customer, current_session().principal.sub))
    return f"all of {customer}"


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


def graph(node: ToolNode, **more: Any) -> Any:
    builder = StateGraph(State, **more)
    builder.add_node("tools", node)
    builder.add_edge(START, "tools")
    builder.add_edge("tools", END)
    return builder.compile(store=InMemoryStore())


def calls(*wanted: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    made = [
        {"name": name, "args": args, "id": f"toolu_{at}", "type": "tool_call"}
        for at, (name, args) in enumerate(wanted)
    ]
    return {"messages": [AIMessage("", tool_calls=made)]}


def results(state: dict[str, Any]) -> list[tuple[str, str]]:
    found = [message for message in state["messages"] if isinstance(message, ToolMessage)]
    return [(str(message.status), str(message.content)) for message in found]


def plain_node(tools: list[BaseTool]) -> ToolNode:
    return ToolNode(protect(tools))


# -- the guarded node ------------------------------------------------------------------------------------------------


def test_a_guarded_node_records_each_call_and_refuses_what_policy_denies(
    identity: AgentIdentity,
) -> None:
    made = graph(guarded_tool_node(identity, [look, pay], {"look": {}, "pay": {}}))
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = made.invoke(calls(("look", {"customer": "ACME"}), ("pay", {"number": "1"})))
        kinds = sorted(record.kind for record in session.records() if record.call_id)
    assert ran == [("ACME", 10, "alice")]
    assert [status for status, _ in results(state)] == ["success", "error"]
    assert kinds == ["call.completed", "call.denied", "call.intended"]
    assert identity.who_triggered("toolu_0").outcome == "completed"
    assert identity.who_triggered("toolu_1").decision == "deny"


async def test_an_async_guarded_node_does_the_same(identity: AgentIdentity) -> None:
    made = graph(guarded_tool_node(identity, [alook, pay], {"*": {}}))
    async with identity.on_behalf_of("user:alice", purpose="p"):
        state = await made.ainvoke(calls(("alook", {"customer": "ACME"}), ("pay", {"number": "1"})))
    assert ran == [("ACME", "alice")]
    assert [status for status, _ in results(state)] == ["success", "error"]


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        (None, "tool_undescribed"),
        ({"look": {}}, "tool_undescribed"),
        ({"*": {}, "lok": {}}, "rule_unmatched"),
        ({"*": {"resource": "https://billing.example"}}, "rule_malformed"),
    ],
)
def test_a_node_whose_rules_do_not_fit_its_tools_is_not_built(
    identity: AgentIdentity, rules: Any, code: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        guarded_tool_node(identity, [look, pay], rules)
    assert raised.value.code == code


def test_a_guarded_node_takes_no_other_wrapper(identity: AgentIdentity) -> None:
    with pytest.raises(TypeError, match="wrap_tool_call"):
        guarded_tool_node(identity, [look], {"look": {}}, wrap_tool_call=lambda r, h: h(r))


def test_a_call_of_a_tool_that_is_not_there_is_recorded_as_refused(
    identity: AgentIdentity,
) -> None:
    made = graph(guarded_tool_node(identity, [look], {"look": {}}))
    with identity.on_behalf_of("user:alice", purpose="p"):
        state = made.invoke(calls(("lock", {})))
    assert results(state)[0][0] == "error"
    assert identity.who_triggered("toolu_0").calls[0]["code"] == "tool_unknown"


def test_a_function_is_a_tool_of_the_node_like_any_other(identity: AgentIdentity) -> None:
    def note(text: str) -> str:
        """Note a text."""
        ran.append(text)
        return "noted"

    made = graph(guarded_tool_node(identity, [note], {"note": {"labels": ["writes:notes"]}}))
    with identity.on_behalf_of("user:alice", purpose="p"):
        made.invoke(calls(("note", {"text": "milk"})))
    assert ran == ["milk"]
    assert identity.who_triggered("toolu_0").calls[0]["labels"] == ["writes:notes"]


# -- protected tools in a plain node ---------------------------------------------------------------------------------


def test_a_protected_tool_in_a_plain_node_is_found_by_the_models_id(
    identity: AgentIdentity,
) -> None:
    made = graph(plain_node([look]))
    with identity.on_behalf_of("user:alice", purpose="p"):
        made.invoke(calls(("look", {"customer": "ACME"}), ("look", {"customer": "Globex"})))
    assert sorted(ran) == [("ACME", 10, "alice"), ("Globex", 10, "alice")]
    assert [len(identity.who_triggered(f"toolu_{n}").calls) for n in (0, 1)] == [1, 1]


async def test_an_async_protected_tool_is_found_by_the_models_id(identity: AgentIdentity) -> None:
    made = graph(plain_node([alook]))
    async with identity.on_behalf_of("user:alice", purpose="p"):
        await made.ainvoke(calls(("alook", {"customer": "ACME"})))
        tool_call = {"name": "look", "args": {"customer": "A"}, "id": "alone", "type": "tool_call"}
        await protect(look).ainvoke(tool_call)
    assert identity.who_triggered("toolu_0").outcome == "completed"
    assert identity.who_triggered("alone").outcome == "completed"


def test_a_protected_tool_is_called_by_hand_without_an_id(identity: AgentIdentity) -> None:
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        assert protect(look).invoke({"customer": "ACME"}) == "10 of ACME"
        assert len([r for r in session.records() if r.kind == "call.intended"]) == 1
    with pytest.raises(NoSessionError):
        protect(look).invoke({"customer": "ACME"})


def test_a_protected_tool_in_a_guarded_node_is_recorded_once(identity: AgentIdentity) -> None:
    made = graph(guarded_tool_node(identity, [protect(look)]))
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        made.invoke(calls(("look", {"customer": "ACME"})))
        assert len([r for r in session.records() if r.kind == "call.intended"]) == 1
    assert identity.who_triggered("toolu_0").outcome == "completed"


def test_a_list_and_a_toolkit_give_lists_of_protected_tools(identity: AgentIdentity) -> None:
    class Kit(BaseToolkit):
        def get_tools(self) -> list[BaseTool]:
            return [look, pay]

    listed = protect([look, pay], labels=(mark for mark in ["reads:finance"]))
    for tools in (listed, protect(Kit())):
        assert [tool.name for tool in tools] == ["look", "pay"]
        assert [tool.args for tool in tools] == [look.args, pay.args]
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        graph(ToolNode(listed)).invoke(calls(("look", {"customer": "ACME"})))
        assert identity.who_triggered(session).calls[0]["labels"] == ["reads:finance"]
    with pytest.raises(ConfigurationError) as raised:
        protect([look, protect(pay)])
    assert raised.value.code == "protected_twice"
    with pytest.raises(ConfigurationError, match="opaque"):
        protect([look], opaque=["customer"])


# -- the session that a run carries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["context", "configurable"])
@pytest.mark.parametrize("kind", ["guarded", "protected"])
def test_a_run_acts_as_the_session_that_it_carries(
    identity: AgentIdentity, carrier: str, kind: str
) -> None:
    node = (
        guarded_tool_node(identity, [look], {"look": {}})
        if kind == "guarded"
        else plain_node([look])
    )
    made = graph(node, context_schema=Session)
    with identity.on_behalf_of("user:alice", purpose="p") as alice:
        if carrier == "context":
            stream = made.stream(calls(("look", {"customer": "ACME"})), context=alice)
        else:
            config = {"configurable": {"agent_identity_session": alice}}
            stream = made.stream(calls(("look", {"customer": "ACME"})), config)
        with identity.on_behalf_of("user:bob", purpose="p"):
            list(stream)
    assert ran == [("ACME", 10, "alice")]


@pytest.mark.parametrize("carrier", ["context", "configurable"])
@pytest.mark.parametrize("kind", ["guarded", "protected"])
def test_a_delegate_in_a_tool_is_not_replaced_by_the_session_that_the_run_carries(
    identity: AgentIdentity, carrier: str, kind: str
) -> None:
    """LangGraph passes context and configurable on to graphs that a tool runs."""
    acted: list[str] = []

    @langchain_tool
    def inner_look(customer: str) -> str:
        """Look something up."""
        acted.append(current_session().agent.rpartition(":")[2])
        return customer

    def node(tool: BaseTool) -> ToolNode:
        if kind == "guarded":
            return guarded_tool_node(identity, [tool], {"*": {}})
        return ToolNode([protect(tool)])

    inner = graph(node(inner_look), context_schema=Session)

    @langchain_tool
    def ask(agent: str) -> str:
        """Ask an agent and its sub-agent."""
        wanted = calls(("inner_look", {"customer": "ACME"}))
        with current_session().delegate(agent) as child:
            inner.invoke(wanted)
            with child.delegate(f"{agent}-too"):
                inner.invoke(wanted)
        inner.invoke(wanted)
        return "asked"

    outer = graph(node(ask), context_schema=Session)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        wanted = calls(("ask", {"agent": "archive-bot"}))
        if carrier == "context":
            outer.invoke(wanted, context=session)
        else:
            outer.invoke(wanted, {"configurable": {"agent_identity_session": session}})
    # A graph with a guarded node is an agent, and a tool that starts it delegates to it under the tool's name.
    assert acted == ["archive-bot", "archive-bot-too", "ask" if kind == "guarded" else "bot"]


@pytest.mark.parametrize("kind", ["guarded", "protected"])
def test_something_else_in_the_sessions_place_is_refused(
    identity: AgentIdentity, kind: str
) -> None:
    node = (
        guarded_tool_node(identity, [look], {"*": {}}) if kind == "guarded" else plain_node([look])
    )
    made = graph(node)
    config = {"configurable": {"agent_identity_session": "ses_1"}}
    with (
        identity.on_behalf_of("user:alice", purpose="p"),
        pytest.raises(ConfigurationError) as raised,
    ):
        made.invoke(calls(("look", {"customer": "ACME"})), config)
    assert raised.value.code == "carrier_malformed"
    assert ran == []


# -- what the framework injects --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["guarded", "protected"])
def test_injected_state_store_and_runtime_reach_the_tool_and_no_digest(
    identity: AgentIdentity, kind: str
) -> None:
    @langchain_tool
    def inspect(
        customer: str,
        state: Annotated[Any, InjectedState],
        store: Annotated[Any, InjectedStore()],
        runtime: ToolRuntime,
    ) -> str:
        """Inspect."""
        ran.append((customer, len(state["messages"]), runtime.tool_call_id))
        store.put(("seen",), customer, {"by": "tool"})
        return str(store.get(("seen",), customer).value["by"])

    node = (
        guarded_tool_node(identity, [inspect], {"*": {}})
        if kind == "guarded"
        else plain_node([inspect])
    )
    with identity.on_behalf_of("user:alice", purpose="p"):
        state = graph(node).invoke(calls(("inspect", {"customer": "ACME"})))
    assert ran == [("ACME", 1, "toolu_0")]
    assert results(state) == [("success", "tool")]
    assert identity.who_triggered("toolu_0").outcome == "completed"


@pytest.mark.parametrize("kind", ["guarded", "protected"])
def test_an_artifact_stays_beside_its_content(identity: AgentIdentity, kind: str) -> None:
    @langchain_tool(response_format="content_and_artifact")
    def chart(customer: str) -> tuple[str, dict[str, int]]:
        """Draw a chart."""
        return f"chart of {customer}", {"points": 3}

    node = (
        guarded_tool_node(identity, [chart], {"*": {}})
        if kind == "guarded"
        else plain_node([chart])
    )
    with identity.on_behalf_of("user:alice", purpose="p"):
        state = graph(node).invoke(calls(("chart", {"customer": "ACME"})))
    message = state["messages"][-1]
    assert (message.content, message.artifact) == ("chart of ACME", {"points": 3})
