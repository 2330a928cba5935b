# SPDX-License-Identifier: Apache-2.0
"""A tool that nothing describes doesn't run, however it reaches the agent."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.tools import ToolRuntime
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.tools import tool as langchain_tool
from langgraph.graph import MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, Send

from agent_identity import AgentIdentity, AgentIdentityError, ConfigurationError, tool
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger
from agent_identity_langchain import IdentityMiddleware, protect

BILLING = "https://billing.example"
LOCAL = "urn:agent-identity:local"
GO = {"messages": [("user", "go")]}
CALL = "toolu_0"
ran: list[Any] = []


class Script(GenericFakeChatModel):
    """A model that makes the calls of its script."""

    asked: list[Any] = []

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Script:
        return self

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(messages)
        return super()._generate(messages, *args, **kwargs)


def call_of(name: str, number: int = 0, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "args": arguments, "id": f"toolu_{number}", "type": "tool_call"}


def says(*names: str) -> Script:
    """A model that calls these tools, one a turn, and then is done."""
    turns = [AIMessage("", tool_calls=[call_of(name, at)]) for at, name in enumerate(names)]
    return Script(messages=itertools.chain(turns, itertools.repeat(AIMessage("done"))), asked=[])


@langchain_tool
def look() -> str:
    """Look something up."""
    ran.append("look")
    return "seen"


@langchain_tool
def drop_table() -> str:
    """Drop the table."""
    ran.append("drop_table")
    return "dropped"


@langchain_tool
async def adrop_table() -> str:
    """Drop the table, async."""
    ran.append("adrop_table")
    return "dropped"


@pytest.fixture
def identity() -> Iterator[AgentIdentity]:
    ran.clear()
    with AgentIdentity("bot", authority=Authority(), ledger=MemoryLedger()) as made:
        yield made


class Hiding(AgentMiddleware[Any, Any]):
    """Shows the model fewer tools than there are, as a tool selector does."""

    def __init__(self, *hidden: str) -> None:
        super().__init__()
        self.hidden = hidden

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        shown = [entry for entry in request.tools if entry.name not in self.hidden]
        return handler(request.override(tools=shown))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        shown = [entry for entry in request.tools if entry.name not in self.hidden]
        return await handler(request.override(tools=shown))


class Adding(AgentMiddleware[Any, Any]):
    """Adds a tool while the agent runs; the model is shown it, or is not."""

    def __init__(self, added: BaseTool, *, is_shown: bool) -> None:
        super().__init__()
        self.added = added
        self.is_shown = is_shown

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        more = [self.added] if self.is_shown else []
        return handler(request.override(tools=[*request.tools, *more]))

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        if request.tool_call["name"] == self.added.name:
            request = request.override(tool=self.added)
        return handler(request)


def refused(state: dict[str, Any]) -> ToolMessage:
    (message,) = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    assert message.status == "error"
    return message


def denial(identity: AgentIdentity, session: Any, code: str) -> dict[str, Any]:
    """The one call, which the ledger finds by the model's own id, and which was refused for that reason."""
    codes = [r.to_dict()["code"] for r in session.records() if r.kind == "call.denied"]
    assert codes == [code]
    (call,) = identity.who_triggered(CALL).calls
    assert (call["outcome"], call["decision"]) == ("denied", "deny")
    return call


def intents(session: Any) -> dict[str, Any]:
    """What is on record of the calls that ran, by tool."""
    made = [r.to_dict() for r in session.records() if r.kind == "call.intended"]
    return {record["tool"]: (record["resource"], record["labels"]) for record in made}


