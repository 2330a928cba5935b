# SPDX-License-Identifier: Apache-2.0
"""JWT bearer: exchanges an assertion about the principal or the workload for an access token (RFC 7523 §2.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlencode

from agent_identity.credentials.oauth.client import sign_assertion
from agent_identity.credentials.oauth.responses import looks_signed
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN, ID_TOKEN, JWT, JWT_BEARER
from agent_identity.credentials.source import Described, Wanted, required_sub_at, target
from agent_identity.credentials.sources.checks import check_answer, expect
from agent_identity.errors import ConfigurationError, CredentialRejectedError
from agent_identity.values import new_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.requests import Form, Issued
    from agent_identity.credentials.source import Parameters
    from agent_identity.credentials.workload.tokens import WorkloadToken
    from agent_identity.flow import Flow
    from agent_identity.keys.signing import SigningKey
    from agent_identity.values import Secret


@dataclass(frozen=True, slots=True)
class JwtBearer:
    """Present a JWT for a token.

    `assertion_from` says which: the `client` signs one with its own key, with the principal's `sub` at this issuer; `subject`
    is the principal's own token; `workload` is the agent's token from its platform. A token from outside is sent once. `kid`
    is the registered name of the client's key (default: its thumbprint).
    """

    issuer: Issuer
    assertion_from: Literal["client", "subject", "workload"] = "client"
    binding: Literal["dpop", "mtls", "none"] = "dpop"
    audience: str | None = None
    parameters: Parameters = ()
    key: Callable[[], Flow[SigningKey]] | None = field(default=None, repr=False)
    kid: str | None = None
    workload: Callable[[], Flow[WorkloadToken]] | None = field(default=None, repr=False)
    client_name: str = ""
    patience: float | None = None

    @property
    def described(self) -> Described:
        return Described(
            "jwt-bearer",
            self.issuer.url,
            self.client_name,
            f"{self.binding} {self.assertion_from} {self.audience or ''}",
            parameters=urlencode(self.parameters),
        )

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        assertion = yield from self._assertion(wanted)
        expected = yield from expect(self.issuer, wanted, self.binding, audience=self.audience)

        def form() -> Form:
            return [
                ("grant_type", JWT_BEARER),
                ("assertion", assertion()),
                *target(
                    wanted,
                    audience=self.audience,
                    parameters=self.parameters,
                    names_resource=self.issuer.resource_indicators,
                ),
            ]

        answer = yield from self.issuer.token(form, binding=expected.binding, one_use=True)
        return (yield from check_answer(self.issuer, answer, expected))

    def _assertion(self, wanted: Wanted) -> Flow[Callable[[], Secret]]:
        """Return a function that makes the assertion for each attempt: our own is signed again each time."""
        if self.assertion_from == "subject":
            if wanted.subject is None:
                raise CredentialRejectedError(
                    "subject_token_missing", "this session has no token of the principal"
                )
            subject = yield from wanted.subject.token(self.issuer, (JWT, ACCESS_TOKEN, ID_TOKEN))
            if not looks_signed(subject.token):  # an opaque access token is no assertion
                subject = yield from wanted.subject.token(self.issuer, (ID_TOKEN,))
            return lambda: subject.token
        if self.assertion_from == "workload":
            if self.workload is None:
                raise ConfigurationError(
                    "workload_missing", "no provider of workload tokens is configured"
                )
            workload = yield from self.workload()
            if workload.token_type != JWT:
                raise CredentialRejectedError(
                    "assertion_opaque",
                    f"the workload's token isn't a JWT, so {self.issuer.url} can't accept it as an assertion",
                    remedy="use a provider whose tokens are JWTs, or another source for this resource",
                )
            return lambda: workload.token
        return (yield from self._own_assertion(wanted))

    def _own_assertion(self, wanted: Wanted) -> Flow[Callable[[], Secret]]:
        if self.key is None:
            raise ConfigurationError(
                "client_key_missing",
                f"{self.issuer.url} requires an assertion signed by the client, which has no key",
                remedy="set client_key for this issuer",
            )
        sub = required_sub_at(self.issuer, wanted)
        key = yield from self.key()
        client = yield from self.issuer.client()
        return lambda: self._sign(key, client.client_id, sub)

    def _sign(self, key: SigningKey, client_id: str, sub: str) -> Secret:
        return sign_assertion(
            key,
            typ="JWT",
            kid=self.kid,
            iss=client_id,
            sub=sub,
            aud=self.issuer.url,
            now=self.issuer.clock(),
            jti=new_id("jwt_"),
        )
