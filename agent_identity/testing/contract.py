# SPDX-License-Identifier: Apache-2.0
"""The adapter contract: what every adapter does, as tests that pytest collects in the adapter's own distribution.

    class TestMyAdapter(Contract):
        @pytest.fixture
        def driver(self, identity: AgentIdentity) -> MyDriver:
            return MyDriver(identity)

A behaviour that the framework makes impossible is set to None in the class, with a comment that says why.
"""

from __future__ import annotations

import asyncio
import functools
import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest

from agent_identity.canonical import args_digest
from agent_identity.errors import (
    ConfigurationError,
    DeniedError,
    NoSessionError,
    RevokedError,
)
from agent_identity.identity import AgentIdentity
from agent_identity.jose import loads_object, unverified
from agent_identity.session import current_credential, current_session
from agent_identity.testing.leaks import assert_no_leak
from agent_identity.values import Decision, Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from agent_identity.session import Session

__all__ = ["Contract", "Driver", "Result", "ToolCall"]

BILLING: Final = "https://billing.example"
RULE: Final[Mapping[str, Any]] = {"resource": BILLING, "scopes": ["invoices:read"]}
REASON: Final = "a reason that no model may read"
TURNS: Final = 3
MODES: Final = pytest.mark.parametrize("mode", ["sync", "async"])


@dataclass(frozen=True)
class ToolCall:
    """A call as a model makes it."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What the framework tells the model of a call."""

    tool_call_id: str
    text: str
    is_error: bool


class Driver(Protocol):
    """One framework with one adapter, for the suite. Any object that the suite gets from `make` it only gives back."""

    shown: list[str]
    """Everything that the framework gave to models, callbacks, tracing and checkpoints."""

    def make(self, function: Callable[..., Any], rule: Mapping[str, Any] | None) -> Any:
        """A tool of the framework, guarded under a rule; None: guarded by an adapter that has no rule for it."""
        ...

    def schema(self, tool: Any) -> Mapping[str, Any]:
        """`name`, `description` and `parameters` (a JSON schema) of a tool, as the framework gives them to a model."""
        ...

    def run(self, tool: Any, calls: Sequence[ToolCall]) -> list[Result]:
        """The results of calls that the model makes in one turn. A call that was interrupted has none."""
        ...

    async def arun(self, tool: Any, calls: Sequence[ToolCall]) -> list[Result]:
        """The async twin of `run`."""
        ...

    def stream(self, tool: Any, calls: Sequence[ToolCall]) -> Iterator[Result]:
        """The results, each as soon as the framework streams it; the model makes one call a turn."""
        ...

    def interrupt(self, question: str) -> Any:
        """Stop the tool that calls it in the framework's own way, to ask a person."""
        ...


