# SPDX-License-Identifier: Apache-2.0
"""An issuer as one identity knows it, played by hand: what is kept of it, and for how long while it is away."""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity.credentials.oauth.issuer import Issuer
from agent_identity.credentials.oauth.issuer_keys import IssuerKeys
from agent_identity.errors import (
    ConfigurationError,
    CredentialRejectedError,
    CredentialUnavailableError,
)
from agent_identity.flow import Done, HttpResponse, Shared, advance
from agent_identity.keys.signing import SigningKey
from agent_identity.testing import play

IDP = "https://idp.example"
AWAY = [HttpResponse(503)] * 3


def issuer(rig: Any, **parts: Any) -> IssuerKeys:
    return IssuerKeys(
        IDP,
        clock=rig.clock,
        monotonic=lambda: rig.monotonic,
        **parts,
    )


def metadata(rig: Any, **members: Any) -> HttpResponse:
    return rig.json(issuer=IDP, token_endpoint=f"{IDP}/token", jwks_uri=f"{IDP}/jwks", **members)


def keys(rig: Any, *kids: str) -> HttpResponse:
    return rig.json(keys=[{**SigningKey.generate().public_jwk, "kid": kid} for kid in kids])


def test_the_metadata_says_where_the_keys_are(rig) -> None:
    asks: list[Any] = []
    play(issuer(rig).key("k-1"), metadata(rig), keys(rig, "k-1"), asks=asks)
    assert [request.url for request in rig.requests(asks)] == [
        *(f"{IDP}/.well-known/oauth-authorization-server", f"{IDP}/jwks")
    ]


def test_a_configured_place_of_the_keys_needs_no_metadata(rig) -> None:
    asks: list[Any] = []
    play(issuer(rig, jwks=f"{IDP}/keys").key("k-1"), keys(rig, "k-1"), asks=asks)
    assert [request.url for request in rig.requests(asks)] == [f"{IDP}/keys"]


def test_metadata_that_fails_is_asked_for_three_times_and_not_nine(rig) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialUnavailableError) as caught:
        play(issuer(rig).key("k-1"), *AWAY, asks=asks)
    assert caught.value.code == "issuer_busy"
    assert len(rig.requests(asks)) == 3


def test_keys_that_fail_are_asked_for_three_times(rig) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialUnavailableError):
        play(issuer(rig).key("k-1"), metadata(rig), *AWAY, asks=asks)
    assert len(rig.requests(asks)) == 4


def test_metadata_outlives_its_end_by_an_hour_while_the_issuer_is_away(rig) -> None:
    known = issuer(rig)
    first = play(known.endpoints(), metadata(rig))
    rig.now += 300 + 3599
    assert play(known.endpoints(), *AWAY) == first
    rig.now += 1
    rig.monotonic += 31
    with pytest.raises(CredentialUnavailableError):
        play(known.endpoints(), *AWAY)


def test_metadata_that_names_another_issuer_is_no_outage(rig) -> None:
    known = issuer(rig)
    play(known.endpoints(), metadata(rig))
    with pytest.raises(CredentialRejectedError) as caught:
        play(known.endpoints(), *[rig.json(issuer="https://other.example")] * 2)
    assert caught.value.code == "issuer_mismatch"


@pytest.mark.parametrize("seconds", [0, 1, 29, 30, 299])
def test_a_key_that_was_rotated_after_the_keys_were_read_is_found(rig, seconds: int) -> None:
    known = issuer(rig, jwks=f"{IDP}/keys")
    play(known.key("old"), keys(rig, "old"))
    rig.now += seconds
    assert play(known.key("new"), keys(rig, "new"))["kid"] == "new"


def test_an_unknown_key_is_looked_for_every_thirty_seconds_whatever_was_read_since(rig) -> None:
    known = issuer(rig, jwks=f"{IDP}/keys")
    play(known.key("old"), keys(rig, "old"))
    for kid, seconds, answers in (
        ("x", 1, [keys(rig, "old")]),
        ("y", 1, []),
        ("new", 28, []),
        ("new", 1, [keys(rig, "new")]),
        ("y", 1, []),
    ):
        rig.now += seconds
        if kid == "new" and answers:
            assert play(known.key(kid), *answers)["kid"] == "new"
            continue
        with pytest.raises(CredentialRejectedError) as caught:
            play(known.key(kid), *answers)
        assert caught.value.code == "unknown_key"


def test_keys_that_were_read_for_an_unknown_one_are_not_read_twice(rig) -> None:
    known = issuer(rig, jwks=f"{IDP}/keys")
    for _ in range(2):
        with pytest.raises(CredentialRejectedError) as caught:
            play(known.key("x"), keys(rig, "old"))
        assert caught.value.code == "unknown_key"
        rig.now += 301


