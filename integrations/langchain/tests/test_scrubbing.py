# SPDX-License-Identifier: Apache-2.0
"""Whatever a tool returns or raises, in whatever encoding: no secret reaches a model, a callback or a checkpoint."""

from __future__ import annotations

import base64
import collections
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired
from urllib.parse import quote

import httpx
import pydantic
import pytest
from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import AgentMiddleware, ToolErrorMiddleware, ToolRetryMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool, ToolException
from langchain_core.tools import tool as langchain_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, Send, interrupt

from agent_identity import AgentIdentity, current_credential, tool
from agent_identity.testing import assert_no_leak
from agent_identity_langchain import IdentityMiddleware, protect

BILLING = "https://billing.example"
MAIL = "https://mail.example"
KEY = 'sk-live/9f8+A7b6C5d4"E3f2~G1h0=='
PASSWORD = "canary pass/word+7Hq2"
CALL = "toolu_1"


class Model(GenericFakeChatModel):
    """Calls one tool and is done; remembers everything that it was shown."""

    shown: list[Any] = []

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Model:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.shown.extend(messages)
        return super()._generate(messages, *args, **kwargs)


class Watch(BaseCallbackHandler):
    """Keeps all that callbacks are told, the objects themselves."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_tool_end(self, output: Any, **kwargs: Any) -> None:
        self.seen.append(output)

    def on_tool_error(self, error: BaseException, **kwargs: Any) -> None:
        self.seen.append(error)

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.seen.append(outputs)

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.seen.append(error)


def texts(value: Any, seen: set[int] | None = None) -> Iterator[str]:
    """All that somebody can read who is handed a value."""
    seen = set() if seen is None else seen
    if value is None or id(value) in seen or isinstance(value, type):
        return
    seen.add(id(value))
    yield from (repr(value), str(value))
    parts: list[Any] = []
    if isinstance(value, bytes | bytearray | memoryview):
        yield bytes(value).decode("latin-1")
    elif isinstance(value, collections.abc.Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset | collections.deque):
        parts = [*value]
    if isinstance(value, BaseException):
        parts += [value.args, value.__cause__, value.__context__, *getattr(value, "exceptions", ())]
    names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
    for name in names:
        parts.append(getattr(value, name, None))
    for part in parts:
        yield from texts(part, seen)


@pytest.fixture
def identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentIdentity]:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KEY", KEY)
    monkeypatch.setenv("PASSWORD", PASSWORD)
    path = tmp_path / "agent-identity.toml"
    path.write_text(
        f"""
        [agent]
        name = "invoice-bot"
        [policy]
        engine = "grants-only"
        [ledger]
        url = "memory:"
        [resources."{BILLING}"]
        source = "api-key"
        secret = "env:KEY"
        [resources."{MAIL}"]
        source = "basic"
        username = "bot"
        password = "env:PASSWORD"
        """
    )
    path.chmod(0o600)
    with AgentIdentity.from_config(path) as made:
        yield made


def key() -> str:
    return current_credential().reveal()


def password() -> str:
    return base64.b64decode(current_credential().reveal()).decode().partition(":")[2]


SECRETS: dict[str, tuple[str, Callable[[], str]]] = {
    "key": (BILLING, key),
    "password": (MAIL, password),
    "pair": (MAIL, key),
}

ENCODINGS: dict[str, Callable[[str], str]] = {
    "itself": lambda text: text,
    "URL": lambda text: quote(text, safe=""),
    "JSON": json.dumps,
    "JSON, \\u": lambda text: "".join(f"\\u{ord(character):04x}" for character in text),
    "hex": lambda text: text.encode().hex(),
    "HEX": lambda text: text.encode().hex().upper(),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 of more": lambda text: base64.b64encode(f"x:{text} and more".encode()).decode(),
    "base64url of more": lambda text: base64.urlsafe_b64encode(f"~~{text}??".encode()).decode(),
}


@dataclasses.dataclass
class Data:
    text: str


class Answer(pydantic.BaseModel):
    text: str


class Talking:
    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return f"<Talking {self._text}>"


class Wrapping:
    """Holds it, and doesn't show it."""

    def __init__(self, text: str) -> None:
        self.text = text


