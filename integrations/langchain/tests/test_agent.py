# SPDX-License-Identifier: Apache-2.0
"""An agent of the real langchain under IdentityMiddleware, with a model that follows a script."""

from __future__ import annotations

import asyncio
import importlib.metadata
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langchain_core.tools import tool as langchain_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from agent_identity import (
    AgentIdentity,
    ConfigurationError,
    CredentialUnavailableError,
    Decision,
    LedgerError,
    NoSessionError,
    current_credential,
    current_session,
    tool,
)
from agent_identity.authority import Authority
from agent_identity.provenance.ledger import open_ledger
from agent_identity.testing import assert_no_leak
from agent_identity_langchain import IdentityMiddleware, protect

BILLING = "https://billing.example"


class FakeModel(GenericFakeChatModel):
    """Says what the script says, and remembers everything that it was shown."""

    shown: list[Any] = []

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> FakeModel:
        self.shown.extend(entry.tool_call_schema.model_json_schema() for entry in tools)
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.shown.extend(message.model_dump() for message in messages)
        return super()._generate(messages, *args, **kwargs)


def says(*turns: list[tuple[str, dict[str, Any]]]) -> FakeModel:
    """A model that makes these tool calls, turn by turn, and then is done."""
    messages: list[AIMessage] = []
    for number, calls in enumerate(turns):
        made = [
            {"name": name, "args": args, "id": f"toolu_{number}_{at}", "type": "tool_call"}
            for at, (name, args) in enumerate(calls)
        ]
        messages.append(AIMessage("", tool_calls=made))
    return FakeModel(messages=iter([*messages, AIMessage("done")]), shown=[])


class Watch(BaseCallbackHandler):
    """Keeps all that callbacks are told."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(repr((args, kwargs)))

    def on_tool_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(repr((args, kwargs)))

    def on_tool_error(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(repr((args, kwargs)))


def no_payments(request: Any) -> Decision:
    if "moves:money" in request.resource.properties["labels"]:
        return Decision.deny("the secret reason of the policy", policy_id="no-payments")
    return Decision.permit(policy_id="books")


@pytest.fixture
def identity(tmp_path: Any) -> Iterator[AgentIdentity]:
    with AgentIdentity(
        "invoice-bot",
        authority=Authority(),
        ledger=open_ledger("memory:", state_dir=tmp_path),
        policy=no_payments,
    ) as made:
        yield made


def results(state: dict[str, Any]) -> list[ToolMessage]:
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


RULES = {
    "list_invoices": {
        "resource": BILLING,
        "scopes": ["invoices:read"],
        "labels": {"reads:finance"},
    },
    "pay": {"resource": BILLING, "scopes": ["payments:write"], "labels": {"moves:money"}},
}
ran: list[Any] = []
tokens: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()
    tokens.clear()


@langchain_tool
def list_invoices(customer: str, limit: int = 10) -> str:
    """List a customer's invoices."""
    ran.append((customer, limit, current_session().principal.sub))
    tokens.append(current_credential().reveal())
    return f"{limit} invoices of {customer}"


@langchain_tool
async def alist(customer: str) -> str:
    """List a customer's invoices, async."""
    ran.append((customer, current_session().principal.sub))
    await asyncio.sleep(0)
    return f"invoices of {customer}"


@langchain_tool
def pay(number: str) -> str:
    """Pay an invoice."""
    ran.append(number)
    return "paid"


def agent(identity: AgentIdentity, model: FakeModel, *tools: BaseTool, **more: Any) -> Any:
    named = {made.name: RULES[made.name] for made in tools if made.name in RULES}
    middleware = [IdentityMiddleware(identity, rules={"*": {}, **named})]
    return create_agent(model, list(tools), middleware=middleware, **more)


def test_the_framework_is_the_one_that_this_integration_names() -> None:
    assert importlib.metadata.version("langchain").startswith("1.")
    assert importlib.metadata.version("langchain-core").startswith("1.")


def test_a_call_of_the_model_runs_under_the_session_and_is_found_by_the_models_own_id(
    identity: AgentIdentity,
) -> None:
    model = says([("list_invoices", {"customer": "ACME"})])
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        state = agent(identity, model, list_invoices).invoke({"messages": [("user", "go")]})
    assert ran == [("ACME", 10, "alice")]
    assert [(m.content, m.status) for m in results(state)] == [("10 invoices of ACME", "success")]
    trace = identity.who_triggered("toolu_0_0")
    assert trace.calls[0]["tool"] == "list_invoices"
    assert trace.calls[0]["outcome"] == "completed"
    assert identity.who_triggered(session).principal.sub == "alice"


def test_what_is_digested_is_what_the_function_receives_defaults_and_coercion_included(
    identity: AgentIdentity,
) -> None:
    from agent_identity.canonical import args_digest
    from agent_identity.jose import loads_object, unverified

    model = says([("list_invoices", {"customer": "ACME", "limit": "3"})])
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        agent(identity, model, list_invoices).invoke({"messages": [("user", "go")]})
        intent = next(r for r in session.records() if r.kind == "call.intended")
    claims = loads_object(unverified(intent.to_dict()["assertion"]).payload)
    assert ran == [("ACME", 3, "alice")]
    assert claims["call"]["args_hash"] == args_digest({"customer": "ACME", "limit": 3})


