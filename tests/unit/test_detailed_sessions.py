# SPDX-License-Identifier: Apache-2.0
"""Authorization details in a session: what its calls may do, and what its grants say of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent_identity import AgentIdentity, ConfigurationError, DeniedError, tool
from agent_identity.delegation.chain import Anchor, verify_chain
from agent_identity.delegation.details import Details
from agent_identity.provenance.records import CALL_DENIED, GRANT_MADE
from agent_identity.values import LOCAL

BILLING = "https://billing.example"
MAIL = "https://mail.example"
TYPE = "urn:agent-identity:tool"
SMALL = {"type": TYPE, "tools": ["pay"], "arguments": {"amount": {"maximum": 500}}}

ran: list[Any] = []


@tool(resource=BILLING, scopes=["pay"])
def pay(amount: object = 1000) -> str:
    ran.append(amount)
    return "paid"


@tool(resource=MAIL, scopes=["send"])
def send() -> str:
    return "sent"


@tool()
def note() -> str:
    return "noted"


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


def leaf_details(session: Any, tool_: str) -> Details | None:
    """What the grant says under which a tool was called last."""
    reached = [each for (resource, _), each in session._state.reaches.items() if resource == tool_]
    return reached[-1].leaf.details


def denied(call: Callable[[], object]) -> str:
    with pytest.raises(DeniedError) as refused:
        call()
    return refused.value.code


def test_a_call_outside_of_the_sessions_details_doesnt_run(bot: AgentIdentity) -> None:
    with bot.on_behalf_of(
        "user:alice", purpose="pay", authorization_details=[SMALL | {"resources": [BILLING]}]
    ) as session:
        assert pay(500) == "paid"
        assert denied(lambda: pay(501)) == "details_not_granted"
        assert denied(pay) == "details_not_granted"  # the default is an argument too
        assert denied(lambda: pay("5")) == "details_not_granted"
        assert denied(lambda: pay(True)) == "details_not_granted"
        assert denied(send) == "details_not_granted"
        assert denied(note) == "details_not_granted"
        refused = [each for each in session.records() if each.kind == CALL_DENIED]
    assert ran == [500]
    assert {each.to_dict()["code"] for each in refused} == {"details_not_granted"}
    assert len(refused) == 6


def test_a_grant_says_the_details_about_its_resource_and_no_others(bot: AgentIdentity) -> None:
    mail = {"type": TYPE, "resources": [MAIL]}
    with bot.on_behalf_of(
        "user:alice", purpose="pay", authorization_details=[SMALL | {"resources": [BILLING]}, mail]
    ) as session:
        pay(1)
        send()
        paid, sent = leaf_details(session, BILLING), leaf_details(session, MAIL)
    assert paid is not None
    assert sent is not None
    assert paid.claim == (SMALL | {"resources": [BILLING]},)
    assert sent.claim == (mail,)


def test_B01_a_sub_agent_gets_narrower_details_or_an_error(bot: AgentIdentity) -> None:
    smaller = SMALL | {"arguments": {"amount": {"maximum": 5}}}
    larger = SMALL | {"arguments": {"amount": {"maximum": 501}}}
    with bot.on_behalf_of("user:alice", purpose="pay", authorization_details=[SMALL]) as session:
        with pytest.raises(DeniedError, match="own details") as refused:
            session.delegate("a", authorization_details=[larger])
        assert refused.value.code == "details_widened"
        with session.delegate("a", authorization_details=[smaller]) as child:
            pay(5)
            assert denied(lambda: pay(6)) == "details_not_granted"
            below = leaf_details(child, BILLING)
        with session.delegate("b") as same:
            pay(6)
            inherited = leaf_details(same, BILLING)
    assert below is not None
    assert below.claim == (smaller,)
    assert inherited is not None
    assert inherited.claim == (SMALL,)


def test_a_resource_is_configured_with_the_most_that_may_be_done_there(
    make_identity: Callable[..., AgentIdentity],
) -> None:
    described = {BILLING: {"scopes": ["pay"], "authorization_details": [SMALL]}}
    bot = make_identity(resources=described)
    with bot.on_behalf_of("user:alice", purpose="pay") as session:
        pay(500)
        assert denied(lambda: pay(501)) == "details_not_granted"
        assert send() == "sent"
        found = leaf_details(session, BILLING)
        assert leaf_details(session, MAIL) is None
        with session.delegate("a"):
            pay(1)
            assert denied(lambda: pay(501)) == "details_not_granted"
    assert found is not None
    assert found.claim == (SMALL | {"resources": [BILLING]}, {"type": TYPE, "resources": [LOCAL]})
    wider = {"type": TYPE, "tools": ["pay"]}
    with bot.on_behalf_of("user:alice", purpose="pay", authorization_details=[wider]):
        assert denied(lambda: pay(1)) == "details_not_configured"


def test_an_object_that_names_no_resource_is_about_each_that_its_grant_is_for(
    make_identity: Callable[..., AgentIdentity],
) -> None:
    """RFC 9396 §6.1 leaves it to the type what is narrower; of ours, `resources` left out is any that the audience allows."""
    bot = make_identity(resources={BILLING: {"scopes": ["pay"], "authorization_details": [SMALL]}})
    own = SMALL | {"arguments": {"amount": {"minimum": 10, "maximum": 1000}}}
    least = SMALL | {"arguments": {"amount": {"minimum": 10, "maximum": 100}}}
    with bot.on_behalf_of("user:alice", purpose="pay", authorization_details=[own]):
        assert denied(lambda: pay(50)) == "details_not_configured"  # wider is never cut down
    with bot.on_behalf_of("user:alice", purpose="pay", authorization_details=[least]) as session:
        pay(100)
        for beyond in (9, 101, 501):
            assert denied(lambda: pay(beyond)) == "details_not_granted"  # noqa: B023 - called at once
        assert denied(note) == "details_not_granted"
        with session.delegate("a") as child:
            pay(10)
            assert denied(lambda: pay(501)) == "details_not_granted"
            chain = child._state.reaches[BILLING, frozenset({"pay"})].chain
    assert ran == [100, 10]
    assert [grant.details.claim for grant in chain if grant.details] == [
        (least | {"resources": [BILLING]}, least | {"resources": [LOCAL]})
    ] * 2
    anchor = Anchor(bot.authority.issuer, bot.authority.jwks()["keys"], evidence="issuer")
    assert verify_chain([grant.compact for grant in chain], [anchor], now=bot._clock())


def test_an_object_about_several_resources_is_held_to_what_each_is_configured_with(
    make_identity: Callable[..., AgentIdentity],
) -> None:
    bot = make_identity(resources={BILLING: {"authorization_details": [SMALL]}})
    both = SMALL | {"resources": [BILLING, MAIL]}
    places = {"resources": [BILLING, MAIL]}
    with bot.on_behalf_of(
        "user:alice", purpose="pay", authorization_details=[both], **places
    ) as session:
        pay(500)
        assert denied(lambda: pay(501)) == "details_not_granted"
        found = leaf_details(session, BILLING)
    assert found is not None
    assert found.claim == tuple(SMALL | {"resources": [place]} for place in (BILLING, MAIL))
    wide = {"type": TYPE, "resources": [BILLING, MAIL]}
    with bot.on_behalf_of("user:alice", purpose="pay", authorization_details=[wide], **places):
        assert denied(lambda: pay(1)) == "details_not_configured"
        assert denied(send) == "details_not_configured"


def test_one_grant_for_several_resources_limits_only_those_that_are_limited(
    make_identity: Callable[..., AgentIdentity],
) -> None:
    bot = make_identity(resources={BILLING: {"authorization_details": [SMALL]}})
    with bot.on_behalf_of("user:alice", purpose="pay", resources=[BILLING, MAIL]) as session:
        send()
        pay(1)
        note()
        assert denied(lambda: pay(501)) == "details_not_granted"
        found = leaf_details(session, MAIL)
    assert found is not None
    assert found.allows("send", MAIL, {})
    assert found.allows("note", LOCAL, {})
    assert found.allows("pay", BILLING, {"amount": 500})
    assert not found.allows("pay", BILLING, {"amount": 501})


def test_details_that_only_a_call_can_be_held_to_give_no_credential_without_one(
    bot: AgentIdentity,
) -> None:
    with bot.on_behalf_of("user:alice", purpose="pay", authorization_details=[SMALL]) as session:
        assert denied(lambda: session.credential(BILLING, ["pay"])) == "details_need_call"
    place = {"type": TYPE, "resources": [BILLING]}
    with bot.on_behalf_of("user:alice", purpose="pay", authorization_details=[place]) as session:
        assert session.credential(BILLING, ["pay"]).resource == BILLING
        assert denied(lambda: session.credential(MAIL, ["send"])) == "details_not_granted"


@pytest.mark.parametrize("wrong", ["x", [], [{"type": "payment"}], [SMALL | {"actions": ["x"]}]])
def test_details_that_cant_be_kept_are_an_error_at_once(bot: AgentIdentity, wrong: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        bot.on_behalf_of("user:alice", purpose="pay", authorization_details=wrong)
    assert refused.value.code == "authorization_details"
    with pytest.raises(ConfigurationError):
        bot.autonomous(trigger="cron:x", purpose="pay", authorization_details=wrong)


def test_a_resource_isnt_configured_with_details_about_another(
    make_identity: Callable[..., AgentIdentity],
) -> None:
    elsewhere = SMALL | {"resources": [MAIL]}
    with pytest.raises(ConfigurationError, match="another resource"):
        make_identity(resources={BILLING: {"authorization_details": [elsewhere]}})


def test_an_argument_that_was_denied_stands_in_no_message(bot: AgentIdentity) -> None:
    only = {"type": TYPE, "tools": ["pay"], "arguments": {"amount": {"const": "secret-limit"}}}
    with bot.on_behalf_of("user:alice", purpose="pay", authorization_details=[only]) as session:
        with pytest.raises(DeniedError) as refused:
            pay("secret-value")
        grants = [each for each in session.records() if each.kind == GRANT_MADE]
    assert "secret" not in f"{refused.value} {refused.value.remedy}"
    assert grants == []
