# SPDX-License-Identifier: Apache-2.0
"""When an issuer fails: what its Retry-After means, how long one waits, when nobody asks it at all (RFC 9110 §10.2.3)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_identity.credentials.oauth.retries import Breaker, retry_after, wait_for
from agent_identity.credentials.sources.client_credentials import ClientCredentials
from agent_identity.errors import (
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import HttpResponse, Pause, run
from agent_identity.testing import play

NOW = 1_795_518_000.0
IDP = "https://idp.example"
_DATES = ["Mon,", "31", "Dec", "9999", "0001", "00:00:00", "GMT", "+9999", "-", "::", "9" * 20]


@given(st.one_of(st.text(), st.lists(st.sampled_from(_DATES), max_size=8).map(" ".join)))
def test_whatever_stands_there_is_seconds_up_to_an_hour_or_nothing(value: str) -> None:
    seconds = retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= 3600


@pytest.mark.parametrize(
    "value",
    [
        "Mon, 01 Jan 2026 00:00:00 +99999999999999",
        "Mon, 01 Jan 2026 99999999999999999999:00:00 GMT",
        "Mon, 01 Jan 99999 00:00:00 GMT",
    ],
)
def test_a_date_too_large_for_any_clock_is_junk(value: str) -> None:
    assert retry_after(value, NOW) is None


def test_a_wait_that_the_deadline_has_no_room_for_gives_the_failure_itself() -> None:
    failure = CredentialUnavailableError("issuer_busy", "busy", retry_after=30.0)

    def world(ask: Any) -> None:
        raise TransportError("deadline_exceeded", "it doesn't fit")

    with pytest.raises(CredentialUnavailableError) as caught:
        run(wait_for(failure, 1), world)
    assert caught.value is failure


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[Breaker, Clock]:
    """A breaker that five failures opened a moment ago."""
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(5):
        breaker.check(IDP)
        breaker.note_failure()
    return breaker, clock


def test_four_failures_in_a_row_keep_nobody_out() -> None:
    breaker = Breaker(Clock())
    for _ in range(4):
        breaker.note_failure()
    breaker.check(IDP)


def test_five_failures_in_a_row_keep_everybody_out_for_thirty_seconds() -> None:
    breaker, clock = opened()
    for passed, left in ((0.0, 30.0), (20.0, 10.0), (9.0, 1.0)):
        clock.now += passed
        with pytest.raises(CredentialUnavailableError) as caught:
            breaker.check(IDP)
        assert (caught.value.code, caught.value.retry_after) == ("issuer_unavailable", left)


def test_after_thirty_seconds_one_caller_tries_it_and_the_others_wait_on() -> None:
    breaker, clock = opened()
    clock.now += 30
    breaker.check(IDP)
    with pytest.raises(CredentialUnavailableError):
        breaker.check(IDP)


def test_a_trial_that_gets_an_answer_lets_everybody_in() -> None:
    breaker, clock = opened()
    clock.now += 30
    breaker.check(IDP)
    breaker.note_answer()
    for _ in range(3):
        breaker.check(IDP)


def test_a_trial_that_fails_closes_the_door_for_another_thirty_seconds() -> None:
    breaker, clock = opened()
    clock.now += 30
    breaker.check(IDP)
    breaker.note_failure()
    clock.now += 29
    with pytest.raises(CredentialUnavailableError):
        breaker.check(IDP)
    clock.now += 1
    breaker.check(IDP)


def test_a_trial_that_nobody_brings_to_an_end_keeps_nobody_out_for_longer() -> None:
    breaker, clock = opened()
    clock.now += 30
    breaker.check(IDP)
    clock.now += 30
    breaker.check(IDP)


def test_an_answer_in_between_starts_the_count_anew() -> None:
    breaker = Breaker(Clock())
    for _ in range(4):
        breaker.note_failure()
    breaker.note_answer()
    for _ in range(4):
        breaker.note_failure()
    breaker.check(IDP)


def test_an_issuer_that_failed_five_times_isnt_asked_until_one_trial_succeeds(rig) -> None:
    source = ClientCredentials(rig.issuer())
    away = HttpResponse(503)
    asks: list[Any] = []
    with pytest.raises(CredentialUnavailableError):
        play(source.fetch(rig.wanted()), away, away, away, asks=asks)
    with pytest.raises(CredentialUnavailableError) as caught:
        play(source.fetch(rig.wanted()), away, away, asks=asks)
    assert (caught.value.code, caught.value.retry_after) == ("issuer_unavailable", 30.0)
    with pytest.raises(CredentialUnavailableError) as caught:
        play(source.fetch(rig.wanted()), asks=asks)
    assert caught.value.code == "issuer_unavailable"
    assert len(rig.requests(asks)) == 5
    rig.monotonic += 30
    play(source.fetch(rig.wanted()), rig.answered())
    play(source.fetch(rig.wanted()), away, rig.answered())


def test_a_refusal_is_an_answer_and_no_failure(rig) -> None:
    source = ClientCredentials(rig.issuer())
    for _ in range(7):
        with pytest.raises(CredentialRejectedError):
            play(source.fetch(rig.wanted()), rig.refused("invalid_client", 401))
    play(source.fetch(rig.wanted()), rig.answered())


def test_the_pause_before_another_attempt_is_random_and_grows(rig) -> None:
    drawn: list[list[float]] = []
    for _ in range(20):
        asks: list[Any] = []
        play(
            ClientCredentials(rig.issuer()).fetch(rig.wanted()),
            *(HttpResponse(500), HttpResponse(500), rig.answered()),
            asks=asks,
        )
        drawn.append([ask.seconds for ask in asks if isinstance(ask, Pause)])
    first, second = zip(*drawn, strict=True)
    assert len(set(first)) > 1
    assert 0 <= min(first) <= max(first) <= 0.4
    assert 0 <= min(second) <= max(second) <= 0.8
