# SPDX-License-Identifier: Apache-2.0
"""On which line a key stands, however TOML lets it be written."""

from __future__ import annotations

import pytest

from agent_identity.config.problems import Lines

TEXT = '''\
# a comment with [brackets] and key = "value"
top = 1
[agent]   # [not.this]
name = """
[issuers.fake]
fake = 1
"""
owner = \'\'\'it's
"fake" = 2
\'\'\'
[issuers."acme.corp"]
issuer = "a \\" # ["
trust = [
  "subjects", # ]
  "grants",
]
client . "id" = 3
[resources.'https://billing.example/a"b']
transaction_token = {issuer = "a", audience = "b"}
[[resources.'https://billing.example/a"b'.authorization_details]]
type = "x"
[session]
budget.calls = 3
[ http ]
"de\\u0061dline" = 1
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("agent",), 3),
        (("agent", "name"), 4),
        (("agent", "owner"), 8),
        (("issuers",), 11),
        (("issuers", "acme.corp"), 11),
        (("issuers", "acme.corp", "issuer"), 12),
        (("issuers", "acme.corp", "trust"), 13),
        (("issuers", "acme.corp", "client", "id"), 17),
        (("resources", 'https://billing.example/a"b'), 18),
        (("resources", 'https://billing.example/a"b', "transaction_token"), 19),
        (("resources", 'https://billing.example/a"b', "transaction_token", "issuer"), 19),
        (("resources", 'https://billing.example/a"b', "authorization_details", "type"), 21),
        (("session", "budget", "calls"), 23),
        (("session", "budget"), 23),
        (("http", "deadline"), 25),
    ],
)
def test_a_key_has_its_line(path, line) -> None:
    assert Lines(TEXT).of(path) == line


def test_a_key_that_is_not_there_has_its_tables_line() -> None:
    assert Lines(TEXT).of(("agent", "key")) == 3


def test_what_the_text_has_nothing_of_has_no_line() -> None:
    assert Lines(TEXT).of(("policy", "engine")) is None
    assert Lines("").of(("policy",)) is None


def test_line_ends_of_windows_count_alike() -> None:
    assert Lines(TEXT.replace("\n", "\r\n")).of(("http", "deadline")) == 25


def test_a_long_text_is_walked_in_one_pass() -> None:
    text = "[agent]\n" + 'x = "' + "a" * 500_000 + '"\n[http]\n'
    assert Lines(text).of(("http",)) == 3
