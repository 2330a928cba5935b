# SPDX-License-Identifier: Apache-2.0
"""The principal's own tokens: verified before a session opens, handed out by type while it lasts, fresh where they can be.

A JWT is verified by the keys of an issuer that is trusted for subjects; an opaque token is shown to its issuer and to nobody
else (RFC 7662). All tokens of one session name one principal of one issuer.
"""

from __future__ import annotations

import base64
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar, runtime_checkable

import orjson

from agent_identity import jose
from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.oauth.responses import Fields, json_object
from agent_identity.credentials.oauth.token_types import (
    ACCESS_TOKEN,
    ID_TOKEN,
    JWT,
    REFRESH,
    REFRESH_TOKEN,
)
from agent_identity.credentials.source import SubjectToken, Verified
from agent_identity.errors import (
    ConfigurationError,
    CredentialRejectedError,
    InvalidSubjectError,
    VerificationError,
)
from agent_identity.flow import Shared, shared
from agent_identity.forks import start_over_in_child
from agent_identity.keys.algorithms import ALGORITHMS
from agent_identity.values import Principal, Secret, keep, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.flow import Flow
    from agent_identity.keys.signing import SigningKey
    from agent_identity.redaction import Revealing
    from agent_identity.values import JSON

__all__ = [
    "SUBJECT_TYPE",
    "DirectorySubject",
    "SubjectTokens",
    "TokenSource",
    "Trusted",
    "subject_assertion",
    "tokens_of",
    "verified_subject",
]

T = TypeVar("T")

_HELD: Final = ("access_token", "id_token")
_SKEW: Final = 30.0
_LONGEST: Final = 24 * 3600.0
_SPARE: Final = 5.0
"""Seconds before its end at which a token is no longer handed out."""

_ACCESS_TYPS: Final = frozenset({"at+jwt", "application/at+jwt"})
_TYPS: Final = frozenset({None, "JWT"}) | _ACCESS_TYPS
_PARTS: Final = (3, 5)
"""Of a signed token and of an encrypted one."""


class SubjectTokens:
    """A principal's tokens by type; at least one. They show in no readable form.

    Renewed ones take the place of those that were given, a rotated refresh token too: keep the object, not the strings.
    """

    __slots__ = ("__weakref__", "access_token", "id_token", "name", "refresh_token", "renewals")

    def __init__(
        self,
        *,
        access_token: str | None = None,
        id_token: str | None = None,
        refresh_token: str | None = None,
    ) -> None:
        self.access_token: Secret | None = None if access_token is None else Secret(access_token)
        self.id_token: Secret | None = None if id_token is None else Secret(id_token)
        self.refresh_token: Secret | None = None if refresh_token is None else Secret(refresh_token)
        self.name: str = new_id("subject_")
        self.renewals: int = 0
        start_over_in_child(self)

    def start_over(self) -> None:
        """In a forked child: the refresh token is the parent's to use, and used twice it costs both of them."""
        self.refresh_token = None

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

    An ID token is made for the client that somebody signed in with, which may be ours: `client_id`. `token_type` is what a token
    is that doesn't say so itself.
    """

    issuer: Issuer
    audience: str
    client_id: str | None = None
    algorithms: frozenset[str] = ALGORITHMS
    token_type: str | None = None


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
    given: SubjectTokens | TokenSource,
    trusted: Mapping[str, Trusted],
    *,
    agent: str | None = None,
) -> Flow[Verified]:
    """Verify a principal's tokens, and say who that is, until when.

    `trusted` is by issuer URL. `agent` is who is going to act for them, which a token may limit by `may_act`.

    Raises:
        InvalidSubjectError: a token failed; `.code` says which rule.
        CredentialError: the issuer's keys or its introspection could not be had.
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
    subject = TokenSubject(_trusted_for(shown, trusted), tokens, source, agent)
    principal = yield from subject.verified()
    renew = subject.renewed if subject.is_renewable else None
    return Verified(
        principal, subject, "issuer", subject.proven_until(), renew, subject.issued_at()
    )


