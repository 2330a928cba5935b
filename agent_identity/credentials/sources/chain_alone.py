# SPDX-License-Identifier: Apache-2.0
"""No token: the chain and a signed assertion are the whole credential.

A session that was handed over to this process uses this source, since it has no token of the principal to exchange, and so does
a resource that takes no token, such as an MCP server over stdio. The service reads the principal from the chain, and the assertion proves possession of the agent's key.
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


@dataclass(frozen=True, slots=True)
class ChainAlone:
    """Makes a credential without any request. It expires with the chain."""

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
