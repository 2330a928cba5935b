# SPDX-License-Identifier: Apache-2.0
"""A principal's token becomes hop 0, a chain becomes an access token, and nothing wider comes of either."""

from __future__ import annotations

import jwt
import pytest
from joserfc import jwk as joserfc_jwk
from joserfc import jws

from agent_identity.authority import Terms
from agent_identity.delegation.chain import Anchor, verify_chain
from agent_identity.keys.signing import SigningKey

BILLING = "https://billing.example/api"
MAIL = "https://mail.example"
LOCAL = "urn:agent-identity:local"
BOT = "urn:agent-identity:agent:invoice-bot"
GRANT = "urn:agent-identity:token-type:grant"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"


def test_a_subject_token_becomes_hop_0_for_the_key_that_proves_itself(rig, bot) -> None:
    key = SigningKey.generate()
    response = bot.grant(
        key=key, resource=[BILLING, MAIL], scope="invoices:read mail:read", task="t-1"
    )
    assert response.status == 200
    assert response.headers["cache-control"] == "no-store"
    answer = rig.body(response)
    assert answer["issued_token_type"] == GRANT
    assert answer["token_type"] == "N_A"
    assert answer["scope"] == "invoices:read mail:read"
    assert answer["expires_in"] == 900
    claims = rig.claims(answer["access_token"], typ="agent-grant+jwt", aud=MAIL)
    now = int(rig.clock())
    assert claims.pop("jti").startswith("grant_")
    assert claims == {
        "iss": rig.issuer,
        "sub": "alice",
        "sub_iss": rig.issuer,
        "sub_profile": "user",
        "act": {
            "iss": rig.issuer,
            "sub": BOT,
            "sub_profile": "ai_agent",
            "instance": key.thumbprint,
        },
        "cnf": {"jkt": key.thumbprint},
        "aud": [BILLING, MAIL, LOCAL],
        "scope": "invoices:read mail:read",
        "purpose": "close the October books",
        "task": "t-1",
        "txn": "ses_1",
        "iat": now,
        "nbf": now,
        "exp": now + 900,
        "del_depth": 0,
        "del_max_depth": 3,
        "evidence": "issuer",
    }
    assert rig.authority.issued == {"grant": 1}


def test_hop_0_is_one_that_our_own_verifier_takes(rig, bot) -> None:
    anchor = Anchor(rig.issuer, rig.authority.jwks()["keys"], evidence="issuer")
    (grant,) = verify_chain([bot.root()], [anchor], now=rig.clock(), evidence="issuer")
    assert (grant.sub, grant.agent, grant.jkt) == ("alice", BOT, bot.key.thumbprint)


def test_a_trigger_is_rooted_in_the_agent_and_says_so(rig, bot) -> None:
    token = bot.root(subject=bot.subject("cron:nightly-close", sub_profile="trigger"))
    claims = rig.claims(token, typ="agent-grant+jwt")
    assert (claims["sub_iss"], claims["evidence"]) == (BOT, "agent")
    assert (claims["sub"], claims["sub_profile"]) == ("cron:nightly-close", "trigger")


def test_a_chain_becomes_an_access_token_for_the_leaf(rig, bot) -> None:
    key = SigningKey.generate()
    root = bot.root(scope="invoices:read invoices:pay")
    leaf = rig.child(root, bot.key, key=key, scope="invoices:read")
    response = bot.exchange([leaf, root], key=key)
    answer = rig.body(response)
    assert response.status == 200, answer
    assert answer["issued_token_type"] == ACCESS_TOKEN
    assert answer["token_type"] == "DPoP"
    assert answer["expires_in"] == 300
    assert answer["scope"] == "invoices:read"
    claims = rig.claims(answer["access_token"], typ="at+jwt")
    assert claims.pop("jti").startswith("tok_")
    now = int(rig.clock())
    assert claims == {
        "iss": rig.issuer,
        "sub": "alice",
        "sub_profile": "user",
        "aud": BILLING,
        "client_id": bot.client_id,
        "scope": "invoices:read",
        "iat": now,
        "exp": now + 300,
        "txn": "ses_1",
        "act": jwt.decode(leaf, options={"verify_signature": False})["act"],
        "cnf": {"jkt": key.thumbprint},
    }
    assert rig.authority.issued == {"grant": 1, "access_token": 1}


