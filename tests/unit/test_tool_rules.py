# SPDX-License-Identifier: Apache-2.0
"""Rules for tools as an adapter asks them, without any framework."""

from __future__ import annotations

import pytest

from agent_identity import ConfigurationError, DeniedError
from agent_identity.adapters import Rules

PAY = {"pay": {"resource": "https://billing.example", "labels": {"moves:money"}}}


def describe(rules: Rules, name: str, *, itself: bool = False, **more):
    return rules.describe(
        name, describes_itself=itself, has_resource=False, error=DeniedError, **more
    )


def test_a_rule_describes_the_tool_of_its_name_and_the_star_all_others() -> None:
    rules = Rules({**PAY, "*": {"labels": {"local"}}}, guard="Guard")
    assert describe(rules, "pay")["resource"] == "https://billing.example"
    assert describe(rules, "look")["labels"] == {"local"}
    assert describe(rules, "own", itself=True) is None


def test_an_undescribed_tool_is_refused_with_the_guards_name_in_the_remedy() -> None:
    with pytest.raises(DeniedError) as refused:
        describe(Rules(PAY, guard="Guard"), "look")
    assert refused.value.code == "tool_undescribed"
    assert "the rules of Guard," in (refused.value.remedy or "")


def test_a_tool_is_described_once() -> None:
    with pytest.raises(ConfigurationError) as refused:
        describe(Rules(PAY, guard="Guard"), "pay", itself=True)
    assert refused.value.code == "protected_twice"


def test_the_adapters_own_check_learns_of_a_credential_and_comes_before_an_undescribed_tool() -> (
    None
):
    told: list[bool] = []
    rules = Rules(PAY, guard="Guard")
    describe(rules, "pay", check_origin=told.append)
    with pytest.raises(DeniedError):
        describe(rules, "look", check_origin=told.append)
    assert told == [True, False]


def test_a_rule_that_names_no_tool_and_a_hosted_tool_without_a_rule_are_errors() -> None:
    rules = Rules({**PAY, "search": {"hosted": True}}, guard="Guard")
    rules.check_matched(["pay"])
    rules.check_hosted("search")
    with pytest.raises(ConfigurationError, match="'pay' names no tool"):
        rules.check_matched(["look"])
    with pytest.raises(ConfigurationError) as refused:
        rules.check_hosted("browse")
    assert refused.value.code == "tool_hosted"
