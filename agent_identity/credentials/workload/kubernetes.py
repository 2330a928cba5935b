# SPDX-License-Identifier: Apache-2.0
"""Kubernetes: a projected service account token, which the kubelet renews in its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from agent_identity.credentials.workload.places import check_path, token_in_file
from agent_identity.credentials.workload.tokens import check_token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken
    from agent_identity.flow import Flow

__all__ = ["Kubernetes"]


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """The pod's service account. The default path holds a token for the API server; others need a projected volume."""

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
