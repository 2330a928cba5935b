# SPDX-License-Identifier: Apache-2.0
"""What an SVID has to show before it is used: that it names a workload, and one of the right trust domain.

Signatures are the resource's to check, against the trust domain's bundle; what is wrong in its name is never sent there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.credentials.oauth.responses import read_jwt
from agent_identity.credentials.spiffe_id import SpiffeId
from agent_identity.errors import ConfigurationError, CredentialRejectedError, VerificationError

if TYPE_CHECKING:
    from agent_identity.values import Certificate, Secret

__all__ = ["check_jwt_svid", "check_trust_domain", "check_x509_svid"]


def check_jwt_svid(svid: Secret, trust_domain: str | None, *, who: str) -> None:
    """Hold a JWT-SVID to naming a workload as its subject, and to whose it is (JWT-SVID §3.1).

    Raises:
        CredentialRejectedError: `spiffe_id_malformed` or `trust_domain_mismatch`.
    """
    claims = read_jwt(svid)
    _check(None if claims is None else _name(claims.get("sub")), trust_domain, who)


def check_x509_svid(svid: Certificate, trust_domain: str | None, *, who: str) -> None:
    """Hold an X.509-SVID to exactly one URI, which names a workload, and to whose it is (X509-SVID §2, §5.2).

    Raises:
        CredentialRejectedError: `spiffe_id_malformed` or `trust_domain_mismatch`.
    """
    _check(_name(svid.uris[0]) if len(svid.uris) == 1 else None, trust_domain, who)


def _check(found: SpiffeId | None, trust_domain: str | None, who: str) -> None:
    if (
        found is None or not found.path
    ):  # without a path it names a trust domain, and no workload in it
        raise CredentialRejectedError(
            "spiffe_id_malformed",
            f"what {who} gives doesn't name one workload by its SPIFFE ID",
            remedy="take the SVID from a SPIFFE implementation; a plain JWT or certificate is none",
        )
    if trust_domain is not None and found.trust_domain != trust_domain:
        raise CredentialRejectedError(
            "trust_domain_mismatch",
            f"the SVID of {who} is of another trust domain",
            remedy=f"register the workload in {trust_domain}, or correct the configured trust domain",
        )


def _name(text: object) -> SpiffeId | None:
    try:
        return SpiffeId.parse(text)
    except VerificationError:
        return None


def check_trust_domain(trust_domain: str | None) -> None:
    """Refuse a trust domain that no SPIFFE ID can have.

    Raises:
        ConfigurationError: `trust_domain_malformed`.
    """
    if trust_domain is None:
        return
    try:
        SpiffeId(trust_domain, "")
    except VerificationError:
        raise ConfigurationError(
            "trust_domain_malformed",
            "the configured trust domain can be none",
            remedy="write it in lower case without spiffe:// and without a path, for instance example.org",
        ) from None
