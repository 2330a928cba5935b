# SPDX-License-Identifier: Apache-2.0
"""What details of a grant allow, and when those of a child are narrower. The vocabulary is closed: five words, four members."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_identity.delegation.details import Details, details_from, read_details
from agent_identity.errors import ConfigurationError, InvalidAssertionError
from agent_identity.values import TOOL_DETAILS

FLIGHTS = "https://flights.example"
HOTELS = "https://hotels.example"


def details(*objects: dict[str, Any]) -> Details:
    return read_details([{"type": TOOL_DETAILS} | each for each in objects])


def rule(**words: Any) -> Details:
    return details({"arguments": {"amount": words}})


def takes(found: Details, value: Any) -> bool:
    return found.allows("book", FLIGHTS, {"amount": value})


# -- one call ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "good", "bad"),
    [
        ({"const": "USD"}, ["USD"], ["usd", "USD ", None, 1, ["USD"]]),
        ({"const": 1}, [1, 1.0], [True, "1", 1.5]),
        ({"const": True}, [True], [1, "true", False]),
        ({"const": None}, [None], [False, "", 0]),
        ({"const": {"b": 1, "a": [1]}}, [{"a": [1], "b": 1.0}], [{"a": [1]}, {"a": [2], "b": 1}]),
        ({"const": "é"}, ["é"], ["e\u0301"]),
        ({"enum": ["LHR", "LGW"]}, ["LHR", "LGW"], ["lhr", "LH", None, ["LHR"]]),
        ({"enum": [0, False]}, [0, 0.0, -0.0, False], ["0", None]),
        ({"minimum": 1}, [1, 1.0, 2, 1e9], [0, 0.999, -1, True, "5", None]),
        ({"maximum": 500}, [500, 499.99, -1], [501, 500.01, False, "1", None]),
        ({"minimum": 1, "maximum": 3}, [1, 2, 3], [0, 4]),
        ({"prefix": "/archive/"}, ["/archive/", "/archive/x"], ["/archive", "x/archive/", 1, None]),
        ({"prefix": "a", "enum": ["ab", "b"]}, ["ab"], ["b", "a", "abc"]),
    ],
)
def test_an_argument_is_held_to_every_word_of_its_rule(
    words: dict[str, Any], good: list[Any], bad: list[Any]
) -> None:
    assert [value for value in good if not takes(rule(**words), value)] == []
    assert [value for value in bad if takes(rule(**words), value)] == []


def test_an_argument_that_has_a_rule_and_is_missing_is_not_allowed() -> None:
    assert not rule(maximum=500).allows("book", FLIGHTS, {"other": 1})


def test_one_object_has_to_take_all_of_a_call() -> None:
    found = details(
        {"tools": ["book"], "arguments": {"amount": {"maximum": 10}}},
        {"tools": ["cancel"], "resources": [HOTELS]},
    )
    assert found.allows("book", FLIGHTS, {"amount": 10})
    assert found.allows("cancel", HOTELS, {"amount": 99})
    assert not found.allows("book", FLIGHTS, {"amount": 11})
    assert not found.allows("cancel", FLIGHTS, {"amount": 1})
    assert not found.allows("Book", FLIGHTS, {"amount": 1})
    assert not found.allows("book ", FLIGHTS, {"amount": 1})


def test_what_isnt_named_is_any() -> None:
    assert details({}).allows("anything", HOTELS, {"whatever": [1]})


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "claim_malformed"),
        ([], "claim_malformed"),
        ({}, "claim_malformed"),
        (["x"], "claim_malformed"),
        ([{}] * 65, "claim_malformed"),
        ([{"type": "payment_initiation"}], "detail_type_unknown"),
        ([{"type": TOOL_DETAILS + "x"}], "detail_type_unknown"),
        ([{"tools": ["x"]}], "claim_missing"),
        ([{"type": TOOL_DETAILS}, {"type": "other"}], "detail_type_unknown"),
        ([{"type": TOOL_DETAILS, "actions": ["read"]}], "claim_unknown"),
        ([{"type": TOOL_DETAILS, "locations": [FLIGHTS]}], "claim_unknown"),
        ([{"type": TOOL_DETAILS, "tools": []}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "tools": "book"}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "tools": ["a", "a"]}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "tools": None}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "resources": []}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "arguments": {}}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "arguments": []}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "arguments": {"a": {}}}], "constraint_unknown"),
        ([{"type": TOOL_DETAILS, "arguments": {"a": {"pattern": ".*"}}}], "constraint_unknown"),
        (
            [{"type": TOOL_DETAILS, "arguments": {"a": {"const": 1, "Maximum": 2}}}],
            "constraint_unknown",
        ),
        ([{"type": TOOL_DETAILS, "arguments": {"a": 5}}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "arguments": {"a": {"enum": []}}}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "arguments": {"a": {"enum": "ab"}}}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "arguments": {"a": {"minimum": "1"}}}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "arguments": {"a": {"minimum": True}}}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "arguments": {"a": {"maximum": None}}}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "arguments": {"a": {"prefix": ""}}}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "arguments": {"a": {"prefix": 1}}}], "claim_malformed"),
        ([{"type": TOOL_DETAILS, "arguments": {"a": {"const": 1e20}}}], "claim_malformed"),
    ],
)
def test_B19_a_detail_without_a_rule_here_is_refused_not_skipped(value: Any, code: str) -> None:
    with pytest.raises(InvalidAssertionError) as refused:
        read_details(value)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "given_",
    [
        "x",
        {"type": TOOL_DETAILS},
        [1],
        [{"type": TOOL_DETAILS, "x": 1}],
        [{1: 2}],
        [{"type": object()}],
        [],
    ],
)
def test_a_user_is_told_what_is_wrong_with_their_details(given_: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        details_from(given_)
    assert refused.value.code == "authorization_details"
    assert "prefix" in (refused.value.remedy or "")


def test_details_are_carried_as_they_were_given() -> None:
    said = {"type": TOOL_DETAILS, "tools": ["b", "a"], "arguments": {"x": {"enum": [2, 1]}}}
    assert details_from([said]).claim == (said,)


# -- narrower or not --------------------------------------------------------------------------------------------------

NARROWER = [
    ({}, {"tools": ["book"]}),
    ({"tools": ["a", "b"]}, {"tools": ["b"]}),
    ({"resources": [FLIGHTS, HOTELS]}, {"resources": [HOTELS], "tools": ["a"]}),
    ({"arguments": {"a": {"maximum": 5}}}, {"arguments": {"a": {"maximum": 5}}}),
    ({"arguments": {"a": {"maximum": 5}}}, {"arguments": {"a": {"maximum": 4, "minimum": 1}}}),
    ({"arguments": {"a": {"maximum": 5}}}, {"arguments": {"a": {"const": 5}}}),
    ({"arguments": {"a": {"maximum": 5}}}, {"arguments": {"a": {"enum": [1, 2.5]}}}),
    ({"arguments": {"a": {"minimum": 5}}}, {"arguments": {"a": {"minimum": 5.5}}}),
    ({"arguments": {"a": {"const": 1}}}, {"arguments": {"a": {"const": 1.0}}}),
    ({"arguments": {"a": {"const": 1}}}, {"arguments": {"a": {"enum": [1]}}}),
    ({"arguments": {"a": {"enum": [1, 2]}}}, {"arguments": {"a": {"enum": [2]}}}),
    ({"arguments": {"a": {"enum": [1, 2]}}}, {"arguments": {"a": {"const": 2, "maximum": 9}}}),
    ({"arguments": {"a": {"prefix": "/x"}}}, {"arguments": {"a": {"prefix": "/x/y"}}}),
    ({"arguments": {"a": {"prefix": "/x"}}}, {"arguments": {"a": {"enum": ["/x", "/xy"]}}}),
    ({"arguments": {"a": {"maximum": 5}}}, {"arguments": {"a": {"maximum": 5}, "b": {"const": 1}}}),
    ({"arguments": {"a": {"maximum": 5}}}, {"arguments": {"a": {"enum": [1, 9], "maximum": 5}}}),
]
WIDER = [
    ({"tools": ["book"]}, {}),
    ({"tools": ["book"]}, {"tools": ["book", "cancel"]}),
    ({"resources": [FLIGHTS]}, {"tools": ["book"]}),
    ({"resources": [FLIGHTS]}, {"resources": [HOTELS]}),
    ({"arguments": {"a": {"maximum": 5}}}, {}),
    ({"arguments": {"a": {"maximum": 5}}}, {"arguments": {"b": {"maximum": 5}}}),
    ({"arguments": {"a": {"maximum": 5}}}, {"arguments": {"a": {"maximum": 6}}}),
    ({"arguments": {"a": {"maximum": 5}}}, {"arguments": {"a": {"minimum": 1}}}),
    ({"arguments": {"a": {"maximum": 5}}}, {"arguments": {"a": {"const": 6}}}),
    ({"arguments": {"a": {"maximum": 5}}}, {"arguments": {"a": {"const": "1"}}}),
    ({"arguments": {"a": {"maximum": 5}}}, {"arguments": {"a": {"enum": [1, 6]}}}),
    ({"arguments": {"a": {"minimum": 5}}}, {"arguments": {"a": {"minimum": 4}}}),
    ({"arguments": {"a": {"minimum": 0}}}, {"arguments": {"a": {"const": True}}}),
    ({"arguments": {"a": {"const": 1}}}, {"arguments": {"a": {"const": True}}}),
    ({"arguments": {"a": {"const": 1}}}, {"arguments": {"a": {"enum": [1, 2]}}}),
    ({"arguments": {"a": {"const": 1}}}, {"arguments": {"a": {"minimum": 1, "maximum": 1}}}),
    ({"arguments": {"a": {"enum": [1, 2]}}}, {"arguments": {"a": {"enum": [1, 2, 3]}}}),
    ({"arguments": {"a": {"enum": [1, 2]}}}, {"arguments": {"a": {"maximum": 2}}}),
    ({"arguments": {"a": {"prefix": "/x/"}}}, {"arguments": {"a": {"prefix": "/x"}}}),
    ({"arguments": {"a": {"prefix": "/x/"}}}, {"arguments": {"a": {"const": "/y"}}}),
    ({"arguments": {"a": {"prefix": "/x/"}}}, {"arguments": {"a": {"maximum": 5}}}),
    ({"arguments": {"a": {"prefix": "x", "maximum": 5}}}, {"arguments": {"a": {"prefix": "x"}}}),
]


@pytest.mark.parametrize(("parent", "child"), NARROWER)
def test_a_child_may_say_less(parent: dict[str, Any], child: dict[str, Any]) -> None:
    assert details(parent).covers(details(child))


@pytest.mark.parametrize(("parent", "child"), WIDER)
def test_a_child_may_not_say_more(parent: dict[str, Any], child: dict[str, Any]) -> None:
    assert not details(parent).covers(details(child))


def test_a_child_without_details_is_wider_than_any() -> None:
    assert not details({}).covers(None)


def test_every_object_of_a_child_needs_one_object_above_it() -> None:
    parent = details({"tools": ["a"]}, {"tools": ["b"], "resources": [HOTELS]})
    assert parent.covers(details({"tools": ["a"]}, {"tools": ["b"], "resources": [HOTELS]}))
    assert not parent.covers(details({"tools": ["a"]}, {"tools": ["b"]}))
    assert not parent.covers(details({"tools": ["a", "b"], "resources": [HOTELS]}))


def test_towards_a_resource_only_what_is_about_it_is_kept() -> None:
    found = details({"tools": ["a"]}, {"resources": [HOTELS]}, {"resources": [FLIGHTS]})
    kept = found.for_resources([HOTELS])
    assert kept is not None
    assert [each.get("resources") for each in kept.claim] == [None, [HOTELS]]
    assert details({"resources": [HOTELS]}).for_resources([FLIGHTS]) is None


def test_a_tool_or_an_argument_is_seen_by_those_who_see_the_call() -> None:
    assert details({"tools": ["a"]}).sees_arguments
    assert rule(const=1).sees_arguments
    assert details({"resources": [HOTELS]}, {"arguments": {"a": {"const": 1}}}).sees_arguments
    assert not details({"resources": [HOTELS]}, {}).sees_arguments


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.0, -0.0, 1.0, 1.5, 2.5]),
    st.text("ab/", max_size=3),
    st.lists(st.integers(0, 1), max_size=1),
)
WORDS = st.fixed_dictionaries(
    {},
    optional={
        "const": VALUES,
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "minimum": st.integers(-2, 2) | st.sampled_from([0.5, 1.5]),
        "maximum": st.integers(-2, 2) | st.sampled_from([0.5, 1.5]),
        "prefix": st.text("ab/", min_size=1, max_size=2),
    },
).filter(bool)
NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)
OBJECTS = st.fixed_dictionaries(
    {"type": st.just(TOOL_DETAILS)},
    optional={
        "tools": NAMES,
        "resources": NAMES,
        "arguments": st.dictionaries(st.sampled_from("xy"), WORDS, min_size=1, max_size=2),
    },
)
LISTS = st.lists(OBJECTS, min_size=1, max_size=3)


@given(
    LISTS,
    LISTS,
    st.sampled_from("abc"),
    st.sampled_from("abc"),
    st.dictionaries(st.sampled_from("xy"), VALUES, max_size=2),
)
def test_what_a_covered_child_allows_its_parent_allows(
    parent: list[Any], child: list[Any], tool: str, resource: str, arguments: dict[str, Any]
) -> None:
    above, below = read_details(parent), read_details(child)
    if above.covers(below) and below.allows(tool, resource, arguments):
        assert above.allows(tool, resource, arguments)


@given(LISTS)
def test_details_cover_themselves(said: list[Any]) -> None:
    found = read_details(said)
    assert found.covers(found)
