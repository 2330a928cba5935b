# SPDX-License-Identifier: Apache-2.0
"""No token at all: the chain and a signed assertion are the whole credential.

That is how a session which was handed over reaches a resource whose token others get for the principal's: there is nothing of
theirs here to exchange. The service knows the principal from the chain, and possession of the key from the assertion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_identity.credentials.oauth.requests import Issued
from agent_identity.credentials.source import Described
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.source import Wanted
    from agent_identity.flow import Flow

__all__ = ["ChainAlone"]


@dataclass(frozen=True, slots=True)
class ChainAlone:
    """Nothing is asked of anybody; it serves as long as the chain does."""

    clock: Callable[[], float]

    @property
    def described(self) -> Described:
        return Described("chain")

    @property
    def patience(self) -> float | None:
        return None

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        yield from ()
        return Issued(
            token=Secret(""),
            token_type="N_A",  # noqa: S106 - a type
            resource=wanted.resource,
            issuer="",
            scopes=wanted.scopes,
            issued_at=self.clock(),
            expires_at=min(grant.exp for grant in wanted.chain),
            header="",
            is_opaque=True,
        )
