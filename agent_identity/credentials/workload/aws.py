# SPDX-License-Identifier: Apache-2.0
"""AWS: the web identity token of an EKS pod (IRSA), which the kubelet renews in its file.

EKS Pod Identity isn't supported: it provides AWS credentials, not tokens for an audience.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.workload.places import token_in_named_file
from agent_identity.credentials.workload.tokens import check_token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken
    from agent_identity.flow import Flow

__all__ = ["AWS"]

_FILE: Final = "AWS_WEB_IDENTITY_TOKEN_FILE"


@dataclass(frozen=True, slots=True)
class AWS:
    """The pod's service account, in a token that EKS signs."""

    kind: ClassVar[str] = "aws"

    expect: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def looks_for(self) -> str:
        return _FILE

    @property
    def setup(self) -> str:
        return "annotate the EKS service account with its role and, for another audience, with eks.amazonaws.com/audience"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        token = yield from token_in_named_file(_FILE)
        if token is None:
            return None
        return check_token(token, audience, now, who="AWS", expect=self.expect)