# -- before anything runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules", [None, {}, {"Drop_Table": {}, "look": {}}, {"drop_tabel": {}, "look": {}}]
)
def test_a_tool_that_no_rule_names_stops_the_agent_before_the_model_is_asked(
    identity: AgentIdentity, rules: Any
) -> None:
    model = says("drop_table")
    agent = create_agent(
        model, [look, drop_table], middleware=[IdentityMiddleware(identity, rules=rules)]
    )
    with (
        identity.on_behalf_of("user:alice", purpose="p"),
        pytest.raises(ConfigurationError) as raised,
    ):
        agent.invoke(GO)
    assert raised.value.code == "tool_undescribed"
    assert raised.value.remedy is not None
    assert '"*"' in raised.value.remedy
    assert ran == []
    assert model.asked == []


async def test_the_same_is_so_for_an_async_agent(identity: AgentIdentity) -> None:
    model = says("adrop_table")
    rules = {"look": {}}
    agent = create_agent(
        model, [look, adrop_table], middleware=[IdentityMiddleware(identity, rules=rules)]
    )
    async with identity.on_behalf_of("user:alice", purpose="p"):
        with pytest.raises(ConfigurationError, match="adrop_table") as raised:
            await agent.ainvoke(GO)
    assert raised.value.code == "tool_undescribed"
    assert (ran, model.asked) == ([], [])


def test_a_tool_that_only_half_a_decorator_describes_is_undescribed(
    identity: AgentIdentity,
) -> None:
    async def later() -> None:
        ran.append("later")

    half = StructuredTool.from_function(
        func=tool()(lambda: None), coroutine=later, name="half", description="half"
    )
    agent = create_agent(says("half"), [half], middleware=[IdentityMiddleware(identity)])
    with pytest.raises(ConfigurationError, match="half") as raised:
        agent.invoke(GO)
    assert raised.value.code == "tool_undescribed"


def test_decorated_and_protected_tools_describe_themselves(identity: AgentIdentity) -> None:
    @langchain_tool
    @tool(labels={"reads:finance"})
    def ours() -> str:
        """List."""
        ran.append("ours")
        return "ours"

    tools = [ours, protect(look)]
    agent = create_agent(says("ours", "look"), tools, middleware=[IdentityMiddleware(identity)])
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        agent.invoke(GO)
    assert ran == ["ours", "look"]
    assert [c["outcome"] for c in identity.who_triggered(session).calls] == ["completed"] * 2


# -- at the call -----------------------------------------------------------------------------------------------------


def test_a_tool_that_the_model_was_not_shown_is_refused_and_recorded_at_its_call(
    identity: AgentIdentity,
) -> None:
    middleware = [Hiding("drop_table"), IdentityMiddleware(identity, rules={"look": {}})]
    agent = create_agent(says("drop_table"), [look, drop_table], middleware=middleware)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = agent.invoke(GO)
        call = denial(identity, session, "tool_undescribed")
    assert call["tool"] == "drop_table"
    assert "tool_undescribed" in refused(state).content
    assert ran == []


async def test_an_async_tool_that_the_model_was_not_shown_is_refused_and_recorded(
    identity: AgentIdentity,
) -> None:
    middleware = [Hiding("adrop_table"), IdentityMiddleware(identity, rules={"look": {}})]
    agent = create_agent(says("adrop_table"), [look, adrop_table], middleware=middleware)
    async with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = await agent.ainvoke(GO)
        call = denial(identity, session, "tool_undescribed")
    assert call["tool"] == "adrop_table"
    assert "tool_undescribed" in refused(state).content
    assert ran == []


def test_a_tool_that_is_added_at_run_time_is_refused_at_its_first_call(
    identity: AgentIdentity,
) -> None:
    adding = Adding(drop_table, is_shown=False)
    middleware = [adding, IdentityMiddleware(identity, rules={"look": {}})]
    agent = create_agent(says("drop_table"), [look], middleware=middleware)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = agent.invoke(GO)
        denial(identity, session, "tool_undescribed")
    assert "tool_undescribed" in refused(state).content
    assert ran == []


