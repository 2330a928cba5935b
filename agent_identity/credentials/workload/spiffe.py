# SPDX-License-Identifier: Apache-2.0
"""SPIFFE: a JWT-SVID for an audience of our choice, from the Workload API."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.oauth.responses import read_jwt
from agent_identity.credentials.workload.tokens import (
    check_audience,
    check_token,
    malformed_token,
    trim,
)
from agent_identity.errors import ConfigurationError, CredentialRejectedError, VerificationError
from agent_identity.flow import Flow, jwt_svid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken
    from agent_identity.values import Certificate, Secret

WORKLOAD_API: Final = "the SPIFFE Workload API"


@dataclass(frozen=True, slots=True)
class Spiffe:
    """The workload's JWT-SVID, from `trust_domain` if that is set."""

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
        token = trim(svid)
        if token is None:
            raise malformed_token(WORKLOAD_API)
        checked = check_token(token, audience, now, who=WORKLOAD_API, expect=self.expect)
        check_jwt_svid(token, self.trust_domain, who=WORKLOAD_API)
        return checked


def check_jwt_svid(svid: Secret, trust_domain: str | None, *, who: str) -> None:
    """Check that a JWT-SVID's `sub` names a workload, in the trust domain if that is set (JWT-SVID §3.1).

    Raises:
        CredentialRejectedError: `spiffe_id_malformed` or `trust_domain_mismatch`.
    """
    claims = read_jwt(svid)
    _check_id(None if claims is None else _parse_id(claims.get("sub")), trust_domain, who)


def check_x509_svid(svid: Certificate, trust_domain: str | None, *, who: str) -> None:
    """Check that an X.509-SVID's only URI names a workload, in the trust domain if that is set (X509-SVID §2, §5.2).

    Raises:
        CredentialRejectedError: `spiffe_id_malformed` or `trust_domain_mismatch`.
    """
    _check_id(_parse_id(svid.uris[0]) if len(svid.uris) == 1 else None, trust_domain, who)


def _check_id(spiffe_id: SpiffeId | None, trust_domain: str | None, who: str) -> None:
    if spiffe_id is None or not spiffe_id.path:  # without a path it names only a trust domain
        raise CredentialRejectedError(
            "spiffe_id_malformed",
            f"the SVID of {who} doesn't name exactly one workload by its SPIFFE ID",
            remedy="use an SVID of a SPIFFE implementation; a plain JWT or certificate isn't an SVID",
        )
    if trust_domain is not None and spiffe_id.trust_domain != trust_domain:
        raise CredentialRejectedError(
            "trust_domain_mismatch",
            f"the SVID of {who} is from another trust domain",
            remedy=f"register the workload in {trust_domain}, or correct the configured trust domain",
        )


def _parse_id(text: object) -> SpiffeId | None:
    try:
        return SpiffeId.parse(text)
    except VerificationError:
        return None


def check_trust_domain(trust_domain: str | None) -> None:
    """Refuse an invalid trust domain.

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
            "the configured trust domain isn't valid",
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
            raise _malformed_id()

    @classmethod
    def parse(cls, text: object) -> SpiffeId:
        """Parse a SPIFFE ID from a claim or a certificate.

        Raises:
            VerificationError: `spiffe_id_malformed`.
        """
        if not isinstance(text, str) or not text.startswith(_SCHEME):
            raise _malformed_id()
        trust_domain, slash, path = text.removeprefix(_SCHEME).partition("/")
        return cls(trust_domain, slash + path)

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"


def _malformed_id() -> VerificationError:
    return VerificationError(
        "spiffe_id_malformed",
        "this isn't a valid SPIFFE ID",
        remedy="write spiffe://<trust domain>/<path>, with the trust domain in lower case and plain segments",
    )
