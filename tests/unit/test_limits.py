# SPDX-License-Identifier: Apache-2.0
"""The limits of a session: no limit is None, nothing at all is an empty set, and a child never has more."""

from __future__ import annotations

import pytest

from agent_identity.delegation.limits import Limits
from agent_identity.errors import DeniedError
from agent_identity.values import LOCAL

BILLING, MAIL = "https://billing.example", "https://mail.example"
READ = frozenset({"read"})
BOTH = frozenset({"read", "write"})


def limits(scopes: frozenset[str] | None = None, resources: frozenset[str] | None = None) -> Limits:
    return Limits("bot", scopes, resources)


def code(call, *given: object) -> str:
    with pytest.raises(DeniedError) as refused:
        call(*given)
    assert "bot" in str(refused.value) or "configured" in str(refused.value)
    return refused.value.code


@pytest.mark.parametrize("asked", [frozenset(), READ, BOTH])
@pytest.mark.parametrize("resource", [BILLING, LOCAL])
def test_no_limit_is_no_limit(asked: frozenset[str], resource: str) -> None:
    limits().check(resource, asked, None)
    limits(BOTH, frozenset({BILLING})).check(resource, asked, BOTH)


def test_a_local_tool_is_within_every_reach() -> None:
    limits(None, frozenset()).check(LOCAL, frozenset(), frozenset())
    assert code(limits(None, frozenset()).check, MAIL, frozenset(), None) == "resource_not_granted"


def test_nothing_is_not_everything() -> None:
    assert code(limits(frozenset()).check, BILLING, READ, None) == "scope_not_granted"
    assert code(limits().check, BILLING, READ, frozenset()) == "scope_not_configured"
    assert code(limits(READ).check, BILLING, BOTH, None) == "scope_not_granted"
    assert code(limits(BOTH).check, BILLING, BOTH, READ) == "scope_not_configured"


@pytest.mark.parametrize("scopes", [None, frozenset(), READ, BOTH])
def test_a_child_takes_over_what_isnt_named(scopes: frozenset[str] | None) -> None:
    parent = limits(scopes, scopes)
    assert parent.narrow("child", None, None) == Limits("child", scopes, scopes)


@pytest.mark.parametrize(
    ("above", "below"),
    [(None, frozenset()), (None, READ), (READ, frozenset()), (READ, READ), (BOTH, READ)],
)
def test_a_child_may_have_as_much_or_less(above, below) -> None:
    assert limits(above).narrow("child", below, None) == Limits("child", below, None)
    assert limits(None, above).narrow("child", None, below) == Limits("child", None, below)


@pytest.mark.parametrize(
    ("above", "below"),
    [(frozenset(), READ), (READ, BOTH), (READ, frozenset({"write"})), (READ, frozenset({"READ"}))],
)
def test_B01_a_child_never_has_more(above, below) -> None:
    assert code(limits(above).narrow, "child", below, None) == "scope_widened"
    assert code(limits(None, above).narrow, "child", None, below) == "audience_widened"
