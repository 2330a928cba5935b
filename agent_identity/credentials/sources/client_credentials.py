# SPDX-License-Identifier: Apache-2.0
"""Client credentials: a token for the agent's client itself, without a token of the principal (RFC 6749 §4.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlencode

from agent_identity.credentials.oauth.token_types import CLIENT_CREDENTIALS
from agent_identity.credentials.source import Described, Wanted, details_text, target
from agent_identity.credentials.sources.checks import check_answer, expect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.source import Parameters
    from agent_identity.flow import Flow
    from agent_identity.values import JSON


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """A token for the client itself. The chain beside it names the principal; the token doesn't."""

    issuer: Issuer
    binding: Literal["dpop", "mtls", "none"] = "dpop"
    audience: str | None = None
    details: Sequence[JSON] = ()
    parameters: Parameters = ()
    client_name: str = ""
    patience: float | None = None

    @property
    def described(self) -> Described:
        return Described(
            "client-credentials",
            self.issuer.url,
            self.client_name,
            f"{self.binding} {self.audience or ''}",
            details_text(self.details),
            urlencode(self.parameters),
        )

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        expected = yield from expect(
            self.issuer, wanted, self.binding, audience=self.audience, details=self.details
        )
        form = [
            ("grant_type", CLIENT_CREDENTIALS),
            *target(
                wanted,
                audience=self.audience,
                details=self.details,
                parameters=self.parameters,
                names_resource=self.issuer.resource_indicators,
            ),
        ]
        answer = yield from self.issuer.token(form, binding=expected.binding)
        return (yield from check_answer(self.issuer, answer, expected))