class OwnError(Exception):
    def __init__(self, status: int, *, body: str) -> None:
        super().__init__(f"status {status}")
        self.status, self.body = status, body


def message(text: Any, **more: Any) -> ToolMessage:
    return ToolMessage(text, tool_call_id=CALL, **more)


def update(**state: Any) -> Command[Any]:
    return Command(update={"messages": [message("done")], **state})


RETURNED: dict[str, Callable[[str], Any]] = {
    "text": lambda text: f"sent {text}",
    "dict": lambda text: {"headers": {"x": text}},
    "key of a dict": lambda text: {text: 1},
    "list": lambda text: [1, [text]],
    "tuple": lambda text: (1, text),
    "set": lambda text: {text},
    "frozenset": lambda text: frozenset({text}),
    "deque": lambda text: collections.deque([text]),
    "bytes": lambda text: text.encode(),
    "bytearray": lambda text: bytearray(text.encode()),
    "dataclass": Data,
    "model": lambda text: Answer(text=text),
    "object": Talking,
    "object in a list": lambda text: [Talking(text)],
    "error as a value": ValueError,
    "blocks": lambda text: [{"type": "text", "text": text}],
    "message": message,
    "message's blocks": lambda text: message([{"type": "text", "text": text}]),
    "additional_kwargs": lambda text: message("x", additional_kwargs={"request": {"key": text}}),
    "response_metadata": lambda text: message("x", response_metadata={"headers": [text]}),
    "artifact": lambda text: message("x", artifact={"raw": text.encode()}),
    "artifact, object": lambda text: message("x", artifact=Wrapping(text)),
    "artifact, dataclass": lambda text: message("x", artifact=Data(text)),
    "message's name": lambda text: message("x", name=text),
    "message's id": lambda text: message("x", id=text),
    "command": lambda text: Command(update={"messages": [message(text)]}),
    "command, other message": lambda text: Command(
        update={"messages": [message("x"), HumanMessage(text), AIMessage(text)]}
    ),
    "command, message's kwargs": lambda text: Command(
        update={"messages": [message("x", additional_kwargs={"x": text})]}
    ),
    "command, artifact": lambda text: Command(
        update={"messages": [message("x", artifact=[{"x": text}])]}
    ),
    "command, tool call": lambda text: Command(
        update={
            "messages": [
                message("x"),
                AIMessage("", tool_calls=[{"name": "n", "args": {"x": text}, "id": "1"}]),
                ToolMessage("y", tool_call_id="1"),
            ]
        }
    ),
    "state, text": lambda text: update(notes=text),
    "state, dict": lambda text: update(notes={"x": [text]}),
    "state, bytes": lambda text: update(notes=text.encode()),
    "state, set": lambda text: update(notes={text}),
    "state, frozenset": lambda text: update(notes=frozenset({text})),
    "state, deque": lambda text: update(notes=collections.deque([text])),
    "state, dataclass": lambda text: update(notes=Data(text)),
    "state, model": lambda text: update(notes=Answer(text=text)),
    "state, document": lambda text: update(notes=HumanMessage(text)),
    "list of commands": lambda text: [update(notes=text)],
}


def noted(text: str) -> BaseException:
    error = ValueError("x")
    error.add_note(f"while sending {text}")
    return error


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def during(cause: BaseException) -> BaseException:
    error = RuntimeError("x")
    error.__context__ = cause
    error.__suppress_context__ = True
    return error


def invalid(text: str) -> BaseException:
    try:
        Answer.model_validate({"text": [text]})
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


RAISED: dict[str, Callable[[str], BaseException]] = {
    "text": lambda text: ValueError(f"401 for {text}"),
    "ToolException": ToolException,
    "args": lambda text: ValueError(401, {"headers": [text]}),
    "bytes in args": lambda text: ValueError(text.encode()),
    "object in args": lambda text: ValueError(Talking(text)),
    "attribute": lambda text: OwnError(401, body=text),
    "note": noted,
    "cause": lambda text: caused(RuntimeError("x"), ValueError(text)),
    "cause's note": lambda text: caused(RuntimeError("x"), noted(text)),
    "context": lambda text: during(ValueError(text)),
    "group": lambda text: ExceptionGroup("some", [ValueError("x"), KeyError(text)]),
    "group's text": lambda text: ExceptionGroup(text, [ValueError("x")]),
    "file": lambda text: FileNotFoundError(2, "No such file", f"/{text}"),
    "httpx": lambda text: httpx.HTTPStatusError(
        "401",
        request=httpx.Request("GET", BILLING, headers={"x-api-key": text}),
        response=httpx.Response(401, text=text),
    ),
    "pydantic": invalid,
}


