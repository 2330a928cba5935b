# SPDX-License-Identifier: Apache-2.0
"""How an agent instance becomes a client, and how it proves itself afterwards."""

from __future__ import annotations

import json
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from agent_identity.flow import HttpRequest
from agent_identity.keys.signing import SigningKey

BILLING = "https://billing.example/api"
BOT = "urn:agent-identity:agent:invoice-bot"
CLIENT_CREDENTIALS = {"grant_type": "client_credentials", "resource": BILLING}


# --- registration -------------------------------------------------------------------------------------------------------


def test_an_instance_registers_and_is_told_what_was_taken(rig, clock) -> None:
    key = SigningKey.generate()
    response = rig.registration(key, redirect_uris=["https://x.example"], scope="admin")
    assert response.status == 201
    document = rig.body(response)
    assert document.pop("client_id").startswith("cli_")
    assert document.pop("jwks") == {
        "keys": [key.public_jwk | {"kid": key.thumbprint, "use": "sig"}]
    }
    assert document == {
        "client_id_issued_at": int(clock()),
        "client_name": "invoice bot",
        "agent_id": BOT,
        "owner": "team-finance@example.com",
        "token_endpoint_auth_method": "private_key_jwt",
        "grant_types": [
            "client_credentials",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        ],
    }


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic {token}",
        "Bearer  {token}",
        "Bearer {token}x",
        "Bearer \udcff",
    ],
)
def test_nobody_registers_without_the_initial_token(rig, authorization) -> None:
    token = rig.authority.registration_token().reveal()
    headers = {"Content-Type": "application/json"}
    if authorization is not None:
        headers["Authorization"] = authorization.format(token=token)
    document = {"agent_id": BOT, "jwks": {"keys": [SigningKey.generate().public_jwk]}}
    url = f"{rig.issuer}/register"
    response = rig.authority.handle(
        HttpRequest("POST", url, headers, json.dumps(document).encode())
    )
    assert rig.refusal(response) == (401, "invalid_token", "initial_access_token")
    assert response.headers["www-authenticate"].startswith("Bearer")


def private_rsa() -> dict[str, str]:
    return {"kty": "RSA", "n": "AQAB", "e": "AQAB", "d": "AQAB"}


@pytest.mark.parametrize(
    "change",
    [
        {"agent_id": None},
        {"agent_id": "invoice-bot"},
        {"agent_id": "urn:a b"},
        {"agent_id": "urn:" + "a" * 501},
        {"agent_id": ["urn:a"]},
        {"jwks": None},
        {"jwks": []},
        {"jwks": {"keys": []}},
        {"jwks": {"keys": "x"}},
        {"jwks": {"keys": [{"kty": "oct", "k": "AAAA"}]}},
        {"jwks": {"keys": [private_rsa()]}},
        {"jwks": {"keys": [{"kty": "EC", "crv": "P-256", "x": 1, "y": 2}]}},
        {"jwks": {"keys": [{"kty": "EC", "crv": "P-256", "x": "A", "y": "B" * 3000}]}},
        {"jwks": {"keys": [SigningKey.generate().public_jwk] * 11}},
        {"token_endpoint_auth_method": "none"},
        {"token_endpoint_auth_method": "client_secret_basic"},
        {"grant_types": ["password"]},
        {"grant_types": ["urn:ietf:params:oauth:grant-type:jwt-bearer"]},
        {"grant_types": "client_credentials"},
        {"client_name": "x" * 201},
        {"owner": "a\nb"},
    ],
)
def test_metadata_that_we_cannot_keep_is_refused(rig, change) -> None:
    response = rig.registration(SigningKey.generate(), **change)
    status, error, _ = rig.refusal(response)
    assert (status, error) == (400, "invalid_client_metadata")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"a":1,"a":2}', b"\xff", b"null", b"NaN"])
def test_a_registration_that_is_no_strict_json_is_refused(rig, data) -> None:
    token = rig.authority.registration_token().reveal()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    response = rig.authority.handle(HttpRequest("POST", f"{rig.issuer}/register", headers, data))
    assert rig.refusal(response)[:2] == (400, "invalid_client_metadata")