def test_a_refusal_reaches_the_model_as_a_tool_error_without_the_policys_words(
    identity: AgentIdentity,
) -> None:
    model = says([("pay", {"number": "2026-1041"})])
    with identity.on_behalf_of("user:alice", purpose="close the books"):
        state = agent(identity, model, pay).invoke({"messages": [("user", "go")]})
    (message,) = results(state)
    assert ran == []
    assert message.status == "error"
    assert "policy_denied" in message.content
    assert "secret reason" not in str(model.shown)
    assert "2026-1041" not in message.content
    assert identity.who_triggered("toolu_0_0").decision == "deny"


async def test_parallel_calls_each_have_their_own_record(identity: AgentIdentity) -> None:
    model = says([("alist", {"customer": name}) for name in ("ACME", "Globex", "Initech")])
    async with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        state = await agent(identity, model, alist).ainvoke({"messages": [("user", "go")]})
    assert sorted(ran) == [("ACME", "alice"), ("Globex", "alice"), ("Initech", "alice")]
    assert len(results(state)) == 3
    calls = identity.who_triggered(session).calls
    assert len({call["call_id"] for call in calls}) == 3
    assert {call["outcome"] for call in calls} == {"completed"}


def test_parallel_calls_of_two_principals_never_cross(identity: AgentIdentity) -> None:
    seen: dict[str, Any] = {}

    @langchain_tool
    def who(name: str) -> str:
        """Say who asks."""
        return current_session().principal.sub

    def run(name: str) -> None:
        model = says([("who", {"name": name})] * 4)
        with identity.on_behalf_of(f"user:{name}", purpose="close the books"):
            state = agent(identity, model, who).invoke({"messages": [("user", "go")]})
        seen[name] = {m.content for m in results(state)}

    threads = [threading.Thread(target=run, args=(f"p{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {f"p{n}": {f"p{n}"} for n in range(6)}


def test_no_credential_shows_in_schema_callbacks_or_messages(identity: AgentIdentity) -> None:
    watch = Watch()
    model = says([("list_invoices", {"customer": "ACME"}), ("pay", {"number": "1"})])
    with identity.on_behalf_of("user:alice", purpose="close the books"):
        state = agent(identity, model, list_invoices, pay).invoke(
            {"messages": [("user", "go")]}, {"callbacks": [watch]}
        )
    assert tokens
    assert watch.seen
    assert_no_leak(tokens, *map(repr, model.shown), *watch.seen, repr(state["messages"]))
    assert "credential" not in str(model.shown).lower()


def test_without_a_session_the_run_stops_and_no_tool_runs(identity: AgentIdentity) -> None:
    model = says([("list_invoices", {"customer": "ACME"})])
    with pytest.raises(NoSessionError):
        agent(identity, model, list_invoices).invoke({"messages": [("user", "go")]})
    assert ran == []


def test_a_session_can_be_carried_as_the_runs_context(identity: AgentIdentity) -> None:
    from agent_identity import Session

    model = says([("list_invoices", {"customer": "ACME"})])
    graph = agent(identity, model, list_invoices, context_schema=Session)
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        outside = threading.Thread(
            target=lambda: graph.invoke({"messages": [("user", "go")]}, context=session)
        )
        outside.start()
        outside.join()
    assert ran == [("ACME", 10, "alice")]


def test_a_ledger_that_cannot_be_written_stops_the_run(identity: AgentIdentity) -> None:
    model = says([("list_invoices", {"customer": "ACME"})])
    with identity.on_behalf_of("user:alice", purpose="close the books"):
        identity.ledger.close()
        with pytest.raises(LedgerError):
            agent(identity, model, list_invoices).invoke({"messages": [("user", "go")]})
    assert ran == []


def test_an_issuer_that_is_away_stops_the_run(tmp_path: Any) -> None:
    class Away(Authority):
        def register(self, metadata: dict[str, Any]) -> Any:
            raise OSError("the disk is full")

    model = says([("list_invoices", {"customer": "ACME"})])
    ledger = open_ledger("memory:", state_dir=tmp_path)
    with (
        AgentIdentity("invoice-bot", authority=Away(), ledger=ledger) as identity,
        identity.on_behalf_of("user:alice", purpose="close the books"),
        pytest.raises(CredentialUnavailableError),
    ):
        agent(identity, model, list_invoices).invoke({"messages": [("user", "go")]})
    assert ran == []


def test_a_tools_own_error_stays_its_own(identity: AgentIdentity) -> None:
    @langchain_tool
    def broken(x: int) -> str:
        """Break."""
        raise ToolException("as the tool says it")

    broken.handle_tool_error = True
    model = says([("broken", {"x": 1})])
    with identity.on_behalf_of("user:alice", purpose="close the books"):
        state = agent(identity, model, broken).invoke({"messages": [("user", "go")]})
    (message,) = results(state)
    assert (message.status, message.content) == ("error", "as the tool says it")
    assert identity.who_triggered("toolu_0_0").outcome == "failed"


def test_a_tool_that_interrupts_is_no_failure_and_goes_on_when_resumed(
    identity: AgentIdentity,
) -> None:
    @langchain_tool
    def ask(question: str) -> str:
        """Ask a person."""
        return f"they said {interrupt(question)}"

    model = says([("ask", {"question": "sure?"})])
    graph = agent(identity, model, ask, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        first = graph.invoke({"messages": [("user", "go")]}, config)
        assert first["__interrupt__"]
        second = graph.invoke(Command(resume="yes"), config)
    assert results(second)[0].content == "they said yes"
    outcomes = [call["outcome"] for call in identity.who_triggered(session).calls]
    assert outcomes == ["cancelled", "completed"]


def test_a_function_that_is_a_tool_of_ours_is_recorded_once(identity: AgentIdentity) -> None:
    @langchain_tool
    @tool(labels={"reads:finance"})
    def ours(customer: str) -> str:
        """List."""
        ran.append(customer)
        return customer

    model = says([("ours", {"customer": "ACME"})])
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        agent(identity, model, ours).invoke({"messages": [("user", "go")]})
    assert ran == ["ACME"]
    assert len(identity.who_triggered(session).calls) == 1
    assert identity.who_triggered("toolu_0_0").calls[0]["tool"] == "ours"


def test_protect_guards_a_tool_without_any_agent(identity: AgentIdentity) -> None:
    guarded = protect(list_invoices, resource=BILLING, scopes=["invoices:read"])
    with pytest.raises(NoSessionError):
        guarded.invoke({"customer": "ACME"})
    with identity.on_behalf_of("user:alice", purpose="close the books"):
        assert guarded.invoke({"customer": "ACME"}) == "10 invoices of ACME"
    assert guarded.tool_call_schema.model_json_schema() == (
        list_invoices.tool_call_schema.model_json_schema()
    )
    assert (guarded.name, guarded.description) == (list_invoices.name, list_invoices.description)


async def test_protect_guards_async_functions_and_tools_with_code_of_their_own(
    identity: AgentIdentity,
) -> None:
    class Own(BaseTool):
        name: str = "own"
        description: str = "own"

        def _run(self, x: int) -> str:
            return f"{type(self).__name__} {x}"

    guarded = protect(Own())
    with pytest.raises(NoSessionError):
        guarded.invoke({"x": 1})
    async with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        assert await protect(alist).ainvoke({"customer": "ACME"}) == "invoices of ACME"
        assert guarded.invoke({"x": 1}).endswith("Own 1")
        both = StructuredTool.from_function(func=lambda x: x, name="both", description="both")
        assert protect(both).batch([{"x": "1"}, {"x": "2"}]) == ["1", "2"]
    assert [c["tool"] for c in identity.who_triggered(session).calls] == [
        *("alist", "own", "both", "both")
    ]


class Overriding(StructuredTool):
    """A StructuredTool with code of its own."""

    def _run(self, *args: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        ran.append("own code")
        return super()._run(*args, config=config, **kwargs)


def test_a_subclass_with_code_of_its_own_is_guarded_once_and_whole(identity: AgentIdentity) -> None:
    made = protect(Overriding.from_function(func=lambda x: x, name="own", description="own"))
    with pytest.raises(NoSessionError):
        made.invoke({"x": "1"})
    with pytest.raises(NoSessionError):
        asyncio.run(made.ainvoke({"x": "1"}))
    assert ran == []
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        assert made.invoke({"x": "1"}) == "1"
        assert asyncio.run(made.ainvoke({"x": "2"})) == "2"
    assert len(identity.who_triggered(session).calls) == 2


async def test_a_tool_of_which_half_is_guarded_gets_the_other_half_guarded(
    identity: AgentIdentity,
) -> None:
    async def later(x: str) -> str:
        ran.append("async")
        return x

    half = StructuredTool.from_function(
        func=tool()(lambda x: x), coroutine=later, name="half", description="half"
    )
    with pytest.raises(NoSessionError):
        await protect(half).ainvoke({"x": "1"})
    assert ran == []


def test_what_cannot_be_guarded_is_refused(identity: AgentIdentity) -> None:
    class Past(StructuredTool):
        def invoke(self, *args: Any, **kwargs: Any) -> Any:
            return "past everything"

    with pytest.raises(ConfigurationError, match="invoke"):
        protect(Past.from_function(func=lambda x: x, name="past", description="past"))
    with pytest.raises(ConfigurationError, match="list of strings"):
        protect(list_invoices, labels="sends:external")
    with pytest.raises(ConfigurationError):
        IdentityMiddleware(identity, rules={"pay": {"scopes": "payments:write"}})