def _asked(source: TokenSource) -> SubjectTokens:
    access_token, id_token = source.token(ACCESS_TOKEN), source.token(ID_TOKEN)
    for given in (access_token, id_token):
        _check_given(given)
    return SubjectTokens(access_token=access_token, id_token=id_token)


def _check_given(given: object) -> None:
    if given is not None and not (isinstance(given, str) and given):
        raise ConfigurationError(
            "subject_malformed",
            f"a TokenSource gave {type(given).__name__} where a token belongs, or an empty one",
            remedy="let token(…) return the token as text, or None",
        )


def _trusted_for(token: Secret, trusted: Mapping[str, Trusted]) -> Trusted:
    """Whose token it is: what a JWT says of itself, and for an opaque one the only issuer that there is."""
    if not _is_jwt(token):
        if len(trusted) == 1:
            return next(iter(trusted.values()))
        raise InvalidSubjectError(
            "issuer_unknown",
            "the principal's token is opaque, and it isn't clear which issuer to ask about it",
            remedy="trust exactly one issuer for subjects, or use tokens that are JWTs",
        )
    _, claims = _read(token)
    found = trusted.get(claims.text("iss") or "")
    if found is None:
        raise InvalidSubjectError(
            "issuer_unknown",
            "the principal's token is of an issuer that isn't trusted for subjects here",
            remedy='add the issuer to the configuration with trust = ["subjects"]',
        )
    return found


def _is_jwt(token: Secret) -> bool:
    """Whether a token has the form of a JWT, signed or encrypted: a JSON object in base64 comes first.

    What has the form of one has to be one: a token of somebody else's issuer, badly made, is shown to nobody.
    """
    parts = token.reveal().split(".")
    head = parts[0].encode("ascii", "ignore").strip().rstrip(b"=")
    head += b"A" * (-len(head) % 4)
    with contextlib.suppress(ValueError):
        decoded = base64.b64decode(head, altchars=b"-_")
        return len(parts) in _PARTS and decoded.lstrip().startswith(b"{")
    return False


def _read(token: Secret) -> tuple[jose.Parsed, Fields]:
    """A JWT taken apart, its claims unverified.

    Raises:
        InvalidSubjectError: it has the form of a JWT, and is none that a strict reader takes.
    """

    def parsed() -> tuple[jose.Parsed, Fields]:
        found = jose.unverified(token.reveal())
        return found, Fields(jose.loads_object(found.payload))

    return _held_to(parsed)


def _held_to(rule: Callable[[], T]) -> T:
    """What a rule answers. A refusal is raised anew: the frames that it comes from hold the token as text."""
    try:
        return rule()
    except VerificationError as error:
        refusal = InvalidSubjectError(error.code, str(error), remedy=error.remedy)
    raise refusal


def _held(tokens: SubjectTokens) -> tuple[Secret | None, Secret | None]:
    return tokens.access_token, tokens.id_token


