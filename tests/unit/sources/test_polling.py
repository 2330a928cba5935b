# SPDX-License-Identifier: Apache-2.0
"""Waiting for a person, played by hand: how often the issuer is asked, and how long (RFC 8628 §3.5, CIBA §11)."""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity.credentials.oauth.requests import UNBOUND
from agent_identity.credentials.oauth.responses import Fields
from agent_identity.credentials.sources.signing_in import poll, span_of
from agent_identity.errors import (
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import HttpRequest, HttpResponse, Pause, run

FORM = [("grant_type", "g"), ("device_code", "d")]


def polled(
    rig: Any, *answers: Any, interval: float = 5.0, life: float = 600.0, deadline: float = 1e9
) -> tuple[list[float], Any]:
    """The pauses between questions, and what came of it; pauses move the clock."""
    left, pauses = list(answers), []

    def world(ask: Any) -> Any:
        if isinstance(ask, Pause):
            if ask.seconds > deadline:
                raise TransportError("deadline_exceeded", "it doesn't fit")
            rig.now += ask.seconds
            pauses.append(ask.seconds)
            return None
        assert isinstance(ask, HttpRequest)
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    flow = poll(rig.issuer(), FORM, binding=UNBOUND, interval=interval, expires_at=rig.now + life)
    try:
        return pauses, run(flow, world)
    except (CredentialRejectedError, CredentialUnavailableError) as error:
        return pauses, error


def test_the_issuer_is_asked_again_while_the_person_thinks(rig) -> None:
    pending = rig.refused("authorization_pending")
    pauses, answer = polled(rig, pending, pending, rig.answered("the-token"))
    assert pauses == [5.0, 5.0, 5.0]
    assert answer.token.reveal() == "the-token"


def test_a_busy_issuer_is_asked_more_slowly_and_not_given_up(rig) -> None:
    pauses, answer = polled(rig, HttpResponse(503), rig.answered("the-token"))
    assert pauses == [5.0, 10.0]
    assert answer.token.reveal() == "the-token"


def test_a_busy_issuers_own_word_counts_up_to_a_minute(rig) -> None:
    seven = HttpResponse(429, {"retry-after": "17"})
    hour = HttpResponse(429, {"retry-after": "3600"})
    pauses, _ = polled(rig, seven, hour, rig.answered("the-token"))
    assert pauses == [5.0, 17.0, 60.0]


@pytest.mark.parametrize("code", ["expired_token", "access_denied", "invalid_grant"])
def test_a_final_word_is_final(rig, code: str) -> None:
    pauses, error = polled(rig, rig.refused(code))
    assert (error.code, len(pauses)) == (code, 1)


def test_what_the_deadline_has_no_room_for_is_not_waited_for(rig) -> None:
    pauses, error = polled(rig, rig.refused("authorization_pending"), deadline=1.0)
    assert (pauses, error.code) == ([], "interaction_timeout")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, (5.0, 300.0)),
        ({"interval": 0}, (5.0, 300.0)),
        ({"interval": -5}, (1.0, 300.0)),
        ({"interval": 0.001}, (1.0, 300.0)),
        ({"interval": 1e9}, (60.0, 300.0)),
        ({"interval": "5"}, (5.0, 300.0)),
        ({"interval": True}, (5.0, 300.0)),
        ({"expires_in": 60}, (5.0, 60.0)),
        ({"expires_in": 1e9}, (5.0, 300.0)),
        ({"expires_in": 0}, (5.0, 300.0)),
        ({"expires_in": -5}, (5.0, 300.0)),
        ({"expires_in": "60"}, (5.0, 300.0)),
    ],
)
def test_an_issuers_word_on_pace_and_end_counts_within_bounds(members: Any, expected: Any) -> None:
    assert span_of(Fields(members), 300.0) == expected
