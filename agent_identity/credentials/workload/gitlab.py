# SPDX-License-Identifier: Apache-2.0
"""GitLab CI: a token that the job's `id_tokens` put into a variable, for the audience that is written there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.workload.places import refuse_inside, token_in_variable
from agent_identity.credentials.workload.tokens import accepted
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
                "the path of provider gitlab is no name of a variable",
                remedy="write the name that stands under id_tokens",
            )

    @property
    def looks_for(self) -> str:
        return self.variable

    @property
    def setup(self) -> str:
        return f"give the GitLab job `id_tokens: {self.variable}: aud: <audience>`"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        """Take the token that the job was given.

        Raises:
            CredentialUnavailableError: `token_variable_missing`, this is a job of GitLab's that was given none.
        """
        token = yield from token_in_variable(self.variable, _WHO)
        if token is None:
            yield from refuse_inside("GITLAB_CI", self.variable, self.setup)
            return None
        return accepted(token, audience, now, who=_WHO, expect=self.expect)