class TokenSubject:
    """The tokens of one session's principal. Renewed ones are verified like the first, and name the same principal."""

    def __init__(
        self,
        trust: Trusted,
        tokens: SubjectTokens,
        source: TokenSource | None = None,
        agent: str | None = None,
    ) -> None:
        self._trust = trust
        self._tokens = tokens
        self._source = source
        self._agent = agent
        self._principal: Principal | None = None
        self._known: dict[str, tuple[Secret, _Known]] = {}
        self._seen: tuple[Secret | None, Secret | None] = (None, None)
        self._is_news = False
        self._held: dict[int, Revealing] = {}

    @property
    def is_renewable(self) -> bool:
        return self._source is not None or self._tokens.refresh_token is not None

    def verified(self) -> Flow[Principal]:
        """Verify all that is held, and say who it names."""
        tokens = self._tokens
        seen = _held(tokens)
        self._principal, self._known = yield from self._checked(tokens)
        self._seen, self._is_news = seen, True
        return self._principal

    def issued_at(self) -> float:
        """When the oldest of the verified tokens was issued, in Unix seconds."""
        return min(known.issued_at for _, known in self._known.values())

    def proven_until(self) -> float:
        """Until when what was verified proves who it names: until the first of it ends. What has ended counts no more."""
        now = self._trust.issuer.clock()
        ends = [known.expires_at for _, known in self._known.values()]
        self._is_news = False
        return min((end for end in ends if end > now), default=min(ends))

    def renewed(self) -> Flow[float]:
        """Get fresh tokens and verify them, unless somebody did; the answer is until when the principal is proven (Unix seconds).

        Raises:
            InvalidSubjectError: they are none, or name another principal; those that were held stay.
            CredentialError: there are none to be had.
        """
        yield from self._caught_up()
        # What proved the principal before, and still lasts in part, proves nothing more by that: it takes fresh tokens.
        if not self._is_news or self.proven_until() <= self._trust.issuer.clock() + _SPARE:
            yield from self._renew()
        return self.proven_until()

    def _caught_up(self) -> Flow[None]:
        """Verify what another session renewed, unless that has ended too."""
        held = _held(self._tokens)
        if all(seen is token for seen, token in zip(self._seen, held, strict=True)):
            return
        try:
            yield from self.verified()
        except InvalidSubjectError as error:
            if error.code != "expired":
                raise

    def token(self, issuer: Issuer, types: Collection[str], /) -> Flow[SubjectToken]:
        """See `Subject`. A refresh token is shown to the issuer that gave it and to nobody else."""
        found = self._pick(issuer, types)
        if found is None:
            yield from self._caught_up()
            found = self._pick(issuer, types)
        if found is None and self.is_renewable:
            yield from self._renew()
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

    def _checked(
        self, tokens: SubjectTokens
    ) -> Flow[tuple[Principal, dict[str, tuple[Secret, _Known]]]]:
        """Who all these tokens name: whom they named before, where that is known."""
        principal, found = self._principal, dict[str, tuple[Secret, _Known]]()
        held = (*_held(tokens), tokens.refresh_token)
        keep(self._held, *(token for token in held if token is not None))
        for name in _HELD:
            token: Secret | None = getattr(tokens, name)
            if token is None:
                continue
            try:
                known = yield from _verify(
                    self._trust, token, agent=self._agent, must_be_id=name == "id_token"
                )
            except InvalidSubjectError as error:
                if error.code == "expired" and found:
                    continue  # an ID token ends before the access token beside it, which says whose it is
                raise
            named = Principal(known.sub, iss=self._trust.issuer.url, profile=known.profile)
            if principal not in (None, named):
                raise InvalidSubjectError(
                    "subject_mismatch", "the tokens of one session name two principals"
                )
            principal = named
            found[name] = (token, known)
        if principal is None or not found:
            raise InvalidSubjectError("subject_token_missing", "no token says whose session it is")
        return principal, found

    def _renew(self) -> Flow[None]:
        if self._source is not None:
            tokens = _asked(self._source)
            _, self._known = yield from self._checked(tokens)
            self._tokens = tokens
            self._seen, self._is_news = _held(tokens), True
            return
        key = digest_of(("subject", self._tokens.name, str(self._tokens.renewals)))
        yield from shared(Shared(key, self._refreshed, once=True))
        yield from self.verified()

    def _refreshed(self) -> Flow[_Known]:
        """Trade the refresh token. A rotated one takes its place before anything else happens, the others once they are verified."""
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
        fresh = SubjectTokens()
        fresh.access_token, fresh.id_token = answer.token, answer.id_token
        _, found = yield from self._checked(fresh)
        tokens.access_token = fresh.access_token
        tokens.id_token = fresh.id_token or self._lasting(tokens.id_token)
        tokens.renewals += 1
        return found["access_token"][1]

    def _lasting(self, token: Secret | None) -> Secret | None:
        """An ID token that no fresh one replaced, while it lasts for more than a moment."""
        held, known = self._known.get("id_token", (None, None))
        if token is None or held is not token or known is None:
            return None
        return token if self._trust.issuer.clock() < known.expires_at - _SPARE else None


