# SPDX-License-Identifier: Apache-2.0
"""Token exchange: trades the principal's token, and a token of the agent, for one that the resource accepts (RFC 8693)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlencode

from agent_identity.credentials.oauth.token_types import (
    ACCESS_TOKEN,
    AUTH0_FEDERATED,
    AUTH0_VAULT,
    CLIENT_CREDENTIALS,
    ID_TOKEN,
    JWT,
    TOKEN_EXCHANGE,
)
from agent_identity.credentials.source import (
    Described,
    Wanted,
    details_text,
    may_act,
    sub_at,
    target,
)
from agent_identity.credentials.sources.checks import check_answer, check_issued_type, expect
from agent_identity.delegation.carriers import DELEGATION, join_chain
from agent_identity.errors import CredentialRejectedError, DeniedError
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.source import Parameters, SubjectToken
    from agent_identity.credentials.workload.tokens import WorkloadToken
    from agent_identity.flow import Flow
    from agent_identity.values import JSON


@dataclass(frozen=True, slots=True)
class TokenExchange:
    """Trade the principal's token for one that the resource accepts (RFC 8693 §2.1), bound to the acting agent's key if configured.

    `actor` is the source of `actor_token`: the leaf of the chain, for an issuer that understands grants (it also gets the whole
    chain, to verify it); the agent's `workload` token; an access token of the `client` itself at this issuer; or none.
    `names_principal` says that the issuer is the principal's own, so the answer must name them. `subject_types` are the
    acceptable types of the principal's token, in order of preference; `sent_as` is the type that is sent instead of the token's.

    `kind` is `auth0-token-vault` for a token of another provider, which Auth0 keeps for the principal: then the resource is
    neither named in the request, nor is the answer about the principal as Auth0 knows them.
    """

    issuer: Issuer
    kind: Literal["token-exchange", "auth0-token-vault"] = "token-exchange"
    binding: Literal["dpop", "mtls", "none"] = "dpop"
    audience: str | None = None
    actor: Literal["grant", "workload", "client", "none"] = "none"
    names_principal: bool = False
    details: Sequence[JSON] = ()
    parameters: Parameters = ()
    subject_types: tuple[str, ...] = (ACCESS_TOKEN, JWT, ID_TOKEN)
    sent_as: str | None = None
    workload: Callable[[], Flow[WorkloadToken]] | None = field(default=None, repr=False)
    client_name: str = ""
    patience: float | None = None

    @property
    def described(self) -> Described:
        return Described(
            self.kind,
            self.issuer.url,
            self.client_name,
            f"{self.audience or ''} {self.binding} {self.actor} {self.sent_as or ''}",
            details_text(self.details),
            urlencode(self.parameters),
        )

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Get a token with exactly the requested scopes.

        Raises:
            DeniedError: `may_act`, the principal's token names another actor; nothing was sent.
            CredentialRejectedError: the issuer refused, or its answer doesn't match the request.
            CredentialUnavailableError: it could not be reached.
        """
        if wanted.subject is None:
            raise CredentialRejectedError(
                "subject_token_missing",
                "this session has no token of a principal to exchange",
                remedy="open it with on_behalf_of(token), or use client-credentials for this resource",
            )
        subject = yield from wanted.subject.token(self.issuer, self.subject_types)
        client = yield from self.issuer.client()
        check_may_act(subject, wanted.agent, client.client_id)
        if self.actor == "grant":
            check_same_context(subject, wanted)
        expected = yield from expect(
            self.issuer,
            wanted,
            self.binding,
            audience=self.audience,
            details=self.details,
            sub=sub_at(self.issuer, wanted) if self.names_principal else None,
            actor=wanted.agent if self.actor == "grant" else None,
        )
        form, headers = yield from self._form(wanted, subject)
        answer = yield from self.issuer.token(form, binding=expected.binding, headers=headers)
        check_issued_type(answer, self._requested, self.issuer.url)
        return (yield from check_answer(self.issuer, answer, expected))

    @property
    def _is_vault(self) -> bool:
        return self.kind == "auth0-token-vault"

    @property
    def _requested(self) -> str:
        return AUTH0_FEDERATED if self._is_vault else ACCESS_TOKEN

    def _form(
        self, wanted: Wanted, subject: SubjectToken
    ) -> Flow[tuple[list[tuple[str, str | Secret]], tuple[tuple[str, str], ...]]]:
        form: list[tuple[str, str | Secret]] = [
            ("grant_type", AUTH0_VAULT if self._is_vault else TOKEN_EXCHANGE),
            ("requested_token_type", self._requested),
            ("subject_token", subject.token),
            ("subject_token_type", self.sent_as or subject.token_type),
            *target(
                wanted,
                audience=None if self._is_vault else self.audience,
                details=self.details,
                parameters=self.parameters,
                names_resource=self.issuer.resource_indicators and not self._is_vault,
            ),
        ]
        headers: tuple[tuple[str, str], ...] = ()
        if self.actor == "grant":
            form += [("actor_token", Secret(wanted.chain[0].compact)), ("actor_token_type", JWT)]
            headers = ((DELEGATION, join_chain([grant.compact for grant in wanted.chain])),)
        elif self.actor == "workload" and self.workload is not None:
            workload = yield from self.workload()
            form += [("actor_token", workload.token), ("actor_token_type", workload.token_type)]
        elif self.actor == "client":
            own = yield from self.issuer.token([("grant_type", CLIENT_CREDENTIALS)])
            form += [("actor_token", own.token), ("actor_token_type", ACCESS_TOKEN)]
        return form, headers


def check_same_context(subject: SubjectToken, wanted: Wanted) -> None:
    """Check that the principal's token and the chain are from the same session, so that no other chain is spliced to it.

    Raises:
        DeniedError: `spliced`; nothing was sent.
    """
    leaf = wanted.chain[0]
    claims = subject.claims
    named = None
    if claims is not None:
        named = (claims.get("sub"), claims.get("txn") if claims.has("txn") else leaf.txn)
    if (
        (leaf.sub, leaf.txn) != (wanted.principal.sub, wanted.txn)
        or leaf.agent != wanted.agent
        or (named is not None and named != (leaf.sub, leaf.txn))
    ):
        raise DeniedError(
            "spliced",
            "the principal's token and the chain are from different sessions",
            remedy="use each session with its own tokens",
        )


def check_may_act(subject: SubjectToken, agent: str, client_id: str) -> None:
    """Check the `may_act` of a principal's token (RFC 8693 §4.4). Without one the issuer decides.

    Raises:
        DeniedError: `may_act`, it names another actor.
    """
    claims = subject.claims
    if claims is not None and not may_act(claims, agent, client_id):
        raise DeniedError(
            "may_act",
            f"the principal's token allows another actor, not {agent}",
            remedy="have the token issued with this agent, or its client, in may_act",
        )
