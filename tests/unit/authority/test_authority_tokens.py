# SPDX-License-Identifier: Apache-2.0
"""Tokens without a chain, proofs of possession at the token endpoint, and what becomes of a token."""

from __future__ import annotations

import re
from uuid import uuid4

import jwt
import pytest

from agent_identity.authority import Terms
from agent_identity.delegation.grant import signing_input_hash
from agent_identity.errors import ConfigurationError
from agent_identity.keys.signing import SigningKey
from agent_identity.verify import Revocations

BILLING = "https://billing.example/api"
BOT = "urn:agent-identity:agent:invoice-bot"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


# --- client_credentials -------------------------------------------------------------------------------------------------


def test_a_client_gets_a_token_in_its_own_name(rig, bot, clock) -> None:
    response = bot.post(
        "/token",
        {"grant_type": "client_credentials", "resource": BILLING, "scope": "b a a"},
    )
    answer = rig.body(response)
    assert (response.status, answer["token_type"], answer["expires_in"]) == (200, "Bearer", 300)
    assert answer["scope"] == "a b"
    claims = rig.claims(answer["access_token"], typ="at+jwt")
    assert claims.pop("jti").startswith("tok_")
    now = int(clock())
    assert claims == {
        "iss": rig.issuer,
        "sub": bot.client_id,
        "sub_profile": "ai_agent",
        "aud": BILLING,
        "client_id": bot.client_id,
        "scope": "a b",
        "iat": now,
        "exp": now + 300,
    }
    assert rig.authority.issued == {"access_token": 1}


@pytest.mark.parametrize(
    ("form", "refused"),
    [
        ({"grant_type": None}, ("invalid_request", "grant_type_missing")),
        ({"grant_type": "password"}, ("unsupported_grant_type", "grant_type_unknown")),
        ({"grant_type": "Client_Credentials"}, ("unsupported_grant_type", "grant_type_unknown")),
        ({"resource": None}, ("invalid_target", "resource_missing")),
        ({"resource": [BILLING, "https://b.example"]}, ("invalid_target", "resource_missing")),
        ({"resource": "urn:agent-identity:local"}, ("invalid_target", "resource_local")),
        ({"scope": "admin"}, ("invalid_scope", "scope_widened")),
        ({"grant_type": JWT_BEARER}, ("unsupported_grant_type", "grant_type_unknown")),
    ],
)
def test_a_token_request_that_breaks_a_rule_is_refused(rig, form, refused) -> None:
    bot = rig.configured(Terms(scopes=frozenset({"a"})))
    asked = {"grant_type": "client_credentials", "resource": BILLING, "scope": "a"} | form
    assert rig.refusal(bot.post("/token", asked)) == (400, *refused)
    assert not rig.authority.issued


# --- DPoP ---------------------------------------------------------------------------------------------------------------


def credentials(rig, bot, proof: str):
    form = {"grant_type": "client_credentials", "resource": BILLING}
    return bot.post("/token", form, proof=proof)


def test_a_proof_binds_the_token_to_its_key(rig, bot) -> None:
    key = SigningKey.generate("Ed25519")
    answer = rig.body(credentials(rig, bot, rig.proof(key)))
    assert answer["token_type"] == "DPoP"
    claims = rig.claims(answer["access_token"], typ="at+jwt")
    assert claims["cnf"] == {"jkt": key.thumbprint}


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({"htm": "GET"}, "dpop_method"),
        ({"htu": "https://other.example/token"}, "dpop_url"),
        ({"htu": "{issuer}/introspect"}, "dpop_url"),
        ({"iat": 1_795_518_000 - 301}, "dpop_stale"),
        ({"iat": 1_795_518_000 + 32}, "dpop_stale"),
        ({"jti": None}, "claim_missing"),
    ],
)
def test_a_proof_that_breaks_a_rule_is_refused(rig, bot, lie, why) -> None:
    key = SigningKey.generate()
    filled = {k: v.format(issuer=rig.issuer) if isinstance(v, str) else v for k, v in lie.items()}
    response = credentials(rig, bot, rig.proof(key, **filled))
    assert rig.refusal(response) == (400, "invalid_dpop_proof", why)
    assert not rig.authority.issued


def test_a_proof_is_good_once(rig, bot, clock) -> None:
    clock.now += 30
    proof = rig.proof(bot.key)
    assert credentials(rig, bot, proof).status == 200
    clock.now += 299
    assert rig.refusal(credentials(rig, bot, proof)) == (400, "invalid_dpop_proof", "replayed")
    clock.now += 1
    assert rig.refusal(credentials(rig, bot, proof)) == (400, "invalid_dpop_proof", "dpop_stale")


def test_a_proof_from_before_the_start_is_refused(make_rig, bot, rig, clock) -> None:
    response = credentials(rig, bot, rig.proof(bot.key, iat=int(clock()) - 31))
    assert rig.refusal(response) == (400, "invalid_dpop_proof", "issued_before_start")


