# SPDX-License-Identifier: Apache-2.0
"""Refresh tokens: each is traded for a fresh access token, and a rotated one is stored before that is used (RFC 6749 §6)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar
from urllib.parse import urlencode

from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.oauth.token_types import REFRESH
from agent_identity.credentials.source import Described, Wanted, sub_at, target
from agent_identity.credentials.sources.checks import check_answer, expect
from agent_identity.errors import AgentIdentityError, CredentialRejectedError
from agent_identity.flow import Shared, keep, read, shared
from agent_identity.values import new_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.source import Parameters
    from agent_identity.credentials.sources.checks import Expected
    from agent_identity.flow import Flow
    from agent_identity.values import Secret


T = TypeVar("T")


class Store(Protocol):
    """Reads and writes secrets by reference."""

    def read(self, reference: str, /) -> Flow[Secret | None]: ...

    def keep(self, reference: str, secret: Secret | None, /) -> Flow[None]: ...


class _DriverStore:
    def read(self, reference: str, /) -> Flow[Secret | None]:
        return read(reference)

    def keep(self, reference: str, secret: Secret | None, /) -> Flow[None]:
        return keep(reference, secret)


class RefreshTokens:
    """The refresh tokens of one source: in memory, or durably in a secret store if there is a `reference`.

    Each principal has a token of their own. Its name in the store has a digest of the principal, the issuer and the client.
    `fixed` means one token for all principals, the operator's own: it is never deleted, only replaced by a rotated one.
    `store` is the secret store, by default that of the flow's driver.
    """

    __slots__ = ("_id", "_reference", "_scope", "_store", "_tokens", "is_fixed")

    def __init__(
        self,
        reference: str | None = None,
        *,
        scope: str = "",
        fixed: bool = False,
        store: Store | None = None,
    ) -> None:
        self._store: Store = store or _DriverStore()
        self._reference = reference
        self._scope = scope
        self.is_fixed: bool = fixed
        self._tokens: dict[str, Secret] = {}
        self._id = new_id("refresh_")

    def in_turn(
        self, wanted: Wanted, get: Callable[[], Flow[Issued]], patience: float | None = None
    ) -> Flow[Issued]:
        """Run flows that may use the same refresh token one at a time in one identity.

        A principal's sessions share the token, and using a rotated one twice revokes the whole family (RFC 9700 §4.14.2).
        """
        name = self._name(wanted)
        key = digest_of(
            ("refresh", name, self._id if self._reference is None else self._place(name))
        )
        return (yield from in_turn(key, get, patience))

    def get(self, wanted: Wanted) -> Flow[Secret | None]:
        name = self._name(wanted)
        if self._reference is None:
            return self._tokens.get(name)
        return (yield from self._store.read(self._place(name)))

    def put(self, wanted: Wanted, token: Secret) -> Flow[None]:
        """Store a token before the caller uses its access token; durably, if there is a reference."""
        name = self._name(wanted)
        if self._reference is None:
            self._tokens[name] = token
            return
        yield from self._store.keep(self._place(name), token)

    def drop(self, wanted: Wanted, token: Secret) -> Flow[None]:
        """Delete a token that the issuer revoked, unless it has been replaced in the meantime."""
        name = self._name(wanted)
        if self._reference is None:
            if token.equals(self._tokens.get(name)):
                del self._tokens[name]
            return
        if self.is_fixed:
            return
        if token.equals((yield from self._store.read(self._place(name)))):
            yield from self._store.keep(self._place(name), None)

    def start_over(self) -> None:
        """In a forked child: the tokens in memory are the parent's, and would be used twice."""
        self._tokens = {}

    def _name(self, wanted: Wanted) -> str:
        if self.is_fixed:
            return ""
        # In memory the key is part of the name: a public client's refresh token is bound to it (RFC 9449 §5).
        key = wanted.proof_key.thumbprint if self._reference is None else ""
        principal = wanted.principal
        # Separate parts: joined, alice of an issuer could equal a local principal whose name contains that issuer.
        issuer = () if principal.iss is None else (principal.iss,)
        owner = (principal.profile, principal.sub, *issuer)
        return digest_of((self._scope, key, *owner)).hex()[:32]

    def _place(self, name: str) -> str:
        return f"{self._reference}.{name}" if name else str(self._reference)


