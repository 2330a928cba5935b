# SPDX-License-Identifier: Apache-2.0
"""By which of a certificate's names a client is known (RFC 8705 §2.1.2). Names are compared whole; nothing in them is a pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from agent_identity.keys.certificates import read_subject

if TYPE_CHECKING:
    from agent_identity.keys.certificates import ShownCertificate

__all__ = ["CertificateName", "SanDns", "SanUri", "SubjectDn"]

_SPIFFE: Final = "spiffe://"


class CertificateName(Protocol):
    """One name of a client."""

    def is_in(self, certificate: ShownCertificate, /) -> bool:
        """Whether a certificate has it."""
        ...


@dataclass(frozen=True, slots=True)
class SanUri:
    """`tls_client_auth_san_uri`. A SPIFFE ID is the only URI of its certificate (X509-SVID §2)."""

    uri: str

    def is_in(self, certificate: ShownCertificate, /) -> bool:
        if self.uri.startswith(_SPIFFE):
            return certificate.uris == (self.uri,)
        return self.uri in certificate.uris


@dataclass(frozen=True, slots=True)
class SanDns:
    """`tls_client_auth_san_dns`, in any case. A `*` in a certificate is no name of a client."""

    name: str

    def is_in(self, certificate: ShownCertificate, /) -> bool:
        # Other letters than those of ASCII have lower forms within it, and no place in such a name (RFC 5280 §4.2.1.6).
        return self.name.lower() in {
            each.lower() for each in certificate.dns_names if each.isascii()
        }


@dataclass(frozen=True, slots=True)
class SubjectDn:
    """`tls_client_auth_subject_dn`: a name of RFC 4514, attribute by attribute in its order.

    Raises:
        ConfigurationError: it is none.
    """

    name: str

    def __post_init__(self) -> None:
        read_subject(self.name)

    def is_in(self, certificate: ShownCertificate, /) -> bool:
        return certificate.subject == read_subject(self.name)
