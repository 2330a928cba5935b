# SPDX-License-Identifier: Apache-2.0
"""The principal's own tokens: verified before a session opens, handed out by type while it lasts, fresh where they can be.

A JWT is verified by the keys of an issuer that is trusted for subjects; an opaque token is shown to its issuer and to nobody
else (RFC 7662). All tokens of one session name one principal of one issuer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

from agent_identity import jose
from agent_identity.credentials.answers import Fields, json_object
from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.source import SubjectToken, Verified
from agent_identity.credentials.token_types import (
    ACCESS_TOKEN,
    ID_TOKEN,
    JWT,
    REFRESH,
    REFRESH_TOKEN,
)
from agent_identity.errors import (
    ConfigurationError,
    CredentialRejectedError,
    InvalidSubjectError,
)
from agent_identity.flow import Shared, shared
from agent_identity.values import Principal, Secret, new_id

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from agent_identity.credentials.issuer import Issuer
    from agent_identity.flow import Flow

__all__ = ["ALGORITHMS", "SubjectTokens", "TokenSource", "Trusted", "tokens_of", "verified_subject"]

_HELD: Final = ("access_token", "id_token")
_SKEW: Final = 30.0
_LONGEST: Final = 24 * 3600.0
_SPARE: Final = 5.0
"""Seconds before its end at which a token is no longer handed out."""

_TYPS: Final = frozenset({None, "JWT", "at+jwt", "application/at+jwt"})
ALGORITHMS: Final = frozenset({"ES256", "ES384", "Ed25519", "EdDSA", "PS256", "RS256"})


class SubjectTokens:
    """A principal's tokens by type; at least one. They show in no readable form.

    Renewed ones take the place of those that were given, a rotated refresh token too: keep the object, not the strings.
    """

    __slots__ = ("access_token", "id_token", "name", "refresh_token", "renewals")

    def __init__(
        self,
        *,
        access_token: str | None = None,
        id_token: str | None = None,
        refresh_token: str | None = None,
    ) -> None:
        self.access_token = None if access_token is None else Secret(access_token)
        self.id_token = None if id_token is None else Secret(id_token)
        self.refresh_token = None if refresh_token is None else Secret(refresh_token)
        self.name: str = new_id("subject_")
        self.renewals = 0

    def __repr__(self) -> str:
        held = [name for name in (*_HELD, "refresh_token") if getattr(self, name) is not None]
        return f"<SubjectTokens {', '.join(held)}>"


@runtime_checkable
class TokenSource(Protocol):
    """Whatever keeps a principal's tokens fresh: asked by type, it answers with one that is valid now, or None."""

    def token(self, token_type: str, /) -> str | None:
        """A token of a type (`urn:ietf:params:oauth:token-type:access_token` and so on). It must not block."""
        ...


@dataclass(frozen=True, slots=True)
class Trusted:
    """An issuer whose word about principals is taken here, for tokens made for `audience`.

    An ID token is made for the client that somebody signed in with, which may be ours: `client_id`. `token_type` overrides what
    is read from a token.
    """

    issuer: Issuer
    audience: str
    client_id: str | None = None
    algorithms: frozenset[str] = ALGORITHMS
    token_type: str | None = None
    evidence: str = "issuer"


class _Known(NamedTuple):
    """What one verified token says."""

    sub: str
    profile: str
    token_type: str
    issued_at: float
    expires_at: float


def tokens_of(subject: str | SubjectTokens | TokenSource) -> SubjectTokens | TokenSource:
    """What a caller of `on_behalf_of` gave, as tokens: a single string is a token of whatever type it turns out to be.

    Raises:
        ConfigurationError: there is no token in it.
    """
    if isinstance(subject, str):
        return SubjectTokens(access_token=subject)
    if isinstance(subject, SubjectTokens) and not any(
        (subject.access_token, subject.id_token, subject.refresh_token)
    ):
        raise ConfigurationError("subject_empty", "SubjectTokens holds no token")
    return subject


def verified_subject(
    given: SubjectTokens | TokenSource, trusted: Mapping[str, Trusted]
) -> Flow[Verified]:
    """Verify a principal's tokens, and say who that is, until when.

    `trusted` is by issuer URL.

    Raises:
        InvalidSubjectError: a token failed; `.code` says which rule.
        CredentialUnavailableError: the issuer's keys or its introspection could not be had.
    """
    source = None if isinstance(given, SubjectTokens) else given
    tokens = given if isinstance(given, SubjectTokens) else _asked(given)
    shown = tokens.access_token or tokens.id_token
    if shown is None:
        raise InvalidSubjectError(
            "subject_token_missing",
            "a refresh token alone doesn't say whose it is",
            remedy="give the access token or the ID token too",
        )
    trust = _trusted_for(shown, trusted)
    subject = TokenSubject(trust, tokens, source)
    principal, expires_at = yield from subject.verified()
    return Verified(principal, subject, trust.evidence, expires_at)