def test_two_proofs_on_one_request_are_none(rig, bot) -> None:
    response = credentials(rig, bot, f"{rig.proof(bot.key)}, {rig.proof(bot.key)}")
    assert rig.refusal(response)[:2] == (400, "invalid_dpop_proof")


def test_a_nonce_is_asked_for_and_then_taken(make_rig, clock) -> None:
    rig = make_rig(require_nonce=True)
    bot = rig.client()
    first = credentials(rig, bot, rig.proof(bot.key))
    assert rig.refusal(first) == (400, "use_dpop_nonce", "nonce_needed")
    nonce = first.headers["dpop-nonce"]
    second = credentials(rig, bot, rig.proof(bot.key, nonce=nonce))
    assert second.status == 200
    assert second.headers["dpop-nonce"]
    clock.now += 300
    assert credentials(rig, bot, rig.proof(bot.key, nonce=nonce)).status == 200
    clock.now += 600
    third = credentials(rig, bot, rig.proof(bot.key, nonce=nonce))
    assert rig.refusal(third)[1] == "use_dpop_nonce"
    assert third.headers["dpop-nonce"] != nonce


@pytest.mark.parametrize("nonce", ["", "x", "é", 1, None])
def test_a_nonce_of_somebody_elses_is_none(make_rig, nonce) -> None:
    rig = make_rig(require_nonce=True)
    bot = rig.client()
    response = credentials(rig, bot, rig.proof(bot.key, nonce=nonce))
    assert response.status == 400
    assert not rig.authority.issued


# --- introspection ------------------------------------------------------------------------------------------------------


def test_an_active_token_says_what_it_is(rig, bot) -> None:
    token = rig.body(bot.exchange([bot.root()]))["access_token"]
    resource_server = rig.client("https://billing.example")
    answer = rig.body(resource_server.post("/introspect", {"token": token}))
    claims = rig.claims(token, typ="at+jwt")
    assert answer == {"active": True, "token_type": "DPoP", **claims}


def test_a_grant_is_introspected_like_a_token(rig, bot) -> None:
    root = bot.root()
    answer = rig.body(bot.post("/introspect", {"token": root}))
    assert (answer["active"], answer["token_type"]) == (True, "N_A")
    assert answer["act"]["sub"] == BOT


@pytest.mark.parametrize("reference", ["user:alice", "ses_1", BOT, "*", "token", "client"])
def test_a_revoked_token_is_not_active_and_says_nothing_else(rig, bot, reference) -> None:
    token = rig.body(bot.exchange([bot.root()]))["access_token"]
    jti = jwt.decode(token, options={"verify_signature": False})["jti"]
    other = rig.client("https://billing.example")
    named = {"token": jti, "client": bot.client_id}
    rig.authority.revoke(named.get(reference, reference))
    assert rig.body(other.post("/introspect", {"token": token})) == {"active": False}


@pytest.mark.parametrize(
    "reference",
    [
        "root",
        "leaf",
        "root-hash",
        "leaf-hash",
        "instance",
        "parent-instance",
        "archive-bot",
        "parent",
    ],
)
def test_a_token_ends_with_each_grant_and_instance_of_its_chain(
    rig, bot, clock, reference: str
) -> None:
    key = SigningKey.generate()
    root = bot.root()
    leaf = rig.child(root, bot.key, key=key)
    first, second = (
        rig.body(bot.exchange(c, key=k))["access_token"]
        for c, k in (([leaf, root], key), ([root], bot.key))
    )

    def jti(compact: str) -> str:
        return jwt.decode(compact, options={"verify_signature": False})["jti"]

    named = {
        "root": jti(root),
        "leaf": jti(leaf),
        "root-hash": signing_input_hash(root),
        "leaf-hash": signing_input_hash(leaf),
        "instance": key.thumbprint,
        "parent-instance": bot.key.thumbprint,
        "archive-bot": "urn:agent-identity:agent:archive-bot",
        "parent": BOT,
    }
    other = rig.client("https://billing.example")
    rig.authority.revoke(named[reference])
    assert rig.body(other.post("/introspect", {"token": first})) == {"active": False}
    is_shared = reference.startswith(("root", "parent"))
    assert rig.body(other.post("/introspect", {"token": second}))["active"] is not is_shared


def own_token(client) -> str:
    response = client.post("/token", {"grant_type": "client_credentials", "resource": BILLING})
    assert response.status == 200, response.body
    return client.rig.body(response)["access_token"]


