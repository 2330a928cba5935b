# SPDX-License-Identifier: Apache-2.0
"""Refresh tokens, played by hand: where they are kept, whose they are, and what the issuer is asked with them (RFC 6749 §6)."""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity.credentials.agent import Agent
from agent_identity.credentials.sources.refresh_token import RefreshToken, RefreshTokens
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Keep
from agent_identity.testing import play
from agent_identity.values import Principal, Secret

PLACE = "keyring:billing"


def held(tokens: RefreshTokens, wanted: Any, kept: dict[str, Secret] | None = None) -> str | None:
    found = play(tokens.get(wanted), kept=kept)
    return None if found is None else found.reveal()


def test_a_refresh_asks_for_the_same_resource_and_scope_and_is_bound_to_the_same_key(rig) -> None:
    asks: list[Any] = []
    tokens = RefreshTokens()
    play(tokens.put(rig.wanted(), Secret("r-1")))
    issued = play(RefreshToken(rig.issuer(), tokens).fetch(rig.wanted()), rig.answered(), asks=asks)
    (request,) = rig.requests(asks)
    form = rig.form(request)
    assert (form["grant_type"], form["refresh_token"]) == ("refresh_token", "r-1")
    assert (form["resource"], form["scope"]) == (rig.BILLING, "invoices:read")
    assert "DPoP" in request.headers
    assert issued.is_bound


def test_without_a_refresh_token_nothing_is_asked(rig) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        play(RefreshToken(rig.issuer(), RefreshTokens()).fetch(rig.wanted()), asks=asks)
    assert caught.value.code == "refresh_token_missing"
    assert rig.requests(asks) == []


def test_a_refresh_token_that_comes_back_unchanged_is_not_kept_again(rig) -> None:
    asks: list[Any] = []
    tokens, kept = RefreshTokens(PLACE), {}
    play(tokens.put(rig.wanted(), Secret("r-1")), kept=kept)
    play(
        RefreshToken(rig.issuer(), tokens).fetch(rig.wanted()),
        rig.answered(refresh_token="r-1"),
        asks=asks,
        kept=kept,
    )
    assert not [ask for ask in asks if isinstance(ask, Keep)]


LIKE_ONE_ANOTHER = [
    Principal("alice"),
    Principal("Alice"),
    Principal("alice", profile="service"),
    Principal("alice", iss="https://idp.example"),
    Principal("alice", iss="https://idp.example#"),
    Principal("a#b", iss="https://idp.example"),
    Principal("b", iss="https://idp.example#a"),
    Principal("alice\0https://idp.example"),
]


@pytest.mark.parametrize("reference", [None, PLACE], ids=["in memory", "kept"])
def test_principals_whose_names_read_alike_never_share_a_refresh_token(rig, reference) -> None:
    tokens, kept = RefreshTokens(reference), {}
    for number, principal in enumerate(LIKE_ONE_ANOTHER):
        play(tokens.put(rig.wanted(principal=principal), Secret(f"r-{number}")), kept=kept)
    found = [held(tokens, rig.wanted(principal=one), kept) for one in LIKE_ONE_ANOTHER]
    assert found == [f"r-{number}" for number in range(len(LIKE_ONE_ANOTHER))]


def test_two_sources_with_one_place_keep_apart(rig) -> None:
    kept: dict[str, Secret] = {}
    one, two = RefreshTokens(PLACE, scope="billing"), RefreshTokens(PLACE, scope="mail")
    play(one.put(rig.wanted(), Secret("r-1")), kept=kept)
    assert held(two, rig.wanted(), kept) is None


def test_the_name_of_a_kept_token_says_nothing_of_whose_it_is(rig) -> None:
    kept: dict[str, Secret] = {}
    play(RefreshTokens(PLACE).put(rig.wanted(), Secret("r-1")), kept=kept)
    (name,) = kept
    assert name.startswith(f"{PLACE}.")
    assert "alice" not in name


def test_in_memory_another_key_has_another_token(rig) -> None:
    """RFC 9449 §5: a public client's refresh token is bound to its key."""
    tokens = RefreshTokens()
    play(tokens.put(rig.wanted(), Secret("r-1")))
    other = Agent("urn:agent-identity:agent:invoice-bot")
    assert held(tokens, rig.wanted(proof_key=other.proof_key)) is None


