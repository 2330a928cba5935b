# SPDX-License-Identifier: Apache-2.0
"""What all sources share in which a person signs in: a refresh token first where there is one, and whom the answer has to name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

from agent_identity.credentials.oauth.requests import Binding, Issued
from agent_identity.credentials.source import Described, named_by
from agent_identity.credentials.sources.checks import Expected, accepted
from agent_identity.credentials.sources.refresh_token import RefreshTokens, refreshed
from agent_identity.credentials.sources.targets import details_text, target
from agent_identity.errors import CredentialRejectedError, DeniedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.responses import Answer
    from agent_identity.credentials.source import Wanted
    from agent_identity.flow import Flow
    from agent_identity.values import JSON, Secret

__all__ = ["OPENID", "SignIn"]

OPENID: Final = frozenset({"openid"})


@dataclass(frozen=True, slots=True)
class SignIn:
    """How one resource's tokens are had where a person has to sign in.

    `patience` is seconds that the person gets. `names_principal` says that the issuer is the principal's own, so that whoever
    signs in has to be the principal, and something in the answer has to show it.
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

    def form(
        self, wanted: Wanted, *, aside: frozenset[str] = frozenset()
    ) -> list[tuple[str, str | Secret]]:
        """The members that say what is wanted, with the scopes `aside`, and `openid` where it has to show who signs in."""
        scopes = wanted.scopes | aside | self._aside(wanted)
        return [
            *target(
                replace(wanted, scopes=scopes),
                audience=self.audience,
                details=self.details,
                names_resource=self.issuer.resource_indicators,
            )
        ]

    def _aside(self, wanted: Wanted) -> frozenset[str]:
        return frozenset() if self._named(wanted) is None else OPENID

    def _named(self, wanted: Wanted) -> str | None:
        return named_by(self.issuer, wanted) if self.names_principal else None

    def fetch(
        self,
        wanted: Wanted,
        sign_in: Callable[[Wanted], Flow[Answer]],
        *,
        aside: frozenset[str] = frozenset(),
    ) -> Flow[Issued]:
        """A fresh token by the refresh token that is held, else by `sign_in`, which asks for the scopes `aside` as well.

        A step-up is about the sign-in itself, so no refresh token serves it. What a person who signs in is shown to be is known
        once, before their refresh token is kept: its own answers need show nobody.

        Raises:
            DeniedError: `interaction_without_principal`, the session acts for nobody who could sign in; nobody was asked.
        """
        if wanted.principal.profile == "trigger":
            raise DeniedError(
                "interaction_without_principal",
                f"a session that acts for nobody has nobody who could sign in at {self.issuer.url}",
                remedy="open it with on_behalf_of(token), or use client-credentials or refresh-token for this resource",
            )
        # A step-up uses no refresh token, and would keep those waiting who need no more than that.
        if wanted.step_up is not None:
            return (yield from self._fetch(wanted, sign_in, aside))
        # One at a time: whoever comes second finds the refresh token that the first one's sign-in brought.
        return (
            yield from self.tokens.in_turn(
                wanted, lambda: self._fetch(wanted, sign_in, aside), self.patience
            )
        )

    def _fetch(
        self,
        wanted: Wanted,
        sign_in: Callable[[Wanted], Flow[Answer]],
        aside: frozenset[str],
    ) -> Flow[Issued]:
        expected = yield from self._expected(wanted, aside)
        held = None if wanted.step_up else (yield from self.tokens.get(wanted))
        if held is not None:
            try:
                kept = replace(expected, shown_by="kept")
                return (yield from refreshed(self.issuer, self.tokens, wanted, held, kept))
            except CredentialRejectedError as error:
                if error.code not in ("invalid_grant", "invalid_scope"):
                    raise
        answer = yield from sign_in(wanted)
        issued = yield from accepted(self.issuer, answer, expected)
        if answer.refresh_token is not None:
            yield from self.tokens.put(wanted, answer.refresh_token)
        return issued

    def _expected(self, wanted: Wanted, aside: frozenset[str]) -> Flow[Expected]:
        certificate = yield from self.issuer.certificate()
        return Expected(
            issuer=self.issuer.url,
            resource=wanted.resource,
            scopes=wanted.scopes,
            binding=self.bound_to(wanted),
            asked_at=self.issuer.clock(),
            audience=self.audience or wanted.resource,
            sub=self._named(wanted),
            shown_by="sign-in",
            details=self.details,
            certificate=certificate if self.binding == "mtls" else None,
            aside=aside | self._aside(wanted),
        )
