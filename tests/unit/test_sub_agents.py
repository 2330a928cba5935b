# SPDX-License-Identifier: Apache-2.0
"""What adapters build on for sub-agents and interrupts: delegated sessions, marks of principals, calls that continue others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_identity import (
    AgentIdentity,
    DeniedError,
    NoSessionError,
    Trace,
    current_session,
    tool,
)
from agent_identity.adapters import (
    Attempt,
    adelegated,
    astarting,
    calling_tool,
    check_owner,
    current_tool_call_id,
    delegated,
    is_for_model,
    mark_owner,
    refuse,
    starting,
    within,
)
from agent_identity.errors import LedgerError


@tool
def leaf(x: int) -> str:
    return current_session().agent.rpartition(":")[2]


@tool
def stopped(x: int) -> None:
    raise TimeoutError


@pytest.fixture
def identity(tmp_path: Path) -> Iterator[AgentIdentity]:
    with AgentIdentity.embedded("planner", state_dir=tmp_path, ledger="memory:") as identity:
        yield identity


# -- sub-agents ------------------------------------------------------------------------------------------------------


def test_a_tool_call_delegates_to_each_sub_agent_once(identity: AgentIdentity) -> None:
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with starting("ask", "main"):
            first = delegated(None, "searcher")
            assert current_session() is session  # nothing was entered
            with within(first):
                assert leaf(1) == "searcher"
                assert delegated(None, "searcher") is first  # it doesn't delegate to itself
            assert delegated(session, "searcher") is first
            assert delegated(None, "writer") is not first
            assert delegated(None, None) is session
        assert not first.is_open
        assert first.records()[-1].kind == "session.closed"


async def test_parallel_tasks_get_the_same_session(identity: AgentIdentity) -> None:
    async with identity.on_behalf_of("user:alice", purpose="p"):
        async with astarting("ask", None):
            made = await asyncio.gather(*(adelegated(None, "searcher") for _ in range(20)))
        assert len({each.id for each in made}) == 1
        assert not made[0].is_open


def test_parallel_threads_get_the_same_session(identity: AgentIdentity) -> None:
    made: list[str] = []
    with identity.on_behalf_of("user:alice", purpose="p"), starting("ask", None):
        import contextvars

        def work() -> None:
            made.append(delegated(None, "searcher").id)

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1


def test_a_delegation_of_the_tools_own_is_kept(identity: AgentIdentity) -> None:
    with identity.on_behalf_of("user:alice", purpose="p") as session, starting("ask", None):
        with session.delegate("by-hand") as own:
            assert delegated(None, "searcher") is own
            assert (
                delegated(session, "searcher") is own
            )  # the framework still carries the outer one
            below = delegated(None, "searcher", is_hand_off=True)
            assert below.chain[:2] == ("urn:agent-identity:agent:searcher", own.agent)
        assert not below.is_open


def test_a_carried_session_of_another_transaction_is_not_below_the_tool(
    identity: AgentIdentity,
) -> None:
    with identity.on_behalf_of("user:bob", purpose="p") as other:
        with identity.on_behalf_of("user:alice", purpose="p"), starting("ask", None):
            assert delegated(other, "searcher") is other


def test_agents_that_hand_on_have_sessions_that_end_with_the_first(identity: AgentIdentity) -> None:
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        assert delegated(None, "searcher") is session
        first = delegated(None, "searcher", is_hand_off=True)
        assert delegated(None, "searcher", is_hand_off=True) is first
        assert delegated(None, "planner", is_hand_off=True) is session
        assert first.is_open
    assert not first.is_open
    assert [r.kind for r in first.records()] == ["session.opened", "session.closed"]


def test_after_the_tool_call_no_sub_agent_gets_a_session(identity: AgentIdentity) -> None:
    with identity.on_behalf_of("user:alice", purpose="p"):
        with starting("ask", None):
            caller = calling_tool()
        assert caller is not None
        assert calling_tool() is None
        with pytest.raises(DeniedError) as raised:
            caller.delegate("searcher")
    assert raised.value.code == "call_ended"


def test_a_revoked_session_delegates_to_no_sub_agent(identity: AgentIdentity) -> None:
    with identity.on_behalf_of("user:alice", purpose="p") as session, starting("ask", None):
        session.revoke("gone")
        with pytest.raises(DeniedError) as raised:
            delegated(None, "searcher")
    assert raised.value.code == "session_revoked"


def test_without_a_session_nothing_starts() -> None:
    with pytest.raises(NoSessionError), starting("ask", None):
        pass
    with pytest.raises(NoSessionError):
        delegated(None, "searcher")
    with pytest.raises(NoSessionError):
        current_tool_call_id()


# -- interrupts ------------------------------------------------------------------------------------------------------


def test_a_mark_fits_its_principal_alone_and_names_nobody(identity: AgentIdentity) -> None:
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        mark, other = mark_owner(), mark_owner()
        assert mark != other
        assert "alice" not in mark
        with session.delegate("searcher"):
            check_owner(mark)
    with identity.on_behalf_of("user:alice", purpose="another"):
        check_owner(mark)
    with identity.on_behalf_of("user:bob", purpose="p"):
        for wrong in (mark, "", "x", ".", None, 5):
            with pytest.raises(DeniedError) as raised:
                check_owner(wrong)
            assert raised.value.code == "resumed_by_another"
            assert not is_for_model(raised.value)
    with pytest.raises(NoSessionError):
        check_owner(mark)


def interrupted(identity: AgentIdentity, user: str = "user:alice") -> str:
    """The id of a call that was interrupted."""
    attempt = Attempt()
    with (
        identity.on_behalf_of(user, purpose="p"),
        within(None, tool_call_id="toolu_1", attempt=attempt),
        pytest.raises(TimeoutError),
    ):
        stopped(1)
    assert attempt.call_id is not None
    return attempt.call_id


def go_on(identity: AgentIdentity, continues: str) -> Any:
    attempt = Attempt(continues)
    with identity.on_behalf_of("user:alice", purpose="later"):
        with within(None, tool_call_id="toolu_1", attempt=attempt):
            leaf(1)
    return attempt.call_id


def call_ids(trace: Trace) -> list[Any]:
    return [call["call_id"] for call in trace.calls]


def test_a_models_id_names_all_passes_of_an_interrupted_call(identity: AgentIdentity) -> None:
    first = interrupted(identity)
    assert identity.who_triggered("toolu_1").outcome == "failed"
    second = go_on(identity, first)
    trace = identity.who_triggered("toolu_1")
    assert (trace.outcome, trace.purpose, trace.verified) == ("completed", "later", True)
    assert call_ids(trace) == [first, second]
    for reference in ("toolu_1", second):
        assert f"continues {first}" in str(identity.who_triggered(reference))
    for reference, outcome in ((first, "failed"), (second, "completed")):
        trace = identity.who_triggered(reference)
        assert (trace.outcome, call_ids(trace)) == (outcome, [reference])
    assert go_on(identity, first) == identity.who_triggered("toolu_1").calls[-1]["call_id"]


def test_work_that_goes_on_in_another_transaction_is_one_tree(identity: AgentIdentity) -> None:
    attempt = Attempt()
    with identity.on_behalf_of("user:alice", purpose="first") as before:
        leaf(0)
        with within(None, attempt=attempt), pytest.raises(TimeoutError):
            stopped(1)
    with identity.on_behalf_of("user:alice", purpose="later") as after:
        with within(None, attempt=Attempt(attempt.call_id)):
            leaf(1)
        leaf(2)
    with identity.on_behalf_of("user:alice", purpose="something else"):
        leaf(3)
    for session in (before, after):
        trace = identity.who_triggered(session)
        assert [call["tool"] for call in trace.calls] == ["leaf", "stopped", "leaf", "leaf"]
        assert str(trace).count("planner\n") == 2
        assert trace.purpose == session.purpose
        assert trace.verified


def test_a_call_of_another_principal_joins_no_tree(identity: AgentIdentity) -> None:
    """An adapter that doesn't check the owner must not show one principal's calls under another's name."""
    first = interrupted(identity)
    with identity.on_behalf_of("user:bob", purpose="p") as bobs:
        with within(None, attempt=Attempt(first)):
            leaf(1)
    trace = identity.who_triggered(bobs)
    assert [call["tool"] for call in trace.calls] == ["leaf"]
    assert str(trace.principal) == "user:bob"


