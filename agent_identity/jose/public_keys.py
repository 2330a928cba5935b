# SPDX-License-Identifier: Apache-2.0
"""Selects and loads the public keys that may check a signature, and checks it.

Keys are JWK dicts from outside. Loading one is slow, so the last ones are cached by their members. ES256 and Ed25519, our own
algorithms, are checked by cryptography directly, those of foreign issuers by PyJWT, with a key that was checked here. PyJWT is
imported for the first such signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from agent_identity.errors import VerificationError
from agent_identity.keys.algorithms import KEY_TYPES
from agent_identity.values import unb64url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jwt.algorithms import Algorithm

    from agent_identity.keys.signing import JWK
    from agent_identity.values import JSON

_MAX_TRIES: Final = 4
_KEPT: Final = 1024
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

Check: TypeAlias = Callable[[], object]
"""The prepared check of one signature; raises `InvalidSignature`."""

Checker: TypeAlias = Callable[[bytes, bytes], Check]
"""A loaded key: takes a signature and the signed bytes, and returns their check."""


def find_candidates(keys: Sequence[JWK], alg: str, kid: JSON) -> list[JWK]:
    """The keys, at least one, that may check a token with this `alg` and `kid` (None if it has none).

    Raises:
        VerificationError: `unknown_key`, `key_mismatch`, or `key_ambiguous` if too many keys fit a token without a `kid`.
    """
    named = [key for key in keys if kid is None or key.get("kid") == kid]
    if not named:
        raise VerificationError("unknown_key", "no known key has the token's kid")
    fitting = [key for key in named if fits(key, alg)]
    if not fitting:
        raise VerificationError("key_mismatch", f"the token's key isn't for {alg} signatures")
    if len(fitting) > _MAX_TRIES:
        raise VerificationError("key_ambiguous", "the token has no kid, and too many keys fit it")
    return fitting


def is_signed(signature: bytes, signing_input: bytes, alg: str, jwk: JWK) -> bool:
    """Whether that key signed these bytes.

    Raises:
        VerificationError: `key_private`, `key_malformed` or `key_weak`.
    """
    return is_valid(load_checker(alg, jwk)(signature, signing_input))


def load_checker(alg: str, jwk: JWK) -> Checker:
    """Load a key.

    Raises:
        VerificationError: see `is_signed`.
    """
    refuse_private(jwk)
    kty = KEY_TYPES[alg][0]
    return _LOADERS[kty](alg, *[_member(jwk, name) for name in _MEMBERS[kty]])


def is_valid(check: Check) -> bool:
    """Whether the signature is that of its key."""
    try:
        check()
    except InvalidSignature:
        return False
    return True


def refuse_private(jwk: JWK) -> None:
    """Refuse a JWK with members of a private or symmetric key: it is no longer secret."""
    if not _PRIVATE_MEMBERS.isdisjoint(jwk):
        raise VerificationError("key_private", "a private key was sent in place of a public one")


def fits(jwk: JWK, alg: str) -> bool:
    """Whether a key is for signatures with this `alg`."""
    operations = jwk.get("key_ops", ["verify"])
    return (
        (jwk.get("kty"), jwk.get("crv")) == KEY_TYPES.get(alg)
        and jwk.get("alg", alg) == alg
        and jwk.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
    )


def _member(jwk: JWK, name: str) -> str:
    value = jwk.get(name)
    if not isinstance(value, str):
        raise VerificationError("key_malformed", f"a key has no {name}")
    return value


_CURVES: Final[Mapping[str, tuple[ec.EllipticCurve, int]]] = {
    "ES256": (ec.SECP256R1(), 32),
    "ES384": (ec.SECP384R1(), 48),
    "ES512": (ec.SECP521R1(), 66),
}


@lru_cache(_KEPT)
def _ecdsa(alg: str, x: str, y: str) -> Checker:
    curve, size = _CURVES[alg]
    point = unb64url(x), unb64url(y)
    if not len(point[0]) == len(point[1]) == size:  # RFC 7518 §6.2.1.2
        raise VerificationError("key_malformed", "an EC key has coordinates of the wrong length")
    key = None
    with suppress(ValueError):
        key = ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + b"".join(point))
    if key is None:
        raise VerificationError("key_malformed", "an EC key is not a point on its curve")
    return _es256(key) if alg == "ES256" else _by_pyjwt(alg, key, 2 * size)


def _es256(key: ec.EllipticCurvePublicKey) -> Checker:
    scheme = ec.ECDSA(Prehashed(hashes.SHA256()))

    def check_of(signature: bytes, signing_input: bytes) -> Check:
        if len(signature) != 64:  # noqa: PLR2004 - r and s, each of 32 bytes
            return _refuse
        r = int.from_bytes(signature[:32], "big")
        s = int.from_bytes(signature[32:], "big")
        der = encode_dss_signature(r, s)  # the check refuses r and s out of range
        return partial(key.verify, der, hashlib.sha256(signing_input).digest(), scheme)

    return check_of


def _refuse() -> NoReturn:
    raise InvalidSignature


def _by_pyjwt(alg: str, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, size: int) -> Checker:
    def check(signature: bytes, signing_input: bytes) -> None:
        # RFC 8017 §8.1.2; OpenSSL also accepts a PSS signature without its leading zeros
        if len(signature) != size or not _algorithms()[alg].verify(signing_input, key, signature):
            raise InvalidSignature

    return partial(partial, check)


@cache
def _algorithms() -> dict[str, Algorithm]:
    # not `jwt.get_algorithm_by_name`: any code in this process can register another algorithm there
    from jwt.algorithms import get_default_algorithms  # noqa: PLC0415 - PyJWT loads on first use

    return get_default_algorithms()


@lru_cache(_KEPT)
def _ed25519(_alg: str, x: str) -> Checker:
    point = unb64url(x)
    if len(point) != _ED25519_SIZE:
        raise VerificationError("key_malformed", "an Ed25519 key has the wrong length")
    y = int.from_bytes(point, "little") & ~(1 << 255)
    if y >= _ED25519_FIELD or y in _SMALL_ORDER:
        raise VerificationError(
            "key_weak", "an Ed25519 key is a point of small order, for which anybody can sign"
        )
    return partial(partial, ed25519.Ed25519PublicKey.from_public_bytes(point).verify)


_ED25519_SIZE: Final = 32
_ED25519_FIELD: Final = 2**255 - 19
_ORDER_8: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
# The y of every point whose order divides 8, with either sign (RFC 7748 §7).
_SMALL_ORDER: Final = frozenset({0, 1, _ED25519_FIELD - 1, _ORDER_8, _ED25519_FIELD - _ORDER_8})


@lru_cache(_KEPT)
def _rsa(alg: str, n: str, e: str) -> Checker:
    octets = unb64url(n), unb64url(e)
    if not all(octets) or any(number[0] == 0 for number in octets):  # RFC 7518 §6.3.1.1, §2
        raise VerificationError("key_malformed", "an RSA key has a number with leading zeros")
    modulus, exponent = (int.from_bytes(number, "big") for number in octets)
    if not _is_strong(modulus, exponent):
        raise VerificationError("key_weak", "an RSA key is weak, or doesn't have 2048 to 8192 bits")
    key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    return _by_pyjwt(alg, key, len(octets[0]))


def _is_strong(modulus: int, exponent: int) -> bool:
    """Whether an RSA key is within the limits of FIPS 186-5, without the fingerprint of ROCA (CVE-2017-15361)."""
    return (
        2**2047 <= modulus < 2**8192
        and modulus % 2 == 1
        and exponent % 2 == 1
        and 2**16 < exponent < 2**256
        and not all(modulus % p in {pow(65537, k, p) for k in range(p)} for p in _ROCA_PRIMES)
    )


# ROCA's primes are k*M + (65537^a mod M), M a product of small primes: modulo each of these only some values are possible.
_ROCA_PRIMES: Final = (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157)

_MEMBERS: Final = {"EC": ("x", "y"), "OKP": ("x",), "RSA": ("n", "e")}
_LOADERS: Final[Mapping[str, Callable[..., Checker]]] = {
    "EC": _ecdsa,
    "OKP": _ed25519,
    "RSA": _rsa,
}