@pytest.mark.parametrize("reference", [BOT, "client", "token", "*"])
def test_a_token_in_a_clients_own_name_ends_with_its_agent(rig, bot, clock, reference) -> None:
    token = own_token(bot)
    other = rig.client("urn:agent-identity:agent:other")
    theirs = own_token(other)
    jti = jwt.decode(token, options={"verify_signature": False})["jti"]
    reference = {"client": bot.client_id, "token": jti}.get(reference, reference)
    assert rig.body(other.post("/introspect", {"token": token}))["active"]
    rig.authority.revoke(reference)
    assert rig.body(other.post("/introspect", {"token": token})) == {"active": False}
    assert rig.body(other.post("/introspect", {"token": theirs}))["active"] is (reference != "*")
    rig.authority.reinstate(reference)
    clock.now += 1
    assert rig.body(other.post("/introspect", {"token": token})) == {"active": False}
    assert rig.body(other.post("/introspect", {"token": own_token(bot)}))["active"]


def test_a_grant_ends_with_the_client_that_it_was_issued_to(rig, bot, clock) -> None:
    root = bot.root()
    twin = rig.client()  # another instance of the same agent
    theirs = twin.root()
    rig.authority.revoke(bot.client_id)
    assert rig.body(twin.post("/introspect", {"token": root})) == {"active": False}
    assert rig.body(twin.post("/introspect", {"token": theirs}))["active"]
    rig.authority.reinstate(bot.client_id)
    clock.now += 1
    assert rig.body(twin.post("/introspect", {"token": root})) == {"active": False}
    assert rig.body(twin.post("/introspect", {"token": bot.root()}))["active"]


def test_everything_ends_by_one_reference_and_begins_again_by_it(rig, bot, clock) -> None:
    token = rig.body(bot.exchange([bot.root()]))["access_token"]
    known = Revocations(rig.issuer, rig.authority._keyring.jwks, clock=clock)
    rig.authority.revoke("*")
    assert rig.refusal(bot.grant())[:2] == (400, "invalid_grant")
    assert rig.body(bot.post("/introspect", {"token": token})) == {"active": False}
    known.update(rig.authority.revocations())
    assert known.is_revoked(("user:alice",), clock.now)
    clock.now += 1
    rig.authority.reinstate("*")
    clock.now += 1
    known.update(rig.authority.revocations())
    assert not known.is_revoked(("user:alice",), clock.now)
    assert bot.exchange([bot.root()]).status == 200
    assert rig.body(bot.post("/introspect", {"token": token})) == {"active": False}


@pytest.mark.parametrize("reference", ["user:alice", "*", "ses_1", BOT, "user:bob"])
def test_what_is_not_revoked_is_not_reinstated(rig, reference: str) -> None:
    rig.authority.revoke("user:carol")
    for _ in range(2):
        with pytest.raises(ConfigurationError) as refused:
            rig.authority.reinstate(reference)
        assert refused.value.code == "not_revoked"
        if reference == "user:bob":
            rig.authority.revoke("user:bob")
            rig.authority.reinstate("user:bob")


def test_an_expired_or_foreign_token_is_not_active(make_rig, rig, bot, clock) -> None:
    token = rig.body(bot.exchange([bot.root()]))["access_token"]
    foreign = make_rig().client()
    theirs = foreign.rig.body(foreign.exchange([foreign.root()]))["access_token"]
    for dead in (theirs, "x", "a.b.c", bot.subject(), bot.assertion(), token[:-4] + "AAAA"):
        assert rig.body(bot.post("/introspect", {"token": dead})) == {"active": False}
    assert rig.body(bot.post("/introspect", {"token": token}))["active"]
    clock.now = float(rig.claims(token, typ="at+jwt")["exp"])
    assert rig.body(bot.post("/introspect", {"token": token})) == {"active": False}


def test_a_signature_of_ours_over_something_else_is_no_token(rig, bot) -> None:
    token = rig.body(bot.exchange([bot.root()]))["access_token"]
    key = rig.authority._keyring.signing
    claims = jwt.decode(token, options={"verify_signature": False})
    for typ, active in (("at+jwt", True), ("agent-revocations+jwt", False), (None, False)):
        signed = rig.sign(key, {"typ": typ, "kid": key.thumbprint}, claims)
        assert rig.body(bot.post("/introspect", {"token": signed}))["active"] is active


def test_a_token_ends_with_any_agent_of_its_chain(rig, bot) -> None:
    key = SigningKey.generate()
    root = bot.root()
    leaf = rig.child(root, bot.key, key=key)
    token = rig.body(bot.exchange([leaf, root], key=key))["access_token"]
    other = rig.client("https://billing.example")
    assert rig.body(other.post("/introspect", {"token": token}))["active"]
    rig.authority.revoke(BOT)  # the parent, inside act
    assert rig.body(other.post("/introspect", {"token": token})) == {"active": False}


