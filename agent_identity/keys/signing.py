# SPDX-License-Identifier: Apache-2.0
"""Private keys that sign, public keys as JWKs, and client certificates. A JWK is named by its RFC 7638 thumbprint."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa

from agent_identity.errors import ConfigurationError
from agent_identity.keys.algorithms import KEY_TYPES
from agent_identity.values import Certificate, Secret, b64url, b64url_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificateIssuerPrivateKeyTypes,
        PrivateKeyTypes,
        PublicKeyTypes,
    )

    from agent_identity.values import JSON

JWK: TypeAlias = Mapping[str, object]

_ES256: Final = ec.ECDSA(hashes.SHA256())
_RSA_BITS: Final = 2048
_REQUIRED_MEMBERS: Final = {
    "EC": ("crv", "kty", "x", "y"),
    "OKP": ("crv", "kty", "x"),
    "RSA": ("e", "kty", "n"),
}
_ALGORITHMS: Final[Mapping[tuple[object, object], str]] = {
    kind: alg for alg, kind in reversed(KEY_TYPES.items())
}
"""The first algorithm of each kind of key."""


class SigningKey:
    """A private key that signs compact JWS: ES256 on P-256, Ed25519, or RS256 for clients whose issuer supports nothing else.

    It has no readable form and can't be pickled or copied. Others verify with `public_jwk`.
    """

    __slots__ = ("__weakref__", "_private", "_sign", "alg", "public_jwk", "thumbprint")

    def __init__(
        self, private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
    ) -> None:
        self.alg: str
        self._private = private
        self._sign: Callable[[bytes], bytes]
        if isinstance(private, ec.EllipticCurvePrivateKey):
            self.alg = "ES256"
            self._sign = _es256(private)
        elif isinstance(private, ed25519.Ed25519PrivateKey):
            self.alg = "Ed25519"
            self._sign = private.sign
        else:
            self.alg = "RS256"
            self._sign = _rs256(private)
        self.public_jwk: dict[str, str] = _jwk_of(private.public_key())
        self.thumbprint: str = thumbprint(self.public_jwk)

    @classmethod
    def generate(cls, alg: str = "ES256") -> SigningKey:
        """Make a new key for ES256 or Ed25519."""
        if alg == "Ed25519":
            return cls(ed25519.Ed25519PrivateKey.generate())
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Read an unencrypted PKCS#8 key.

        Raises:
            ConfigurationError: it isn't a P-256, Ed25519 or RSA (2048 bits and more) private key.
        """
        private = _private_key(pem)
        del pem  # so that no traceback holds it
        if isinstance(private, ed25519.Ed25519PrivateKey) or (
            isinstance(private, ec.EllipticCurvePrivateKey)
            and isinstance(private.curve, ec.SECP256R1)
        ):
            return cls(private)
        if isinstance(private, rsa.RSAPrivateKey) and private.key_size >= _RSA_BITS:
            return cls(private)
        raise ConfigurationError(
            "key_unusable",
            "a signing key must be P-256, Ed25519 or RSA of 2048 bits, in unencrypted PKCS#8 PEM",
        )

    def to_pem(self) -> bytes:
        """The private key as unencrypted PKCS#8, for `write_private` only. An agent's own key is never written."""
        return self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def sign(self, data: bytes) -> bytes:
        """The raw signature as JWS wants it: r‖s of 64 bytes for ES256, RFC 8032 for Ed25519."""
        return self._sign(data)

    def compact(self, header: str, payload: bytes) -> str:
        """A compact JWS over `payload`; `header` is an encoded one from `jose.encode_header`."""
        return self.complete(f"{header}.{b64url(payload)}".encode("ascii"))

    def complete(self, signing_input: bytes) -> str:
        """A compact JWS over `signing_input`, for callers that keep part of it encoded."""
        return (signing_input + b"." + b64url_bytes(self._sign(signing_input))).decode("ascii")

    def __repr__(self) -> str:
        return f"<SigningKey {self.alg} {self.thumbprint}>"

    def __reduce_ex__(self, protocol: object, /) -> NoReturn:
        raise TypeError("a SigningKey can't be pickled or copied")