def test_passes_in_one_transaction_are_shown_together(identity: AgentIdentity) -> None:
    attempt = Attempt()
    with identity.on_behalf_of("user:alice", purpose="p"):
        with within(None, tool_call_id="toolu_1", attempt=attempt), pytest.raises(TimeoutError):
            stopped(1)
        with within(None, tool_call_id="toolu_1", attempt=Attempt(attempt.call_id)):
            leaf(1)
    trace = identity.who_triggered("toolu_1")
    assert [call["tool"] for call in trace.calls] == ["stopped", "leaf"]
    assert (trace.decision, trace.outcome) == ("permit", "completed")


def test_a_refused_resumption_does_not_make_the_models_id_ambiguous(
    identity: AgentIdentity,
) -> None:
    first = interrupted(identity)
    with identity.on_behalf_of("user:bob", purpose="p"), within(None, tool_call_id="toolu_1"):
        refuse("stopped", DeniedError("resumed_by_another", "not bob's"))
    assert identity.who_triggered("toolu_1").principal.sub == "alice"  # type: ignore[union-attr]
    go_on(identity, first)
    assert identity.who_triggered("toolu_1").outcome == "completed"


def test_two_calls_with_one_id_of_a_model_stay_ambiguous(identity: AgentIdentity) -> None:
    interrupted(identity)
    interrupted(identity, "user:bob")
    with pytest.raises(LedgerError) as raised:
        identity.who_triggered("toolu_1")
    assert raised.value.code == "ambiguous_reference"


def test_an_attempt_is_for_one_call_and_not_for_those_in_its_body(identity: AgentIdentity) -> None:
    @tool
    def outer() -> None:
        leaf(1)

    first = interrupted(identity)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with within(None, attempt=Attempt(first)):
            outer()
        made = [r.body.get("continues") for r in session.records() if r.kind == "call.intended"]
    assert made == [first, None]
