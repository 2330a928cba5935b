# SPDX-License-Identifier: Apache-2.0
"""Refresh: a long-lived token becomes a fresh access token, and a rotated one is kept before anything is used (RFC 6749 §6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.oauth.requests import Binding, Issued
from agent_identity.credentials.oauth.token_types import REFRESH
from agent_identity.credentials.source import Described, Wanted, named_by
from agent_identity.credentials.sources.checks import Expected, accepted
from agent_identity.credentials.sources.targets import target
from agent_identity.errors import AgentIdentityError, CredentialRejectedError
from agent_identity.flow import Shared, keep, read, shared
from agent_identity.values import new_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.flow import Flow
    from agent_identity.values import Secret

__all__ = ["RefreshToken", "RefreshTokens", "refreshed"]


class Store(Protocol):
    """Where references lead."""

    def read(self, reference: str, /) -> Flow[Secret | None]: ...

    def keep(self, reference: str, secret: Secret | None, /) -> Flow[None]: ...


class _Asked:
    def read(self, reference: str, /) -> Flow[Secret | None]:
        return read(reference)

    def keep(self, reference: str, secret: Secret | None, /) -> Flow[None]:
        return keep(reference, secret)


class RefreshTokens:
    """Where one source keeps refresh tokens: in memory, and where a reference says so beyond this process.

    Each principal has one of their own: the name that it is kept under holds a digest of who they are, at which issuer, as
    which client. `fixed` keeps the one token that a reference names, whoever is acted for; it is the operator's, so that it is
    never taken away, and only a rotated one takes its place. `store` is where references lead,
    by default wherever whoever drives the flows keeps secrets.
    """

    __slots__ = ("_fixed", "_held", "_id", "_reference", "_scope", "_store")

    def __init__(
        self,
        reference: str | None = None,
        *,
        scope: str = "",
        fixed: bool = False,
        store: Store | None = None,
    ) -> None:
        self._store: Store = store or _Asked()
        self._reference = reference
        self._scope = scope
        self._fixed = fixed
        self._held: dict[str, Secret] = {}
        self._id = new_id("refresh_")

    def in_turn(
        self, wanted: Wanted, get: Callable[[], Flow[Issued]], patience: float | None = None
    ) -> Flow[Issued]:
        """Do what may use the refresh token, one at a time in one identity.

        Sessions of one principal share it, and a rotated one that is used twice costs the whole family (RFC 9700 §4.14.2).
        """
        name = self._name(wanted)
        key = digest_of(
            ("refresh", name, self._id if self._reference is None else self._place(name))
        )
        while True:
            mine: list[Issued | AgentIdentityError] = []
            ask = Shared(key, lambda: _turn(get, mine), patience, once=True)  # noqa: B023 - asked for at once
            turn = yield from shared(ask)
            assert isinstance(turn, _Turn)  # noqa: S101 - a driver that answers otherwise would be asked for ever
            if mine:
                break
        if isinstance(mine[0], AgentIdentityError):
            raise mine[0]
        return mine[0]

    @property
    def is_fixed(self) -> bool:
        """Whether there is one token for whoever is acted for, put there by somebody else."""
        return self._fixed

    def get(self, wanted: Wanted) -> Flow[Secret | None]:
        name = self._name(wanted)
        if self._reference is None:
            return self._held.get(name)
        return (yield from self._store.read(self._place(name)))

    def put(self, wanted: Wanted, token: Secret) -> Flow[None]:
        """Keep a token, durably where there is a place for it, before the caller goes on."""
        name = self._name(wanted)
        if self._reference is None:
            self._held[name] = token
            return
        yield from self._store.keep(self._place(name), token)

    def drop(self, wanted: Wanted, token: Secret) -> Flow[None]:
        """Forget a token that the issuer took back, unless another has taken its place meanwhile."""
        name = self._name(wanted)
        if self._reference is None:
            if token.equals(self._held.get(name)):
                del self._held[name]
            return
        if self._fixed:
            return
        if token.equals((yield from self._store.read(self._place(name)))):
            yield from self._store.keep(self._place(name), None)

    def start_over(self) -> None:
        """In a forked child: what is in memory is the parent's, and would be used twice."""
        self._held = {}

    def _name(self, wanted: Wanted) -> str:
        if self._fixed:
            return ""
        # In memory the key counts too: a public client's refresh token is bound to it (RFC 9449 §5).
        key = wanted.proof_key.thumbprint if self._reference is None else ""
        who = wanted.principal
        # Each part for itself: as one text, alice of an issuer reads like a local principal whose name holds that issuer.
        owner = (who.profile, who.sub, *(() if who.iss is None else (who.iss,)))
        return digest_of((self._scope, key, *owner)).hex()[:32]

    def _place(self, name: str) -> str:
        return f"{self._reference}.{name}" if name else str(self._reference)


