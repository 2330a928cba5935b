# SPDX-License-Identifier: Apache-2.0
"""GitLab CI: a token that the job's `id_tokens` put into a variable, for the audience that is configured there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.workload.places import refuse_inside, token_in_variable
from agent_identity.credentials.workload.tokens import check_token
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken
    from agent_identity.flow import Flow

__all__ = ["GitLab"]

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_WHO: Final = "GitLab"


@dataclass(frozen=True, slots=True)
class GitLab:
    """The job's identity; `variable` is the name under `id_tokens`."""

    kind: ClassVar[str] = "gitlab"

    expect: Mapping[str, str] = field(default_factory=dict[str, str])
    variable: str = "GITLAB_OIDC_TOKEN"

    def __post_init__(self) -> None:
        if not _VARIABLE.fullmatch(self.variable):
            raise ConfigurationError(
                "variable_malformed",
                "the path of provider gitlab isn't a valid variable name",
                remedy="use the name under id_tokens",
            )

    @property
    def looks_for(self) -> str:
        return self.variable

    @property
    def setup(self) -> str:
        return f"give the GitLab job `id_tokens: {self.variable}: aud: <audience>`"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        """Read the job's token.

        Raises:
            CredentialUnavailableError: `token_variable_missing`, this is a GitLab job without a token.
        """
        token = yield from token_in_variable(self.variable, _WHO)
        if token is None:
            yield from refuse_inside("GITLAB_CI", self.variable, self.setup)
            return None
        return check_token(token, audience, now, who=_WHO, expect=self.expect)
