# SPDX-License-Identifier: Apache-2.0
"""A decorated function stays what it was, and runs under a session or not at all."""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections import OrderedDict, defaultdict

import pytest

from agent_identity import (
    AgentIdentity,
    ConfigurationError,
    DeniedError,
    NoSessionError,
    current_credential,
    current_session,
    tool,
)
from agent_identity.canonical import args_digest
from agent_identity.jose import loads_object, unverified

BILLING = "https://billing.example"


def digest_of_last_call(identity: AgentIdentity, session) -> str:
    intent = [r for r in session.records() if r.kind == "call.intended"][-1]
    return loads_object(unverified(intent.to_dict()["assertion"]).payload)["call"]["args_hash"]


@tool()
def plain(a: int, b: str = "x") -> tuple[int, str]:
    """Say what came."""
    return a, b


@tool()
async def later(a: int) -> int:
    await asyncio.sleep(0)
    return a


@tool()
def counting(n: int) -> typing.Iterator[int]:
    for i in range(n):
        got = yield i
        if got is not None:
            yield got * 100
    return "end"


@tool()
async def acounting(n: int) -> typing.AsyncIterator[int]:
    for i in range(n):
        await asyncio.sleep(0)
        yield i


class Box:
    def __init__(self, name: str) -> None:
        self.name = name

    @tool(name="box_open")
    def open(self, key: str) -> str:
        return f"{self.name} {key}"

    @classmethod
    @tool()
    def make(cls, name: str) -> str:
        return cls(name).name

    @staticmethod
    @tool()
    def weigh(kilos: int) -> int:
        return kilos


def test_each_kind_of_function_stays_its_kind() -> None:
    assert inspect.isfunction(plain)
    assert inspect.iscoroutinefunction(later)
    assert inspect.isgeneratorfunction(counting)
    assert inspect.isasyncgenfunction(acounting)


def test_signature_name_doc_and_hints_survive() -> None:
    assert str(inspect.signature(plain)) == "(a: 'int', b: 'str' = 'x') -> 'tuple[int, str]'"
    assert (plain.__name__, plain.__doc__) == ("plain", "Say what came.")
    assert typing.get_type_hints(plain)["return"] == tuple[int, str]


@pytest.mark.parametrize(
    "call", [lambda: plain(1), lambda: next(counting(1)), lambda: Box("b").open("k")]
)
def test_outside_a_session_a_sync_tool_does_not_run(call) -> None:
    with pytest.raises(NoSessionError) as caught:
        call()
    assert caught.value.code == "no_session"
    assert "on_behalf_of" in caught.value.remedy


async def test_outside_a_session_an_async_tool_does_not_run() -> None:
    with pytest.raises(NoSessionError):
        await later(1)
    with pytest.raises(NoSessionError):
        await anext(acounting(1))


def test_a_generator_function_may_be_called_anywhere_and_finds_its_session_at_the_first_step(
    bot: AgentIdentity,
) -> None:
    made = counting(2)
    with bot.on_behalf_of("user:alice", purpose="count"):
        assert list(made) == [0, 1]


async def test_results_pass_through_unchanged(bot: AgentIdentity) -> None:
    async with bot.on_behalf_of("user:alice", purpose="try"):
        assert plain(1) == (1, "x")
        assert plain(b="y", a=2) == (2, "y")
        assert await later(3) == 3
        assert [i async for i in acounting(3)] == [0, 1, 2]
        assert Box("b").open("k") == "b k"
        assert Box.make("c") == "c"
        assert Box("b").weigh(4) == 4


def test_what_a_consumer_sends_and_throws_reaches_the_generators_body(bot: AgentIdentity) -> None:
    seen = []

    @tool()
    def body():
        try:
            seen.append((yield 1))
            yield 2
        except KeyError:
            yield "caught"
        return "value"

    def outer():
        seen.append((yield from body()))

    with bot.on_behalf_of("user:alice", purpose="try"):
        steps = outer()
        assert next(steps) == 1
        assert steps.send("hello") == 2
        assert steps.throw(KeyError("x")) == "caught"
        assert list(steps) == []
    assert seen == ["hello", "value"]


def test_a_generator_has_its_session_only_while_its_body_runs(bot: AgentIdentity) -> None:
    seen = []

    @tool()
    def body():
        seen.append(current_session().call_id)
        yield 1
        seen.append(current_session().call_id)

    with bot.on_behalf_of("user:alice", purpose="try") as session:
        steps = body()
        next(steps)
        assert session.call_id is None
        list(steps)
    assert seen[0] == seen[1]
    assert seen[0].startswith("call_")


def test_a_generator_is_denied_at_its_next_resume_once_its_session_ended(
    bot: AgentIdentity,
) -> None:
    closed = []

    @tool()
    def body():
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    with bot.on_behalf_of("user:alice", purpose="try") as session:
        steps = body()
        assert next(steps) == 1
    with pytest.raises(DeniedError) as caught:
        next(steps)
    assert caught.value.code == "session_ended"
    assert closed == [True]
    assert session.records()[-1].kind == "call.failed"


async def test_an_async_generator_is_denied_at_its_next_resume_once_its_session_ended(
    bot: AgentIdentity,
) -> None:
    async with bot.on_behalf_of("user:alice", purpose="try"):
        steps = acounting(3)
        assert await anext(steps) == 0
    with pytest.raises(DeniedError, match="ended"):
        await anext(steps)


