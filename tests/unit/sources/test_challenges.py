# SPDX-License-Identifier: Apache-2.0
"""`WWW-Authenticate` as servers and as attackers write it (RFC 9110 §11.6.1, RFC 6750 §3, 9449 §7.1, 9470 §3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_identity.credentials.source import Demand
from agent_identity.http.challenges import challenges_of, demanded_by, wanted_by

READ: list[tuple[str, list[tuple[str, dict[str, str]]]]] = [
    ("Bearer", [("bearer", {})]),
    ("bEaReR error=invalid_token", [("bearer", {"error": "invalid_token"})]),
    ('Bearer Error="invalid_token"', [("bearer", {"error": "invalid_token"})]),
    ('Bearer realm="a, b", error="x"', [("bearer", {"realm": "a, b", "error": "x"})]),
    ('Bearer realm="a \\"b\\" \\\\"', [("bearer", {"realm": 'a "b" \\'})]),
    ('Bearer realm="Bearer error=x"', [("bearer", {"realm": "Bearer error=x"})]),
    ('Bearer error = "x" ,\tscope\t=y', [("bearer", {"error": "x", "scope": "y"})]),
    ('Bearer error="x", , scope="y"', [("bearer", {"error": "x", "scope": "y"})]),
    (', ,Bearer error="x",', [("bearer", {"error": "x"})]),
    ('Bearer error=""', [("bearer", {"error": ""})]),
    (
        'DPoP algs="ES256", error="use_dpop_nonce", Bearer error="invalid_token"',
        [
            ("dpop", {"algs": "ES256", "error": "use_dpop_nonce"}),
            ("bearer", {"error": "invalid_token"}),
        ],
    ),
    ('Negotiate, Bearer error="x"', [("negotiate", {}), ("bearer", {"error": "x"})]),
    ("Negotiate,Bearer", [("negotiate", {}), ("bearer", {})]),
    ('Negotiate dGVzdA==, Bearer error="x"', [("bearer", {"error": "x"})]),
    ('Bearer error="x", Negotiate', [("bearer", {"error": "x"}), ("negotiate", {})]),
]


@pytest.mark.parametrize(("header", "expected"), READ)
def test_challenges_are_read_in_order(header: str, expected: object) -> None:
    assert [(scheme, dict(found)) for scheme, found in challenges_of(header)] == expected


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        ",,,",
        '="x"',
        'error="x"',
        '"Bearer" error="x"',
        "Bearer\u00a0error=x",
        "Bearer\nerror=x",
        "B\u00e9arer error=x",
        'Bearer error="x", error="x"',
        'Bearer error="x", ERROR="y"',
    ],
)
def test_what_is_no_challenge_or_says_a_thing_twice_counts_for_nothing(header: str) -> None:
    assert challenges_of(header) == []


@pytest.mark.parametrize(
    "rest",
    ['"unterminated', '"\\', '"a\nb"', '"a\x00b"', '"a\x7fb"', '"a\\\nb"', "", "a b", '"a"b', "é"],
)
def test_a_value_that_cannot_be_read_is_never_half_read(rest: str) -> None:
    for challenge in challenges_of(f"Bearer error={rest}"):
        assert "error" not in challenge.parameters


def test_what_follows_the_unreadable_is_not_read() -> None:
    header = 'Bearer error="invalid_token", x=" , DPoP error="use_dpop_nonce"'
    assert [found.scheme for found in challenges_of(header)] == ["bearer"]


def test_a_header_beyond_the_limit_is_not_read_at_all() -> None:
    fits = 'Bearer error="invalid_token", x="'
    assert challenges_of(fits + "a" * (8_000 - len(fits) - 1) + '"') != []
    assert challenges_of(fits + "a" * (8_000 - len(fits)) + '"') == []


WANTED: list[tuple[str, str, dict[str, str]]] = [
    ('Bearer error="invalid_token"', "bearer", {"error": "invalid_token"}),
    (
        'Bearer error="insufficient_scope", scope="a b"',
        "bearer",
        {"error": "insufficient_scope", "scope": "a b"},
    ),
    (
        'Bearer error="insufficient_user_authentication", acr_values="phr mfa", max_age="5"',
        "bearer",
        {"error": "insufficient_user_authentication", "acr_values": "phr mfa", "max_age": "5"},
    ),
    ('DPoP error="use_dpop_nonce"', "dpop", {"error": "use_dpop_nonce"}),
    ('Basic realm="x", DPoP error="invalid_token"', "dpop", {"error": "invalid_token"}),
    ('Bearer, DPoP error="invalid_token"', "dpop", {"error": "invalid_token"}),
]


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(("header", "scheme", "parameters"), WANTED)
def test_the_challenge_that_a_client_can_act_upon_is_found(
    status: int, header: str, scheme: str, parameters: dict[str, str]
) -> None:
    found = wanted_by(status, header)
    assert found is not None
    assert (found.scheme, dict(found.parameters)) == (scheme, parameters)


@pytest.mark.parametrize("status", [200, 302, 400, 407, 429, 500])
def test_no_other_status_asks_for_anything(status: int) -> None:
    assert wanted_by(status, 'Bearer error="invalid_token"') is None


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        'Bearer realm="x"',
        'Basic error="invalid_token"',
        'Bearerx error="invalid_token"',
        'Basic realm="Bearer error=invalid_token"',
        'Bearer error_description="error=invalid_token"',
    ],
)
def test_whatever_else_a_header_says_asks_for_nothing(header: str) -> None:
    assert wanted_by(401, header) is None


_TOKENS = st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", fullmatch=True)
_TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


@given(st.one_of(st.text(), st.text(alphabet=' \t,="\\Bearer68/+dpop\x00\n')))
def test_whatever_a_server_sends_is_read_or_left(header: str) -> None:
    for challenge in challenges_of(header):
        assert challenge.scheme == challenge.scheme.lower()
        assert all(name == name.lower() for name in challenge.parameters)
    found = wanted_by(401, header)
    assert found is None or "error" in found.parameters


@given(
    st.lists(
        st.tuples(
            _TOKENS,
            st.dictionaries(_TOKENS.map(str.lower), _TEXTS, min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_written_by_the_rules_is_read_as_it_was_meant(
    challenges: list[tuple[str, dict[str, str]]],
) -> None:
    def quoted(text: str) -> str:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'

    header = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in found.items())
        for scheme, found in challenges
    )
    assert [(scheme, dict(found)) for scheme, found in challenges_of(header)] == [
        (scheme.lower(), found) for scheme, found in challenges
    ]


@pytest.mark.parametrize(
    "header",
    [
        "a" + " " * 7_990 + "=",
        "a " * 3_999,
        "a," * 3_999,
        "a=" * 3_999,
        'a="' * 2_600,
        "Bearer " + "a=b," * 1_998,
        "Bearer " + "\\" * 7_990,
        'Bearer x="' + "\\" * 7_980,
        "Bearer " + "=" * 7_990,
    ],
    ids=lambda header: repr(header[:14]),
)
def test_repetition_up_to_the_limit_comes_to_an_end(header: str) -> None:
    assert len(challenges_of(header)) <= len(header)


NAMED = Demand("https://a.example/m")
DEMAND = NAMED._replace(scopes=frozenset({"a", "b"}))


@pytest.mark.parametrize(
    ("status", "header", "expected"),
    [
        (401, "Bearer", Demand()),
        (401, 'Bearer resource_metadata="https://a.example/m", scope="b a"', DEMAND),
        (401, 'DPoP error="invalid_token", resource_metadata="https://a.example/m"', NAMED),
        (401, 'Basic realm="x", Bearer scope="a"', Demand(None, frozenset({"a"}))),
        (401, 'Bearer scope="\\""', Demand()),
        (401, 'DPoP error="use_dpop_nonce"', None),
        (401, 'Bearer error="insufficient_user_authentication"', None),
        (401, "Basic", None),
        (401, "", None),
        (403, "Bearer", None),
        (200, "Bearer", None),
    ],
)
def test_a_401_demands_a_token(status: int, header: str, expected: Demand | None) -> None:
    assert demanded_by(status, header) == expected