class Contract:
    """The behaviours. A test class of an adapter inherits them, and defines the fixture `driver`."""

    @pytest.fixture
    def identity(self, tmp_path: Path) -> Iterator[AgentIdentity]:
        from agent_identity.authority import Authority  # noqa: PLC0415 - only tests that run load it
        from agent_identity.provenance.ledger import open_ledger  # noqa: PLC0415 - see above

        ledger = open_ledger("memory:", state_dir=tmp_path)
        with AgentIdentity(
            "contract-agent", authority=Authority(), ledger=ledger, policy=_policy
        ) as made:
            yield made

    def test_the_model_sees_the_tool_as_it_was_written(self, driver: Driver) -> None:
        schema = driver.schema(driver.make(_list_invoices, RULE))
        assert schema["name"] == "_list_invoices"
        assert schema["description"] == "List a customer's invoices."
        properties = schema["parameters"]["properties"]
        assert {name: each["type"] for name, each in properties.items()} == {
            "customer": "string",
            "limit": "integer",
        }
        assert schema["parameters"]["required"] == ["customer"]
        assert "credential" not in json.dumps(schema, default=str).lower()

    @pytest.mark.parametrize(
        ("mode", "is_async_tool"), [("sync", False), ("async", False), ("async", True)]
    )
    def test_a_call_runs_under_the_session_with_a_credential(
        self, identity: AgentIdentity, driver: Driver, mode: str, is_async_tool: bool
    ) -> None:
        acted: list[tuple[str, str]] = []

        def look() -> str:
            """Look something up."""
            acted.append((current_session().principal.sub, current_credential().resource))
            return "seen"

        tool = driver.make(_in("async", look) if is_async_tool else look, RULE)
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            (result,) = _run(driver, mode, tool, ToolCall("call_1", "look", {}))
            assert (result.tool_call_id, result.text, result.is_error) == ("call_1", "seen", False)
            assert acted == [("alice", BILLING)]
            assert _kinds(session) == ["call.intended", "call.completed"]

    def test_a_call_is_found_by_the_models_own_id(
        self, identity: AgentIdentity, driver: Driver
    ) -> None:
        tool = driver.make(_list_invoices, RULE)
        with identity.on_behalf_of("user:alice", purpose="p"):
            driver.run(tool, [ToolCall("call_1", "_list_invoices", {"customer": "ACME"})])
        (call,) = identity.who_triggered("call_1").calls
        assert (call["tool"], call["outcome"]) == ("_list_invoices", "completed")

    @MODES
    def test_an_undescribed_tool_is_refused(
        self, identity: AgentIdentity, driver: Driver, mode: str
    ) -> None:
        ran: list[str] = []
        with identity.on_behalf_of("user:alice", purpose="p"):
            try:
                (result,) = _run(driver, mode, driver.make(_in(mode, _noting(ran)), None), _note())
            except (ConfigurationError, DeniedError) as error:
                assert error.code == "tool_undescribed"
            else:
                assert result.is_error
                assert "tool_undescribed" in result.text
        assert ran == []

    @MODES
    def test_a_refusal_is_the_frameworks_own_error_value(
        self, identity: AgentIdentity, driver: Driver, mode: str
    ) -> None:
        ran: list[str] = []
        tool = driver.make(_in(mode, _noting(ran)), {"labels": {"denied"}})
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            (result,) = _run(driver, mode, tool, _note("an argument of the call"))
            assert _kinds(session) == ["call.denied"]
        assert (result.tool_call_id, result.is_error) == ("call_1", True)
        assert "policy_denied" in result.text
        assert "an argument of the call" not in result.text
        assert REASON not in result.text
        assert ran == []

    @MODES
    def test_parallel_calls_of_many_principals_never_cross(
        self, identity: AgentIdentity, driver: Driver, mode: str
    ) -> None:
        meeting = threading.Barrier(4)  # all principals are inside of a call at the same time
        found: dict[str, list[str]] = {}

        def who() -> str:
            """Say for whom the agent acts."""
            time.sleep(0.01)
            return current_session().principal.sub

        tool = driver.make(_in(mode, who), RULE)

        def calls(user: str) -> list[ToolCall]:
            return [ToolCall(f"{user}_{n}", "who", {}) for n in range(4)]

        def turn(user: str) -> None:
            with identity.on_behalf_of(f"user:{user}", purpose="p"):
                meeting.wait(30)
                found[user] = [each.text for each in driver.run(tool, calls(user))]

        async def aturn(user: str) -> None:
            async with identity.on_behalf_of(f"user:{user}", purpose="p"):
                found[user] = [each.text for each in await driver.arun(tool, calls(user))]

        async def aturns() -> None:
            await asyncio.gather(*map(aturn, users))

        users = [f"user{number}" for number in range(4)]
        if mode == "async":
            asyncio.run(aturns())
        else:
            threads = [threading.Thread(target=turn, args=(user,)) for user in users]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert found == {user: [user] * 4 for user in users}

    def test_streams_that_are_read_in_turn_never_act_for_each_other(
        self, identity: AgentIdentity, driver: Driver
    ) -> None:
        acted: list[tuple[str, str]] = []

        def look(user: str) -> str:
            """Look something up."""
            acted.append((user, current_session().principal.sub))
            return "seen"

        tool = driver.make(look, RULE)

        def read(user: str) -> Generator[Result]:
            calls = [ToolCall(f"{user}_{n}", "look", {"user": user}) for n in range(TURNS)]
            with identity.on_behalf_of(f"user:{user}", purpose="p"):
                yield from driver.stream(tool, calls)

        assert [each.text for each in read("alice")] == ["seen"] * TURNS
        assert acted == [("alice", "alice")] * TURNS
        streams = [read("alice"), read("bob")]
        while streams:
            for stream in list(streams):
                try:
                    next(stream)
                except StopIteration:
                    streams.remove(stream)
                except NoSessionError as error:
                    assert error.code == "session_suspended"
                    streams.remove(stream)
        assert all(meant == actual for meant, actual in acted)

    def test_a_cancelled_call_is_recorded_as_cancelled(
        self, identity: AgentIdentity, driver: Driver
    ) -> None:
        started = threading.Event()

        async def wait() -> str:
            """Wait."""
            started.set()
            await asyncio.sleep(60)
            return "waited"

        async def cancel(session: Session) -> list[str]:
            tool = driver.make(wait, RULE)
            task = asyncio.create_task(_arun(driver, tool, ToolCall("call_1", "wait", {})))
            while not started.is_set():
                assert not task.done()
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return _kinds(session)

        with identity.on_behalf_of("user:alice", purpose="p") as session:
            assert asyncio.run(cancel(session)) == ["call.intended", "call.cancelled"]

    @MODES
    @pytest.mark.parametrize("kind", ["text", "JSON", "mapping", "nested", "object"])
    def test_no_result_shows_a_secret(
        self, identity: AgentIdentity, driver: Driver, mode: str, kind: str
    ) -> None:
        tokens: list[Secret] = []

        def echo() -> Any:
            """Ask a service that echoes its request."""
            return _RESULTS[kind](_headers(tokens))

        tool = driver.make(_in(mode, echo), RULE)
        with identity.on_behalf_of("user:alice", purpose="p"):
            (result,) = _run(driver, mode, tool, ToolCall("call_1", "echo", {}))
        assert not result.is_error
        assert driver.shown
        assert_no_leak([each.reveal() for each in tokens], result.text, *driver.shown)

    @MODES
    @pytest.mark.parametrize("kind", ["text", "cause", "attribute"])
    def test_no_exception_shows_a_secret(
        self, identity: AgentIdentity, driver: Driver, mode: str, kind: str
    ) -> None:
        tokens: list[Secret] = []
        tool = driver.make(_in(mode, _failing(tokens, kind)), RULE)
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            raised: list[Exception] = []
            try:
                shown = [each.text for each in _run(driver, mode, tool, ToolCall("1", "fail", {}))]
            except Exception as error:  # noqa: BLE001 - a framework raises the tool's own, or its own
                raised.append(error)
                shown = []
            assert _kinds(session) == ["call.intended", "call.failed"]
        assert tokens
        assert_no_leak([each.reveal() for each in tokens], *raised, *shown, *driver.shown)

    def test_the_digest_is_over_the_arguments_that_the_function_received(
        self, identity: AgentIdentity, driver: Driver
    ) -> None:
        received: list[dict[str, Any]] = []

        def lists(customer: str, limit: int = 10) -> str:
            """List."""
            received.append({"customer": customer, "limit": limit})
            return "listed"

        tool = driver.make(lists, RULE)
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            driver.run(tool, [ToolCall("call_1", "lists", {"customer": "A", "limit": "3"})])
            driver.run(tool, [ToolCall("call_2", "lists", {"customer": "A"})])
            made = [each.to_dict() for each in session.records() if each.kind == "call.intended"]
        claims = [loads_object(unverified(str(each["assertion"])).payload) for each in made]
        digests = [claim["call"]["args_hash"] for claim in claims]  # type: ignore[index,call-overload]
        assert received
        assert digests == [args_digest(each) for each in received]

    @MODES
    def test_each_call_has_one_intent_and_one_outcome(
        self, identity: AgentIdentity, driver: Driver, mode: str
    ) -> None:
        tool = driver.make(_list_invoices, RULE)
        calls = [ToolCall(f"call_{n}", "_list_invoices", {"customer": "ACME"}) for n in range(3)]
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            assert len(_run(driver, mode, tool, *calls)) == len(calls)
            assert sorted(_kinds(session)) == ["call.completed"] * 3 + ["call.intended"] * 3
        assert len({str(each["call_id"]) for each in identity.who_triggered(session).calls}) == 3

    @MODES
    def test_the_span_of_a_call_is_below_the_frameworks(
        self,
        identity: AgentIdentity,
        driver: Driver,
        mode: str,
        spans: Callable[[], Sequence[Any]],
    ) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - the fixture has found it

        tool = driver.make(_list_invoices, RULE)
        with (
            identity.on_behalf_of("user:alice", purpose="p"),
            trace.get_tracer("framework").start_as_current_span("framework") as outer,
        ):
            _run(driver, mode, tool, ToolCall("1", "_list_invoices", {"customer": "ACME"}))
        by_id = {each.context.span_id: each for each in spans()}
        (call,) = [each for each in by_id.values() if each.name == "execute_tool _list_invoices"]
        attributes = [each.attributes.get("gen_ai.operation.name") for each in by_id.values()]
        assert attributes.count("execute_tool") == 1
        while call.name != "framework":
            assert call.parent is not None, "a span of ours is a root"
            call = by_id[call.parent.span_id]
        assert call.context.span_id == outer.get_span_context().span_id

    @MODES
    def test_an_interrupt_passes_through_and_is_no_failure(
        self, identity: AgentIdentity, driver: Driver, mode: str
    ) -> None:
        def ask() -> str:
            """Ask a person."""
            return str(driver.interrupt("sure?"))

        tool = driver.make(_in(mode, ask), RULE)
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            assert _run(driver, mode, tool, ToolCall("call_1", "ask", {})) == []
            assert "call.failed" not in _kinds(session)

    @MODES
    def test_without_a_session_no_tool_runs(self, driver: Driver, mode: str) -> None:
        ran: list[str] = []
        with pytest.raises(NoSessionError):
            _run(driver, mode, driver.make(_in(mode, _noting(ran)), RULE), _note())
        assert ran == []

    @MODES
    def test_a_revoked_principal_is_refused(
        self, identity: AgentIdentity, driver: Driver, mode: str
    ) -> None:
        ran: list[str] = []
        tool = driver.make(_in(mode, _noting(ran)), RULE)
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            identity.revoke("user:alice", reason="left the company")
            try:
                (result,) = _run(driver, mode, tool, _note())
            except RevokedError:
                pass
            else:
                assert result.is_error
            assert "call.intended" not in _kinds(session)
        assert ran == []


