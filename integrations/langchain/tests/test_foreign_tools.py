# SPDX-License-Identifier: Apache-2.0
"""Tools that deepagents and langchain-mcp-adapters make: what would run unguarded, or without its credential, is refused."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from deepagents import create_deep_agent
from deepagents.backends import StateBackend
from deepagents.middleware.async_subagents import AsyncSubAgentMiddleware
from deepagents.middleware.subagents import SubAgentMiddleware
from deepagents.profiles import (
    GeneralPurposeSubagentProfile,
    HarnessProfile,
    register_harness_profile,
)
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.tools import tool as langchain_tool
from langchain_mcp_adapters.tools import load_mcp_tools
from mcp.server.fastmcp import FastMCP
from mcp.shared.memory import create_connected_server_and_client_session

from agent_identity import AgentIdentity, ConfigurationError, Decision, tool
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger
from agent_identity_langchain import IdentityMiddleware, protect

BILLING = "https://billing.example"
GO = {"messages": [("user", "go")]}
ran: list[Any] = []


class Script(GenericFakeChatModel):
    """A model that makes the calls of its script."""

    asked: list[Any] = []

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Script:
        return self

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(messages)
        return super()._generate(messages, *args, **kwargs)


def says(*calls: tuple[str, dict[str, Any]], prefix: str = "toolu") -> Script:
    """A model that makes these calls, one a turn, and then is done."""
    turns: list[AIMessage] = []
    for at, (name, arguments) in enumerate(calls):
        made = {"name": name, "args": arguments, "id": f"{prefix}_{at}", "type": "tool_call"}
        turns.append(AIMessage("", tool_calls=[made]))
    return Script(messages=itertools.chain(turns, itertools.repeat(AIMessage("done"))), asked=[])


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


class Hiding(AgentMiddleware[Any, Any]):
    """Shows the model no tools, so that only a call is left to refuse."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(tools=[]))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(request.override(tools=[]))


def denied(session: Any) -> list[tuple[str, str]]:
    records = [r.to_dict() for r in session.records() if r.kind == "call.denied"]
    return [(record["tool"], record["code"]) for record in records]


def refusals(identity: AgentIdentity, session: Any) -> list[tuple[Any, Any]]:
    """What was refused in a session, and in those below it."""
    calls = identity.who_triggered(session).calls
    return [(call["tool"], call["code"]) for call in calls if call["outcome"] == "denied"]


def message_of(state: dict[str, Any]) -> ToolMessage:
    (message,) = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    return message


# -- sub-agents ------------------------------------------------------------------------------------------------------

DELEGATE = ("task", {"description": "pay it", "subagent_type": "payer"})


def payer() -> dict[str, Any]:
    return {
        "name": "payer",
        "description": "pays",
        "system_prompt": "pay",
        "model": says(("pay", {"number": "1"}), prefix="sub"),
        "tools": [pay],
    }


def test_a_deep_agent_whose_task_tool_nothing_describes_stops_before_the_model_is_asked(
    identity: AgentIdentity,
) -> None:
    model = says(DELEGATE)
    agent = create_deep_agent(
        model, [], subagents=[payer()], middleware=[IdentityMiddleware(identity)]
    )
    with (
        identity.on_behalf_of("user:alice", purpose="p"),
        pytest.raises(ConfigurationError) as raised,
    ):
        agent.invoke(GO)
    assert raised.value.code == "tool_undescribed"
    assert (ran, model.asked) == ([], [])


def sub_agents() -> SubAgentMiddleware:
    return SubAgentMiddleware(backend=StateBackend(), subagents=[payer()])


def wrapped(task: Any) -> BaseTool:
    @functools.wraps(task.func)
    def around(*args: Any, **kwargs: Any) -> Any:
        return task.func(*args, **kwargs)

    return task.model_copy(update={"func": around, "coroutine": None, "name": "delegate"})