def _asked(source: TokenSource) -> SubjectTokens:
    return SubjectTokens(access_token=source.token(ACCESS_TOKEN), id_token=source.token(ID_TOKEN))


def _trusted_for(token: Secret, trusted: Mapping[str, Trusted]) -> Trusted:
    """Whose token it is: what a JWT says of itself, and for an opaque one the only issuer that there is."""
    claims = _claims(token)
    if claims is None and len(trusted) == 1:
        return next(iter(trusted.values()))
    if claims is None:
        raise InvalidSubjectError(
            "issuer_unknown",
            "the principal's token is opaque, and it isn't clear which issuer to ask about it",
            remedy="trust exactly one issuer for subjects, or use tokens that are JWTs",
        )
    found = trusted.get(claims.text("iss") or "")
    if found is None:
        raise InvalidSubjectError(
            "issuer_unknown",
            "the principal's token is of an issuer that isn't trusted for subjects here",
            remedy='add the issuer to the configuration with trust = ["subjects"]',
        )
    return found


def _claims(token: Secret) -> Fields | None:
    """The claims of a JWT, unverified. What has the form of one has to be one.

    Raises:
        InvalidSubjectError: it has the form of a JWT, and is none that a strict reader takes.
    """
    text = token.reveal()
    if not (text.startswith("eyJ") and text.count(".") in (2, 4)):
        return None
    parsed = jose.unverified(text, error=InvalidSubjectError)
    return Fields(jose.loads_object(parsed.payload, error=InvalidSubjectError))


class TokenSubject:
    """The tokens of one session's principal. Renewed ones are verified like the first, and name the same principal."""

    def __init__(
        self, trust: Trusted, tokens: SubjectTokens, source: TokenSource | None = None
    ) -> None:
        self._trust = trust
        self._tokens = tokens
        self._source = source
        self._principal: Principal | None = None
        self._known: dict[str, tuple[Secret, _Known]] = {}

    @property
    def is_renewable(self) -> bool:
        return self._source is not None or self._tokens.refresh_token is not None

    def verified(self) -> Flow[tuple[Principal, float]]:
        """Verify all that is held; the end is that of the token that lasts longest, or none where fresh ones come."""
        ends: list[float] = []
        for name in _HELD:
            token: Secret | None = getattr(self._tokens, name)
            if token is None:
                continue
            known = yield from _verify(self._trust, token, must_be_id=name == "id_token")
            principal = Principal(known.sub, iss=self._trust.issuer.url, profile=known.profile)
            if self._principal not in (None, principal):
                raise InvalidSubjectError(
                    "subject_mismatch", "the tokens of one session name two principals"
                )
            self._principal = principal
            self._known[name] = (token, known)
            ends.append(known.expires_at)
        if self._principal is None:
            raise InvalidSubjectError("subject_token_missing", "no token says whose session it is")
        return self._principal, float("inf") if self.is_renewable else max(ends)

    def token(self, issuer: Issuer, types: Collection[str], /) -> Flow[SubjectToken]:
        """See `Subject`. A refresh token is shown to the issuer that gave it and to nobody else."""
        found = self._pick(issuer, types)
        if found is None and not self._all_known():
            yield from self.verified()  # another session renewed them
            found = self._pick(issuer, types)
        if found is None and self.is_renewable:
            yield from self._renewed()
            found = self._pick(issuer, types)
        if found is None:
            raise CredentialRejectedError(
                "subject_token_missing",
                f"this session has no token of the principal that {issuer.url} takes",
                remedy="open it with SubjectTokens(…) or a TokenSource that has one of the right type",
            )
        return found

    def _pick(self, issuer: Issuer, types: Collection[str]) -> SubjectToken | None:
        now = self._trust.issuer.clock()
        for token_type in types:
            if token_type == REFRESH_TOKEN:
                held = self._tokens.refresh_token
                if held is not None and issuer.url == self._trust.issuer.url:
                    return SubjectToken(held, REFRESH_TOKEN)
            for name, (token, known) in self._known.items():
                if (
                    known.token_type == token_type
                    and getattr(self._tokens, name) is token
                    and now < known.expires_at - _SPARE
                ):
                    return SubjectToken(token, token_type)
        return None

    def _all_known(self) -> bool:
        known = {name: token for name, (token, _) in self._known.items()}
        return all(getattr(self._tokens, name) is known.get(name) for name in _HELD)

    def _renewed(self) -> Flow[None]:
        if self._source is not None:
            self._tokens = _asked(self._source)
        else:
            key = digest_of(("subject", self._tokens.name, str(self._tokens.renewals)))
            yield from shared(Shared(key, self._refreshed))
        yield from self.verified()

    def _refreshed(self) -> Flow[_Known]:
        """Trade the refresh token; a rotated one takes its place before anything else happens."""
        tokens = self._tokens
        held = tokens.refresh_token
        if held is None:
            raise CredentialRejectedError("refresh_token_missing", "there is no refresh token left")
        form: list[tuple[str, str | Secret]] = [("grant_type", REFRESH), ("refresh_token", held)]
        try:
            answer = yield from self._trust.issuer.token(form, one_use=True, may_refresh=True)
        except CredentialRejectedError as error:
            if error.code == "invalid_grant":
                tokens.refresh_token = None
            raise
        tokens.refresh_token = answer.refresh_token or held
        tokens.access_token = answer.token
        tokens.id_token = answer.id_token
        tokens.renewals += 1
        return (yield from _verify(self._trust, answer.token, must_be_id=False))


