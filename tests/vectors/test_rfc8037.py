# SPDX-License-Identifier: Apache-2.0
"""RFC 8037 appendix A: an Ed25519 key, its thumbprint, and a JWS under the older name `EdDSA`."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from agent_identity import jose
from agent_identity.errors import VerificationError
from agent_identity.keys.signing import SigningKey, thumbprint
from agent_identity.values import b64url, unb64url

D = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
KEY = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
SIGNING_INPUT = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
SIGNATURE = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"


def test_the_public_key_of_a_2_belongs_to_the_private_one_of_a_1():
    key = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(unb64url(D)))
    assert key.public_jwk == KEY


def test_the_thumbprint_of_a_3():
    assert thumbprint(KEY) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_the_signature_of_a_4_is_ours_too():
    key = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(unb64url(D)))
    assert b64url(key.sign(SIGNING_INPUT.encode())) == SIGNATURE


@pytest.mark.parametrize("key", [KEY, {**KEY, "alg": "EdDSA"}])
def test_the_token_of_a_5_verifies(key):
    header, payload = jose.verify(f"{SIGNING_INPUT}.{SIGNATURE}", [key], algorithms={"EdDSA"})
    assert header == {"alg": "EdDSA"}
    assert payload == b"Example of Ed25519 signing"


def test_the_token_of_a_5_is_refused_where_the_older_name_is_not_asked_for():
    with pytest.raises(VerificationError) as caught:
        jose.verify(f"{SIGNING_INPUT}.{SIGNATURE}", [KEY], algorithms={"Ed25519"})
    assert caught.value.code == "alg_not_allowed"
