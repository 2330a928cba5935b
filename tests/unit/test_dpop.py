# SPDX-License-Identifier: Apache-2.0
"""A proof of possession, rule by rule (RFC 9449 §4.3). Proofs are made by PyJWT and joserfc, not by our own code."""

from __future__ import annotations

import json
import warnings
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwk as joserfc_jwk
from joserfc import jws
from joserfc.errors import SecurityWarning

from agent_identity.errors import InvalidAssertionError, VerificationError
from agent_identity.keys.signing import SigningKey
from agent_identity.values import b64url
from agent_identity.verify.dpop import verify_proof

NOW = 1_795_518_000.5
URL = "https://api.example/invoices"
TOKEN = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
TOKEN_HASH = "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"
RFC_PROOF = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpD"
    "a0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6"
    "IlAtMjU2In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUu"
    "Y29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-"
    "FNyJK70nfbV37xRZT3Lg"
)
KEY = SigningKey.generate()


def proof(key: SigningKey = KEY, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
    body = {"jti": "j1", "htm": "GET", "htu": URL, "iat": int(NOW)} | claims
    head = {"typ": "dpop+jwt", "jwk": key.public_jwk, "alg": "ES256"} | (header or {})
    return jwt.encode(
        {k: v for k, v in body.items() if v is not None},
        key.to_pem(),
        algorithm=head["alg"],
        headers={k: v for k, v in head.items() if v is not None},
    )


def check(text: str, **options: Any):
    return verify_proof(text, **({"method": "GET", "url": URL, "now": NOW} | options))


def code(text: str, **options: Any) -> str:
    with pytest.raises(VerificationError) as refused:
        check(text, **options)
    return refused.value.code


def test_the_rfcs_own_proof_is_good() -> None:
    """RFC 9449 §4 and §5."""
    found = verify_proof(
        RFC_PROOF, method="POST", url="https://server.example.com/token", now=1562262616
    )
    assert found.jkt == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
    assert (found.jti, found.iat, found.nonce) == ("-BwC3ESc6acc2lTc", 1562262616, None)


def test_a_proof_shows_the_key_and_when() -> None:
    found = check(proof())
    assert (found.jkt, found.jti, found.iat) == (KEY.thumbprint, "j1", int(NOW))


@pytest.mark.parametrize(
    ("kind", "parameter", "alg"),
    [
        ("EC", "P-256", "ES256"),
        ("EC", "P-384", "ES384"),
        ("OKP", "Ed25519", "Ed25519"),
        ("OKP", "Ed25519", "EdDSA"),
        ("RSA", 2048, "RS256"),
        ("RSA", 2048, "PS256"),
    ],
)
def test_asymmetric_algorithms_are_taken(kind, parameter, alg) -> None:
    key = joserfc_jwk.JWKRegistry.generate_key(kind, parameter)
    header = {"typ": "dpop+jwt", "alg": alg, "jwk": key.as_dict(private=False)}
    body = json.dumps({"jti": "j1", "htm": "GET", "htu": URL, "iat": int(NOW)})
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", SecurityWarning
        )  # joserfc calls EdDSA deprecated; older peers send it
        text = jws.serialize_compact(header, body, key, algorithms=[alg])
    assert check(text).jkt == key.thumbprint()


