# SPDX-License-Identifier: Apache-2.0
"""Which public keys may check a signature, and how each algorithm does it.

A key says of itself what it is for: type, curve, `alg`, `use` and `key_ops` all have to fit (RFC 7517 §4, RFC 8725 §3.1).
Private keys in place of public ones, weak RSA keys and Ed25519 keys of small order are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from agent_identity.errors import VerificationError
from agent_identity.values import unb64url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.keys import JWK

__all__ = ["ALGORITHMS", "candidates", "is_signed", "refuse_private"]

_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


def _refuse_private(jwk: JWK) -> None:
    if not _PRIVATE_MEMBERS.isdisjoint(jwk):
        raise VerificationError("key_private", "a private key came in place of a public one")


_KEY_TYPES: Final = {
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "Ed25519": ("OKP", "Ed25519"),
    "EdDSA": ("OKP", "Ed25519"),
    "RS256": ("RSA", None),
    "PS256": ("RSA", None),
}


def _candidates(members: Mapping[str, JSON], alg: str, keys: Sequence[JWK]) -> list[JWK]:
    kid = members.get("kid")
    named = [key for key in keys if kid is None or key.get("kid") == kid]
    if not named:
        raise VerificationError("unknown_key", "none of the keys known here has its kid")
    fitting = [key for key in named if _fits(key, alg)]
    if not fitting:
        raise VerificationError("key_mismatch", f"its key isn't one for {alg} signatures")
    if len(fitting) > _MAX_TRIES:
        raise VerificationError("key_ambiguous", "it doesn't say which of many keys signed it")
    return fitting


_MAX_TRIES: Final = 4


def _fits(jwk: JWK, alg: str) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    return (
        (jwk.get("kty"), jwk.get("crv")) == _KEY_TYPES[alg]
        and jwk.get("alg", alg) == alg
        and jwk.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
    )


_Check: TypeAlias = Callable[[bytes, bytes], None]
"""Checks a signature over data with one key, and raises `InvalidSignature`."""


def _is_signed(token: Parsed, check: _Check) -> bool:
    try:
        check(token.signature, token.signing_input)
    except InvalidSignature:
        return False
    return True


def _check(alg: str, jwk: JWK) -> _Check:
    _refuse_private(jwk)
    if alg in _EC:
        return _ecdsa(alg, _member(jwk, "x"), _member(jwk, "y"))
    if alg in _RSA:
        return _rsa(alg, _member(jwk, "n"), _member(jwk, "e"))
    return _ed25519(_member(jwk, "x"))


def _member(jwk: JWK, name: str) -> str:
    value = jwk.get(name)
    if not isinstance(value, str):
        raise VerificationError("key_malformed", f"a {jwk['kty']} key has no {name}")
    return value


_EC: Final = {
    "ES256": (ec.SECP256R1(), 32, ec.ECDSA(hashes.SHA256())),
    "ES384": (ec.SECP384R1(), 48, ec.ECDSA(hashes.SHA384())),
}
_RSA: Final[Mapping[str, padding.AsymmetricPadding]] = {
    "RS256": padding.PKCS1v15(),
    "PS256": padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=hashes.SHA256.digest_size),
}
_KEPT_KEYS: Final = 1024


@lru_cache(_KEPT_KEYS)
def _ecdsa(alg: str, x: str, y: str) -> _Check:
    curve, size, scheme = _EC[alg]
    key = None
    point = unb64url(x), unb64url(y)
    if all(len(coordinate) == size for coordinate in point):  # RFC 7518 §6.2.1.2
        with suppress(ValueError):
            key = ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + b"".join(point))
    if key is None:
        raise VerificationError("key_malformed", "an EC key is no point of its curve")

    def check(signature: bytes, data: bytes) -> None:
        if len(signature) != 2 * size:
            raise InvalidSignature
        r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
        key.verify(encode_dss_signature(r, s), data, scheme)  # which refuses r and s out of range

    return check


@lru_cache(_KEPT_KEYS)
def _ed25519(x: str) -> _Check:
    point = unb64url(x)
    if len(point) != 32:
        raise VerificationError("key_malformed", "an Ed25519 key isn't 32 bytes long")
    y = int.from_bytes(point, "little") & ~(1 << 255)
    if y >= _ED25519_FIELD or y in _SMALL_ORDER:
        raise VerificationError("key_weak", "an Ed25519 key is a point that signs anything")
    return ed25519.Ed25519PublicKey.from_public_bytes(point).verify


_ED25519_FIELD: Final = 2**255 - 19
_ORDER_8: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD83D3D706A17C7
_SMALL_ORDER: Final = frozenset({0, 1, _ED25519_FIELD - 1, _ORDER_8, _ED25519_FIELD - _ORDER_8})
"""The y of every point whose order divides 8; each with either sign."""


@lru_cache(_KEPT_KEYS)
def _rsa(alg: str, n: str, e: str) -> _Check:
    if len(n) > _LONGEST_MODULUS:
        raise VerificationError("key_malformed", "an RSA key is longer than 8192 bits")
    octets = unb64url(n), unb64url(e)
    if any(number[:1] in {b"", b"\0"} for number in octets):  # RFC 7518 §6.3.1.1
        raise VerificationError("key_malformed", "an RSA key has a number with leading zeros")
    modulus, exponent = (int.from_bytes(number, "big") for number in octets)
    if not _is_strong(modulus, exponent):
        raise VerificationError("key_weak", "an RSA key is weak, or below 2048 bits")
    key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    scheme, digest = _RSA[alg], hashes.SHA256()
    return lambda signature, data: key.verify(signature, data, scheme, digest)


_LONGEST_MODULUS: Final = 8192 // 6 + 1


def _is_strong(modulus: int, exponent: int) -> bool:
    """Whether an RSA key keeps FIPS 186-5's limits and hasn't the fingerprint of ROCA (CVE-2017-15361)."""
    return (
        modulus.bit_length() >= 2048
        and modulus % 2 == 1
        and 2**16 < exponent < 2**256
        and exponent % 2 == 1
        and not all(modulus % p in {pow(65537, k, p) for k in range(p)} for p in _ROCA_PRIMES)
    )


# ROCA's primes are k*M + (65537^a mod M), M a product of small primes: modulo each of these few values are left.
_ROCA_PRIMES: Final = (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157)