def test_what_is_kept_beyond_the_process_serves_the_next_key(rig) -> None:
    tokens, kept = RefreshTokens(PLACE), {}
    play(tokens.put(rig.wanted(), Secret("r-1")), kept=kept)
    other = Agent("urn:agent-identity:agent:invoice-bot")
    assert held(tokens, rig.wanted(proof_key=other.proof_key), kept) == "r-1"


def test_a_fixed_place_serves_whoever_is_acted_for(rig) -> None:
    tokens = RefreshTokens(PLACE, fixed=True)
    kept = {PLACE: Secret("r-1")}
    assert held(tokens, rig.wanted(principal=Principal("bob")), kept) == "r-1"


def left(rig: Any) -> RefreshToken:
    """A refresh token that an operator put where the configuration says, alice's."""
    return RefreshToken(rig.issuer(), RefreshTokens(PLACE, fixed=True))


def test_a_token_that_was_left_for_all_gives_nobody_another_ones_access(rig) -> None:
    for principal in (Principal("bob"), Principal("bob", iss=rig.IDP)):
        kept = {PLACE: Secret("r-1")}
        with pytest.raises(CredentialRejectedError) as caught:
            play(left(rig).fetch(rig.wanted(principal=principal)), rig.answered(), kept=kept)
        assert caught.value.code == "subject_mismatch"


@pytest.mark.parametrize("token", ["opaque", None], ids=["opaque", "a JWT without sub"])
def test_a_token_that_shows_nobody_is_the_operators_word_and_recorded_as_opaque(rig, token) -> None:
    kept = {PLACE: Secret("r-1")}
    answer = rig.answered(token or rig.token(sub=None))
    issued = play(left(rig).fetch(rig.wanted()), answer, kept=kept)
    assert issued.is_opaque


def test_an_introspected_holder_counts_as_well(rig) -> None:
    source = RefreshToken(
        rig.issuer(introspection=f"{rig.IDP}/introspect"), RefreshTokens(PLACE, fixed=True)
    )
    said = {"active": True, "aud": rig.BILLING, "cnf": {"jkt": rig.agent.key.thumbprint}}
    for sub, code in (("bob", "subject_mismatch"), ("alice", None)):
        answers = [rig.answered("opaque"), rig.json(**said, sub=sub)]
        flow = source.fetch(rig.wanted())
        if code is None:
            assert not play(flow, *answers, kept={PLACE: Secret("r-1")}).is_opaque
            continue
        with pytest.raises(CredentialRejectedError) as caught:
            play(flow, *answers, kept={PLACE: Secret("r-1")})
        assert caught.value.code == code


def test_a_session_that_acts_for_nobody_uses_the_operators_token_as_it_is(rig) -> None:
    kept = {PLACE: Secret("r-1")}
    nobody = Principal("cron:nightly", iss=rig.agent.uri, profile="trigger")
    issued = play(left(rig).fetch(rig.wanted(principal=nobody)), rig.answered(), kept=kept)
    assert not issued.is_opaque


def test_an_operators_token_that_was_taken_back_stays_and_the_error_says_what_to_do(rig) -> None:
    kept = {PLACE: Secret("r-1")}
    with pytest.raises(CredentialRejectedError) as caught:
        play(left(rig).fetch(rig.wanted()), rig.refused("invalid_grant"), kept=kept)
    assert caught.value.code == "invalid_grant"
    assert "store the new refresh token at the configured place" in str(caught.value.remedy)
    assert kept[PLACE].reveal() == "r-1"


def test_a_forked_child_starts_without_the_parents_tokens(rig) -> None:
    tokens = RefreshTokens()
    play(tokens.put(rig.wanted(), Secret("r-1")))
    tokens.start_over()
    assert held(tokens, rig.wanted()) is None


@pytest.mark.parametrize("reference", [None, PLACE], ids=["in memory", "kept"])
def test_a_token_that_took_its_place_meanwhile_is_not_dropped(rig, reference) -> None:
    tokens, kept = RefreshTokens(reference), {}
    play(tokens.put(rig.wanted(), Secret("r-2")), kept=kept)
    play(tokens.drop(rig.wanted(), Secret("r-1")), kept=kept)
    assert held(tokens, rig.wanted(), kept) == "r-2"


def test_no_refresh_token_shows_in_a_repr(rig) -> None:
    tokens = RefreshTokens()
    play(tokens.put(rig.wanted(), Secret("r-canary")))
    assert "r-canary" not in repr(tokens) + repr(RefreshToken(rig.issuer(), tokens))
