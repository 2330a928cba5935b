# SPDX-License-Identifier: Apache-2.0
"""Whichever platform is here: the first that knows this workload speaks for it, and a broken one is never passed over."""

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
    """Providers in the order in which they are asked. With one alone, its absence becomes an error."""

    kind: ClassVar[str] = "ambient"

    providers: tuple[Provider, ...]

    @property
    def looks_for(self) -> str:
        return ", ".join(provider.looks_for for provider in self.providers)

    @property
    def setup(self) -> str:
        return "; or ".join(provider.setup for provider in self.providers)

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken]:
        """The first one's token.

        Raises:
            CredentialUnavailableError: `no_workload_identity`, none of them is here.
            CredentialError: one is here and broken; the next is not asked.
        """
        for provider in self.providers:
            token = yield from provider.fetch(audience, now)
            if token is not None:
                return token
        raise CredentialUnavailableError(
            "no_workload_identity",
            f"no platform gives this workload an identity: looked for {self.looks_for}",
            remedy=self.setup,
        )
