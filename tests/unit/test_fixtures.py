# SPDX-License-Identifier: Apache-2.0
"""The fixtures that a user's test suite gets: its own policy, and a session that is open."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

SUITE = """
import pytest
from agent_identity import Decision, DeniedError, tool

@tool
def pay(amount: int) -> int:
    return amount

@pytest.fixture
def agent_policy():
    def limit(request):
        return Decision.deny("too much") if request.context["args"]["amount"] > 5 else True
    return limit

def test_the_own_policy_permits(agent_session):
    assert pay(5) == 5
    assert str(agent_session.principal) == "user:alice"

def test_the_own_policy_denies(agent_session, identity):
    with pytest.raises(DeniedError) as refused:
        pay(6)
    assert refused.value.code == "policy_denied"
    assert identity.who_triggered(agent_session).calls[-1]["outcome"] == "denied"

def test_another_session_of_the_identity_has_the_policy_too(identity):
    with identity.on_behalf_of("user:bob", purpose="p"), pytest.raises(DeniedError):
        pay(6)

@pytest.mark.parametrize("agent_policy", [None, lambda request: True], ids=["none", "yes"])
def test_each_of_several_policies(agent_session, agent_policy):
    assert pay(6) == 6

class TestOther:
    @pytest.fixture
    def agent_policy(self):
        return lambda request: False

    def test_a_class_may_have_its_own(self, agent_session):
        with pytest.raises(DeniedError):
            pay(1)
"""


def run(pytester: pytest.Pytester, suite: str) -> pytest.RunResult:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(test_suite=suite)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider")


def test_a_suite_tests_its_tools_under_its_own_policy_with_a_session_open(
    pytester: pytest.Pytester,
) -> None:
    run(pytester, SUITE).assert_outcomes(passed=6)


def test_a_policy_that_can_never_decide_is_an_error_of_the_fixture(
    pytester: pytest.Pytester,
) -> None:
    suite = """
import pytest

@pytest.fixture
def agent_policy():
    async def later(request):
        return True
    return later

def test_nothing(agent_session): ...
"""
    result = run(pytester, suite)
    result.assert_outcomes(errors=1)
    assert "is async or a generator" in result.stdout.str()
