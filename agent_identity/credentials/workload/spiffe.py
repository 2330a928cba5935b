# SPDX-License-Identifier: Apache-2.0
"""SPIFFE: a JWT-SVID for an audience of our choice, from the Workload API."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.answers import read_jwt
from agent_identity.credentials.spiffe_id import SpiffeId
from agent_identity.credentials.workload.tokens import accepted, malformed, quoted, trimmed
from agent_identity.errors import ConfigurationError, CredentialRejectedError, VerificationError
from agent_identity.flow import Flow, jwt_svid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken
    from agent_identity.values import Secret

__all__ = ["Spiffe", "check_svid", "check_trust_domain"]

_WHO: Final = "the SPIFFE Workload API"


@dataclass(frozen=True, slots=True)
class Spiffe:
    """The workload's SVID, of `trust_domain` where that is given."""

    kind: ClassVar[str] = "spiffe"

    expect: Mapping[str, str] = field(default_factory=dict[str, str])
    trust_domain: str | None = None

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)

    @property
    def looks_for(self) -> str:
        return "SPIFFE_ENDPOINT_SOCKET"

    @property
    def setup(self) -> str:
        return "mount the SPIFFE Workload API's socket, and register the workload there"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        quoted(audience)
        svid = yield from jwt_svid(audience)
        if svid is None:
            return None
        token = trimmed(svid)
        if token is None:
            raise malformed(_WHO)
        given = accepted(token, audience, now, who=_WHO, expect=self.expect)
        check_svid(token, self.trust_domain, who=_WHO)
        return given


def check_svid(svid: Secret, trust_domain: str | None, *, who: str) -> None:
    """Hold a JWT-SVID to naming a workload, and to whose it is (JWT-SVID §3.1).

    Raises:
        CredentialRejectedError: `spiffe_id_malformed` or `trust_domain_mismatch`.
    """
    found = _trust_domain_of(svid)
    if found is None:
        raise CredentialRejectedError(
            "spiffe_id_malformed",
            f"the token of {who} names no SPIFFE ID as its subject",
            remedy="take the SVID from a SPIFFE implementation; a plain JWT is none",
        )
    if trust_domain is not None and found != trust_domain:
        raise CredentialRejectedError(
            "trust_domain_mismatch",
            f"the SVID of {who} is of another trust domain",
            remedy=f"register the workload in {trust_domain}, or correct the configured trust domain",
        )


def _trust_domain_of(svid: Secret) -> str | None:
    claims = read_jwt(svid)
    try:
        return None if claims is None else SpiffeId.parse(claims.get("sub")).trust_domain
    except VerificationError:
        return None


def check_trust_domain(trust_domain: str | None) -> None:
    """Refuse a trust domain that no SPIFFE ID can have.

    Raises:
        ConfigurationError: `trust_domain_malformed`.
    """
    try:
        SpiffeId("-" if trust_domain is None else trust_domain, "")
    except VerificationError:
        raise ConfigurationError(
            "trust_domain_malformed",
            "the configured trust domain can be none",
            remedy="write it in lower case without spiffe:// and without a path, for instance example.org",
        ) from None