def test_an_access_token_verifies_with_a_second_library(rig, bot) -> None:
    token = rig.body(bot.exchange([bot.root()]))["access_token"]
    keys = joserfc_jwk.KeySet.import_key_set(rig.authority.jwks())
    found = jws.deserialize_compact(token, keys, algorithms=["ES256"])
    assert found.protected["typ"] == "at+jwt"


def test_no_scope_is_asked_for_and_none_is_given(rig, bot) -> None:
    answer = rig.body(bot.exchange([bot.root()], scope=None))
    assert "scope" not in answer
    assert "scope" not in rig.claims(answer["access_token"], typ="at+jwt")
    assert "scope" not in rig.claims(bot.root(scope=None), typ="agent-grant+jwt")


def test_a_token_never_outlives_grant_or_subject(rig, bot, clock) -> None:
    root = bot.root(requested_expires_in="100")
    clock.now += 40
    answer = rig.body(bot.exchange([root]))
    assert answer["expires_in"] == 60
    assert rig.claims(answer["access_token"], typ="at+jwt")["exp"] == int(clock()) + 60

    subject = bot.subject(exp=int(clock()) + 50)
    assert rig.body(bot.grant(subject=subject))["expires_in"] == 50
    assert rig.body(bot.exchange([bot.root()], subject=subject))["expires_in"] == 50


def test_what_ended_within_the_skew_gets_no_token(rig, bot, clock) -> None:
    root = bot.root(requested_expires_in="100")
    subject = bot.subject(exp=int(clock()) + 100)
    clock.now += 110
    assert rig.refusal(bot.exchange([root])) == (400, "invalid_grant", "expired")
    assert rig.refusal(bot.grant(subject=subject)) == (400, "invalid_grant", "expired")


@pytest.mark.parametrize(
    ("asked", "given"), [("10000", 900), ("900", 900), ("60", 60), (None, 900)]
)
def test_a_grant_lives_fifteen_minutes_at_most(rig, bot, asked, given) -> None:
    assert rig.body(bot.grant(requested_expires_in=asked))["expires_in"] == given


# --- splicing (B08) -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [{"sub": "bob"}, {"txn": "ses_2"}, {"sub_profile": "service"}, {"sub_profile": "trigger"}],
)
def test_B08_one_sessions_chain_with_anothers_principal_is_refused(rig, bot, other) -> None:
    alices = bot.root()
    response = bot.exchange([alices], subject=bot.subject(**other))
    assert rig.refusal(response) == (400, "invalid_grant", "subject_mismatch")
    assert rig.authority.issued["access_token"] == 0


def test_B08_a_chain_of_another_agents_client_is_refused(rig, bot) -> None:
    other = rig.client("urn:agent-identity:agent:other")
    response = other.exchange([bot.root()], key=bot.key)
    assert rig.refusal(response) == (400, "invalid_grant", "client_mismatch")


def test_an_actor_token_that_is_not_the_leaf_of_the_chain_is_refused(rig, bot) -> None:
    first, second = bot.root(), bot.root()
    response = bot.exchange([first], delegation=second)
    assert rig.refusal(response) == (400, "invalid_grant", "actor_token_mismatch")


def test_a_hop_from_another_chain_is_refused(rig, bot) -> None:
    key = SigningKey.generate()
    first, second = bot.root(), bot.root()
    leaf = rig.child(first, bot.key, key=key)
    response = bot.exchange([leaf, second], key=key)
    assert rig.refusal(response) == (400, "invalid_grant", "parent_mismatch")


def test_a_leaf_that_widens_is_refused(rig, bot) -> None:
    key = SigningKey.generate()
    root = bot.root(scope="invoices:read")
    leaf = rig.child(root, bot.key, key=key, scope="invoices:pay invoices:read")
    response = bot.exchange([leaf, root], key=key, scope="invoices:pay")
    assert rig.refusal(response) == (400, "invalid_grant", "scope_widened")