def test_a_tool_that_is_added_at_run_time_stops_the_agent_when_the_model_is_shown_it(
    identity: AgentIdentity,
) -> None:
    adding = Adding(drop_table, is_shown=True)
    middleware = [adding, IdentityMiddleware(identity, rules={"look": {}})]
    agent = create_agent(says("drop_table"), [look], middleware=middleware)
    with (
        identity.on_behalf_of("user:alice", purpose="p"),
        pytest.raises(ConfigurationError, match="drop_table"),
    ):
        agent.invoke(GO)
    assert ran == []


@pytest.mark.parametrize("rules", [{"look": {}, "*": {}}, {"look": {}}])
def test_a_protected_tool_that_is_added_at_run_time_runs(
    identity: AgentIdentity, rules: Any
) -> None:
    adding = Adding(protect(drop_table, labels={"drops"}), is_shown=True)
    middleware = [adding, IdentityMiddleware(identity, rules=rules)]
    agent = create_agent(says("drop_table"), [look], middleware=middleware)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        agent.invoke(GO)
        assert intents(session) == {"drop_table": (LOCAL, ["drops"])}
    assert ran == ["drop_table"]


def test_another_tool_under_the_name_of_a_described_one_is_judged_by_its_own_name(
    identity: AgentIdentity,
) -> None:
    class Swapping(AgentMiddleware[Any, Any]):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tool=drop_table))

    middleware = [Swapping(), IdentityMiddleware(identity, rules={"look": {}})]
    agent = create_agent(says("look"), [look], middleware=middleware)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = agent.invoke(GO)
        call = denial(identity, session, "tool_undescribed")
    assert call["tool"] == "drop_table"
    assert "tool_undescribed" in refused(state).content
    assert ran == []


def node_graph(identity: AgentIdentity, tools: Sequence[Any], rules: Any, **more: Any) -> Any:
    """A graph of one's own around a tool node, without `create_agent`."""
    guard = IdentityMiddleware(identity, rules=rules)
    node = ToolNode(
        tools,
        wrap_tool_call=guard.wrap_tool_call,
        awrap_tool_call=guard.awrap_tool_call,
        **more,
    )
    graph = StateGraph(MessagesState)
    graph.add_node("tools", node)
    graph.set_entry_point("tools")
    return graph.compile()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_tool_node_without_an_agent_refuses_an_undescribed_tool_and_records_it(
    identity: AgentIdentity, is_async: bool
) -> None:
    graph = node_graph(identity, [look, drop_table], {"look": {}})
    asked = {"messages": [AIMessage("", tool_calls=[call_of("drop_table")])]}
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = asyncio.run(graph.ainvoke(asked)) if is_async else graph.invoke(asked)
        denial(identity, session, "tool_undescribed")
    assert "tool_undescribed" in refused(state).content
    assert ran == []


def test_a_command_that_sends_a_call_to_the_tools_runs_no_undescribed_tool(
    identity: AgentIdentity,
) -> None:
    @langchain_tool
    def jump() -> Any:
        """Go on with another tool."""
        return Command(goto=Send("tools", [call_of("drop_table", 1)]))

    tools = [jump, drop_table]
    middleware = [Hiding("drop_table"), IdentityMiddleware(identity, rules={"jump": {}})]
    agent = create_agent(says("jump"), tools, middleware=middleware)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        agent.invoke(GO)
        codes = [r.to_dict()["code"] for r in session.records() if r.kind == "call.denied"]
    assert codes == ["tool_undescribed"]
    assert identity.who_triggered("toolu_1").calls[0]["tool"] == "drop_table"
    assert ran == []


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_tool_calls_through_its_runtime_is_guarded_or_not_there(
    identity: AgentIdentity, is_async: bool
) -> None:
    """A code interpreter calls the agent's other tools that way, with what the model wrote."""
    found: list[str] = []

    @langchain_tool
    def interpret(runtime: ToolRuntime) -> str:
        """Call all other tools."""
        others = [other for other in runtime.tools if other.name != "interpret"]
        found.extend(other.name for other in others)
        return " ".join(other.invoke({}) for other in others)

    middleware = [
        Hiding("drop_table"),
        IdentityMiddleware(identity, rules={"interpret": {}, "look": {"labels": {"reads"}}}),
    ]
    agent = create_agent(says("interpret"), [interpret, look, drop_table], middleware=middleware)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        asyncio.run(agent.ainvoke(GO)) if is_async else agent.invoke(GO)
        assert intents(session) == {"interpret": (LOCAL, []), "look": (LOCAL, ["reads"])}
    assert found == ["look"]
    assert ran == ["look"]


