# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys for one run: those of the rigs' own authority, and what clients prove themselves by."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc.jwk import ECKey

from agent_identity import AgentIdentity


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes())

    @property
    def thumbprint(self) -> str:
        """`x5t#S256` of the certificate."""
        digest = self.leaf.fingerprint(hashes.SHA256())
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _certificate(
    folder: Path, name: str, names: Sequence[x509.GeneralName], issuer: Pair | None = None
) -> Pair:
    """A certificate of `issuer`, or a self-signed one; written into the folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    signer, by = key, subject
    if issuer is not None:
        loaded = serialization.load_pem_private_key(issuer.key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer, by = loaded, issuer.leaf.subject
    now = datetime.now(UTC)
    is_ca = name == "ca"
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    pair.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pkcs8 = serialization.PrivateFormat.PKCS8
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
    return pair


@dataclass(frozen=True)
class Keys:
    """What clients of the authorization server prove themselves by; `signer` signs the agent's first grants."""

    folder: Path
    ca: Pair
    server: Pair
    own: Pair
    workload: Pair
    assertion: ECKey
    signer: ECKey

    @property
    def assertion_file(self) -> Path:
        return self.folder / "assertion.pem"

    @property
    def signer_file(self) -> Path:
        return self.folder / "signer.pem"


def made_in(folder: Path) -> Keys:
    """All of them, written into the folder."""
    ca = _certificate(folder, "ca", [x509.DNSName("ca.example")])
    here = [x509.IPAddress(ip_address("127.0.0.1"))]
    spiffe_id = [x509.UniformResourceIdentifier("spiffe://example.org/agent")]
    found = Keys(
        folder,
        ca,
        _certificate(folder, "server", here, ca),
        _certificate(folder, "own", [x509.DNSName("client.example")]),
        _certificate(folder, "workload", spiffe_id, ca),
        ECKey.generate_key("P-256"),
        ECKey.generate_key("P-256"),
    )
    found.assertion_file.write_bytes(found.assertion.as_pem(private=True))
    found.signer_file.write_bytes(found.signer.as_pem(private=True))
    return found


def jkt_of(identity: AgentIdentity) -> str:
    """The thumbprint of the agent's key (RFC 7638), which its tokens are bound to."""
    return ECKey.import_key(identity.public_jwk).thumbprint()