def _verify(trust: Trusted, token: Secret, *, agent: str | None, must_be_id: bool) -> Flow[_Known]:
    if not _is_jwt(token):
        if must_be_id:
            raise InvalidSubjectError("wrong_typ", "what was given as an ID token is no JWT")
        return (yield from _introspected(trust, token, agent))
    parsed, claims = _read(token)
    typ = parsed.header.get("typ")
    if typ not in _TYPS:
        raise InvalidSubjectError("wrong_typ", "what was given is no token of a principal")
    kid = parsed.header.get("kid")
    if not isinstance(kid, str):
        raise InvalidSubjectError("key_unknown", "the principal's token doesn't name its key")
    key = yield from _key(trust.issuer, kid)
    _held_to(lambda: jose.verify(parsed, [key], algorithms=trust.algorithms))
    token_type = ACCESS_TOKEN if typ in _ACCESS_TYPS else trust.token_type or _type_of(claims)
    if must_be_id and token_type == ACCESS_TOKEN:
        raise InvalidSubjectError("wrong_typ", "an access token was given as an ID token")
    is_id = must_be_id or token_type == ID_TOKEN
    now = trust.issuer.clock()
    _held_to(
        lambda: jose.check_lifetime(claims.members, now=now, skew=_SKEW, max_lifetime=_LONGEST)
    )
    if claims.text("iss") != trust.issuer.url:
        raise InvalidSubjectError("issuer_mismatch", "the principal's token is of another issuer")
    _check_audience(claims, [trust.audience, trust.client_id] if is_id else [trust.audience])
    if is_id and trust.client_id is not None and claims.get("azp") not in (None, trust.client_id):
        raise InvalidSubjectError(
            "client_mismatch", "the principal's ID token was given to another client than this one"
        )
    yield from _check_claims(claims, trust, agent)
    return _known(claims, ID_TOKEN if must_be_id else token_type, now)


def _key(issuer: Issuer, kid: str) -> Flow[dict[str, JSON]]:
    try:
        return (yield from issuer.key(kid))
    except CredentialRejectedError as error:
        if error.code != "unknown_key":
            raise
        remedy = error.remedy
    raise InvalidSubjectError("key_unknown", f"{issuer.url} has no such key", remedy=remedy)


def _check_audience(claims: Fields, audiences: Sequence[str | None]) -> None:
    if not any(claims.get("aud") in (name, [name]) for name in audiences if name is not None):
        raise InvalidSubjectError(
            "audience_mismatch",
            f"the principal's token isn't made for {audiences[0]} alone",
            remedy="have it issued for this agent, or set audience for the issuer",
        )


def _check_claims(claims: Fields, trust: Trusted, agent: str | None) -> Flow[None]:
    """What a token may not say, whether it says so itself or its issuer does."""
    if claims.has("events"):
        raise InvalidSubjectError(
            "wrong_typ", "what was given tells of an event, as logout tokens do"
        )
    if claims.has("cnf"):
        certificate = yield from trust.issuer.certificate()
        ours = None if certificate is None else certificate.thumbprint
        if ours is None or claims.get("cnf") != {"x5t#S256": ours}:
            raise InvalidSubjectError(
                "subject_bound",
                "the principal's token is bound to a key that isn't ours, and came without a proof",
                remedy="have it issued unbound, for this agent's audience",
            )
    if agent is not None and claims.has("may_act"):
        named = claims.nested("may_act")
        if named is None or named.text("sub") not in (agent, trust.client_id):
            raise InvalidSubjectError(
                "may_act",
                f"the principal's token lets another actor act for them, not {agent}",
                remedy="have the token issued with this agent, or its client, in may_act",
            )