def test_a_name_that_no_tool_has_is_refused_and_recorded(identity: AgentIdentity) -> None:
    middleware = [IdentityMiddleware(identity, rules={"look": {}})]
    agent = create_agent(says("made_up"), [look], middleware=middleware)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = agent.invoke(GO)
        call = denial(identity, session, "tool_unknown")
    assert call["tool"] == "made_up"
    assert "tool_unknown" in refused(state).content


def test_a_tool_that_cannot_be_guarded_is_recorded_as_refused(identity: AgentIdentity) -> None:
    class Past(StructuredTool):
        def invoke(self, *args: Any, **kwargs: Any) -> Any:
            ran.append("past")
            return "past everything"

    past = Past.from_function(func=lambda: None, name="past", description="past")
    middleware = [Hiding("past"), IdentityMiddleware(identity, rules={"*": {}})]
    agent = create_agent(says("past"), [past], middleware=middleware)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(ConfigurationError) as raised:
            agent.invoke(GO)
        call = denial(identity, session, "tool_unguardable")
    assert raised.value.call_id == call["call_id"]
    assert ran == []


# -- the rules -------------------------------------------------------------------------------------------------------


def test_the_rule_for_all_other_tools_makes_them_local_and_labels_them(
    identity: AgentIdentity,
) -> None:
    rules = {"look": {"resource": BILLING, "scopes": ["invoices:read"]}, "*": {"labels": {"other"}}}
    agent = create_agent(
        says("look", "drop_table"),
        [look, drop_table],
        middleware=[IdentityMiddleware(identity, rules=rules)],
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        agent.invoke(GO)
        assert intents(session) == {"look": (BILLING, []), "drop_table": (LOCAL, ["other"])}
    assert ran == ["look", "drop_table"]


@pytest.mark.parametrize("key", ["resource", "scopes", "opaque"])
def test_the_rule_for_all_other_tools_gives_no_credential_and_hides_no_argument(
    identity: AgentIdentity, key: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        IdentityMiddleware(identity, rules={"*": {key: [BILLING]}})
    assert raised.value.code == "rule_malformed"
    assert repr(key) in str(raised.value)
    assert "labels" in str(raised.value.remedy)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"list_invoices": {"resources": BILLING}}, ["'list_invoices'", "'resources'"]),
        ({"pay": {"pauses": (ValueError,)}}, ["'pay'", "'pauses'"]),
        ({"pay": None}, ["'pay'"]),
        ({"pay": {"hosted": "no"}}, ["'pay'", "'hosted'"]),
        ({"pay": {"hosted": True, "labels": {"moves:money"}}}, ["'pay'", "'hosted'"]),
        ({"*": {"hosted": True}}, ["'*'", "'hosted'"]),
        ({None: {}}, ["None"]),
        (["pay"], ["mapping"]),
    ],
)
def test_a_rule_that_cannot_be_read_is_an_error_that_names_it(
    identity: AgentIdentity, rules: Any, said: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        IdentityMiddleware(identity, rules=rules)
    assert raised.value.code == "rule_malformed"
    assert all(part in str(raised.value) for part in said)


@pytest.mark.parametrize(
    ("name", "rule", "code"),
    [
        ("pay", {"resource": "HTTPS://billing.example"}, "resource_malformed"),
        ("pay", {"labels": 5}, "tool_malformed"),
        ("pay ", {}, "tool_malformed"),
    ],
)
def test_a_value_that_cannot_be_is_an_error_that_notes_the_rule(
    identity: AgentIdentity, name: str, rule: dict[str, Any], code: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        IdentityMiddleware(identity, rules={name: rule})
    assert raised.value.code == code
    assert f"in the rule {name!r}" in raised.value.__notes__


def test_a_wrong_key_is_answered_with_the_keys_that_there_are(identity: AgentIdentity) -> None:
    with pytest.raises(ConfigurationError) as raised:
        IdentityMiddleware(identity, rules={"list_invoices": {"resources": BILLING}})
    assert "hosted, labels, opaque, resource, scopes" in str(raised.value.remedy)


def test_a_rule_is_what_it_was_when_it_was_written(identity: AgentIdentity) -> None:
    rules: dict[str, Any] = {"look": {"labels": (label for label in ["once"])}}
    guard = IdentityMiddleware(identity, rules=rules)
    rules["look"]["resource"] = BILLING
    rules["*"] = {}
    agent = create_agent(says("look"), [look], middleware=[guard])
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        agent.invoke(GO)
        assert intents(session) == {"look": (LOCAL, ["once"])}


@pytest.mark.parametrize("typo", ["drop_tabel", "Drop_table", "drop-table"])
def test_a_rule_that_names_no_tool_stops_the_run_before_a_tool_runs(
    identity: AgentIdentity, typo: str
) -> None:
    """With a rule for all other tools, the misspelt one would otherwise run as a local tool."""
    rules: dict[str, Any] = {"*": {}, typo: {"labels": {"drops"}}}
    for called in ("look", "drop_table"):
        agent = create_agent(
            says(called),
            [look, drop_table],
            middleware=[IdentityMiddleware(identity, rules=rules)],
        )
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            with pytest.raises(ConfigurationError) as raised:
                agent.invoke(GO)
            denied = [r.to_dict() for r in session.records() if r.kind == "call.denied"]
        assert raised.value.code == "rule_unmatched"
        assert repr(typo) in str(raised.value)
        assert [record["code"] for record in denied] == ["rule_unmatched"]
        assert denied[0]["call_id"] == raised.value.call_id
    assert ran == []


def test_a_rule_for_a_tool_that_the_model_is_not_shown_names_a_tool(
    identity: AgentIdentity,
) -> None:
    rules: dict[str, Any] = {"look": {}, "drop_table": {"labels": {"drops"}}}
    middleware = [Hiding("drop_table"), IdentityMiddleware(identity, rules=rules)]
    agent = create_agent(says("look"), [look, drop_table], middleware=middleware)
    with identity.on_behalf_of("user:alice", purpose="p"):
        agent.invoke(GO)
    assert ran == ["look"]


def test_two_agents_that_share_a_middleware_are_checked_each_by_its_own_tools(
    identity: AgentIdentity,
) -> None:
    @langchain_tool
    def drop_tabel() -> str:
        """Drop the table."""
        ran.append("drop_tabel")
        return "dropped"

    guard = IdentityMiddleware(identity, rules={"*": {}, "drop_table": {"labels": {"drops"}}})
    first = create_agent(says("drop_table"), [drop_table], middleware=[guard])
    second = create_agent(says("drop_tabel"), [drop_tabel], middleware=[guard])
    with identity.on_behalf_of("user:alice", purpose="p"):
        first.invoke(GO)
        with pytest.raises(ConfigurationError) as raised:
            second.invoke(GO)
    assert raised.value.code == "rule_unmatched"
    assert ran == ["drop_table"]


# -- tools of the model's provider -----------------------------------------------------------------------------------

SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}


@pytest.mark.parametrize("rules", [{"*": {}}, {"*": {}, "web_search": {"labels": {"reads:web"}}}])
@pytest.mark.parametrize("hosted", [SEARCH, {"type": "web_search"}, {"web_search": {}}])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_tool_that_the_provider_runs_stops_the_agent_unless_a_rule_says_so(
    identity: AgentIdentity, hosted: Any, rules: Any, is_async: bool
) -> None:
    model = says()
    agent = create_agent(model, [hosted], middleware=[IdentityMiddleware(identity, rules=rules)])
    with pytest.raises(ConfigurationError, match="web_search") as raised:
        asyncio.run(agent.ainvoke(GO)) if is_async else agent.invoke(GO)
    assert raised.value.code == "tool_hosted"
    assert model.asked == []


def test_a_tool_that_a_rule_says_the_provider_runs_is_shown_to_the_model(
    identity: AgentIdentity,
) -> None:
    rules: dict[str, Any] = {"look": {}, "web_search": {"hosted": True}}
    agent = create_agent(
        says("look"), [SEARCH, look], middleware=[IdentityMiddleware(identity, rules=rules)]
    )
    with identity.on_behalf_of("user:alice", purpose="p"):
        agent.invoke(GO)
    assert ran == ["look"]


def test_a_tool_of_the_agent_is_not_described_by_the_rule_of_a_hosted_one(
    identity: AgentIdentity,
) -> None:
    guard = IdentityMiddleware(identity, rules={"look": {"hosted": True}})
    agent = create_agent(says("look"), [look], middleware=[guard])
    with pytest.raises(ConfigurationError) as raised:
        agent.invoke(GO)
    assert raised.value.code == "tool_undescribed"


def test_a_providers_tool_that_the_agent_runs_is_guarded_at_its_call(
    identity: AgentIdentity,
) -> None:
    """The provider has a schema of its own for it, and a tool of the agent runs the call."""

    class Native(AgentMiddleware[Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tools=[{"type": "bash_20250124", "name": "look"}]))

    rules = {"look": {"hosted": False, "labels": {"runs:shell"}}}
    middleware = [Native(), IdentityMiddleware(identity, rules=rules)]
    agent = create_agent(says("look"), [look], middleware=middleware)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        agent.invoke(GO)
        assert intents(session) == {"look": (LOCAL, ["runs:shell"])}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "function", "function": {"name": "made_up", "parameters": {}}},
        {"name": "made_up", "description": "", "input_schema": {"type": "object"}},
    ],
)
def test_a_function_of_which_the_model_has_the_schema_alone_is_refused_at_its_call(
    identity: AgentIdentity, schema: Any
) -> None:
    guard = IdentityMiddleware(identity, rules={"look": {}})
    agent = create_agent(says("made_up"), [schema, look], middleware=[guard])
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        agent.invoke(GO)
        denial(identity, session, "tool_unknown")


