# SPDX-License-Identifier: Apache-2.0
"""Detects the platform: the first provider that has a token for this workload is used; one that fails isn't skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from agent_identity.errors import CredentialUnavailableError

if TYPE_CHECKING:
    from agent_identity.credentials.workload.tokens import Provider, WorkloadToken
    from agent_identity.flow import Flow

__all__ = ["Ambient"]


@dataclass(frozen=True, slots=True)
class Ambient:
    """Providers, in the order in which they are tried. If none has a token, that is an error."""

    kind: ClassVar[str] = "ambient"

    providers: tuple[Provider, ...]

    @property
    def looks_for(self) -> str:
        return ", ".join(provider.looks_for for provider in self.providers)

    @property
    def setup(self) -> str:
        return "; or ".join(provider.setup for provider in self.providers)

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken]:
        """Return the first token.

        Raises:
            CredentialUnavailableError: `no_workload_identity`, none of the platforms was detected.
            CredentialError: a detected platform failed; the next isn't tried.
        """
        for provider in self.providers:
            token = yield from provider.fetch(audience, now)
            if token is not None:
                return token
        raise CredentialUnavailableError(
            "no_workload_identity",
            f"this workload has no identity of any platform: looked for {self.looks_for}",
            remedy=self.setup,
        )