def _es256(private: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    def sign(data: bytes) -> bytes:
        der = private.sign(data, _ES256)
        # SEQUENCE{INTEGER r, INTEGER s}; each may be padded with a zero or shorter than 32 bytes. For P-256 every
        # length fits one byte.
        split = 4 + der[3]
        return der[4:split][-32:].rjust(32, b"\0") + der[split + 2 :][-32:].rjust(32, b"\0")

    return sign


def _rs256(private: rsa.RSAPrivateKey) -> Callable[[bytes], bytes]:
    return lambda data: private.sign(data, padding.PKCS1v15(), hashes.SHA256())


def _jwk_of(
    public: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey,
) -> dict[str, str]:
    if isinstance(public, ec.EllipticCurvePublicKey):
        # SEC 1 §2.3.3: 4, x and y, each coordinate in 32 bytes
        point = public.public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        return {"kty": "EC", "crv": "P-256", "x": b64url(point[1:33]), "y": b64url(point[33:])}
    if isinstance(public, ed25519.Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": b64url(public.public_bytes_raw())}
    modulus = public.public_numbers()
    return {"kty": "RSA", "n": _uint(modulus.n), "e": _uint(modulus.e)}


def _uint(number: int) -> str:
    return b64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def read_certificate(chain: bytes, key: bytes) -> Certificate:
    """Read a certificate and its key from PEM: the chain leaf first, the key unencrypted.

    Raises:
        ConfigurationError: `certificate_unusable`, either isn't PEM, or the key isn't the leaf's.
    """
    certificate = _parse_certificate(chain, key)
    del chain, key  # see `SigningKey.from_pem`
    if certificate is None:
        raise ConfigurationError(
            "certificate_unusable",
            "a certificate needs a PEM chain and the key of its leaf",
            remedy="write the PEM chain leaf first, and its key as unencrypted PKCS#8, RSA or on a named curve",
        )
    return certificate


_TLS_KEYS: Final = (
    *(ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey),
    *(ed448.Ed448PrivateKey, rsa.RSAPrivateKey),
)
"""The types of keys that TLS accepts."""


def _parse_certificate(chain: bytes, key: bytes) -> Certificate | None:
    private = _private_key(key)
    if not isinstance(private, _TLS_KEYS):
        return None
    try:
        certificates = x509.load_pem_x509_certificates(chain)
        if private.public_key() != certificates[0].public_key():
            return None
        return certificate_of(certificates, private)
    except Exception:  # noqa: BLE001 - a seam: errors of the parsers quote their input
        return None


_PRIVATE: Final = re.compile(
    rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END", re.ASCII
)
_DISGUISES: Final = (
    bytes.fromhex("06072a8648ce3d0101"),  # prime-field: a curve by its parameters, not by name
    bytes.fromhex("06092a864886f70d01010a"),  # RSASSA-PSS: an RSA key for that padding only
)


def _private_key(pem: bytes) -> PrivateKeyTypes | None:
    """The one private key in a PEM; None if there isn't exactly one, or if it isn't a plain key."""
    try:
        [body] = _PRIVATE.findall(pem)
        der = base64.b64decode(b"".join(body.split()), validate=True)
        if any(disguise in der for disguise in _DISGUISES):
            return None
        return serialization.load_pem_private_key(pem, password=None)
    except Exception:  # noqa: BLE001 - see `_parse_certificate`
        return None


def certificate_of(
    chain: Sequence[x509.Certificate],
    key: CertificateIssuerPrivateKeyTypes,
    bundle: Iterable[x509.Certificate] = (),
) -> Certificate:
    """Make a client certificate from the objects of `cryptography`: the chain leaf first, the leaf's key, trusted authorities."""
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    leaf = chain[0]
    return Certificate(
        chain=_pem(chain),
        key=Secret(private.decode("ascii")),
        thumbprint=b64url(leaf.fingerprint(hashes.SHA256())),
        expires_at=leaf.not_valid_after_utc.timestamp(),
        uris=tuple(_uris(leaf)),
        bundle=_pem(bundle),
    )


def _pem(certificates: Iterable[x509.Certificate]) -> str:
    encoded = [each.public_bytes(serialization.Encoding.PEM) for each in certificates]
    return b"".join(encoded).decode("ascii")


def _uris(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)


def public_signing_jwk(key: SigningKey) -> dict[str, JSON]:
    """The public half of a key as it is published: named by its thumbprint, for signatures only (RFC 7517 §4)."""
    return to_published_jwk(key.public_jwk)


def to_published_jwk(jwk: JWK) -> dict[str, JSON]:
    """The same for the public key of another party, with only the members that define the key.

    Raises:
        ConfigurationError: it isn't on P-256, P-384 or P-521, nor Ed25519 or RSA.
    """
    alg = _ALGORITHMS.get((jwk.get("kty"), jwk.get("crv")))
    if alg is None:
        raise ConfigurationError("key_unusable", "a public key has a type that isn't supported")
    kid = thumbprint(jwk)
    members: dict[str, JSON] = {name: str(jwk[name]) for name in _REQUIRED_MEMBERS[str(jwk["kty"])]}
    return members | {"kid": kid, "alg": alg, "use": "sig"}


def public_key_of(encoded: bytes) -> dict[str, str]:
    """A public key as a JWK, from its SubjectPublicKeyInfo in PEM or DER, the format of services that hold keys.

    Raises:
        ConfigurationError: `key_unusable`, it isn't a P-256 or Ed25519 key.
    """
    public = _public_key(encoded)
    if isinstance(public, ed25519.Ed25519PublicKey) or (
        isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1)
    ):
        return _jwk_of(public)
    raise ConfigurationError(
        "key_unusable", "a public key must be P-256 or Ed25519, as SubjectPublicKeyInfo"
    )


def _public_key(encoded: bytes) -> PublicKeyTypes | None:
    is_pem = encoded.lstrip().startswith(b"-----BEGIN")
    load = serialization.load_pem_public_key if is_pem else serialization.load_der_public_key
    try:
        return load(encoded)
    except Exception:  # noqa: BLE001 - see `_parse_certificate`
        return None


def thumbprint(jwk: JWK) -> str:
    """The RFC 7638 SHA-256 thumbprint of a public JWK.

    Raises:
        ConfigurationError: a required member is missing, or the key type isn't supported.
    """
    names = _REQUIRED_MEMBERS.get(str(jwk.get("kty")), ())
    members = [(name, value) for name in names if isinstance(value := jwk.get(name), str)]
    if not members or len(members) != len(names):
        raise ConfigurationError("key_unusable", "a JWK lacks a member that its thumbprint needs")
    return _thumbprint(*members)


@lru_cache(256)
def _thumbprint(*members: tuple[str, str]) -> str:
    # Members are base64url or registered names, so no character needs escaping.
    text = ",".join([f'"{name}":"{value}"' for name, value in members])
    return b64url(hashlib.sha256(f"{{{text}}}".encode()).digest())
