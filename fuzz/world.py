# SPDX-License-Identifier: Apache-2.0
"""What the targets start from: the published vectors, and keys that anybody can work out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from agent_identity.keys.signing import SigningKey
from agent_identity.values import b64url, unb64url

PUBLISHED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "tests/vectors/delegation.json").read_text(encoding="utf-8")
)
NOW: int = PUBLISHED["now"]


def compacts() -> list[str]:
    """Every token of the vectors, the refused ones too."""
    chains = [PUBLISHED["chain"], *(case.get("chain", []) for case in PUBLISHED["refused"])]
    assertions = [PUBLISHED["assertion"]]
    assertions += [case["assertion"] for case in PUBLISHED["refused"] if "assertion" in case]
    return [*{compact for chain in chains for compact in chain}, *assertions]


def documents() -> list[bytes]:
    """Every JSON text in those tokens, and the arguments."""
    parts = {unb64url(part) for compact in compacts() for part in compact.split(".")[:2]}
    return [*sorted(parts), PUBLISHED["canonical_arguments"].encode()]


def key_of(number: int) -> SigningKey:
    """The key of a party: the anchor's is 0, every third one is Ed25519."""
    secret = hashlib.sha256(f"agent_identity fuzz key: {number}".encode()).digest()
    if number % 3 == 2:
        return SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(secret))
    return SigningKey(ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1()))


KEYS = [key_of(number) for number in range(11)]
P384 = ec.derive_private_key(
    int.from_bytes(hashlib.sha384(b"fuzz").digest(), "big"), ec.SECP384R1()
)
P521 = ec.derive_private_key(
    int.from_bytes(hashlib.sha512(b"fuzz").digest(), "big"), ec.SECP521R1()
)
RSA = rsa.generate_private_key(65537, 2048)


def _number(value: int, size: int) -> str:
    return b64url(value.to_bytes(size, "big"))


def _ec_jwk(crv: str, key: ec.EllipticCurvePrivateKey, size: int) -> dict[str, str]:
    point = key.public_key().public_numbers()
    return {"kty": "EC", "crv": crv, "x": _number(point.x, size), "y": _number(point.y, size)}


_RSA_JWK = {"kty": "RSA", "n": _number(RSA.public_key().public_numbers().n, 256), "e": "AQAB"}
JWKS: dict[str, dict[str, str]] = {
    "ES256": KEYS[0].public_jwk,
    "ES384": _ec_jwk("P-384", P384, 48),
    "ES512": _ec_jwk("P-521", P521, 66),
    "Ed25519": KEYS[2].public_jwk,
    "EdDSA": KEYS[2].public_jwk,
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), _RSA_JWK),
}
_HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def signature_of(alg: str, data: bytes) -> bytes:
    """A signature with the key that `JWKS` has for it."""
    if alg in {"ES256", "Ed25519", "EdDSA"}:
        return KEYS[0 if alg == "ES256" else 2].sign(data)
    digest = _HASHES[alg[2:]]
    if alg.startswith("ES"):
        key, size = (P384, 48) if alg == "ES384" else (P521, 66)
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if alg.startswith("RS"):
        return RSA.sign(data, padding.PKCS1v15(), digest)
    pss = padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)
    return RSA.sign(data, pss, digest)


# What details are put together from: values that are nearly one another, or only look alike.
TOOL = "urn:agent-identity:tool"
TOOLS = ("book", "cancel", "Book", "")
RESOURCES = ("https://b.example", "urn:agent-identity:local", "https://B.example", "")
ARGUMENTS = ("amount", "currency", "other")
SMALL: tuple[Any, ...] = (500, "USD", 0, 1, 1.0, True, False, None, 499.5, 500.0, 501, -1, -0.0)
SMALL += ("US", "usd", "USDX", "", "500", "\u00e9", "e\u0301", [], [1], [1.0], [True], {}, ["USD"])
SMALL += ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, 2**53 - 1, 1e21, 1e300, 5e-324)
VALUES = (*SMALL, 1e17, [[2.0**53]])  # the last two have no canonical form
WORDS: dict[str, tuple[Any, ...]] = {
    "maximum": (500, 499, 501, 500.0, 0, -1, 1e300, True, "500", None),
    "minimum": (0, 1, -1, 0.5, -0.0, 500, 501, False, "0", None),
    "const": VALUES,
    "enum": (["USD", "EUR"], ["USD"], [500, "USD"], [1], [True, 0], ["EUR", "EUR"], [1e17], [], 1),
    "prefix": ("US", "U", "USD", "u", "E", "\u00e9", "", 1, None),
    "other": (1,),
}
