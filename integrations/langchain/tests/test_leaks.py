# SPDX-License-Identifier: Apache-2.0
"""What reaches a model of the real langchain when a tool lets its credential slip (case H07)."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.tools import BaseTool, ToolException
from langchain_core.tools import tool as langchain_tool
from langgraph.types import Command

from agent_identity import AgentIdentity, Decision, DeniedError, current_credential
from agent_identity.adapters import refusal_text
from agent_identity.authority import Authority
from agent_identity.provenance.ledger import open_ledger
from agent_identity.testing import assert_no_leak
from agent_identity_langchain import IdentityMiddleware, protect

BILLING = "https://billing.example"
ARGUMENT = "canary-argument-0123456789"
REASON = "canary-reason-0123456789"
CALL = "toolu_1"


class Model(GenericFakeChatModel):
    """Calls one tool and is done; remembers everything that it was shown."""

    shown: list[Any] = []

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Model:
        self.shown.extend(entry.tool_call_schema.model_json_schema() for entry in tools)
        self.shown.extend((entry.name, entry.description, entry.args) for entry in tools)
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.shown.extend(message.model_dump() for message in messages)
        return super()._generate(messages, *args, **kwargs)


class Watch(BaseCallbackHandler):
    """What tracing is told of a tool's run."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_tool_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(repr((args, kwargs)))

    def on_tool_error(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(repr((args, kwargs)))


class Talkative:
    """An object whose text shows what it was made with."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


tokens: list[str] = []


def headers() -> dict[str, str]:
    """The very headers of the tool's request, as a service would echo them."""
    tokens.append(current_credential().reveal())
    return current_credential().headers("GET", f"{BILLING}/echo")


@pytest.fixture
def identity(tmp_path: Any) -> Iterator[AgentIdentity]:
    def policy(request: Any) -> Decision:
        if request.resource.id == "refused":
            return Decision.deny(f"{REASON} {request.context['args']}")
        return Decision.permit()

    tokens.clear()
    with AgentIdentity(
        "invoice-bot",
        authority=Authority(),
        ledger=open_ledger("memory:", state_dir=tmp_path),
        policy=policy,
    ) as made:
        yield made


def turn(identity: AgentIdentity, tool: BaseTool, watch: Watch | None = None) -> tuple[Any, Any]:
    """One tool call of the model: what the model was shown, and the tool's message."""
    made = {"name": tool.name, "args": {"customer": ARGUMENT}, "id": CALL, "type": "tool_call"}
    model = Model(messages=iter([AIMessage("", tool_calls=[made]), AIMessage("done")]), shown=[])
    rules = {tool.name: {"resource": BILLING, "scopes": ["invoices:read"]}}
    agent = create_agent(model, [tool], middleware=[IdentityMiddleware(identity, rules=rules)])
    state = agent.invoke(
        {"messages": [("user", "go")]}, {"callbacks": [] if watch is None else [watch]}
    )
    (message,) = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    return model.shown, message


def message_of(text: str) -> ToolMessage:
    return ToolMessage([{"type": "text", "text": text}], tool_call_id=CALL)


RESULTS: dict[str, Callable[[], Any]] = {
    "text": lambda: f"sent {headers()}",
    "token": lambda: headers()["Authorization"].split()[1],
    "JSON": lambda: json.dumps(headers()),
    "dict": headers,
    "nested": lambda: {"request": [{"headers": headers()}, ("x", headers()["Authorization"])]},
    "blocks": lambda: [{"type": "text", "text": str(headers())}],
    "object": lambda: Talkative(str(headers())),
    "object in a dict": lambda: {"x": Talkative(str(headers()))},
    "message": lambda: message_of(str(headers())),
    "command": lambda: Command(update={"messages": [message_of(str(headers()))]}),
    "request": lambda: repr(httpx.Request("GET", BILLING, headers=headers()).headers.raw),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_H07_a_tool_that_echoes_its_own_headers_shows_the_model_no_token(
    identity: AgentIdentity, kind: str
) -> None:
    @langchain_tool
    def echo(customer: str) -> Any:
        """Ask the service."""
        return RESULTS[kind]()

    watch = Watch()
    with identity.on_behalf_of("user:alice", purpose="close the books"):
        shown, message = turn(identity, echo, watch)
    assert len(tokens[0]) > 200
    assert (message.status, message.tool_call_id) == ("success", CALL)
    assert_no_leak(tokens, *map(repr, shown), str(message.content))
    assert_no_leak(tokens, *watch.seen)  # tracing sees the function's value, scrubbed


@pytest.mark.parametrize("kind", ["text", "dict", "message"])
async def test_H07_an_async_tool_shows_the_model_no_token_either(
    identity: AgentIdentity, kind: str
) -> None:
    @langchain_tool
    async def echo(customer: str) -> Any:
        """Ask the service."""
        return RESULTS[kind]()

    watch = Watch()
    model = Model(
        messages=iter(
            [
                AIMessage("", tool_calls=[{"name": "echo", "args": {"customer": "x"}, "id": CALL}]),
                AIMessage("done"),
            ]
        ),
        shown=[],
    )
    rules = {"echo": {"resource": BILLING}}
    agent = create_agent(model, [echo], middleware=[IdentityMiddleware(identity, rules=rules)])
    async with identity.on_behalf_of("user:alice", purpose="close the books"):
        await agent.ainvoke({"messages": [("user", "go")]}, {"callbacks": [watch]})
    assert tokens
    assert watch.seen
    assert_no_leak(tokens, *map(repr, model.shown), *watch.seen)


@pytest.mark.parametrize("own", [True, "the tool's own words", lambda error: f"sorry: {error}"])
def test_H07_a_tool_that_fails_with_its_headers_in_the_text_shows_the_model_no_token(
    identity: AgentIdentity, own: Any
) -> None:
    @langchain_tool
    def fails(customer: str) -> str:
        """Ask the service."""
        raise ToolException(f"401 for {headers()}")

    fails.handle_tool_error = own
    watch = Watch()
    with identity.on_behalf_of("user:alice", purpose="close the books"):
        shown, message = turn(identity, fails, watch)
    assert (message.status, bool(tokens), bool(watch.seen)) == ("error", True, True)
    assert_no_leak(tokens, *map(repr, shown), *watch.seen, str(message.content))


def test_H07_a_tool_that_raises_with_its_request_attached_tells_the_model_nothing(
    identity: AgentIdentity,
) -> None:
    raised: list[httpx.HTTPStatusError] = []

    @langchain_tool
    def fails(customer: str) -> str:
        """Ask the service."""
        request = httpx.Request("GET", BILLING, headers=headers())
        raised.append(httpx.HTTPStatusError("401", request=request, response=httpx.Response(401)))
        raise raised[0]

    with (
        identity.on_behalf_of("user:alice", purpose="close the books"),
        pytest.raises(httpx.HTTPStatusError) as caught,
    ):
        turn(identity, fails)
    assert caught.value is not raised[0]  # callbacks, retries and the checkpoint see it too
    assert caught.value.request.headers["authorization"] == "DPoP <secret>"
    assert caught.value.response.status_code == 401
    assert raised[0].request.headers["authorization"] == f"DPoP {tokens[0]}"
    assert_no_leak(tokens, caught.value)
    assert identity.who_triggered(CALL).outcome == "failed"


def test_H07_a_refusal_shows_the_model_neither_reason_nor_argument_nor_token(
    identity: AgentIdentity,
) -> None:
    @langchain_tool
    def refused(customer: str) -> str:
        """Ask the service."""
        return str(headers())

    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        shown, message = turn(identity, refused)
        tokens.append(session.credential(BILLING).reveal())
    assert (message.status, "policy_denied" in message.content) == ("error", True)
    assert_no_leak([*tokens, REASON], *map(repr, shown))
    assert_no_leak([ARGUMENT], message.content)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_refusal_of_a_protected_tool_shows_callbacks_what_a_model_may_read(
    identity: AgentIdentity, is_async: bool
) -> None:
    @langchain_tool
    def refused(customer: str) -> str:
        """Ask the service."""
        return "ran"

    @langchain_tool("refused")
    async def arefused(customer: str) -> str:
        """Ask the service."""
        return "ran"

    watch = Watch()
    call: Any = {"name": "refused", "args": {"customer": ARGUMENT}, "id": CALL, "type": "tool_call"}

    def run() -> None:
        if is_async:
            asyncio.run(protect(arefused).ainvoke(call, {"callbacks": [watch]}))
        else:
            protect(refused).invoke(call, {"callbacks": [watch]})

    with (
        identity.on_behalf_of("user:alice", purpose="close the books"),
        pytest.raises(DeniedError) as raised,
    ):
        run()
    error = raised.value
    assert str(error) == refusal_text(error)
    assert (error.code, error.__cause__, error.__context__) == ("policy_denied", None, None)
    assert watch.seen
    shown = "".join(traceback.format_exception(error))
    assert_no_leak([REASON, ARGUMENT], *watch.seen, shown)
    (refusal,) = identity.who_triggered(CALL).calls
    assert refusal["call_id"] == error.call_id
    assert REASON in refusal["reason"]


def test_what_holds_no_secret_reaches_the_model_unchanged(identity: AgentIdentity) -> None:
    found = {"invoices": [{"number": "2026-1041", "total": 1200.5, "paid": None}], "more": False}

    @langchain_tool(response_format="content_and_artifact")
    def lists(customer: str) -> Any:
        """List invoices."""
        return found, kept

    kept = Talkative("an object of the program")
    with identity.on_behalf_of("user:alice", purpose="close the books"):
        _, message = turn(identity, lists)
    assert json.loads(message.content) == found
    assert message.artifact is kept