def _verify(trust: Trusted, token: Secret, *, must_be_id: bool) -> Flow[_Known]:
    claims = _claims(token)
    if claims is None:
        return (yield from _introspected(trust, token))
    parsed = jose.unverified(token.reveal(), error=InvalidSubjectError)
    typ = parsed.header.get("typ")
    if typ not in _TYPS:
        raise InvalidSubjectError("wrong_typ", "what was given is no token of a principal")
    kid = parsed.header.get("kid")
    if not isinstance(kid, str):
        raise InvalidSubjectError("key_unknown", "the principal's token doesn't name its key")
    try:
        key = yield from trust.issuer.key(kid)
    except CredentialRejectedError as error:
        raise InvalidSubjectError(
            "key_unknown", f"{trust.issuer.url} has no such key", remedy=error.remedy
        ) from None
    jose.verify(parsed, [key], algorithms=trust.algorithms, error=InvalidSubjectError)
    token_type = trust.token_type or _type_of(claims, typ)
    is_id = must_be_id or token_type == ID_TOKEN
    _check(claims, trust, [trust.audience, trust.client_id] if is_id else [trust.audience])
    if must_be_id and token_type == ACCESS_TOKEN:
        raise InvalidSubjectError("wrong_typ", "an access token was given as an ID token")
    return _known(claims, ID_TOKEN if must_be_id else token_type, trust.issuer.clock())


def _check(claims: Fields, trust: Trusted, audiences: Sequence[str | None]) -> None:
    jose.check_lifetime(
        claims.members,
        now=trust.issuer.clock(),
        skew=_SKEW,
        max_lifetime=_LONGEST,
        error=InvalidSubjectError,
    )
    if claims.text("iss") != trust.issuer.url:
        raise InvalidSubjectError("issuer_mismatch", "the principal's token is of another issuer")
    if not any(claims.get("aud") in (name, [name]) for name in audiences if name is not None):
        raise InvalidSubjectError(
            "audience_mismatch",
            f"the principal's token isn't made for {audiences[0]} alone",
            remedy="have it issued for this agent, or set audience for the issuer",
        )


def _type_of(claims: Fields, typ: object) -> str:
    if typ in ("at+jwt", "application/at+jwt"):
        return ACCESS_TOKEN
    if any(claims.has(name) for name in ("nonce", "at_hash", "auth_time")):
        return ID_TOKEN
    return JWT


def _known(claims: Fields, token_type: str, now: float) -> _Known:
    sub, end = claims.text("sub"), claims.number("exp")
    if sub is None or end is None:
        raise InvalidSubjectError("claim_missing", "nothing says whose the token is, or until when")
    profile = claims.text("sub_profile")
    kind = "service" if profile == "service" else "user"
    return _Known(sub, kind, token_type, now, end)


def _introspected(trust: Trusted, token: Secret) -> Flow[_Known]:
    """Ask the issuer about a token that says nothing (RFC 7662 §2); what it doesn't vouch for is worth nothing."""
    form: list[tuple[str, str | Secret]] = [("token", token)]
    try:
        response = yield from trust.issuer.post("introspection", form, "about a token")
    except CredentialRejectedError as error:
        raise InvalidSubjectError(
            "not_introspectable",
            f"{trust.issuer.url} doesn't say what the principal's token is worth ({error.code})",
        ) from None
    claims = json_object(response, trust.issuer.url)
    if claims.get("active") is not True:
        raise InvalidSubjectError("inactive", "the principal's token isn't valid any more")
    now = trust.issuer.clock()
    end = claims.number("exp")
    if end is not None and end <= now:
        raise InvalidSubjectError("expired", "the principal's token has expired")
    if claims.has("iss") and claims.text("iss") != trust.issuer.url:
        raise InvalidSubjectError("issuer_mismatch", "the principal's token is of another issuer")
    if claims.get("aud") not in (trust.audience, [trust.audience]):
        raise InvalidSubjectError(
            "audience_mismatch", f"the principal's token isn't made for {trust.audience} alone"
        )
    return _known(claims, ACCESS_TOKEN, now)