class _Turn(NamedTuple):
    """The end of a turn, which expires at once: every caller takes a turn of its own."""

    issued_at: float = 0.0
    expires_at: float = 0.0


def in_turn(key: bytes, get: Callable[[], Flow[T]], patience: float | None) -> Flow[T]:
    """Run flows with the same key one at a time in one identity, each for its own caller."""
    while True:
        mine: list[T | AgentIdentityError] = []
        ask = Shared(key, lambda: _turn(get, mine), patience, once=True)  # noqa: B023 - asked for at once
        turn = yield from shared(ask)
        assert isinstance(turn, _Turn)  # noqa: S101 - with another answer this loop would never end
        if mine:
            break
    if isinstance(mine[0], AgentIdentityError):
        raise mine[0]
    return mine[0]


def _turn(get: Callable[[], Flow[T]], outcome: list[T | AgentIdentityError]) -> Flow[_Turn]:
    """Run one turn. Its result or error goes to its owner through `outcome`, and to no other caller."""
    try:
        outcome.append((yield from get()))
    except AgentIdentityError as error:
        outcome.append(error.with_traceback(None))
    return _Turn()


def refresh(
    issuer: Issuer,
    tokens: RefreshTokens,
    wanted: Wanted,
    token: Secret,
    expected: Expected,
    parameters: Parameters = (),
) -> Flow[Issued]:
    """Use a refresh token. It is sent once, and deleted if the issuer refuses it.

    Raises:
        CredentialRejectedError: `invalid_grant`, it was revoked or used before; the person must sign in again.
        CredentialUnavailableError: the issuer could not be reached; the token is kept.
    """
    form: list[tuple[str, str | Secret]] = [
        ("grant_type", REFRESH),
        ("refresh_token", token),
        *target(
            wanted,
            details=expected.details,
            parameters=parameters,
            names_resource=issuer.resource_indicators,
        ),
    ]
    try:
        answer = yield from issuer.token(
            form, binding=expected.binding, one_use=True, may_refresh=True
        )
    except CredentialRejectedError as error:
        if error.code == "invalid_grant":
            yield from tokens.drop(wanted, token)
            if tokens.is_fixed:
                raise CredentialRejectedError(
                    error.code,
                    str(error),
                    remedy="sign in again, and store the new refresh token at the configured place",
                ) from error
        raise
    if answer.refresh_token is not None and not token.equals(answer.refresh_token):
        yield from tokens.put(wanted, answer.refresh_token)
    return (yield from check_answer(issuer, answer, expected))


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """Stored refresh tokens as a source: a person signed in elsewhere, and the token was put into the secret store.

    With one token for all principals, an access token that names another principal is refused, if the issuer knows the
    session's principal. An access token that names nobody is accepted and recorded as opaque: the operator vouches for it. An
    autonomous session accepts any: it acts as the operator.
    """

    issuer: Issuer
    tokens: RefreshTokens = field(repr=False)
    binding: Literal["dpop", "mtls", "none"] = "dpop"
    audience: str | None = None
    parameters: Parameters = ()
    client_name: str = ""
    patience: float | None = None

    @property
    def described(self) -> Described:
        return Described(
            "refresh-token",
            self.issuer.url,
            self.client_name,
            f"{self.binding} {self.audience or ''}",
            parameters=urlencode(self.parameters),
        )

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        return self.tokens.in_turn(wanted, lambda: self._fetch(wanted))

    def _fetch(self, wanted: Wanted) -> Flow[Issued]:
        token = yield from self.tokens.get(wanted)
        if token is None:
            raise CredentialRejectedError(
                "refresh_token_missing",
                f"there is no refresh token for {self.issuer.url} at the configured place",
                remedy="sign in once and store the refresh token there, or use authorization-code or device",
            )
        expected = yield from expect(self.issuer, wanted, self.binding, audience=self.audience)
        expected = replace(expected, sub=sub_at(self.issuer, wanted), shown_by="kept")
        return (
            yield from refresh(self.issuer, self.tokens, wanted, token, expected, self.parameters)
        )
