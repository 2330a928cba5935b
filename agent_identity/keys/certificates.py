# SPDX-License-Identifier: Apache-2.0
"""What certificates say: whose they are, until when, and whether they are an authority's.

Pure, and read by `cryptography` alone. Who signed a certificate, and whose signature counts, TLS has checked before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent_identity.errors import ConfigurationError

__all__ = [
    "Authorities",
    "ShownCertificate",
    "is_subject",
    "read_authorities",
    "read_shown",
    "read_subject",
    "subject_of",
]

T = TypeVar("T", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class ShownCertificate:
    """The certificate that a client showed: the names that it has, its first and its last second (Unix)."""

    uris: tuple[str, ...]
    dns_names: tuple[str, ...]
    subject: x509.Name
    not_before: float
    not_after: float


def read_shown(pem: str) -> ShownCertificate | None:
    """A client's certificate; None for what is none, an authority's own, or one for servers alone."""
    try:
        leaf = x509.load_pem_x509_certificate(pem.encode("ascii"))
        return _shown(leaf) if _is_for_clients(leaf) else None
    except Exception:  # noqa: BLE001 - a seam: the parser has errors of its own, some raised late
        return None


def _shown(leaf: x509.Certificate) -> ShownCertificate:
    names = _extension(leaf, x509.SubjectAlternativeName) or x509.SubjectAlternativeName(())
    return ShownCertificate(
        uris=tuple(names.get_values_for_type(x509.UniformResourceIdentifier)),
        dns_names=tuple(names.get_values_for_type(x509.DNSName)),
        subject=leaf.subject,
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def _is_for_clients(leaf: x509.Certificate) -> bool:
    """TLS looks at the purpose too; that no authority is its own client, it doesn't (X509-SVID §5.2)."""
    purposes = _extension(leaf, x509.ExtendedKeyUsage)
    for_clients = {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    }
    is_for_clients = purposes is None or not for_clients.isdisjoint(purposes)
    return is_for_clients and not _is_authority(leaf) and not _signs(leaf)


def _signs(certificate: x509.Certificate) -> bool:
    """Whether its key may sign certificates or their revocations."""
    usage = _extension(certificate, x509.KeyUsage)
    return usage is not None and (usage.key_cert_sign or usage.crl_sign)


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def _extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def subject_of(der: bytes) -> str | None:
    """The subject of a certificate as text (RFC 4514); None for what can't be read."""
    try:
        return x509.load_der_x509_certificate(der).subject.rfc4514_string()
    except Exception:  # noqa: BLE001 - see `read_shown`
        return None


def is_subject(text: str) -> bool:
    """Whether a text is a subject's name (RFC 4514) that isn't empty."""
    return _subject(text) is not None


def read_subject(text: str) -> x509.Name:
    """A subject's name from its text (RFC 4514).

    Raises:
        ConfigurationError: it is none, or an empty one, which many certificates have.
    """
    found = _subject(text)
    if found is None:
        raise ConfigurationError(
            "value_malformed", "no subject of a certificate", remedy="write it like CN=bot,O=Acme"
        )
    return found


def _subject(text: str) -> x509.Name | None:
    try:
        return x509.Name.from_rfc4514_string(text) or None
    except ValueError:
        return None


class Authorities(NamedTuple):
    """Certificates of authorities (PEM), and when the first of them ends, in Unix seconds."""

    pem: str
    expires_at: float


def read_authorities(pem: str) -> Authorities:
    """The authorities whose signatures are to count.

    Raises:
        ConfigurationError: `authorities_unusable`, there is none, or a certificate that isn't an authority's: trusted by
            itself it would prove whatever name it gives itself.
    """
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
        are_sound = all(map(_is_authority, found))
    except Exception:  # noqa: BLE001 - see `read_shown`
        are_sound = False
        found = []
    if not are_sound:
        raise ConfigurationError(
            "authorities_unusable",
            "among the authorities of client certificates is something else than certificates of authorities",
            remedy="put the authorities' own certificates there, as PEM, and no certificate of a client",
        )
    return Authorities(
        "".join(each.public_bytes(Encoding.PEM).decode("ascii") for each in found),
        min(each.not_valid_after_utc.timestamp() for each in found),
    )