def test_a_client_that_registered_for_one_grant_type_gets_no_other(rig) -> None:
    key = SigningKey.generate()
    registered = rig.body(rig.registration(key, grant_types=["client_credentials"]))
    bot = rig.client()
    bot.client_id, bot.key = registered["client_id"], key
    assert bot.post("/token", CLIENT_CREDENTIALS).status == 200
    refused = rig.refusal(bot.grant())
    assert refused == (400, "unauthorized_client", "grant_type_not_registered")


def test_a_registration_ends_with_its_lease(rig, bot, clock) -> None:
    clock.now += 24 * 3600 - 1
    assert bot.post("/token", CLIENT_CREDENTIALS).status == 200
    clock.now += 1
    refused = rig.refusal(bot.post("/token", CLIENT_CREDENTIALS))
    assert refused == (401, "invalid_client", "client_unknown")


# --- authentication -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["ES256", "Ed25519"])
def test_a_client_proves_itself_by_its_key(rig, alg) -> None:
    assert rig.client(alg=alg).post("/token", CLIENT_CREDENTIALS).status == 200


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({"aud": "https://other.example"}, "audience_mismatch"),
        ({"aud": None}, "audience_mismatch"),
        ({"aud": []}, "audience_mismatch"),
        ({"aud": ["{issuer}", "https://other.example"]}, "audience_mismatch"),
        ({"aud": ["{issuer}"]}, "audience_mismatch"),  # E13
        ({"aud": "{issuer}/token"}, "audience_mismatch"),
        ({"aud": "{issuer}/"}, "audience_mismatch"),
        ({"sub": "cli_other"}, "client_mismatch"),
        ({"sub": None}, "claim_missing"),
        ({"iss": "cli_other", "sub": "cli_other"}, "client_mismatch"),
        ({"exp": 1_795_518_000 + 301}, "lifetime_too_long"),
        ({"exp": 1_795_517_900, "iat": 1_795_517_800}, "expired"),
        ({"exp": None}, "missing_claim"),
        ({"iat": 1_795_518_031, "exp": 1_795_518_060}, "not_yet_valid"),
        ({"jti": None}, "claim_missing"),
        ({"jti": ""}, "claim_malformed"),
        ({"typ": "JWT"}, "wrong_typ"),
        ({"typ": "agent-subject+jwt"}, "wrong_typ"),
    ],
)
def test_an_assertion_that_breaks_a_rule_proves_nobody(rig, bot, lie, why) -> None:
    def filled(value: object) -> object:
        if isinstance(value, list):
            return [filled(item) for item in value]
        return value.format(issuer=rig.issuer) if isinstance(value, str) else value

    assertion = bot.assertion(**{name: filled(value) for name, value in lie.items()})
    response = bot.post("/token", CLIENT_CREDENTIALS, assertion=assertion)
    assert rig.refusal(response) == (401, "invalid_client", why)
    assert not rig.authority.issued


def test_an_assertion_is_good_once(rig, bot, clock) -> None:
    assertion = bot.assertion(exp=int(clock()) + 300)
    assert bot.post("/token", CLIENT_CREDENTIALS, assertion=assertion).status == 200
    for later in (0, 100, 299, 329):
        clock.now = 1_795_518_000.25 + later
        response = bot.post("/token", CLIENT_CREDENTIALS, assertion=assertion)
        assert rig.refusal(response) == (401, "invalid_client", "replayed")
    clock.now = 1_795_518_000.25 + 331
    response = bot.post("/token", CLIENT_CREDENTIALS, assertion=assertion)
    assert rig.refusal(response) == (401, "invalid_client", "expired")


def test_an_assertion_that_was_refused_for_its_signature_is_not_used_up(rig, bot) -> None:
    assertion = bot.assertion()
    head, claims, signature = assertion.split(".")
    forged = f"{head}.{claims}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"
    response = bot.post("/token", CLIENT_CREDENTIALS, assertion=forged)
    assert rig.refusal(response) == (401, "invalid_client", "bad_signature")
    assert bot.post("/token", CLIENT_CREDENTIALS, assertion=assertion).status == 200


