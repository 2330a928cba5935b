# SPDX-License-Identifier: Apache-2.0
"""Transaction tokens: a trust domain's signed statement about one call (draft-ietf-oauth-transaction-tokens-10).

A transaction token is sent in `Txn-Token` beside the credential, isn't a credential, and stays within its trust domain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from agent_identity.credentials.oauth.requests import Binding
from agent_identity.credentials.oauth.responses import check_scope_claim, check_scopes, read_jwt
from agent_identity.credentials.oauth.token_types import (
    ACCESS_TOKEN,
    ID_TOKEN,
    JWT,
    TOKEN_EXCHANGE,
    TXN_TOKEN,
)
from agent_identity.credentials.sources.checks import check_forwarded, check_issued_type
from agent_identity.errors import CredentialRejectedError

if TYPE_CHECKING:
    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.source import Wanted
    from agent_identity.flow import Flow
    from agent_identity.values import Secret

HEADER: Final = "Txn-Token"
_TYP: Final = "txntoken+jwt"


@dataclass(frozen=True, slots=True)
class TransactionToken:
    """One transaction token. `txn` is the service's id of the transaction, an alias of our own."""

    token: Secret
    txn: str


@dataclass(frozen=True, slots=True)
class TransactionTokens:
    """The transaction token service of one trust domain, `audience`."""

    issuer: Issuer
    audience: str

    def fetch(self, wanted: Wanted, *, tool: str, trace_id: str) -> Flow[TransactionToken]:
        """Get the token of one call. `tool`, the purpose and `trace_id` are sent as `request_details` and `request_context`.

        Raises:
            CredentialRejectedError: the service refused, or its answer isn't a transaction token of this domain.
            CredentialUnavailableError: it could not be reached.
        """
        if wanted.subject is None:
            raise CredentialRejectedError(
                "subject_token_missing", "a transaction token needs the principal's token"
            )
        subject = yield from wanted.subject.token(self.issuer, (ACCESS_TOKEN, JWT, ID_TOKEN))
        form: list[tuple[str, str | Secret]] = [
            ("grant_type", TOKEN_EXCHANGE),
            ("requested_token_type", TXN_TOKEN),
            ("audience", self.audience),
            ("scope", " ".join(sorted(wanted.scopes))),
            ("subject_token", subject.token),
            ("subject_token_type", subject.token_type),
            ("request_details", _text({"tool": tool, "purpose": wanted.purpose})),
            ("request_context", _text({"trace_id": trace_id})),
        ]
        answer = yield from self.issuer.token(form, binding=Binding("none"))
        check_issued_type(answer, TXN_TOKEN, self.issuer.url)
        if answer.token_type.lower() != "n_a":
            raise CredentialRejectedError(
                "wrong_token_type",
                f"{self.issuer.url} issued a transaction token with the type of an access token",
            )
        check_scopes(answer, wanted.scopes, self.issuer.url)
        claims = read_jwt(answer.token, typ=_TYP)
        if claims is None or claims.get("aud") != self.audience or claims.text("txn") is None:
            raise CredentialRejectedError(
                "malformed_txn_token",
                f"{self.issuer.url} sent no valid transaction token of {self.audience}",
            )
        check_forwarded(claims, self.issuer, wanted, tacit=True)
        check_scope_claim(claims, wanted.scopes, self.issuer.url)
        return TransactionToken(answer.token, claims.text("txn") or "")


def _text(members: dict[str, str]) -> str:
    return orjson.dumps(members).decode()