def test_keys_of_a_clock_that_went_back_are_read_again(rig) -> None:
    known = issuer(rig, jwks=f"{IDP}/keys")
    play(known.key("k-1"), keys(rig, "k-1"))
    rig.now -= 3600
    assert play(known.key("k-1"), keys(rig, "k-1"))["kid"] == "k-1"


def test_a_forked_child_knows_no_nonce_and_counts_no_failure_of_its_parents(rig) -> None:
    known = Issuer(IDP, clients=None, clock=rig.clock, monotonic=lambda: rig.monotonic)
    known.nonces.learn(f"{IDP}/token", "n-1")
    for _ in range(5):
        known.breaker.note_failure()
    known.start_over()
    assert known.nonces.get(f"{IDP}/token") is None
    known.breaker.check(IDP)


def test_two_tables_of_one_url_share_nothing_that_was_read_for_the_other(rig) -> None:
    """One may have its keys pinned, origins of its own or another client: neither serves through the other's cache."""
    asked: dict[str, list[bytes]] = {"one": [], "two": []}
    for name, keys_of in asked.items():
        known = issuer(rig)
        asks: list[Any] = []
        play(known.key("k-1"), metadata(rig), keys(rig, "k-1"), asks=asks)
        keys_of += [ask.key for ask in asks if isinstance(ask, Shared)]
        assert name in asked
    assert len(asked["one"]) == 2
    assert not set(asked["one"]) & set(asked["two"])


def test_what_the_issuer_answered_itself_is_looked_for_at_once(rig) -> None:
    known = issuer(rig, jwks=f"{IDP}/keys")
    play(known.key("old"), keys(rig, "old"))
    for answers in ([keys(rig, "old")], []):
        with pytest.raises(CredentialRejectedError) as caught:
            play(known.key("new"), *answers)
        assert caught.value.code == "unknown_key"
    assert play(known.key("new", at_once=True), keys(rig, "new"))["kid"] == "new"


def begun(flow: Any) -> Shared[Any]:
    """The shared fetch that a flow asks for first."""
    ask = advance(flow, None)
    assert isinstance(ask, Shared)
    return ask


def test_callers_that_need_a_new_key_share_the_look_that_is_under_way(rig) -> None:
    known = issuer(rig, jwks=f"{IDP}/keys")
    play(known.key("old"), keys(rig, "old"))
    first, second = known.key("new"), known.key("new")
    ask, same = begun(first), begun(second)
    assert same.key == ask.key
    newer = play(ask.start(), keys(rig, "old", "new"))
    for flow in (second, first):
        done = advance(flow, newer)
        assert isinstance(done, Done)
        assert done.value["kid"] == "new"


def test_an_unknown_key_asks_once_while_a_look_is_under_way_and_after_it_failed(rig) -> None:
    known = issuer(rig, jwks=f"{IDP}/keys")
    play(known.key("old"), keys(rig, "old"))
    first, late = known.key("x"), known.key("y")
    ask, joined = begun(first), begun(late)
    with pytest.raises(CredentialUnavailableError) as away:
        play(ask.start(), *AWAY)
    for flow in (first, late):
        with pytest.raises(CredentialRejectedError):
            advance(flow, away.value.copy())
    asks: list[Any] = []
    with pytest.raises(CredentialUnavailableError) as refused:
        play(joined.start(), asks=asks)  # boarded just after the first one had landed
    assert refused.value.code == "issuer_unavailable"
    with pytest.raises(CredentialRejectedError):
        play(known.key("z"), asks=asks)
    assert asks == []


def test_a_look_that_was_abandoned_leaves_the_next_caller_to_look(rig) -> None:
    known = issuer(rig, jwks=f"{IDP}/keys")
    play(known.key("old"), keys(rig, "old"))
    first = known.key("new")
    fetch = begun(first).start()
    advance(fetch, None)
    fetch.close()
    first.close()
    assert play(known.key("new"), keys(rig, "new"))["kid"] == "new"


def test_an_issuer_without_a_client_gives_its_keys_and_is_asked_for_nothing_else(rig) -> None:
    known = Issuer(IDP, clients=None, clock=rig.clock, jwks=f"{IDP}/keys")
    assert play(known.key("k-1"), keys(rig, "k-1"))["kid"] == "k-1"
    with pytest.raises(ConfigurationError, match=IDP) as caught:
        play(known.token([]), metadata(rig))
    assert caught.value.code == "client_missing"