def test_two_clients_may_use_one_jti(rig, bot) -> None:
    other = rig.client()
    for client in (bot, other):
        assertion = client.assertion(jti="1")
        assert client.post("/token", CLIENT_CREDENTIALS, assertion=assertion).status == 200


def test_an_assertion_from_before_the_start_is_refused(make_rig, clock, tmp_path) -> None:
    """What was used before a restart isn't remembered, so that it doesn't count after it."""
    bot = make_rig(tmp_path).client()
    assertion = bot.assertion(exp=int(clock()) + 300)
    clock.now += 31
    bot.rig = make_rig(tmp_path)
    response = bot.post("/token", CLIENT_CREDENTIALS, assertion=assertion)
    assert bot.rig.refusal(response) == (401, "invalid_client", "issued_before_start")
    assert bot.post("/token", CLIENT_CREDENTIALS).status == 200


def test_one_clients_key_does_not_prove_another(rig, bot) -> None:
    other = rig.client()
    assertion = bot.assertion(iss=other.client_id, sub=other.client_id)
    response = rig.post(
        "/token",
        CLIENT_CREDENTIALS
        | {
            "client_assertion": assertion,
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        },
    )
    assert rig.refusal(response)[:2] == (401, "invalid_client")
    assert not rig.authority.issued


@pytest.mark.parametrize(
    ("form", "headers"),
    [
        ({"client_assertion": None}, {}),
        ({"client_assertion": None, "client_assertion_type": None}, {}),
        ({"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"}, {}),
        ({"client_assertion": None, "client_secret": "x"}, {}),
        ({"client_secret": "x"}, {}),
        ({"client_id": "cli_other"}, {}),
        ({}, {"Authorization": "Basic Y2xpOng="}),
        ({}, {"Authorization": "Bearer x"}),
    ],
)
def test_E15_no_proof_or_a_shared_secret_is_no_authentication(rig, bot, form, headers) -> None:
    response = bot.post("/token", CLIENT_CREDENTIALS | form, headers=headers)
    assert rig.refusal(response)[:2] == (401, "invalid_client")
    assert not rig.authority.issued


def test_a_weak_key_registers_but_proves_nobody(rig) -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - the point
    numbers = weak.public_key().public_numbers()

    def b64(number: int) -> str:
        from base64 import urlsafe_b64encode

        data = number.to_bytes((number.bit_length() + 7) // 8, "big")
        return urlsafe_b64encode(data).rstrip(b"=").decode()

    jwk = {"kty": "RSA", "n": b64(numbers.n), "e": b64(numbers.e), "kid": "weak"}
    registered = rig.body(rig.registration(SigningKey.generate(), jwks={"keys": [jwk]}))
    import warnings

    import jwt

    now = int(rig.clock())
    claims = {
        "iss": registered["client_id"],
        "sub": registered["client_id"],
        "aud": rig.issuer,
        "iat": now,
        "exp": now + 60,
        "jti": uuid4().hex,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assertion = jwt.encode(
            claims, weak, "RS256", headers={"typ": "client-authentication+jwt", "kid": "weak"}
        )
    form = CLIENT_CREDENTIALS | {
        "client_assertion": assertion,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    }
    response = rig.authority.handle(
        HttpRequest(
            "POST",
            f"{rig.issuer}/token",
            {"Content-Type": "application/x-www-form-urlencoded"},
            urlencode(form).encode(),
        )
    )
    assert rig.refusal(response)[:2] == (401, "invalid_client")


@pytest.mark.parametrize("agent", ["user:bob", "service:x", "trigger:cron", "USER:bob", None])
def test_no_agent_registers_under_the_name_of_a_principal_or_the_issuer(rig, agent) -> None:
    response = rig.registration(SigningKey.generate(), agent or rig.issuer)
    assert rig.refusal(response) == (400, "invalid_client_metadata", "agent_id")
