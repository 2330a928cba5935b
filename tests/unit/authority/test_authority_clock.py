# SPDX-License-Identifier: Apache-2.0
"""A clock that was wrong for a while: what is right by the present time is taken, and what was used or revoked stays so."""

from __future__ import annotations

import pytest

from agent_identity.verify import Revocations

CLIENT_CREDENTIALS = {"grant_type": "client_credentials", "resource": "https://billing.example/api"}
HOUR, DAY, YEAR = 3600, 86_400, 31_536_000
JUMPS = [
    (DAY, -DAY),
    (-DAY, DAY),
    (YEAR, -YEAR),
    (-YEAR, YEAR),
    (300, -300),
    (-31, 31, -31),
    (2 * HOUR, -HOUR, -HOUR),
]


def works(client) -> None:
    """A token is issued, is active, and isn't any more once it is revoked."""
    response = client.post("/token", CLIENT_CREDENTIALS, proof=client.rig.proof(client.key))
    assert response.status == 200, response.body
    token = client.rig.body(response)["access_token"]
    for path, active in (("/introspect", True), ("/revoke", None), ("/introspect", False)):
        answered = client.post(path, {"token": token})
        assert answered.status == 200, answered.body
        assert client.rig.body(answered).get("active") is active
    assert client.grant().status == 200


@pytest.mark.parametrize("jumps", JUMPS)
def test_a_client_of_this_run_is_taken_whatever_the_clock_did(rig, clock, jumps) -> None:
    bot = rig.client()
    works(bot)
    for jump in jumps:
        clock.now += jump
        works(rig.client())  # the first one's lease may have run out by this clock
    works(bot)


@pytest.mark.parametrize("jump", [60, 3 * HOUR, 2 * DAY])
def test_a_used_assertion_and_a_used_proof_stay_used(rig, bot, clock, jump: int) -> None:
    assertion, proof = bot.assertion(), rig.proof(bot.key)
    sent = {"assertion": assertion, "proof": proof}
    assert bot.post("/token", CLIENT_CREDENTIALS, **sent).status == 200
    clock.now += jump
    works(rig.client())
    clock.now -= jump
    response = bot.post("/token", CLIENT_CREDENTIALS, **sent)
    assert rig.refusal(response) == (401, "invalid_client", "replayed")
    response = bot.post("/token", CLIENT_CREDENTIALS, proof=proof)
    assert rig.refusal(response) == (400, "invalid_dpop_proof", "replayed")


def test_what_another_run_saw_is_refused_also_after_the_clock_was_set_back(
    make_rig, clock, tmp_path
) -> None:
    """A client of an earlier run may have used its assertion there, which this one can't know."""
    bot = make_rig(tmp_path).client()
    assertion = bot.assertion(exp=int(clock()) + 300)
    assert bot.post("/token", CLIENT_CREDENTIALS, assertion=assertion).status == 200
    clock.now += HOUR
    bot.rig = make_rig(tmp_path)
    clock.now -= HOUR
    response = bot.post("/token", CLIENT_CREDENTIALS, assertion=assertion)
    assert bot.rig.refusal(response) == (401, "invalid_client", "issued_before_start")
    works(bot.rig.client())


def test_a_clock_that_was_ahead_ends_nobodys_registration(make_rig, clock, tmp_path) -> None:
    first, second = make_rig(tmp_path), make_rig(tmp_path)
    bot = first.client()
    clock.now += 2 * DAY
    assert second.client().post("/token", CLIENT_CREDENTIALS).status == 200
    clock.now -= 2 * DAY
    works(bot)


def test_a_clock_that_was_ahead_lets_no_revocation_be_forgotten(rig, bot, clock) -> None:
    authority, issued = rig.authority, clock.now
    authority.revoke("tok_1", ends=issued + 300)
    clock.now += DAY
    authority.revoke("tok_2", ends=clock.now + 300)
    clock.now = issued
    assert authority.is_revoked(("tok_1",), issued)
    assert "tok_1" in dict(authority._store.revocations(issued))


def test_a_reinstatement_by_a_clock_that_was_set_back_brings_nothing_back(rig, clock) -> None:
    clock.now += DAY
    issued = clock.now
    rig.authority.revoke("user:alice")
    clock.now -= DAY
    rig.authority.reinstate("user:alice")
    assert rig.authority.is_revoked(("user:alice",), int(issued))


def test_a_second_revocation_never_ends_sooner_than_the_first(rig, clock) -> None:
    rig.authority.revoke("user:alice")
    rig.authority.revoke("user:alice", ends=clock.now + 10)
    assert dict(rig.authority._store.revocations(clock.now + HOUR)) == {"user:alice": None}


@pytest.mark.parametrize("durable", [False, True])
def test_a_verifier_takes_the_list_of_an_authority_whose_clock_was_ahead(
    make_rig, clock, tmp_path, durable: bool
) -> None:
    rig = make_rig(tmp_path if durable else None)
    known = Revocations(rig.issuer, rig.authority._keyring.jwks, clock=clock)
    for jump in (0, DAY, -DAY, 0, 1):
        clock.now += jump
        if durable:
            rig = make_rig(tmp_path)
        assert known.update(rig.authority.revocations())
        assert not known.is_revoked(("user:alice",), clock.now)


@pytest.mark.parametrize("now", [float("nan"), float("inf"), None, "1"])
def test_a_clock_that_gives_no_time_makes_nothing_active(rig, bot, clock, now: object) -> None:
    """NaN is after nothing: by it no token would ever have expired."""
    token = bot.root()
    clock.now += DAY
    assertion = bot.assertion()
    clock.now = now
    response = bot.post("/introspect", {"token": token}, assertion=assertion)
    assert rig.refusal(response) == (503, "temporarily_unavailable", "state_unavailable")
