# SPDX-License-Identifier: Apache-2.0
"""Shared by the sources in which a person signs in: use a refresh token if there is one, and check who signed in.

`poll` waits for a person who decides on another device (RFC 8628 §3.5, CIBA §11).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Final, Literal
from urllib.parse import urlencode

from agent_identity.credentials.oauth.requests import Binding, Issued
from agent_identity.credentials.source import Described, details_text, sub_at, target
from agent_identity.credentials.sources.checks import check_answer, expect
from agent_identity.credentials.sources.refresh_token import RefreshTokens, refresh
from agent_identity.errors import (
    CredentialRejectedError,
    CredentialUnavailableError,
    DeniedError,
    TransportError,
)
from agent_identity.flow import pause

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.responses import Answer, Fields
    from agent_identity.credentials.source import Parameters, Wanted
    from agent_identity.credentials.sources.checks import Expected
    from agent_identity.flow import Flow
    from agent_identity.values import JSON, Secret

OPENID: Final = frozenset({"openid"})
_SLOWER: Final = 5.0
_INTERVAL: Final = 5.0
_LONGEST: Final = 60.0


@dataclass(frozen=True, slots=True)
class SignIn:
    """How to get a token for one resource by a person's sign-in.

    `parameters` are sent with the request that starts the sign-in, and with each token request. `patience` is seconds that the person has. `names_principal` says that the issuer is the principal's own: then the
    principal must be the one who signs in, and the answer must show it.
    """

    issuer: Issuer
    binding: Literal["dpop", "mtls", "none"] = "dpop"
    audience: str | None = None
    details: Sequence[JSON] = ()
    parameters: Parameters = ()
    names_principal: bool = False
    tokens: RefreshTokens = field(default_factory=RefreshTokens, repr=False)
    client_name: str = ""
    patience: float = 300.0

    def bound_to(self, wanted: Wanted) -> Binding:
        return Binding(self.binding, wanted.proof_key)

    def form(
        self, wanted: Wanted, *, extra_scopes: frozenset[str] = frozenset()
    ) -> list[tuple[str, str | Secret]]:
        """Return the form members, with `extra_scopes`, and `openid` if the answer must show who signs in."""
        scopes = wanted.scopes | extra_scopes | self._openid(wanted)
        return [
            *target(
                replace(wanted, scopes=scopes),
                audience=self.audience,
                details=self.details,
                parameters=self.parameters,
                names_resource=self.issuer.resource_indicators,
            )
        ]

    def is_openid(self, wanted: Wanted) -> bool:
        """Whether an ID token is requested."""
        return "openid" in wanted.scopes | self._openid(wanted)

    def _openid(self, wanted: Wanted) -> frozenset[str]:
        return frozenset() if self._expected_sub(wanted) is None else OPENID

    def _expected_sub(self, wanted: Wanted) -> str | None:
        return sub_at(self.issuer, wanted) if self.names_principal else None

    def fetch(
        self,
        wanted: Wanted,
        sign_in: Callable[[Wanted], Flow[Answer]],
        *,
        extra_scopes: frozenset[str] = frozenset(),
    ) -> Flow[Issued]:
        """Get a token by the stored refresh token, else by `sign_in`, which also requests `extra_scopes`.

        A step-up needs a new sign-in, so it never uses a refresh token. Who signed in is checked once, before the refresh token
        is stored; answers to the refresh token needn't name them again.

        Raises:
            DeniedError: `interaction_without_principal`, the session is autonomous and has no principal who could sign in.
        """
        if wanted.principal.profile == "trigger":
            raise DeniedError(
                "interaction_without_principal",
                f"an autonomous session has no principal who could sign in at {self.issuer.url}",
                remedy="open it with on_behalf_of(token), or use client-credentials or refresh-token for this resource",
            )
        # A step-up uses no refresh token, and shouldn't delay calls that only need one.
        if wanted.step_up is not None:
            return (yield from self._fetch(wanted, sign_in, extra_scopes))
        # One at a time: the second caller uses the refresh token from the first one's sign-in.
        return (
            yield from self.tokens.in_turn(
                wanted, lambda: self._fetch(wanted, sign_in, extra_scopes), self.patience
            )
        )

    def _fetch(
        self,
        wanted: Wanted,
        sign_in: Callable[[Wanted], Flow[Answer]],
        extra_scopes: frozenset[str],
    ) -> Flow[Issued]:
        expected = yield from self._expectation(wanted, extra_scopes)
        token = None if wanted.step_up else (yield from self.tokens.get(wanted))
        if token is not None:
            try:
                kept = replace(expected, shown_by="kept")
                return (
                    yield from refresh(
                        self.issuer, self.tokens, wanted, token, kept, self.parameters
                    )
                )
            except CredentialRejectedError as error:
                if error.code not in ("invalid_grant", "invalid_scope"):
                    raise
        answer = yield from sign_in(wanted)
        issued = yield from check_answer(self.issuer, answer, expected)
        if answer.refresh_token is not None:
            yield from self.tokens.put(wanted, answer.refresh_token)
        return issued

    def _expectation(self, wanted: Wanted, extra_scopes: frozenset[str]) -> Flow[Expected]:
        expected = yield from expect(
            self.issuer, wanted, self.binding, audience=self.audience, details=self.details
        )
        return replace(
            expected,
            sub=self._expected_sub(wanted),
            shown_by="sign-in",
            extra_scopes=extra_scopes | self._openid(wanted),
        )


@dataclass(frozen=True, slots=True)
class SignInSource:
    """A source in which a person signs in, in one of several ways; `kind` names the way."""

    kind: ClassVar[str]

    sign_in: SignIn

    @property
    def patience(self) -> float:
        return self.sign_in.patience

    @property
    def described(self) -> Described:
        sign_in = self.sign_in
        return Described(
            self.kind,
            sign_in.issuer.url,
            sign_in.client_name,
            f"{sign_in.binding} {sign_in.audience or ''}",
            details_text(sign_in.details),
            urlencode(sign_in.parameters),
        )


def span_of(fields: Fields, patience: float) -> tuple[float, float]:
    """Return the polling interval and the lifetime in seconds: the issuer's values, within our bounds."""
    interval = fields.number("interval") if fields.has("interval") else _INTERVAL
    life = fields.number("expires_in")
    return (
        min(max(interval or _INTERVAL, 1.0), _LONGEST),
        patience if life is None or life <= 0 else min(life, patience),
    )


def poll(
    issuer: Issuer,
    form: Sequence[tuple[str, str | Secret]],
    *,
    binding: Binding,
    interval: float,
    expires_at: float,
) -> Flow[Answer]:
    """Poll until the person has decided. `expires_at` is Unix seconds.

    Raises:
        CredentialRejectedError: they refused, or the request has expired.
        CredentialUnavailableError: `interaction_timeout`, they didn't decide in time.
    """
    last: CredentialUnavailableError | None = None
    while issuer.clock() + interval < expires_at:
        try:
            yield from pause(interval)
        except TransportError:
            break
        try:
            return (yield from issuer.token(form, binding=binding, one_use=True, may_refresh=True))
        except CredentialRejectedError as error:
            if error.code == "slow_down":
                interval += _SLOWER
            elif error.code != "authorization_pending":
                raise
        except CredentialUnavailableError as error:
            # The person may still decide while the issuer is busy: continue, but slower (RFC 8628 §3.5).
            last = error
            interval = min(max(2 * interval, error.retry_after or 0.0), _LONGEST)
    raise CredentialUnavailableError(
        "interaction_timeout", f"the sign-in at {issuer.url} timed out", remedy="try again"
    ) from last