class _Turn(NamedTuple):
    """That somebody's turn is over; it serves nobody else."""

    issued_at: float = 0.0
    expires_at: float = 0.0


def _turn(
    get: Callable[[], Flow[Issued]], outcome: list[Issued | AgentIdentityError]
) -> Flow[_Turn]:
    """One turn; what comes of it, an error too, is its owner's alone."""
    try:
        outcome.append((yield from get()))
    except AgentIdentityError as error:
        outcome.append(error.with_traceback(None))
    return _Turn()


def refreshed(
    issuer: Issuer,
    tokens: RefreshTokens,
    wanted: Wanted,
    token: Secret,
    expected: Expected,
) -> Flow[Issued]:
    """Trade a refresh token; it is sent once, and dropped when the issuer says that it is worth nothing.

    Raises:
        CredentialRejectedError: `invalid_grant`, it was taken back or used before; somebody has to sign in again.
        CredentialUnavailableError: the issuer could not be reached; the token is kept.
    """
    form: list[tuple[str, str | Secret]] = [
        ("grant_type", REFRESH),
        ("refresh_token", token),
        *target(wanted, details=expected.details, names_resource=issuer.resource_indicators),
    ]
    try:
        answer = yield from issuer.token(
            form, binding=expected.binding, one_use=True, may_refresh=True
        )
    except CredentialRejectedError as error:
        if error.code == "invalid_grant":
            yield from tokens.drop(wanted, token)
            if tokens.is_fixed:
                outworn = CredentialRejectedError(
                    error.code,
                    str(error),
                    remedy="sign in anew, and put the refresh token where the configuration says",
                )
                raise outworn from error
        raise
    if answer.refresh_token is not None and not token.equals(answer.refresh_token):
        yield from tokens.put(wanted, answer.refresh_token)
    return (yield from accepted(issuer, answer, expected))


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """Refresh tokens as a source of their own: somebody signed in elsewhere, and left the token where a reference says.

    With one token for all, a session for a principal whom the issuer knows takes no access token that shows somebody else. One
    that shows nobody is the word of the operator who put the refresh token there, and on record as opaque. A session that acts
    for nobody takes whatever comes: it is the operator's own.
    """

    issuer: Issuer
    tokens: RefreshTokens = field(repr=False)
    binding: Literal["dpop", "mtls", "none"] = "dpop"
    audience: str | None = None
    client_name: str = ""
    patience: float | None = None

    @property
    def described(self) -> Described:
        return Described(
            "refresh-token",
            self.issuer.url,
            self.client_name,
            f"{self.binding} {self.audience or ''}",
        )

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        return self.tokens.in_turn(wanted, lambda: self._fetch(wanted))

    def _fetch(self, wanted: Wanted) -> Flow[Issued]:
        token = yield from self.tokens.get(wanted)
        if token is None:
            raise CredentialRejectedError(
                "refresh_token_missing",
                f"there is no refresh token for {self.issuer.url} where the configuration says",
                remedy="sign in once and keep the refresh token there, or use authorization-code or device",
            )
        certificate = yield from self.issuer.certificate()
        expected = Expected(
            issuer=self.issuer.url,
            resource=wanted.resource,
            scopes=wanted.scopes,
            binding=Binding(self.binding, wanted.proof_key),
            asked_at=self.issuer.clock(),
            audience=self.audience or wanted.resource,
            sub=named_by(self.issuer, wanted),
            shown_by="kept",
            certificate=certificate if self.binding == "mtls" else None,
        )
        return (yield from refreshed(self.issuer, self.tokens, wanted, token, expected))