def test_parallel_calls_of_an_agent_are_each_refused(identity: AgentIdentity) -> None:
    calls = [call_of("drop_table", at) for at in range(3)]
    model = Script(messages=iter([AIMessage("", tool_calls=calls), AIMessage("done")]), asked=[])
    middleware = [Hiding("drop_table"), IdentityMiddleware(identity, rules={"look": {}})]
    agent = create_agent(model, [look, drop_table], middleware=middleware)
    with identity.on_behalf_of("user:alice", purpose="p"):
        agent.invoke(GO)
    assert [identity.who_triggered(f"toolu_{at}").decision for at in range(3)] == ["deny"] * 3
    assert ran == []


def test_an_error_handler_of_a_tool_node_hears_the_code_and_runs_nothing(
    identity: AgentIdentity,
) -> None:
    heard: list[AgentIdentityError] = []

    def handle(error: AgentIdentityError) -> str:
        heard.append(error)
        return "handled"

    handler: Callable[..., str] = handle
    rules: dict[str, Any] = {"*": {}, "drop_tabel": {}}
    graph = node_graph(identity, [drop_table], rules, handle_tool_errors=handler)
    asked = {"messages": [AIMessage("", tool_calls=[call_of("drop_table")])]}
    with identity.on_behalf_of("user:alice", purpose="p"):
        state = graph.invoke(asked)
    assert [error.code for error in heard] == ["rule_unmatched"]
    assert refused(state).content == "handled"
    assert ran == []