def test_a_self_made_root_is_refused(rig, bot) -> None:
    claims = jwt.decode(bot.root(), options={"verify_signature": False}) | {"sub": "bob"}
    forged = rig.sign(
        bot.key, {"typ": "agent-grant+jwt", "kid": rig.authority.jwks()["keys"][0]["kid"]}, claims
    )
    response = bot.exchange([forged], subject=bot.subject("bob"))
    assert rig.refusal(response) == (400, "invalid_grant", "bad_signature")


# --- keys -----------------------------------------------------------------------------------------------------------


def test_a_proof_by_another_key_than_the_leafs_is_refused(rig, bot) -> None:
    response = bot.exchange([bot.root()], key=SigningKey.generate())
    assert rig.refusal(response) == (400, "invalid_grant", "key_mismatch")


@pytest.mark.parametrize("wanted", [GRANT, ACCESS_TOKEN])
def test_E15_nothing_is_exchanged_without_a_proof(rig, bot, wanted) -> None:
    root = bot.root()
    response = bot.post(
        "/token",
        {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "requested_token_type": wanted,
            "subject_token": bot.subject(),
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "actor_token": None if wanted == GRANT else root,
            "actor_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "resource": BILLING,
            "purpose": "x",
        },
        headers={"Agent-Delegation": root},
    )
    assert rig.refusal(response) == (400, "invalid_dpop_proof", "proof_missing")


# --- the confused deputy (E15) ------------------------------------------------------------------------------------------


def test_E15_agent_and_evidence_never_come_from_the_request(rig, bot) -> None:
    token = bot.root(
        act="urn:agent-identity:agent:admin",
        actor="urn:agent-identity:agent:admin",
        agent_id="urn:agent-identity:agent:admin",
        sub="bob",
        sub_iss="https://idp.example",
        evidence="issuer",
        cnf="stolen",
        client_name="admin",
    )
    claims = rig.claims(token, typ="agent-grant+jwt")
    assert (claims["act"]["sub"], claims["sub"], claims["sub_iss"]) == (BOT, "alice", rig.issuer)
    assert claims["cnf"]["jkt"] == bot.key.thumbprint


def test_E15_the_clients_table_wins_over_the_request(rig) -> None:
    terms = Terms(resources=frozenset({BILLING}), scopes=frozenset({"invoices:read"}), max_depth=1)
    bot = rig.configured(terms)
    wider = bot.grant(scope="invoices:read invoices:pay")
    assert rig.refusal(wider) == (400, "invalid_scope", "scope_widened")
    elsewhere = bot.grant(resource=[BILLING, MAIL])
    assert rig.refusal(elsewhere) == (400, "invalid_target", "resource_not_allowed")
    for resource in (f"{BILLING}/", BILLING.upper(), f"{BILLING}/v1"):
        assert rig.body(bot.grant(resource=[resource]))["error"] == "invalid_target"
    assert rig.refusal(bot.grant(max_depth="2")) == (400, "invalid_request", "max_depth_widened")
    assert rig.claims(bot.root(), typ="agent-grant+jwt")["del_max_depth"] == 1


@pytest.mark.parametrize(("asked", "given"), [(None, 3), ("0", 0), ("5", 5), ("8", 8)])
def test_depth_is_as_asked_up_to_the_ceiling(rig, bot, asked, given) -> None:
    assert rig.claims(bot.root(max_depth=asked), typ="agent-grant+jwt")["del_max_depth"] == given


def test_E15_a_client_without_the_directory_right_speaks_for_nobody(rig) -> None:
    bot = rig.configured(Terms(directory=False))
    assert rig.refusal(bot.grant()) == (400, "invalid_grant", "no_directory")