class Notes(AgentState):
    notes: NotRequired[Annotated[Any, lambda _, new: new]]


class Run:
    """One turn of an agent, and all that left the tool."""

    def __init__(
        self,
        identity: AgentIdentity,
        guarded: Any,
        *outer: AgentMiddleware[Any, Any],
        resource: str = BILLING,
        saver: InMemorySaver | None = None,
        rules: dict[str, Any] | None = None,
    ) -> None:
        made = {"name": guarded.name, "args": {"customer": "x"}, "id": CALL, "type": "tool_call"}
        turns = [AIMessage("", tool_calls=[made]), AIMessage("done")]
        self.model = Model(messages=iter(turns), shown=[])
        self.watch = Watch()
        self.saver = saver
        self.config: Any = {"configurable": {"thread_id": "1"}, "callbacks": [self.watch]}
        self.raised: BaseException | None = None
        self.state: Any = None
        rules = {guarded.name: {"resource": resource}} if rules is None else rules
        self.agent = create_agent(
            self.model,
            [guarded],
            middleware=[*outer, IdentityMiddleware(identity, rules=rules)],
            state_schema=Notes,
            checkpointer=saver,
        )

    def go(self, given: Any = None) -> Run:
        try:
            self.state = self.agent.invoke(given or {"messages": [("user", "go")]}, self.config)
        except BaseException as error:
            self.raised = error
        return self

    async def ago(self) -> Run:
        try:
            self.state = await self.agent.ainvoke({"messages": [("user", "go")]}, self.config)
        except BaseException as error:
            self.raised = error
        return self

    def shows(self) -> list[str]:
        saved = [] if self.saver is None else [*self.saver.list(None)]
        raw = (
            [] if self.saver is None else [self.saver.storage, self.saver.writes, self.saver.blobs]
        )
        places = (self.model.shown, self.watch.seen, self.state, self.raised, saved, raw)
        return [text for place in places for text in texts(place)]


def leaking(make: Callable[[str], Any], secret: str, encoding: str, told: list[str]) -> Any:
    """A tool that returns what is made of its own secret, or raises it."""

    @langchain_tool
    def leak(customer: str) -> Any:
        """Ask the service."""
        told.append(SECRETS[secret][1]())
        made = make(ENCODINGS[encoding](told[-1]))
        if isinstance(made, BaseException) and make is not ValueError:
            raise made
        return made

    return leak


def assert_nothing_shows(run: Run, told: list[str]) -> None:
    assert told
    assert run.watch.seen
    found = run.shows()
    assert_no_leak(told, *found)
    for secret in told:
        for spelled in ENCODINGS.values():
            assert not any(spelled(secret) in text for text in found)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", RETURNED)
def test_what_a_tool_returns_shows_no_key(
    identity: AgentIdentity, shape: str, encoding: str
) -> None:
    told: list[str] = []
    guarded = leaking(RETURNED[shape], "key", encoding, told)
    with identity.on_behalf_of("user:alice", purpose="p"):
        run = Run(identity, guarded).go()
        assert run.raised is None
        assert_nothing_shows(run, told)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", RAISED)
def test_what_a_tool_raises_shows_no_key_and_is_of_its_class(
    identity: AgentIdentity, shape: str, encoding: str
) -> None:
    told: list[str] = []
    guarded = leaking(RAISED[shape], "key", encoding, told)
    with identity.on_behalf_of("user:alice", purpose="p"):
        run = Run(identity, guarded, saver=InMemorySaver()).go()
        # langchain tells the model of an invalid input by itself
        expected = type(None) if shape == "pydantic" else type(RAISED[shape]("x"))
        assert type(run.raised) is expected
        assert_nothing_shows(run, told)


