# SPDX-License-Identifier: Apache-2.0
"""What all sources share in which a person signs in: a refresh token first where there is one, and whom the answer has to name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from agent_identity.credentials.accepting import accepted
from agent_identity.credentials.answers import read_jwt
from agent_identity.credentials.checks import Expected
from agent_identity.credentials.oauth import Binding, Issued
from agent_identity.credentials.refresh_token import RefreshTokens, refreshed
from agent_identity.credentials.source import Described, named_by
from agent_identity.credentials.targets import details_text
from agent_identity.errors import CredentialRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.answers import Answer
    from agent_identity.credentials.issuer import Issuer
    from agent_identity.credentials.source import Wanted
    from agent_identity.flow import Flow
    from agent_identity.values import JSON

__all__ = ["SignIn"]


@dataclass(frozen=True, slots=True)
class SignIn:
    """How one resource's tokens are had where a person has to sign in.

    `patience` is seconds that the person gets. `names_principal` says that the issuer is the principal's own, so that whoever
    signs in has to be the principal.
    """

    issuer: Issuer
    binding: Literal["dpop", "mtls", "none"] = "dpop"
    audience: str | None = None
    details: Sequence[JSON] = ()
    names_principal: bool = False
    tokens: RefreshTokens = field(default_factory=RefreshTokens, repr=False)
    client_name: str = ""
    patience: float = 300.0

    def described(self, kind: str) -> Described:
        return Described(
            kind,
            self.issuer.url,
            self.client_name,
            f"{self.binding} {self.audience or ''}",
            details_text(self.details),
        )

    def bound_to(self, wanted: Wanted) -> Binding:
        return Binding(self.binding, wanted.proof_key)

    def fetch(
        self,
        wanted: Wanted,
        sign_in: Callable[[Wanted], Flow[Answer]],
        *,
        aside: frozenset[str] = frozenset(),
    ) -> Flow[Issued]:
        """A fresh token by the refresh token that is held, else by `sign_in`, which asks for the scopes `aside` as well.

        A step-up is about the sign-in itself, so no refresh token serves it.
        """
        expected = yield from self._expected(wanted, aside)
        held = None if wanted.step_up else (yield from self.tokens.get(wanted))
        if held is not None:
            try:
                return (yield from refreshed(self.issuer, self.tokens, wanted, held, expected))
            except CredentialRejectedError as error:
                if error.code not in ("invalid_grant", "invalid_scope"):
                    raise
        answer = yield from sign_in(wanted)
        issued = yield from accepted(self.issuer, answer, expected)
        if issued.is_opaque:
            self._check_who(answer, expected)
        if answer.refresh_token is not None:
            yield from self.tokens.put(wanted, answer.refresh_token)
        return issued

    def _check_who(self, answer: Answer, expected: Expected) -> None:
        """Where the access token shows nothing, the ID token beside it says who signed in (OIDC Core §3.1.3.7, rule 6)."""
        claims = None if answer.id_token is None else read_jwt(answer.id_token)
        if claims is None or expected.sub is None:
            return
        if claims.text("iss") != self.issuer.url or claims.text("sub") != expected.sub:
            raise CredentialRejectedError(
                "subject_mismatch",
                f"somebody else than the principal signed in at {self.issuer.url}",
            )

    def _expected(self, wanted: Wanted, aside: frozenset[str]) -> Flow[Expected]:
        certificate = yield from self.issuer.certificate()
        return Expected(
            issuer=self.issuer.url,
            resource=wanted.resource,
            scopes=wanted.scopes,
            binding=self.bound_to(wanted),
            asked_at=self.issuer.clock(),
            audience=self.audience or wanted.resource,
            sub=named_by(self.issuer, wanted) if self.names_principal else None,
            details=self.details,
            certificate=certificate if self.binding == "mtls" else None,
            aside=aside,
        )