def test_E15_another_clients_subject_token_is_refused(rig, bot) -> None:
    other = rig.client(BOT)
    assert rig.body(bot.grant(subject=other.subject()))["error"] == "invalid_grant"
    stolen = bot.subject(iss=other.client_id)
    assert rig.refusal(bot.grant(subject=stolen)) == (400, "invalid_grant", "client_mismatch")


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({"aud": "https://other.example"}, "audience_mismatch"),
        ({"aud": "https://other.example/token"}, "audience_mismatch"),
        ({"typ": "client-authentication+jwt"}, "wrong_typ"),
        ({"typ": "JWT"}, "wrong_typ"),
        ({"sub_profile": "root"}, "profile_unknown"),
        ({"sub": ""}, "claim_malformed"),
        ({"sub": "a" * 600}, "claim_malformed"),
        ({"txn": None}, "claim_missing"),
        ({"act": {"sub": "x"}}, "claim_unknown"),
        ({"exp": 1_795_518_000 + 25 * 3600}, "lifetime_too_long"),
        ({"exp": 1_795_517_000, "iat": 1_795_516_000}, "expired"),
        ({"iat": 1_795_519_000}, "not_yet_valid"),
        ({"iat": None}, "missing_claim"),
    ],
)
def test_a_subject_token_that_breaks_a_rule_is_refused(rig, bot, lie, why) -> None:
    assert rig.refusal(bot.grant(subject=bot.subject(**lie))) == (400, "invalid_grant", why)


def test_a_subject_token_is_good_for_a_whole_session(rig, bot) -> None:
    subject = bot.subject()
    assert bot.grant(subject=subject).status == bot.grant(subject=subject).status == 200


# --- an access token as the subject token -------------------------------------------------------------------------------


def own_token(rig, bot, *, resource: str, scope: str) -> str:
    root = bot.root(resource=[resource], scope=scope)
    response = bot.exchange([root], resource=[resource], scope=scope)
    assert response.status == 200, response.body
    return rig.body(response)["access_token"]


def test_an_own_access_token_for_the_issuer_becomes_hop_0(rig, bot) -> None:
    token = own_token(rig, bot, resource=rig.issuer, scope="invoices:read")
    claims = rig.claims(
        bot.root(subject=token, subject_token_type=ACCESS_TOKEN), typ="agent-grant+jwt"
    )
    assert (claims["sub"], claims["txn"], claims["evidence"]) == ("alice", "ses_1", "issuer")
    assert claims["exp"] == int(rig.clock()) + 300


def test_an_access_token_gives_no_scope_that_it_lacks(rig, bot) -> None:
    token = own_token(rig, bot, resource=rig.issuer, scope="mail:read")
    response = bot.grant(subject=token, subject_token_type=ACCESS_TOKEN)
    assert rig.refusal(response) == (400, "invalid_scope", "scope_widened")


def test_E15_an_access_token_for_a_resource_is_no_subject_token(rig, bot) -> None:
    token = own_token(rig, bot, resource=BILLING, scope="invoices:read")
    response = bot.grant(subject=token, subject_token_type=ACCESS_TOKEN)
    assert rig.refusal(response) == (400, "invalid_grant", "audience_mismatch")


def test_E15_an_access_token_of_another_client_is_no_subject_token(rig, bot) -> None:
    other = rig.client(BOT)
    token = own_token(rig, other, resource=rig.issuer, scope="invoices:read")
    response = bot.grant(subject=token, subject_token_type=ACCESS_TOKEN)
    assert rig.refusal(response) == (400, "invalid_grant", "client_mismatch")


def test_a_chain_is_not_flattened_into_a_new_hop_0(rig, bot) -> None:
    key = SigningKey.generate()
    root = bot.root(resource=[rig.issuer])
    leaf = rig.child(root, bot.key, key=key)
    token = rig.body(bot.exchange([leaf, root], key=key, resource=rig.issuer))["access_token"]
    response = bot.grant(key=key, subject=token, subject_token_type=ACCESS_TOKEN)
    assert rig.refusal(response) == (400, "invalid_grant", "actor_mismatch")


def test_an_access_token_with_somebody_behind_the_agent_is_no_subject_token(rig, bot) -> None:
    """Nothing that the authority issues today looks like this: the rule is for what it may issue tomorrow."""
    token = own_token(rig, bot, resource=rig.issuer, scope="invoices:read")
    claims = jwt.decode(token, options={"verify_signature": False})
    claims["act"]["act"] = {"sub": "urn:agent-identity:agent:other"}
    key = rig.authority._keyring.signing
    nested = rig.sign(key, {"typ": "at+jwt", "kid": key.thumbprint}, claims)
    response = bot.grant(subject=nested, subject_token_type=ACCESS_TOKEN)
    assert rig.refusal(response) == (400, "invalid_grant", "actor_mismatch")