def describe(error: Exception, request: Any) -> str:
    """As the documentation of ToolErrorMiddleware has it, with the error's own words."""
    return f"{request.tool_call['name']} failed: {error!r} {error} {vars(error)} {error.__cause__}"


OUTER: dict[str, Callable[[], AgentMiddleware[Any, Any]]] = {
    "error handler": lambda: ToolErrorMiddleware(describe),
    "retries": lambda: ToolRetryMiddleware(max_retries=2, initial_delay=0),
    "retries, own words": lambda: ToolRetryMiddleware(
        max_retries=0, on_failure=lambda error: f"{error!r} {vars(error)} {error.__cause__}"
    ),
}


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("shape", RAISED)
def test_middleware_that_tells_the_model_of_an_error_tells_it_no_key(
    identity: AgentIdentity, shape: str, outer: str
) -> None:
    told: list[str] = []
    guarded = leaking(RAISED[shape], "key", "itself", told)
    with identity.on_behalf_of("user:alice", purpose="p"):
        run = Run(identity, guarded, OUTER[outer](), saver=InMemorySaver()).go()
        assert run.raised is None
        assert len(told) == (3 if outer == "retries" and shape != "pydantic" else 1)
        assert_nothing_shows(run, told)
    (answer,) = [m for m in run.state["messages"] if isinstance(m, ToolMessage)]
    assert answer.status == "error"


@pytest.mark.parametrize("shape", ["text", "attribute", "cause", "group"])
def test_a_tool_nodes_own_error_handler_tells_no_key(identity: AgentIdentity, shape: str) -> None:
    from langgraph.graph import END, START, StateGraph

    told: list[str] = []
    guarded = protect(leaking(RAISED[shape], "key", "itself", told), resource=BILLING)

    def handle(error: Exception) -> str:
        return f"{error!r} {error} {vars(error)} {error.__cause__}"

    graph = StateGraph(AgentState)
    graph.add_node("tools", ToolNode([guarded], handle_tool_errors=handle))
    graph.add_edge(START, "tools")
    graph.add_edge("tools", END)
    made = {"name": guarded.name, "args": {"customer": "x"}, "id": CALL, "type": "tool_call"}
    watch = Watch()
    with identity.on_behalf_of("user:alice", purpose="p"):
        state = graph.compile().invoke(
            {"messages": [AIMessage("", tool_calls=[made])]}, {"callbacks": [watch]}
        )
        assert told
        assert_no_leak(told, *texts(state), *texts(watch.seen))


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", ["text", "artifact", "state, dict"])
def test_a_password_is_scrubbed_like_the_pair_that_is_sent(
    identity: AgentIdentity, shape: str, secret: str, encoding: str
) -> None:
    told: list[str] = []
    guarded = leaking(RETURNED[shape], secret, encoding, told)
    with identity.on_behalf_of("user:alice", purpose="p"):
        run = Run(identity, guarded, resource=SECRETS[secret][0], saver=InMemorySaver()).go()
        assert run.raised is None
        assert_nothing_shows(run, told)
    assert told[0] in (KEY, PASSWORD, base64.b64encode(f"bot:{PASSWORD}".encode()).decode())


@pytest.mark.parametrize("encoding", ["itself", "JSON, \\u", "base64 of more"])
@pytest.mark.parametrize(
    "make",
    [lambda text: text, lambda text: {"x": [text]}, Data, lambda text: {text}],
    ids=["text", "dict", "dataclass", "set"],
)
def test_an_interrupt_shows_no_key_and_is_resumed_as_ever(
    identity: AgentIdentity, make: Callable[[str], Any], encoding: str
) -> None:
    told: list[str] = []

    @langchain_tool
    def ask(customer: str) -> str:
        """Ask a person."""
        told.append(key())
        return f"they said {interrupt(make(ENCODINGS[encoding](told[-1])))}"

    with identity.on_behalf_of("user:alice", purpose="p"):
        run = Run(identity, ask, saver=InMemorySaver()).go()
        (asked,) = run.state["__interrupt__"]
        assert "<secret>" in "".join(texts(asked))
        assert_nothing_shows(run, told)
        run.go(Command(resume="yes"))
        assert_nothing_shows(run, told)
    assert run.state["messages"][-2].content == "they said yes"