def _policy(request: Any) -> Decision:
    if "denied" in request.resource.properties["labels"]:
        return Decision.deny(REASON)
    return Decision.permit()


def _list_invoices(customer: str, limit: int = 10) -> str:
    """List a customer's invoices."""
    return f"{limit} invoices of {customer}"


def _noting(ran: list[str]) -> Callable[[str], str]:
    def note(text: str) -> str:
        """Note a text."""
        ran.append(text)
        return "noted"

    return note


def _note(text: str = "x") -> ToolCall:
    return ToolCall("call_1", "note", {"text": text})


class _Service:
    """An object whose text shows what it was made of."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def __str__(self) -> str:
        return str(self._headers)


_RESULTS: Final[Mapping[str, Callable[[dict[str, str]], Any]]] = {
    "text": str,
    "JSON": json.dumps,
    "mapping": dict,
    "nested": lambda headers: {"request": [{"headers": headers}]},
    "object": _Service,
}


def _headers(tokens: list[Secret]) -> dict[str, str]:
    tokens.append(Secret(current_credential().reveal()))
    return current_credential().headers("GET", BILLING)


def _failing(tokens: list[Secret], kind: str) -> Callable[[], str]:
    def fail() -> str:
        """Fail with the request in the exception."""
        error = ValueError("the service answered 401")
        if kind == "attribute":
            error.headers = _headers(tokens)  # type: ignore[attr-defined]
        if kind == "cause":
            raise error from ValueError(str(_headers(tokens)))
        raise ValueError(str(_headers(tokens))) if kind == "text" else error

    return fail


def _run(driver: Driver, mode: str, tool: Any, *calls: ToolCall) -> list[Result]:
    return driver.run(tool, calls) if mode == "sync" else asyncio.run(_arun(driver, tool, *calls))


async def _arun(driver: Driver, tool: Any, *calls: ToolCall) -> list[Result]:
    return await driver.arun(tool, calls)


def _in(mode: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, or in async mode an async function that does the same."""

    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0.01)
        return function(*args, **kwargs)

    return function if mode == "sync" else run


def _kinds(session: Session) -> list[str]:
    """What is on record of the session's calls, in order."""
    return [each.kind for each in session.records() if each.kind.startswith("call.")]