def test_a_bound_access_token_needs_its_own_key(rig, bot) -> None:
    token = own_token(rig, bot, resource=rig.issuer, scope="invoices:read")
    response = bot.grant(key=SigningKey.generate(), subject=token, subject_token_type=ACCESS_TOKEN)
    assert rig.refusal(response) == (400, "invalid_grant", "key_mismatch")


def test_a_grant_is_no_subject_token(rig, bot) -> None:
    for kind in (ACCESS_TOKEN, "urn:ietf:params:oauth:token-type:jwt"):
        response = bot.grant(subject=bot.root(), subject_token_type=kind)
        assert rig.refusal(response) == (400, "invalid_grant", "wrong_typ")


# --- what is asked for --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"resource": None}, ("invalid_target", "resource_missing")),
        ({"resource": [BILLING, MAIL]}, ("invalid_target", "resource_missing")),
        ({"resource": LOCAL}, ("invalid_target", "resource_local")),
        ({"resource": MAIL}, ("invalid_target", "resource_not_granted")),
        ({"resource": f"{BILLING}/"}, ("invalid_target", "resource_not_granted")),
        ({"resource": "billing"}, ("invalid_target", "resource_malformed")),
        ({"resource": f"{BILLING}#x"}, ("invalid_target", "resource_malformed")),
        ({"resource": "https://billing.example/\u00e9"}, ("invalid_target", "resource_malformed")),
        ({"scope": "invoices:pay"}, ("invalid_scope", "scope_widened")),
        ({"scope": "invoices:*"}, ("invalid_scope", "scope_widened")),
        ({"scope": "Invoices:read"}, ("invalid_scope", "scope_widened")),
        ({"scope": 'a"b'}, ("invalid_scope", "scope_malformed")),
        ({"audience": BILLING}, ("invalid_request", "parameter_unsupported")),
        ({"authorization_details": "[]"}, ("invalid_request", "parameter_unsupported")),
        ({"subject_token": None}, ("invalid_request", "subject_token_missing")),
        ({"subject_token_type": None}, ("invalid_request", "subject_token_type_missing")),
        (
            {"subject_token_type": "urn:ietf:params:oauth:token-type:id_token"},
            ("invalid_request", "subject_token_type_unsupported"),
        ),
        (
            {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
            ("invalid_request", "requested_token_type_unsupported"),
        ),
        ({"actor_token_type": None}, ("invalid_request", "actor_token_type_missing")),
        (
            {"actor_token_type": ACCESS_TOKEN},
            ("invalid_request", "actor_token_type_unsupported"),
        ),
        ({"actor_token": None}, ("invalid_request", "actor_token_missing")),
    ],
)
def test_an_exchange_for_something_else_is_refused(rig, bot, change, refused) -> None:
    response = bot.exchange([bot.root()], **change)
    assert rig.refusal(response) == (400, *refused)
    assert rig.authority.issued["access_token"] == 0


def test_a_chain_has_to_go_along(rig, bot) -> None:
    root = bot.root()
    assert rig.refusal(bot.exchange([root], delegation="a,,b"))[1:] == (
        "invalid_grant",
        "chain_malformed",
    )
    response = bot.post(
        "/token",
        {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token": bot.subject(),
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "actor_token": root,
            "actor_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "resource": BILLING,
        },
        proof=rig.proof(bot.key),
    )
    assert rig.refusal(response) == (400, "invalid_request", "delegation_missing")


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"purpose": None}, ("invalid_request", "purpose_missing")),
        ({"purpose": "x" * 201}, ("invalid_request", "purpose_malformed")),
        ({"purpose": "x\ny"}, ("invalid_request", "purpose_malformed")),
        ({"task": "x" * 201}, ("invalid_request", "task_malformed")),
        ({"max_depth": "-1"}, ("invalid_request", "max_depth_malformed")),
        ({"max_depth": "\u0663"}, ("invalid_request", "max_depth_malformed")),
        ({"requested_expires_in": "1e9"}, ("invalid_request", "requested_expires_in_malformed")),
        ({"requested_expires_in": "0"}, ("invalid_request", "requested_expires_in_malformed")),
        ({"resource": None}, ("invalid_target", "resource_missing")),
        ({"actor_token": "x"}, ("invalid_request", "actor_token_unsupported")),
        (
            {"resource": [f"https://{at}.example/{'x' * 200}" for at in range(80)]},
            ("invalid_request", "token_too_large"),
        ),
        ({"scope": "a\tb"}, ("invalid_scope", "scope_malformed")),
        ({"scope": " ".join(map(str, range(201)))}, ("invalid_scope", "scope_malformed")),
    ],
)
def test_a_grant_for_something_else_is_refused(rig, bot, change, refused) -> None:
    assert rig.refusal(bot.grant(**change)) == (400, *refused)
    assert rig.authority.issued["grant"] == 0


