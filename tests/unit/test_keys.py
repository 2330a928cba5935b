# SPDX-License-Identifier: Apache-2.0
"""Keys and certificates as somebody keeps them: what is taken, what is refused, and that no refusal shows a key."""

from __future__ import annotations

import base64
import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from agent_identity.errors import ConfigurationError
from agent_identity.keys.private_files import write_private
from agent_identity.keys.signing import SigningKey, read_certificate
from agent_identity.testing import assert_no_leak

COMMENT = "Schlüssel des Agenten\n".encode()


def pem(der: bytes, label: str = "PRIVATE KEY") -> bytes:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


def encoded(key: CertificateIssuerPrivateKeyTypes | x25519.X25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


TRADITIONAL = serialization.PrivateFormat.TraditionalOpenSSL
P256 = ec.generate_private_key(ec.SECP256R1())


def with_algorithm(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, algorithm: str) -> bytes:
    """A key in PKCS#8 whose algorithm says something else than what it was made for."""
    der = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    usual = next(each for each in (NAMED, RSA) if each in der)
    _, _, inner = der.partition(usual)
    return pem(tlv(0x30, b"\x02\x01\x00" + bytes.fromhex(algorithm) + inner))


NAMED = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
RSA = bytes.fromhex("300d06092a864886f70d0101010500")


def tlv(tag: int, body: bytes) -> bytes:
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


EXPLICIT = (
    "3082010306072a8648ce3d02013081f7020101302c06072a8648ce3d0101022100ffffffff0000000100000000000000"
    "0000000000ffffffffffffffffffffffff305b0420ffffffff00000001000000000000000000000000ffffffffffffff"
    "fffffffffc04205ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b031500c49d360886e7"
    "04936a6678e1139d26b7819f7e900441046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2"
    "964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5022100ffffffff00000000ffffffff"
    "ffffffffbce6faada7179e84f3b9cac2fc632551020101"
)
PSS = "300b06092a864886f70d01010a"
SM2 = "301306072a8648ce3d020106082a811ccf5501822d"

UNUSABLE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no PEM": lambda: b"\xff\xfe" * 40,
    "explicit curve parameters": lambda: with_algorithm(P256, EXPLICIT),
    "RSA for PSS alone": lambda: with_algorithm(rsa.generate_private_key(65537, 2048), PSS),
    "a curve that isn't supported": lambda: with_algorithm(P256, SM2),
    "another curve": lambda: encoded(ec.generate_private_key(ec.SECP384R1())),
    "X25519": lambda: encoded(x25519.X25519PrivateKey.generate()),
    "Ed448": lambda: encoded(ed448.Ed448PrivateKey.generate()),
    "two keys": lambda: encoded(P256) + encoded(ec.generate_private_key(ec.SECP256R1())),
    "an encrypted key": lambda: P256.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    ),
}


def secrets_of(text: bytes) -> list[str]:
    return [
        line.decode(errors="replace")
        for line in text.splitlines()
        if len(line) > 30 and b"-" not in line
    ]


def refused(read: Callable[[], object]) -> ConfigurationError:
    """What reading says, as somebody gets it who holds the key in no frame of their own."""
    with pytest.raises(ConfigurationError) as caught:
        read()
    error = caught.value
    while error.__traceback__ is not None and "agent_identity" not in (
        error.__traceback__.tb_frame.f_code.co_filename.removeprefix(str(Path(__file__)))
    ):
        error.__traceback__ = error.__traceback__.tb_next
    return error


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_key_that_signs_nothing_is_refused_and_shown_nowhere(make: Callable[[], bytes]) -> None:
    text = make()
    error = refused(lambda: SigningKey.from_pem(text))
    assert error.code == "key_unusable"
    assert_no_leak(secrets_of(text) or ["nothing-to-find"], error)


@pytest.mark.parametrize(
    "text",
    [
        encoded(P256),
        P256.private_bytes(serialization.Encoding.PEM, TRADITIONAL, serialization.NoEncryption()),
        b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
        + encoded(P256),
        COMMENT + encoded(P256),
    ],
    ids=["PKCS#8", "traditional", "with its curve before it", "with a comment"],
)
def test_a_key_is_read_however_openssl_writes_it(text: bytes) -> None:
    assert SigningKey.from_pem(text).alg == "ES256"


# -- certificates ------------------------------------------------------------------------------------------------------


def certificate(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def test_comments_around_a_certificate_and_its_key_stay_behind() -> None:
    found = read_certificate(COMMENT + certificate(P256), COMMENT + encoded(P256))
    assert found.chain.isascii()
    assert found.key.reveal().encode() == encoded(P256)
    assert found.chain.startswith("-----BEGIN CERTIFICATE-----")


def test_chain_and_key_may_stand_in_one_file() -> None:
    both = certificate(P256) + encoded(P256)
    found = read_certificate(both, both)
    assert "PRIVATE KEY" not in found.chain
    assert "CERTIFICATE" not in found.key.reveal()


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_certificate_without_its_own_key_is_refused(make: Callable[[], bytes]) -> None:
    text = make()
    chain = certificate(ec.generate_private_key(ec.SECP256R1()))
    error = refused(lambda: read_certificate(chain, text))
    assert error.code == "certificate_unusable"
    assert_no_leak(secrets_of(text) or ["nothing-to-find"], error)


def test_the_key_of_a_certificate_has_a_named_curve() -> None:
    error = refused(lambda: read_certificate(certificate(P256), with_algorithm(P256, EXPLICIT)))
    assert error.code == "certificate_unusable"


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_a_killed_process_left_stands_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "signer.pem"
    (tmp_path / f"signer.pem.{os.getpid()}.tmp").touch()
    write_private(path, b"key")
    assert path.read_bytes() == b"key"
    assert path.stat().st_mode & 0o777 == 0o600
