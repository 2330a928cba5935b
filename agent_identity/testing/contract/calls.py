# SPDX-License-Identifier: Apache-2.0
"""How a call runs: what the model sees, for whom it acts, and how it is stopped."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agent_identity.errors import NoSessionError
from agent_identity.session import current_credential, current_session
from agent_identity.testing.contract.driver import (
    BILLING,
    MODES,
    RULE,
    ToolCall,
    arun,
    in_mode,
    kinds_of,
    list_invoices,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_identity.identity import AgentIdentity
    from agent_identity.session import Session
    from agent_identity.testing.contract.driver import Driver, Result

TURNS = 3


class Calls:
    """Behaviours of the adapter contract."""

    def test_the_model_sees_the_tool_as_it_was_written(self, driver: Driver) -> None:
        schema = driver.schema(driver.make(list_invoices, RULE))
        assert schema["name"] == "list_invoices"
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

        tool = driver.make(in_mode("async", look) if is_async_tool else look, RULE)
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            (result,) = run(driver, mode, tool, ToolCall("call_1", "look", {}))
            assert (result.tool_call_id, result.text, result.is_error) == ("call_1", "seen", False)
            assert acted == [("alice", BILLING)]
            assert kinds_of(session) == ["call.intended", "call.completed"]

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

        tool = driver.make(in_mode(mode, who), RULE)

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
            task = asyncio.create_task(arun(driver, tool, ToolCall("call_1", "wait", {})))
            while not started.is_set():
                assert not task.done()
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return kinds_of(session)

        with identity.on_behalf_of("user:alice", purpose="p") as session:
            assert asyncio.run(cancel(session)) == ["call.intended", "call.cancelled"]

    @MODES
    def test_an_interrupt_passes_through_and_is_no_failure(
        self, identity: AgentIdentity, driver: Driver, mode: str
    ) -> None:
        def ask() -> str:
            """Ask a person."""
            return str(driver.interrupt("sure?"))

        tool = driver.make(in_mode(mode, ask), RULE)
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            assert run(driver, mode, tool, ToolCall("call_1", "ask", {})) == []
            assert "call.failed" not in kinds_of(session)
