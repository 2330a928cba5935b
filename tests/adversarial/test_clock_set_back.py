# SPDX-License-Identifier: Apache-2.0
"""Sessions of an embedded identity while the machine's clock is wrong, and after it was set right."""

from __future__ import annotations

import pytest

from agent_identity import AgentIdentity, current_credential, tool

BILLING = "https://billing.example"
HOUR, DAY, YEAR = 3600, 86_400, 31_536_000


@tool(resource=BILLING, scopes=["read"])
def read() -> object:
    return current_credential().headers("GET", f"{BILLING}/invoices", b"")


def act(identity: AgentIdentity) -> None:
    """A session, a token in it, and a sub-agent's."""
    options = {"purpose": "close the books", "scopes": ["read"], "resources": [BILLING]}
    with identity.on_behalf_of("user:alice", **options) as session:
        assert read()
        with session.delegate("archive-bot", scopes=["read"]):
            assert read()


@pytest.mark.parametrize(
    "jumps",
    [
        (DAY, -DAY),
        (-DAY, DAY),
        (HOUR, -HOUR),
        (-HOUR, HOUR),
        (YEAR, -YEAR),
        (-YEAR, YEAR),
        (300, -300),
        (-31, 31, -31),
        (2 * HOUR, -HOUR, -HOUR),
        (12 * HOUR + 100, -12 * HOUR - 100, 10),
    ],
)
def test_sessions_begin_whatever_the_clock_did(tmp_path, clock, jumps) -> None:
    with AgentIdentity.embedded("invoice-bot", state_dir=tmp_path, clock=clock) as identity:
        act(identity)
        for jump in jumps:
            clock.now += jump
            act(identity)
        act(identity)


def test_a_neighbour_that_began_while_the_clock_was_ahead_ends_no_session(tmp_path, clock) -> None:
    with AgentIdentity.embedded("invoice-bot", state_dir=tmp_path, clock=clock) as first:
        act(first)
        clock.now += 2 * DAY
        with AgentIdentity.embedded("other-bot", state_dir=tmp_path, clock=clock) as second:
            act(second)
            clock.now -= 2 * DAY
            act(first)
            act(second)