def _type_of(claims: Fields) -> str:
    if any(claims.has(name) for name in ("nonce", "at_hash", "auth_time")):
        return ID_TOKEN
    return JWT


def _known(claims: Fields, token_type: str, now: float) -> _Known:
    sub, end = claims.text("sub"), claims.number("exp")
    if sub is None or end is None:
        raise InvalidSubjectError("claim_missing", "nothing says whose the token is, or until when")
    if end <= now:
        # No skew here: it would open a session that has ended.
        raise InvalidSubjectError("expired", "the principal's token has expired")
    profile = claims.text("sub_profile")
    kind = "service" if profile == "service" else "user"
    return _Known(sub, kind, token_type, now, end)


def _introspected(trust: Trusted, token: Secret, agent: str | None) -> Flow[_Known]:
    """Ask the issuer about a token that says nothing (RFC 7662 §2); what it doesn't vouch for is worth nothing.

    Its answer is held to what a JWT is. Which client the token was given to doesn't matter: an access token comes from any.
    """
    form: list[tuple[str, str | Secret]] = [("token", token)]
    try:
        response = yield from trust.issuer.post("introspection", form, "about a token")
        claims = json_object(response, trust.issuer.url)
    except CredentialRejectedError as error:
        raise InvalidSubjectError(
            "not_introspectable",
            f"{trust.issuer.url} doesn't say what the principal's token is worth ({error.code})",
        ) from None
    if claims.get("active") is not True:
        raise InvalidSubjectError("inactive", "the principal's token isn't valid any more")
    kinds = [(claims.text(name) or "").lower() for name in ("token_type", "typ", "token_use")]
    if any("refresh" in kind for kind in kinds):
        raise InvalidSubjectError("wrong_typ", "a refresh token was given as an access token")
    if "dpop" in kinds and not claims.has("cnf"):
        raise InvalidSubjectError("subject_bound", "the principal's token is bound to a key")
    now = trust.issuer.clock()
    known = _known(claims, ACCESS_TOKEN, now)
    members = {"iat": now, **claims.members}
    _held_to(lambda: jose.check_lifetime(members, now=now, skew=_SKEW, max_lifetime=_LONGEST))
    if claims.has("iss") and claims.text("iss") != trust.issuer.url:
        raise InvalidSubjectError("issuer_mismatch", "the principal's token is of another issuer")
    _check_audience(claims, [trust.audience])
    yield from _check_claims(claims, trust, agent)
    return known


SUBJECT_TYPE: Final = "agent-subject+jwt"


class DirectorySubject:
    """A principal of the issuer's own directory, as one session acts for it. `key` is what the instance registered."""

    def __init__(self, principal: Principal, agent: Agent, *, txn: str, expires_at: float) -> None:
        self._principal = principal
        self._agent = agent
        self._txn = txn
        self._expires_at = expires_at

    def token(self, issuer: Issuer, types: Collection[str], /) -> Flow[SubjectToken]:  # noqa: ARG002 - there is one kind
        client = yield from issuer.client()
        statement = subject_assertion(
            client.client_id,
            self._agent.key,
            self._principal,
            issuer=issuer.url,
            txn=self._txn,
            now=issuer.clock(),
            expires_at=self._expires_at,
        )
        return SubjectToken(statement, JWT)


def subject_assertion(
    client_id: str,
    key: SigningKey,
    principal: Principal,
    *,
    issuer: str,
    txn: str,
    now: float,
    expires_at: float,
) -> Secret:
    """State that session `txn` acts for `principal`; times are Unix seconds."""
    header = jose.header(key.alg, typ=SUBJECT_TYPE, kid=key.thumbprint)
    claims: dict[str, JSON] = {
        "iss": client_id,
        "sub": principal.sub,
        "sub_profile": principal.profile,
        "aud": issuer,
        "iat": int(now),
        "exp": int(expires_at),
        "jti": new_id("sub_"),
        "txn": txn,
    }
    return Secret(key.compact(header, orjson.dumps(claims)))