@pytest.mark.parametrize("path", ["/introspect", "/revoke"])
def test_a_stranger_learns_and_ends_nothing(rig, bot, path) -> None:
    token = rig.body(bot.exchange([bot.root()]))["access_token"]
    response = rig.post(path, {"token": token, "client_id": bot.client_id})
    assert rig.refusal(response)[:2] == (401, "invalid_client")
    assert rig.body(bot.post("/introspect", {"token": token}))["active"]
    assert rig.refusal(bot.post(path, {})) == (400, "invalid_request", "token_missing")


# --- revocation ---------------------------------------------------------------------------------------------------------


def test_a_client_ends_its_own_token(rig, bot) -> None:
    token = rig.body(bot.exchange([bot.root()]))["access_token"]
    assert bot.post("/revoke", {"token": token}).status == 200
    assert rig.body(bot.post("/introspect", {"token": token})) == {"active": False}


def test_a_client_ends_its_own_grant_and_what_is_below(rig, bot) -> None:
    key = SigningKey.generate()
    root = bot.root()
    leaf = rig.child(root, bot.key, key=key)
    assert bot.post("/revoke", {"token": root, "token_type_hint": "grant"}).status == 200
    assert rig.refusal(bot.exchange([root]))[2] == "revoked"
    assert rig.refusal(bot.exchange([leaf, root], key=key))[2] == "revoked"
    assert bot.exchange([bot.root()]).status == 200


def test_a_client_ends_one_hop_of_its_chain(rig, bot) -> None:
    key = SigningKey.generate()
    root = bot.root()
    leaf = rig.child(root, bot.key, key=key)
    headers = {"Agent-Delegation": f"{leaf}, {root}"}
    assert bot.post("/revoke", {"token": leaf}, headers=headers).status == 200
    assert rig.refusal(bot.exchange([leaf, root], key=key))[2] == "revoked"
    assert bot.exchange([root]).status == 200


def test_a_client_ends_nothing_of_anothers(rig, bot) -> None:
    token = rig.body(bot.exchange([bot.root()]))["access_token"]
    other = rig.client("urn:agent-identity:agent:other")
    for theirs in (token, bot.root()):
        response = other.post("/revoke", {"token": theirs})
        assert rig.refusal(response) == (400, "unauthorized_client", "token_of_another_client")
        assert rig.body(bot.post("/introspect", {"token": theirs}))["active"]


def test_another_client_of_the_same_agent_ends_nothing_of_the_first_ones(rig, bot) -> None:
    """Whoever may register chooses the agent's name."""
    other, key, root = rig.client(bot.agent), SigningKey.generate(), bot.root()
    leaf = rig.child(root, bot.key, key=key)
    below = {"Agent-Delegation": f"{leaf}, {root}"}
    for token, headers in ((root, {}), (leaf, below), (root, {"Agent-Delegation": root})):
        response = other.post("/revoke", {"token": token}, headers=headers)
        assert rig.refusal(response) == (400, "unauthorized_client", "token_of_another_client")
    assert bot.exchange([leaf, root], key=key).status == 200
    assert bot.post("/revoke", {"token": leaf}, headers=below).status == 200
    assert bot.post("/revoke", {"token": root}).status == 200
    assert rig.refusal(bot.exchange([root]))[2] == "revoked"


def test_each_grant_has_an_id_of_its_own_that_says_its_client_only_to_itself(rig, bot) -> None:
    ids = {jwt.decode(bot.root(), options={"verify_signature": False})["jti"] for _ in range(5)}
    assert len(ids) == 5
    assert all(re.fullmatch("grant_[0-9a-f]{32}", each) for each in ids)
    assert len({each[-16:] for each in ids}) == 5


def test_a_hop_that_is_made_up_ends_nothing(rig, bot) -> None:
    """Its `jti` is another's, so that whoever could revoke it would end that one."""
    root = bot.root()
    jti = jwt.decode(root, options={"verify_signature": False})["jti"]
    other = rig.client("urn:agent-identity:agent:other")
    mine = other.root()
    forged = rig.child(mine, SigningKey.generate(), key=other.key, jti=jti)
    for headers in ({}, {"Agent-Delegation": f"{forged}, {mine}"}):
        assert other.post("/revoke", {"token": forged}, headers=headers).status == 200
    real = rig.child(mine, other.key, key=SigningKey.generate(), jti=jti)
    headers = {"Agent-Delegation": f"{real}, {mine}"}
    assert other.post("/revoke", {"token": real}, headers=headers).status == 200
    assert bot.exchange([root]).status == 200
    mismatched = {"Agent-Delegation": mine}
    response = other.post("/revoke", {"token": forged}, headers=mismatched)
    assert rig.refusal(response) == (400, "invalid_request", "delegation_mismatch")


def test_revoking_what_is_unknown_is_no_error(rig, bot) -> None:
    for token in ("x", uuid4().hex, bot.subject()):
        response = bot.post("/revoke", {"token": token})
        assert (response.status, rig.body(response)) == (200, {})
