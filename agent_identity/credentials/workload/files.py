# SPDX-License-Identifier: Apache-2.0
"""A token in a file that another program renews: the kubelet, an agent of the platform, or spiffe-helper with its JWT-SVIDs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from agent_identity.credentials.workload.places import check_path, token_in_file
from agent_identity.credentials.workload.spiffe import check_jwt_svid, check_trust_domain
from agent_identity.credentials.workload.tokens import check_token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken
    from agent_identity.flow import Flow


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """The pod's projected service account token. The default path holds a token for the API server; others need a projected volume."""

    kind: ClassVar[str] = "kubernetes"

    expect: Mapping[str, str] = field(default_factory=dict[str, str])
    path: str = "/var/run/secrets/kubernetes.io/serviceaccount/token"

    def __post_init__(self) -> None:
        check_path(self.path)

    @property
    def looks_for(self) -> str:
        return self.path

    @property
    def setup(self) -> str:
        return (
            "mount a projected serviceAccountToken volume with the audience, and configure its path"
        )

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        token = yield from token_in_file(self.path)
        if token is None:
            return None
        return check_token(token, audience, now, who="Kubernetes", expect=self.expect)


@dataclass(frozen=True, slots=True)
class File:
    """A JWT, whose audience is checked, or an opaque token. With `trust_domain` it must be a JWT-SVID."""

    kind: ClassVar[str] = "file"

    path: str
    expect: Mapping[str, str] = field(default_factory=dict[str, str])
    trust_domain: str | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        check_trust_domain(self.trust_domain)

    @property
    def looks_for(self) -> str:
        return self.path

    @property
    def setup(self) -> str:
        return f"have the token written to {self.path}"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        opaque = self.trust_domain is None
        token = yield from token_in_file(self.path, opaque=opaque)
        if token is None:
            return None
        checked = check_token(
            token, audience, now, who=self.path, expect=self.expect, opaque=opaque
        )
        if self.trust_domain is not None:
            check_jwt_svid(token, self.trust_domain, who=self.path)
        return checked
