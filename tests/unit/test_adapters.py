# SPDX-License-Identifier: Apache-2.0
"""The interface for integrations: which session a call belongs to, and remote tools, whose arguments go over a wire."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace

from agent_identity import AgentIdentity, DeniedError, NoSessionError, current_session, tool
from agent_identity.adapters import (
    Tool,
    below,
    check_unchanged,
    tool_of,
    within,
    wrap_keywords,
)
from agent_identity.authority import Authority
from agent_identity.canonical import args_digest
from agent_identity.jose import loads_object, unverified
from agent_identity.provenance.memory import MemoryLedger


@pytest.fixture
def identity() -> Iterator[AgentIdentity]:
    with AgentIdentity("bot", authority=Authority(), ledger=MemoryLedger()) as made:
        yield made


# -- which session -----------------------------------------------------------------------------------------------------


def acting() -> str:
    return current_session().agent.rpartition(":")[2]


def test_a_carried_session_replaces_that_of_the_code_around(identity: AgentIdentity) -> None:
    with (
        identity.on_behalf_of("user:alice", purpose="p") as alice,
        identity.on_behalf_of("user:bob", purpose="p"),
        within(alice),
    ):
        assert current_session() is alice


def test_a_carried_session_does_not_replace_a_delegate_that_its_tool_opened(
    identity: AgentIdentity,
) -> None:
    acted: list[str] = []

    @tool
    def ask() -> None:
        with current_session().delegate("archive-bot") as child:
            with within(session):
                acted.append(acting())
            with child.delegate("scanner"), within(session):
                acted.append(acting())
        with within(session):
            acted.append(acting())

    with identity.on_behalf_of("user:alice", purpose="p") as session:
        ask()
        with session.delegate("archive-bot"), within(session):
            acted.append(acting())
    assert acted == ["archive-bot", "scanner", "bot", "bot"]


# -- remote tools --------------------------------------------------------------------------------------------------------


async def test_keywords_are_digested_as_they_are_sent(identity: AgentIdentity) -> None:
    sent: dict[str, Any] = {"customer": "ACME", "self": 1, "function": [2]}

    async def send(**arguments: Any) -> dict[str, Any]:
        check_unchanged("remote", arguments)
        return arguments

    remote = wrap_keywords(send, Tool("remote"))
    assert inspect.iscoroutinefunction(remote)
    assert tool_of(remote) is not None
    async with identity.on_behalf_of("user:alice", purpose="p") as session:
        assert await remote(**sent) == sent
        (intent,) = [r.to_dict() for r in session.records() if r.kind == "call.intended"]
    claims = loads_object(unverified(intent["assertion"]).payload)
    assert claims["call"]["args_hash"] == args_digest(sent)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("other", {"customer": "ACME"}), ("remote", {"customer": "Globex"}), ("remote", {})],
)
async def test_another_tool_or_other_arguments_are_not_the_running_call(
    identity: AgentIdentity, name: str, arguments: dict[str, Any]
) -> None:
    async def send(**_: Any) -> None:
        check_unchanged(name, arguments)

    async with identity.on_behalf_of("user:alice", purpose="p"):
        with pytest.raises(DeniedError) as raised:
            await wrap_keywords(send, Tool("remote"))(customer="ACME")
    assert raised.value.code == "call_changed"


def test_no_call_runs_outside_of_tools(identity: AgentIdentity) -> None:
    with pytest.raises(NoSessionError):
        check_unchanged("remote", {})
    with identity.on_behalf_of("user:alice", purpose="p"), pytest.raises(DeniedError) as raised:
        check_unchanged("remote", {})
    assert raised.value.code == "call_changed"


# -- spans -----------------------------------------------------------------------------------------------------------


def test_a_block_below_a_span_has_it_as_the_current_one() -> None:
    ids = trace.SpanContext(7, 8, is_remote=False)
    before = trace.get_current_span()
    with below(trace.NonRecordingSpan(ids)), below(None), below("no span"):
        assert trace.get_current_span().get_span_context() == ids
    assert trace.get_current_span() is before
