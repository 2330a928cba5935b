# SPDX-License-Identifier: Apache-2.0
"""SPIFFE: a JWT-SVID for an audience of our choice, from the Workload API."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.oauth.responses import read_jwt
from agent_identity.credentials.workload.tokens import (
    accepted,
    check_audience,
    malformed,
    trimmed,
)
from agent_identity.errors import ConfigurationError, CredentialRejectedError, VerificationError
from agent_identity.flow import Flow, jwt_svid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken
    from agent_identity.values import Certificate, Secret

__all__ = ["Spiffe", "SpiffeId", "check_jwt_svid", "check_trust_domain", "check_x509_svid"]

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
        check_audience(audience)
        svid = yield from jwt_svid(audience)
        if svid is None:
            return None
        token = trimmed(svid)
        if token is None:
            raise malformed(_WHO)
        given = accepted(token, audience, now, who=_WHO, expect=self.expect)
        check_jwt_svid(token, self.trust_domain, who=_WHO)
        return given


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


_SCHEME: Final = "spiffe://"
_LONGEST: Final = 2048
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_PATH: Final = re.compile(r"(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._-]+)*")  # no segment is "." or ".."


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A workload's name: a trust domain and a path, which is empty or begins with a slash. Paths differ by case."""

    trust_domain: str
    path: str

    def __post_init__(self) -> None:
        if (
            not _TRUST_DOMAIN.fullmatch(self.trust_domain)
            or not _PATH.fullmatch(self.path)
            or len(str(self)) > _LONGEST
        ):
            raise _malformed()

    @classmethod
    def parse(cls, text: object) -> SpiffeId:
        """Read a SPIFFE ID as it stands in a claim or a certificate.

        Raises:
            VerificationError: `spiffe_id_malformed`.
        """
        if not isinstance(text, str) or not text.startswith(_SCHEME):
            raise _malformed()
        trust_domain, slash, path = text.removeprefix(_SCHEME).partition("/")
        return cls(trust_domain, slash + path)

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"


def _malformed() -> VerificationError:
    return VerificationError(
        "spiffe_id_malformed",
        "it is no SPIFFE ID in its one spelling",
        remedy="write spiffe://<trust domain>/<path>: the trust domain in lower case, plain segments, nothing else",
    )
