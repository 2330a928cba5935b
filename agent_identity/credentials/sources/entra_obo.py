# SPDX-License-Identifier: Apache-2.0
"""Entra's on-behalf-of flow: trades the principal's access token for one of another API (RFC 7523 §2.1, with Microsoft's member).

Entra names the API in the scope alone, and a person by another `sub` at each application, but by one `oid` in the whole tenant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlencode

from agent_identity.credentials.oauth.responses import read_jwt
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN, JWT, JWT_BEARER
from agent_identity.credentials.source import Described, sub_at, target
from agent_identity.credentials.sources.checks import check_answer, expect
from agent_identity.errors import CredentialRejectedError

if TYPE_CHECKING:
    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.oauth.responses import Answer
    from agent_identity.credentials.source import Parameters, Wanted
    from agent_identity.flow import Flow
    from agent_identity.values import Secret

_DEFAULT: Final = "/.default"


@dataclass(frozen=True, slots=True)
class EntraObo:
    """Trade the principal's access token at Entra. `audience` is the expected `aud`; it isn't sent."""

    issuer: Issuer
    binding: Literal["dpop", "mtls", "none"] = "none"
    audience: str | None = None
    parameters: Parameters = ()
    client_name: str = ""
    patience: float | None = None

    @property
    def described(self) -> Described:
        return Described(
            "entra-obo",
            self.issuer.url,
            self.client_name,
            f"{self.binding} {self.audience or ''}",
            parameters=urlencode(self.parameters),
        )

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Get a token for the API whose scopes are requested.

        Raises:
            CredentialRejectedError: the issuer refused, or its answer doesn't match the request.
            CredentialUnavailableError: it could not be reached.
        """
        if wanted.subject is None:
            raise CredentialRejectedError(
                "subject_token_missing",
                "this session has no access token of a principal for the on-behalf-of flow",
                remedy="open it with on_behalf_of(token), or use client-credentials for this resource",
            )
        subject = yield from wanted.subject.token(self.issuer, (ACCESS_TOKEN, JWT))
        expected = yield from expect(self.issuer, wanted, self.binding, audience=self.audience)
        form: list[tuple[str, str | Secret]] = [
            ("grant_type", JWT_BEARER),
            ("assertion", subject.token),
            ("requested_token_use", "on_behalf_of"),
            *target(wanted, parameters=self.parameters, names_resource=False),
        ]
        answer = yield from self.issuer.token(form, binding=expected.binding)
        answer = replace(answer, scopes=_fold_default(answer, wanted.scopes))
        if not self._is_same_person(subject.token, answer):
            expected = replace(expected, sub=sub_at(self.issuer, wanted))
        return (yield from check_answer(self.issuer, answer, expected))

    def _is_same_person(self, subject: Secret, answer: Answer) -> bool:
        """Whether both tokens name one person by `oid` and `tid`; False where one of them doesn't show it.

        Raises:
            CredentialRejectedError: `subject_mismatch`, they name two.
        """
        tokens = (read_jwt(subject), read_jwt(answer.token))
        named = [
            (claims.text("oid"), claims.text("tid"))
            for claims in tokens
            if claims is not None and claims.text("oid")
        ]
        if len(named) < len(tokens):
            return False
        if named[0] != named[1]:
            raise CredentialRejectedError(
                "subject_mismatch", f"{self.issuer.url} issued a token for another principal"
            )
        return True


def _fold_default(answer: Answer, asked: frozenset[str]) -> frozenset[str] | None:
    """Return the granted scopes, with those that a requested `API/.default` stands for replaced by it."""
    standing = {scope for scope in asked if scope.endswith(_DEFAULT)}
    if answer.scopes is None or not standing:
        return answer.scopes
    apis = tuple(scope.removesuffix(".default") for scope in standing)
    return frozenset({*standing, *(scope for scope in answer.scopes if not scope.startswith(apis))})