async def test_async_tools_are_scrubbed_alike(identity: AgentIdentity) -> None:
    for make in (RETURNED["dict"], RETURNED["artifact"], RAISED["attribute"], RAISED["cause"]):
        told: list[str] = []
        plain = leaking(make, "key", "itself", told)

        async def leak(customer: str, plain: Any = plain) -> Any:
            return plain.func(customer)

        guarded = StructuredTool.from_function(
            coroutine=leak, name="leak", description="x", args_schema=plain.args_schema
        )
        async with identity.on_behalf_of("user:alice", purpose="p"):
            run = await Run(identity, guarded, saver=InMemorySaver()).ago()
            assert_nothing_shows(run, told)


def test_a_command_keeps_its_destinations(identity: AgentIdentity) -> None:
    made = Command(goto=[Send("x", {"key": KEY})], resume={"a": KEY}, update={"messages": []})
    guarded = protect(
        StructuredTool.from_function(lambda customer: made, name="go", description="x"),
        resource=BILLING,
    )
    with identity.on_behalf_of("user:alice", purpose="p"):
        guarded.invoke({"customer": "warm"})
        found = guarded.invoke({"customer": "x"})
        assert isinstance(found, Command)
        assert found.goto == [Send("x", {"key": "<secret>"})]
        assert found.resume == {"a": "<secret>"}


def test_a_tool_that_is_protected_without_an_agent_shows_callbacks_no_key(
    identity: AgentIdentity,
) -> None:
    told: list[str] = []
    watch = Watch()
    returns = protect(leaking(RETURNED["dict"], "key", "itself", told), resource=BILLING)
    raises = protect(leaking(RAISED["attribute"], "key", "itself", told), resource=BILLING)
    with identity.on_behalf_of("user:alice", purpose="p"):
        returns.invoke({"customer": "x"}, {"callbacks": [watch]})
        with pytest.raises(OwnError) as caught:
            raises.invoke({"customer": "x"}, {"callbacks": [watch]})
        assert (caught.value.status, caught.value.body) == (401, "<secret>")
        assert_no_leak(told, *texts(watch.seen))
    assert len(watch.seen) == 2


@pytest.mark.parametrize("make", [*RETURNED.values(), *RAISED.values()])
def test_a_function_that_is_a_tool_of_ours_shows_callbacks_no_key(
    identity: AgentIdentity, make: Callable[[str], Any]
) -> None:
    told: list[str] = []

    @langchain_tool
    @tool(resource=BILLING)
    def ours(customer: str) -> Any:
        """Ask the service."""
        told.append(key())
        made = make(told[-1])
        if isinstance(made, BaseException):
            raise made
        return made

    with identity.on_behalf_of("user:alice", purpose="p"):
        run = Run(identity, ours, rules={}).go()
        assert_nothing_shows(run, told)


def test_a_secret_that_was_replaced_is_scrubbed_while_the_session_lasts(
    identity: AgentIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool may show what it was handed earlier in the session, though nothing else holds that any more."""
    told: list[str] = []

    @langchain_tool
    def leak(customer: str) -> Any:
        """Ask the service."""
        told.append(password())
        return {"all": told}

    with identity.on_behalf_of("user:alice", purpose="p") as session:
        Run(identity, leak, resource=MAIL).go()
        monkeypatch.setenv("PASSWORD", "another-password")
        session._state.reaches.clear()
        for cached in list(session._state.parts.world.cache._entries):
            session._state.parts.world.drop(cached)
        run = Run(identity, leak, resource=MAIL).go()
        assert_nothing_shows(run, told)
    assert PASSWORD in told


def test_what_shows_no_key_is_passed_on_as_it_is(identity: AgentIdentity) -> None:
    kept, error = Wrapping("an object of the program"), OwnError(500, body="nothing")

    @langchain_tool(response_format="content_and_artifact")
    def lists(customer: str) -> Any:
        """List."""
        key()
        return "two", kept

    @langchain_tool
    def fails(customer: str) -> Any:
        """Fail."""
        key()
        raise error

    with identity.on_behalf_of("user:alice", purpose="p"):
        run = Run(identity, lists).go()
        assert [m.artifact for m in run.state["messages"] if isinstance(m, ToolMessage)] == [kept]
        assert Run(identity, fails).go().raised is error
