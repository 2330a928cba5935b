# SPDX-License-Identifier: Apache-2.0
"""Who holds the key of first grants: in memory, or anything that a flow can ask; what it gives is checked before it is used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

from agent_identity.credentials.agent import Agent
from agent_identity.credentials.root_grants import RootWanted, SignedGrants
from agent_identity.delegation.chain import Anchor, verify_chain
from agent_identity.delegation.grant import mint_root, root_signing_input
from agent_identity.errors import (
    ConfigurationError,
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import HttpRequest, HttpResponse, http, pure, run
from agent_identity.jose import unverified
from agent_identity.jose.public_keys import is_signed
from agent_identity.keys.signing import (
    SigningKey,
    public_key_of,
    public_signing_jwk,
    thumbprint,
    to_published_jwk,
)
from agent_identity.signers import MemorySigner, Signer, public_keys_of
from agent_identity.testing import play
from agent_identity.values import Principal, b64url, unb64url

NOW = 1_795_518_000
NAME = "urn:agent-identity:signer:finance"
AGENT = Agent("urn:agent-identity:agent:invoice-bot")
KEY, OTHER = SigningKey.generate(), SigningKey.generate()
WANTED = RootWanted(
    principal=Principal("alice"),
    subject=None,
    agent=AGENT.uri,
    resources=frozenset({"https://billing.example"}),
    scopes=frozenset({"invoices:read"}),
    purpose="close the books",
    task="October",
    txn="ses_1",
    max_depth=3,
    lifetime=900,
    evidence="issuer",
    proof_key=AGENT.proof_key,
)
PAGE = Path(__file__).parents[2] / "docs/how-to/key-holders.md"


def grants(signer: Signer) -> SignedGrants:
    return SignedGrants(signer, NAME, lambda: NOW)


class Elsewhere:
    """A signer whose keys and signatures a test gives."""

    def __init__(self, *keys: Any, signature: Any = None) -> None:
        self._keys = keys
        self._signature = signature
        self.asked: list[tuple[bytes, str]] = []

    def keys(self, /) -> Any:
        return pure(self._keys)

    def sign(self, data: bytes, kid: str, /) -> Any:
        self.asked.append((data, kid))
        return pure(KEY.sign(data) if self._signature is None else self._signature)


# -- what is signed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["ES256", "Ed25519"])
def test_a_key_in_memory_signs_without_asking_anybody(alg: str) -> None:
    key = SigningKey.generate(alg)
    made = grants(MemorySigner(key))
    grant = play(made.grant(WANTED))
    keys = play(made.keys())
    assert keys == [public_signing_jwk(key)]
    [root] = verify_chain([grant.compact], [Anchor(NAME, keys, "issuer")], now=NOW)
    assert (root.kid, root.sub, root.task, root.exp) == (
        *(key.thumbprint, "alice", "October", NOW + 900),
    )


def test_a_key_is_named_by_its_thumbprint_whatever_it_calls_itself() -> None:
    signer = Elsewhere(
        {**KEY.public_jwk, "kid": "v7", "alg": "none", "key_ops": ["sign"], "x5u": "x"}
    )
    made = grants(signer)
    grant = play(made.grant(WANTED))
    assert grant.kid == KEY.thumbprint
    assert signer.asked == [(grant.compact.rpartition(".")[0].encode(), KEY.thumbprint)]
    assert play(made.keys()) == [public_signing_jwk(KEY)]


def test_the_first_key_signs_and_all_are_published() -> None:
    made = grants(Elsewhere(KEY.public_jwk, OTHER.public_jwk))
    assert play(made.grant(WANTED)).kid == KEY.thumbprint
    assert [key["kid"] for key in play(made.keys())] == [KEY.thumbprint, OTHER.thumbprint]
    assert play(made.key(OTHER.thumbprint)) == public_signing_jwk(OTHER)


def test_what_is_minted_at_once_is_what_would_have_been_signed_by_a_flow() -> None:
    parts: dict[str, Any] = {
        "iss": NAME,
        "principal_sub": "alice",
        "sub_iss": NAME,
        "sub_profile": "user",
        "agent": AGENT.uri,
        "jkt": AGENT.key.thumbprint,
        "aud": ["https://billing.example"],
        "scopes": ["invoices:read"],
        "purpose": "close the books",
        "task": None,
        "txn": "ses_1",
        "now": NOW,
        "expires_at": NOW + 900,
        "max_depth": 3,
        "evidence": "issuer",
    }
    at_once = unverified(mint_root(KEY, "k", **parts).compact)
    by_flow = unverified(f"{root_signing_input('ES256', 'k', **parts).decode()}.AAAA")
    assert at_once.header == by_flow.header
    first, second = (json.loads(each.payload) for each in (at_once, by_flow))
    assert first.pop("jti") != second.pop("jti")
    assert first == second


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signature",
    [OTHER.sign(b"x"), KEY.sign(b"x"), b"\0" * 64, b"x"],
    ids=["another key", "other bytes", "zeros", "short"],
)
def test_what_another_key_or_other_bytes_gave_is_never_used(signature: bytes) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        play(grants(Elsewhere(KEY.public_jwk, signature=signature)).grant(WANTED))
    assert caught.value.code == "bad_signature"
    assert caught.value.remedy


def test_an_empty_signature_is_never_used() -> None:
    with pytest.raises(CredentialRejectedError):
        play(grants(Elsewhere(KEY.public_jwk, signature=b"")).grant(WANTED))


def test_a_signer_without_a_key_signs_nothing() -> None:
    signer = Elsewhere()
    with pytest.raises(CredentialRejectedError) as caught:
        play(grants(signer).grant(WANTED))
    assert (caught.value.code, signer.asked) == ("unknown_key", [])


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "x": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
    ],
)
def test_a_key_that_can_t_sign_here_is_refused(jwk: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        play(public_keys_of(Elsewhere(jwk)))
    assert caught.value.code == "key_unusable"


def test_nothing_private_of_a_key_is_published() -> None:
    found = to_published_jwk({**KEY.public_jwk, "d": "c2VjcmV0"})
    assert found == public_signing_jwk(KEY)


def test_a_signer_that_can_t_be_reached_is_unavailable_and_not_the_networks_error() -> None:
    class Far(Elsewhere):
        def keys(self, /) -> Any:
            yield from http(HttpRequest("GET", "https://kms.example"))

    with pytest.raises(CredentialUnavailableError) as caught:
        play(grants(Far()).grant(WANTED), TransportError("connect_failed", "no route"))
    assert caught.value.code == "issuer_unreachable"


# -- public keys as services give them -------------------------------------------------------------------------------

SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


@pytest.mark.parametrize("encoding", [serialization.Encoding.PEM, serialization.Encoding.DER])
@pytest.mark.parametrize("alg", ["ES256", "Ed25519"])
def test_a_public_key_is_read_from_pem_and_der(alg: str, encoding: serialization.Encoding) -> None:
    key = SigningKey.generate(alg)
    private = serialization.load_pem_private_key(key.to_pem(), None)
    found = public_key_of(private.public_key().public_bytes(encoding, SPKI))
    assert found == key.public_jwk
    assert thumbprint(found) == key.thumbprint


@pytest.mark.parametrize(
    "private",
    [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)],
    ids=["P-384", "RSA"],
)
def test_another_public_key_is_refused(private: Any) -> None:
    for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
        with pytest.raises(ConfigurationError):
            public_key_of(private.public_key().public_bytes(encoding, SPKI))


@pytest.mark.parametrize("encoded", [b"", b"canary-key", b"-----BEGIN PUBLIC KEY-----\ncanary"])
def test_what_is_no_public_key_is_refused_and_not_quoted(encoded: bytes) -> None:
    with pytest.raises(ConfigurationError) as caught:
        public_key_of(encoded)
    assert caught.value.code == "key_unusable"
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_private_key_is_no_public_one() -> None:
    with pytest.raises(ConfigurationError):
        public_key_of(
            ed25519.Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_signer_of_the_page_signs() -> None:
    """Answers as Azure's documentation of keys/get-key and keys/sign has them."""
    source = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    names: dict[str, Any] = {}
    exec(source, names)  # noqa: S102 - it is ours
    place = "https://acme.vault.azure.net/keys/bot/78deebed173b48e48f55abf87ed4cf71"
    private = serialization.load_pem_private_key(KEY.to_pem(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    asked: list[HttpRequest] = []

    def azure(ask: Any) -> HttpResponse:
        if ask.plain is not None:
            return HttpResponse(200, {}, b'{"access_token":"canary"}')
        asked.append(ask)
        if ask.method == "GET":
            key = {**KEY.public_jwk, "kty": "EC-HSM", "kid": place, "key_ops": ["sign"]}
            return HttpResponse(200, {}, json.dumps({"key": key}).encode())
        digest = unb64url(json.loads(ask.body)["value"])
        r, s = decode_dss_signature(private.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256()))))
        value = b64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        return HttpResponse(200, {}, json.dumps({"kid": place, "value": value}).encode())

    grant = run(grants(names["AzureKey"](place)).grant(WANTED), azure)
    assert grant.kid == KEY.thumbprint
    assert [ask.url for ask in asked] == [
        f"{place}?api-version=7.4",
        f"{place}/sign?api-version=7.4",
    ]
    assert b"alice" not in asked[-1].body


def test_der_becomes_jws_as_the_page_has_it() -> None:
    source = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[2]
    names: dict[str, Any] = {}
    exec(source, names)  # noqa: S102 - it is ours
    private = ec.generate_private_key(ec.SECP256R1())
    raw = names["jws"](private.sign(b"x", ec.ECDSA(hashes.SHA256())))
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, SPKI)
    assert is_signed(raw, b"x", "ES256", public_key_of(pem))