@pytest.mark.parametrize("alg", ["HS256", "none"])
def test_a_proof_without_a_key_pair_is_none(alg) -> None:
    head = {"typ": "dpop+jwt", "jwk": {"kty": "oct", "k": "AAAA"}}
    body = {"jti": "j1", "htm": "GET", "htu": URL, "iat": int(NOW)}
    text = jwt.encode(body, b"\0" * 32 if alg == "HS256" else None, algorithm=alg, headers=head)
    with pytest.raises(VerificationError):
        check(text)
    public = jwt.encode(
        body,
        b"\0" * 32 if alg == "HS256" else None,
        algorithm=alg,
        headers=head | {"jwk": KEY.public_jwk},
    )
    with pytest.raises(VerificationError):
        check(public)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"typ": "JWT"}, "wrong_typ"),
        ({"typ": None}, "wrong_typ"),
        ({"typ": "DPoP+JWT"}, "wrong_typ"),
        ({"jwk": None}, "dpop_key"),
        ({"jwk": "x"}, "dpop_key"),
        ({"jwk": [KEY.public_jwk]}, "dpop_key"),
        ({"jwk": {}}, "dpop_key"),
        ({"jwk": KEY.public_jwk | {"d": "AAAA"}}, "key_private"),
        ({"jwk": SigningKey.generate().public_jwk}, "bad_signature"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused(header, expected) -> None:
    assert code(proof(header=header)) == expected


@pytest.mark.parametrize(
    "jwk",
    [
        KEY.public_jwk | {"alg": "ES384"},
        KEY.public_jwk | {"use": "enc"},
        KEY.public_jwk | {"key_ops": ["sign"]},
    ],
)
def test_a_key_that_says_it_is_for_something_else_is_refused(jwk) -> None:
    with pytest.raises(VerificationError):
        check(proof(header={"jwk": jwk}))


def test_a_key_that_says_it_is_for_this_is_taken() -> None:
    jwk = KEY.public_jwk | {"alg": "ES256", "use": "sig", "kid": "k"}
    assert check(proof(header={"jwk": jwk})).jkt == KEY.thumbprint
    assert check(proof(header={"jwk": jwk, "kid": "other"})).jkt == KEY.thumbprint


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"htm": "get"}, "dpop_method"),
        ({"htm": "POST"}, "dpop_method"),
        ({"htm": None}, "claim_missing"),
        ({"htm": 1}, "claim_malformed"),
        ({"htu": None}, "claim_missing"),
        ({"htu": "https://api.example/"}, "dpop_url"),
        ({"htu": "https://api.example/invoices/"}, "dpop_url"),
        ({"htu": "https://api.example/Invoices"}, "dpop_url"),
        ({"htu": "http://api.example/invoices"}, "dpop_url"),
        ({"htu": "https://api.example:8443/invoices"}, "dpop_url"),
        ({"htu": "https://u@api.example/invoices"}, "dpop_url"),
        ({"htu": "/invoices"}, "dpop_url"),
        ({"htu": "nonsense"}, "dpop_url"),
        ({"jti": None}, "claim_missing"),
        ({"jti": ""}, "claim_malformed"),
        ({"jti": ["x"]}, "claim_malformed"),
        ({"iat": None}, "missing_claim"),
        ({"iat": "now"}, "malformed_claim"),
        ({"iat": True}, "malformed_claim"),
        ({"iat": int(NOW) - 300}, "dpop_stale"),
        ({"iat": int(NOW) + 31}, "dpop_stale"),
    ],
)
def test_a_claim_that_breaks_a_rule_is_refused(claims, expected) -> None:
    assert code(proof(**claims)) == expected


@pytest.mark.parametrize("iat", [int(NOW) - 299, int(NOW) + 30, NOW - 0.25])
def test_a_proof_is_good_within_its_window(iat) -> None:
    assert check(proof(iat=iat)).iat == iat


def test_the_window_is_the_servers_to_choose() -> None:
    assert code(proof(iat=int(NOW) - 10), max_age=10) == "dpop_stale"
    assert code(proof(iat=int(NOW) + 1), skew=0) == "dpop_stale"


@pytest.mark.parametrize(
    ("htu", "url"),
    [
        ("HTTPS://API.example:443/invoices", URL),
        ("https://api.example/invoices?customer=ACME#x", URL),
        (URL, "https://api.example/invoices?customer=ACME"),
        ("https://api.example/a/../invoices", URL),
        ("https://api.example/%69nvoices", URL),
        ("https://api.example", "https://api.example/"),
    ],
)
def test_urls_are_compared_in_their_normal_form(htu, url) -> None:
    assert check(proof(htu=htu), url=url)


def test_a_request_url_that_is_none_is_refused() -> None:
    assert code(proof(), url="https://api.example/in voices") == "dpop_url"


def test_a_proof_goes_with_its_token() -> None:
    """The hash is RFC 9449's own (§7.1)."""
    assert check(proof(ath=TOKEN_HASH), access_token=TOKEN)
    assert code(proof(), access_token=TOKEN) == "claim_missing"
    assert code(proof(ath=TOKEN_HASH), access_token=TOKEN + "x") == "dpop_token"
    assert code(proof(ath=TOKEN_HASH + "="), access_token=TOKEN) == "dpop_token"
    assert code(proof(ath="\u00e9"), access_token=TOKEN) == "dpop_token"
    assert code(proof(ath=TOKEN_HASH), access_token="\u00e9") == "dpop_token"


def test_a_nonce_is_the_servers_own() -> None:
    assert check(proof(nonce="n1"), nonce="n1").nonce == "n1"
    assert check(proof(nonce="n2")).nonce == "n2"
    assert code(proof(), nonce="n1") == "dpop_nonce"
    assert code(proof(nonce="n2"), nonce="n1") == "dpop_nonce"


def test_a_changed_byte_breaks_the_signature() -> None:
    head, _, signature = proof().split(".")
    body = b64url(json.dumps({"jti": "j1", "htm": "GET", "htu": URL, "iat": int(NOW) + 1}).encode())
    assert code(f"{head}.{body}.{signature}") == "bad_signature"


def test_a_large_header_is_refused_before_its_signature() -> None:
    with pytest.raises(VerificationError) as refused:
        check(proof(header={"x": "a" * 1100}))
    assert refused.value.code != "bad_signature"


def test_the_caller_names_the_error() -> None:
    for text in ("x", proof(htm="POST"), proof(header={"typ": "JWT"}), proof(iat="x")):
        with pytest.raises(InvalidAssertionError):
            check(text, error=InvalidAssertionError)


@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=20))
def test_no_text_is_a_proof(head, payload, signature) -> None:
    for text in (head, f"{head}.{payload}.{signature}"):
        with pytest.raises(VerificationError):
            check(text)