def test_an_abandoned_generator_is_recorded_as_cancelled(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="try") as session:
        steps = counting(5)
        next(steps)
        steps.close()
        assert session.records()[-1].kind == "call.cancelled"


def test_arguments_are_digested_as_bound_defaults_included_and_self_left_out(
    bot: AgentIdentity,
) -> None:
    @tool()
    def star(a: int, *more: int, key: str = "k", **rest: int) -> object:
        return a, more, key, rest

    with bot.on_behalf_of("user:alice", purpose="try") as session:
        plain(1)
        assert digest_of_last_call(bot, session) == args_digest({"a": 1, "b": "x"})
        Box("b").open("k")
        assert digest_of_last_call(bot, session) == args_digest({"key": "k"})
        assert star(1, 2, 3, z=4) == (1, (2, 3), "k", {"z": 4})
        expected = {"a": 1, "more": [2, 3], "key": "k", "rest": {"z": 4}}
        assert digest_of_last_call(bot, session) == args_digest(expected)


def test_the_tool_gets_a_copy_that_nobody_else_holds(bot: AgentIdentity) -> None:
    mine = {"items": [1, 2]}
    got = []

    @tool()
    def take(order: dict) -> None:
        got.append(order)
        order["items"].append(3)

    with bot.on_behalf_of("user:alice", purpose="try"):
        take(mine)
    assert mine == {"items": [1, 2]}
    assert got == [{"items": [1, 2, 3]}]


def test_an_argument_without_canonical_form_is_named_and_opaque_lets_it_pass(
    bot: AgentIdentity,
) -> None:
    marker = object()

    @tool()
    def strict(thing: object) -> object:
        return thing

    @tool(opaque=["thing"])
    def loose(thing: object) -> object:
        return thing

    with bot.on_behalf_of("user:alice", purpose="try"):
        with pytest.raises(DeniedError) as caught:
            strict(marker)
        assert caught.value.code == "undigestible_argument"
        assert "argument 'thing' of strict" in str(caught.value)
        assert caught.value.call_id is not None
        assert loose(marker) is marker


def test_the_tool_gets_containers_of_the_type_that_was_given(bot: AgentIdentity) -> None:
    @tool()
    def take(counts: defaultdict[str, int], order: OrderedDict[str, int], raw: bytearray) -> object:
        counts["new"] += 1
        raw.append(0)
        return counts, order, raw

    counts, raw = defaultdict(int, a=1), bytearray(b"a")
    with bot.on_behalf_of("user:alice", purpose="try") as session:
        got = take(counts, OrderedDict(b=1), raw)
        digest = digest_of_last_call(bot, session)
    assert got == ({"a": 1, "new": 1}, {"b": 1}, b"a\0")
    assert [type(each) for each in got] == [defaultdict, OrderedDict, bytearray]
    assert (counts, raw) == ({"a": 1}, b"a")
    assert digest == args_digest({"counts": {"a": 1}, "order": {"b": 1}, "raw": "YQ"})


def test_a_call_that_python_would_refuse_is_refused_by_python(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="try") as session:
        for bad in (
            plain,
            lambda: plain(1, a=2),
            lambda: plain(1, 2, 3),
            lambda: plain(1, c=2),
        ):
            with pytest.raises(TypeError):
                bad()
        assert [r.kind for r in session.records()] == ["session.opened"]


def test_a_tools_own_exception_passes_through_untouched(bot: AgentIdentity) -> None:
    raised = ValueError("as it is")

    @tool()
    def broken() -> None:
        raise raised

    with bot.on_behalf_of("user:alice", purpose="try") as session:
        with pytest.raises(ValueError, match="as it is") as caught:
            broken()
        assert caught.value is raised
        assert not hasattr(raised, "call_id")
        last = session.records()[-1]
    assert (last.kind, last.body["error"]) == ("call.failed", "ValueError")


def test_a_credential_is_there_inside_a_tool_with_a_resource_and_nowhere_else(
    bot: AgentIdentity,
) -> None:
    @tool(resource=BILLING, scopes=["invoices:read"])
    def reading() -> object:
        return current_credential()

    @tool()
    def local() -> object:
        return current_credential()

    with pytest.raises(NoSessionError):
        current_credential()
    with bot.on_behalf_of("user:alice", purpose="try"):
        with pytest.raises(ConfigurationError):
            current_credential()
        with pytest.raises(ConfigurationError):
            local()
        credential = reading()
    assert credential.resource == BILLING
    assert credential.scopes == {"invoices:read"}
    with pytest.raises(DeniedError, match="ended"):
        credential.headers("GET", BILLING)


def test_tools_nest_and_each_has_a_call_of_its_own(bot: AgentIdentity) -> None:
    @tool()
    def inner() -> str:
        return current_session().call_id

    @tool()
    def outer() -> tuple[str, str, str]:
        before = current_session().call_id
        return before, inner(), current_session().call_id

    with bot.on_behalf_of("user:alice", purpose="try"):
        before, within, after = outer()
    assert before == after != within


def test_decorating_what_is_no_function_is_a_clear_error() -> None:
    with pytest.raises(ConfigurationError, match="function"):
        tool()(classmethod(lambda cls: None))
    with pytest.raises(ConfigurationError, match="list of strings"):
        tool(labels="risk:high")
    with pytest.raises(ConfigurationError, match="list of strings"):
        tool(scopes="invoices:read")