def test_a_purpose_of_two_hundred_characters_in_any_script_is_taken(rig, bot) -> None:
    purpose = "\u00e9" * 200
    assert rig.claims(bot.root(purpose=purpose), typ="agent-grant+jwt")["purpose"] == purpose


# --- revocation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference", ["user:alice", "ses_1", BOT, "*", "client", "subject", "grant"]
)
def test_B15_what_was_revoked_gets_no_token(rig, bot, reference) -> None:
    subject, root = bot.subject(jti="sub_1"), bot.root()
    jti = jwt.decode(root, options={"verify_signature": False})["jti"]
    named = {"client": bot.client_id, "subject": "sub_1", "grant": jti}
    assert bot.exchange([root], subject=subject).status == 200
    rig.authority.revoke(named.get(reference, reference))
    refused = rig.refusal(bot.exchange([root], subject=subject))
    assert refused[:2] == (400, "invalid_grant")
    assert refused[2] in {"revoked", "client_revoked"}


@pytest.mark.parametrize("by", ["agent", "instance"])
def test_B15_an_agent_down_the_chain_that_was_revoked_gets_no_token(rig, bot, by) -> None:
    key = SigningKey.generate()
    root = bot.root()
    leaf = rig.child(root, bot.key, key=key)
    assert bot.exchange([leaf, root], key=key).status == 200
    agent = "urn:agent-identity:agent:archive-bot"
    rig.authority.revoke(agent if by == "agent" else key.thumbprint)
    assert rig.refusal(bot.exchange([leaf, root], key=key))[2] == "revoked"
    assert bot.exchange([root]).status == 200


def test_revoking_is_for_good_and_reinstating_is_for_what_comes_later(rig, bot, clock) -> None:
    root, subject = bot.root(), bot.subject()
    rig.authority.revoke("user:alice")
    assert rig.refusal(bot.grant(subject=bot.subject()))[2] == "revoked"
    clock.now += 5
    rig.authority.reinstate("user:alice")
    assert rig.refusal(bot.grant(subject=bot.subject()))[2] == "revoked"  # still the same second
    clock.now += 1
    assert rig.refusal(bot.grant(subject=subject))[2] == "revoked"
    fresh = bot.subject()
    assert rig.refusal(bot.exchange([root], subject=fresh))[2] == "revoked"
    assert bot.exchange([bot.root(subject=fresh)], subject=fresh).status == 200


def test_revoking_one_leaves_the_others(rig, bot) -> None:
    rig.authority.revoke("user:bob")
    rig.authority.revoke("service:alice")
    assert bot.exchange([bot.root()]).status == 200


# --- references ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "txn",
    [
        "*",
        "user:bob",
        "call_1",
        "grant_1",
        "apr_1",
        "tok_1",
        BOT,
        "ses_",
        "ses_*",
        "ses_1\n",
        "ses 1",
    ],
)
def test_a_session_is_named_by_a_sessions_id_and_nothing_else(rig, bot, txn: str) -> None:
    """Whoever revokes that reference would end this session, or this session's end would be another's."""
    response = bot.grant(subject=bot.subject(txn=txn))
    assert rig.refusal(response) == (400, "invalid_grant", "txn_malformed")
    assert not rig.authority.issued


@pytest.mark.parametrize("profile", ["user", "service"])
def test_a_principal_of_the_directory_is_not_named_like_another_issuers(
    rig, bot, profile: str
) -> None:
    subject = bot.subject("https://idp.example#bob", sub_profile=profile)
    response = bot.grant(subject=subject)
    assert rig.refusal(response) == (400, "invalid_grant", "principal_malformed")
    assert not rig.authority.issued