@pytest.mark.parametrize(
    "disguise",
    [
        lambda task: task.model_copy(update={"name": "delegate"}),
        wrapped,
        lambda task: task.model_copy(
            update={"func": tool(opaque=["runtime"])(task.func), "coroutine": None}
        ),
    ],
    ids=["renamed", "wrapped", "decorated"],
)
def test_no_disguise_of_the_tool_that_starts_sub_agents_lets_their_tools_run_unguarded(
    identity: AgentIdentity, disguise: Any
) -> None:
    made = disguise(sub_agents().tools[0])
    agent = create_agent(
        says((made.name, DELEGATE[1])),
        [made],
        middleware=[IdentityMiddleware(identity, rules={"*": {}})],
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        state = agent.invoke(GO)
    assert refusals(identity, session) == [("pay", "tool_unguarded")]
    assert "tool_unguarded" in message_of(state).content
    assert ran == []


def test_the_tools_that_start_sub_agents_on_a_server_are_refused_too() -> None:
    remote: Any = {"name": "far", "description": "far away", "graph_id": "far"}
    for made in AsyncSubAgentMiddleware(async_subagents=[remote]).tools:
        with pytest.raises(ConfigurationError) as raised:
            protect(made)
        assert raised.value.code == "subagent_unguarded"


class Alone(Script):
    """A model for which deepagents makes no sub-agent of its own."""


def test_a_deep_agent_without_sub_agents_runs_and_is_guarded(identity: AgentIdentity) -> None:
    nobody = GeneralPurposeSubagentProfile(enabled=False)
    register_harness_profile("alone", HarnessProfile(general_purpose_subagent=nobody))
    calls = [("write_file", {"file_path": "/a", "content": "x"}), ("pay", {"number": "1"})]
    agent = create_deep_agent(
        Alone(messages=says(*calls).messages, asked=[]),
        [pay],
        middleware=[IdentityMiddleware(identity, rules={"*": {}})],
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        agent.invoke(GO)
        assert denied(session) == [("pay", "policy_denied")]
    assert identity.who_triggered("toolu_0").outcome == "completed"
    assert ran == []


def test_a_users_own_tool_called_task_runs(identity: AgentIdentity) -> None:
    @langchain_tool
    def task(description: str) -> str:
        """Note a task."""
        ran.append(description)
        return "noted"

    agent = create_agent(
        says(("task", {"description": "buy milk"})),
        [task],
        middleware=[IdentityMiddleware(identity, rules={"task": {}})],
    )
    with identity.on_behalf_of("user:alice", purpose="p"):
        agent.invoke(GO)
    assert ran == ["buy milk"]
    assert identity.who_triggered("toolu_0").outcome == "completed"


def test_an_agent_with_a_middleware_of_its_own_can_be_called_from_ones_own_tool(
    identity: AgentIdentity,
) -> None:
    inner = create_agent(
        says(("pay", {"number": "1"}), prefix="inner"),
        [pay],
        middleware=[IdentityMiddleware(identity, rules={"pay": {}})],
    )

    @langchain_tool
    def ask_payer(question: str) -> str:
        """Ask the payer."""
        return str(inner.invoke({"messages": [("user", question)]})["messages"][-1].content)

    outer = create_agent(
        says(("ask_payer", {"question": "pay it"})),
        [ask_payer],
        middleware=[IdentityMiddleware(identity, rules={"ask_payer": {}})],
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        outer.invoke(GO)
    assert refusals(identity, session) == [("pay", "policy_denied")]
    assert identity.who_triggered("inner_0").decision == "deny"
    assert identity.who_triggered("toolu_0").outcome == "completed"
    assert ran == []


# -- tools of an MCP server ------------------------------------------------------------------------------------------


def server() -> FastMCP:
    made = FastMCP("billing")

    @made.tool()
    def list_invoices(customer: str) -> str:
        """List a customer's invoices."""
        ran.append(customer)
        return f"2 invoices of {customer}"

    return made


LIST = ("list_invoices", {"customer": "ACME"})


async def through(identity: AgentIdentity, rules: Any, *outer: Any, change: Any = None) -> Any:
    """One call of the MCP tool by an agent under these rules: the final state or the error, and what was refused."""
    async with create_connected_server_and_client_session(server()) as client:
        tools = await load_mcp_tools(client)
        agent = create_agent(
            says(LIST),
            tools if change is None else [change(made) for made in tools],
            middleware=[*outer, IdentityMiddleware(identity, rules=rules)],
        )
        async with identity.on_behalf_of("user:alice", purpose="p") as session:
            try:
                return await agent.ainvoke(GO), denied(session)
            except ConfigurationError as error:  # the client's task group would wrap it
                return error, denied(session)


RESOURCE = {"list_invoices": {"resource": BILLING, "scopes": ["invoices:read"]}}


async def test_an_mcp_tool_whose_rule_has_a_resource_stops_the_agent(
    identity: AgentIdentity,
) -> None:
    error, refusals = await through(identity, {"*": {}, **RESOURCE})
    assert error.code == "mcp_credential_unsent"
    assert "without a resource" in error.remedy
    assert (ran, refusals) == ([], [])


async def test_no_call_of_an_mcp_tool_is_on_record_with_a_credential_that_was_not_sent(
    identity: AgentIdentity,
) -> None:
    state, refusals = await through(identity, RESOURCE, Hiding())
    assert refusals == [("list_invoices", "mcp_credential_unsent")]
    assert message_of(state).status == "error"
    (call,) = identity.who_triggered("toolu_0").calls
    assert (call["outcome"], call["resource"]) == ("denied", "urn:agent-identity:local")
    assert ran == []


@pytest.mark.parametrize("rules", [{"*": {}}, {"list_invoices": {"labels": {"reads:finance"}}}])
async def test_an_mcp_tool_without_a_resource_is_guarded_and_runs(
    identity: AgentIdentity, rules: Any
) -> None:
    _, refusals = await through(identity, rules)
    assert refusals == []
    assert ran == ["ACME"]
    assert identity.who_triggered("toolu_0").outcome == "completed"


async def test_an_mcp_tool_that_nothing_describes_is_refused(identity: AgentIdentity) -> None:
    error, _ = await through(identity, None)
    assert error.code == "tool_undescribed"
    assert ran == []


async def test_an_mcp_tool_is_known_below_a_decorator_that_gives_it_a_resource(
    identity: AgentIdentity,
) -> None:
    def decorated(made: Any) -> BaseTool:
        function = tool(resource=BILLING, scopes=["invoices:read"], name=made.name)(made.coroutine)
        return made.model_copy(update={"coroutine": function})

    error, _ = await through(identity, None, change=decorated)
    assert error.code == "mcp_credential_unsent"
    assert ran == []


async def test_protect_gives_no_mcp_tool_a_resource() -> None:
    async with create_connected_server_and_client_session(server()) as client:
        (made,) = await load_mcp_tools(client)
    with pytest.raises(ConfigurationError) as raised:
        protect(made, resource=BILLING)
    assert raised.value.code == "mcp_credential_unsent"
    assert protect(made).name == "list_invoices"


def test_the_mcp_tools_of_langchain_itself_are_known_too() -> None:
    async def call_tool(**arguments: Any) -> str:
        return "called"

    call_tool.__module__ = "langchain.mcp.tools"
    made = StructuredTool(name="x", description="x", args_schema={}, coroutine=call_tool)
    with pytest.raises(ConfigurationError) as raised:
        protect(made, resource=BILLING)
    assert raised.value.code == "mcp_credential_unsent"


def test_a_function_that_wraps_itself_is_refused_and_not_followed_for_ever() -> None:
    def odd() -> str:
        return "odd"

    odd.__dict__["__wrapped__"] = odd
    made = StructuredTool.from_function(func=lambda: "x", name="odd", description="odd")
    with pytest.raises(ValueError, match="wrapper loop"):
        protect(made.model_copy(update={"func": odd}), resource=BILLING)
