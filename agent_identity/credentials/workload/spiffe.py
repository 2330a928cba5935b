# SPDX-License-Identifier: Apache-2.0
"""SPIFFE: a JWT-SVID for an audience of our choice, from the Workload API."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.workload.svids import check_jwt_svid, check_trust_domain
from agent_identity.credentials.workload.tokens import (
    accepted,
    check_audience,
    malformed,
    trimmed,
)
from agent_identity.flow import Flow, jwt_svid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken

__all__ = ["Spiffe"]

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
