# SPDX-License-Identifier: Apache-2.0
"""The principal's own tokens: verified before a session opens, handed out by type while it lasts, renewed where possible.

A JWT is verified with the keys of an issuer that is trusted for subjects; an opaque token is sent only to its issuer, for
introspection (RFC 7662). All tokens of one session name the same principal of the same issuer.
"""

from __future__ import annotations

import base64
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from agent_identity import jose
from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.oauth.responses import (
    Fields,
    audience_remedy,
    json_object,
    names_audience,
)
from agent_identity.credentials.oauth.token_types import (
    ACCESS_TOKEN,
    ID_TOKEN,
    REFRESH,
    REFRESH_TOKEN,
)
from agent_identity.credentials.source import SubjectToken, Verified, may_act
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

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.flow import Flow
    from agent_identity.redaction import Revealing
    from agent_identity.values import JSON

T = TypeVar("T")

_STATED: Final = {"access_token": ACCESS_TOKEN, "id_token": ID_TOKEN}
_VERIFIED: Final = tuple(_STATED)
_SKEW: Final = 30.0
_SPARE: Final = 5.0
"""A token that ends within these seconds is no longer handed out."""

ACCESS_TYPS: Final = frozenset({"at+jwt", "application/at+jwt"})
TOKEN_TYPS: Final = frozenset({"", "jwt"}) | ACCESS_TYPS
"""The `typ` of a principal's token, in lower case; an authority that checks one applies the same."""
_PARTS: Final = (3, 5)
"""The number of parts of a signed and of an encrypted JWT."""


class SubjectTokens:
    """A principal's tokens by type, at least one. Their values appear in no `repr`.

    Renewed tokens, and a rotated refresh token, replace the original ones here: keep the object, not the strings.
    """

    __slots__ = (
        "__weakref__",
        "access_token",
        "id_token",
        "is_bare",
        "name",
        "refresh_token",
        "renewals",
    )

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
        self.is_bare: bool = False
        self.name: str = new_id("subject_")
        self.renewals: int = 0
        start_over_in_child(self)

    def start_over(self) -> None:
        """In a forked child: only the parent uses the refresh token, since a second use would revoke it for both."""
        self.refresh_token = None

    def __repr__(self) -> str:
        names = (*_VERIFIED, "refresh_token")
        present = [name for name in names if getattr(self, name) is not None]
        return f"<SubjectTokens {', '.join(present)}>"


@runtime_checkable
class TokenSource(Protocol):
    """Your own store of a principal's tokens, which keeps them fresh."""

    def token(self, token_type: str, /) -> str | None:
        """Return a token of this type (`urn:ietf:params:oauth:token-type:access_token` …) that is valid now, or None.

        It must not block.
        """
        ...


@dataclass(frozen=True, slots=True)
class Trusted:
    """An issuer that is trusted for subjects, for tokens whose audience is `audience`.

    An ID token's audience may be our client at the issuer instead, `client_id`. `token_type` is the type of bare strings that
    don't show their type.
    """

    issuer: Issuer
    audience: str
    client_id: str | None = None
    algorithms: frozenset[str] = ALGORITHMS
    token_type: str | None = None


class _Known(NamedTuple):
    """The claims of one verified token."""

    sub: str
    profile: str
    token_type: str
    issued_at: float
    expires_at: float


def tokens_of(subject: str | SubjectTokens | TokenSource) -> SubjectTokens | TokenSource:
    """Return the subject of `on_behalf_of` as tokens. A bare string is one token; its type is read from the token later.

    Raises:
        ConfigurationError: `subject_empty`, the subject holds no token.
    """
    if isinstance(subject, str):
        tokens = SubjectTokens(access_token=subject)
        tokens.is_bare = True
        return tokens
    if isinstance(subject, SubjectTokens) and not any(
        (subject.access_token, subject.id_token, subject.refresh_token)
    ):
        raise ConfigurationError("subject_empty", "SubjectTokens holds no token")
    return subject


def verify_subject(
    subject_tokens: SubjectTokens | TokenSource,
    trusted: Mapping[str, Trusted],
    *,
    agent: str | None = None,
) -> Flow[Verified]:
    """Verify a principal's tokens. Return who the principal is, and until when the tokens prove it.

    `trusted` is keyed by issuer URL. `agent` is the URI of the agent that will act; a token may exclude it by `may_act`.

    Raises:
        InvalidSubjectError: a token failed; `.code` names the rule.
        CredentialError: the issuer's keys or its introspection could not be reached.
    """
    if isinstance(subject_tokens, SubjectTokens):
        source, tokens = None, subject_tokens
    else:
        source, tokens = subject_tokens, _fetch_tokens(subject_tokens)
    token = tokens.access_token or tokens.id_token
    if token is None:
        raise InvalidSubjectError(
            "subject_token_missing",
            "a refresh token alone doesn't name the principal",
            remedy="pass the access token or the ID token too",
        )
    subject = TokenSubject(_trusted_for(token, trusted), tokens, source, agent)
    principal = yield from subject.verify()
    renew = subject.renew if subject.is_renewable else None
    return Verified(
        principal, subject, "issuer", subject.proven_until(), renew, subject.issued_at()
    )


def _fetch_tokens(source: TokenSource) -> SubjectTokens:
    access_token, id_token = source.token(ACCESS_TOKEN), source.token(ID_TOKEN)
    for token in (access_token, id_token):
        _check_is_token(token)
    return SubjectTokens(access_token=access_token, id_token=id_token)


def _check_is_token(token: object) -> None:
    if token is not None and not (isinstance(token, str) and token):
        raise ConfigurationError(
            "subject_malformed",
            f"a TokenSource returned a {type(token).__name__} that is no token",
            remedy="let token(…) return the token as a non-empty str, or None",
        )


def _trusted_for(token: Secret, trusted: Mapping[str, Trusted]) -> Trusted:
    """Find the issuer of a token: a JWT names it in `iss`; for an opaque token there must be exactly one."""
    if not _is_jwt(token):
        if len(trusted) == 1:
            return next(iter(trusted.values()))
        raise InvalidSubjectError(
            "issuer_unknown",
            "the principal's token is opaque, and more or less than one issuer is trusted for subjects",
            remedy="trust exactly one issuer for subjects, or use tokens that are JWTs",
        )
    _, claims = _read_jwt(token)
    issuer = trusted.get(claims.text("iss") or "")
    if issuer is None:
        raise InvalidSubjectError(
            "issuer_unknown",
            "the issuer of the principal's token isn't trusted for subjects here",
            remedy='add the issuer to the configuration with trust = ["subjects"]',
        )
    return issuer


def _is_jwt(token: Secret) -> bool:
    """Whether a token has the form of a JWT, signed or encrypted: its first part is a JSON object in base64.

    Such a token must be a valid JWT. A malformed one is never sent for introspection: it may be another issuer's.
    """
    parts = token.reveal().split(".")
    head = parts[0].encode("ascii", "ignore").strip().rstrip(b"=")
    head += b"A" * (-len(head) % 4)
    with contextlib.suppress(ValueError):
        decoded = base64.b64decode(head, altchars=b"-_")
        return len(parts) in _PARTS and decoded.lstrip().startswith(b"{")
    return False


def _read_jwt(token: Secret) -> tuple[jose.Parsed, Fields]:
    """Parse a JWT without verifying it.

    Raises:
        InvalidSubjectError: it is malformed.
    """

    def parse() -> tuple[jose.Parsed, Fields]:
        parsed = jose.unverified(token.reveal())
        return parsed, Fields(jose.loads_object(parsed.payload))

    return _apply(parse)


def _apply(rule: Callable[[], T]) -> T:
    """Run a rule. Its refusal is raised from here, since the frames of the rule hold the token as text."""
    try:
        return rule()
    except VerificationError as error:
        refusal = InvalidSubjectError(error.code, str(error), remedy=error.remedy)
    raise refusal


def _tokens_to_verify(tokens: SubjectTokens) -> tuple[Secret | None, Secret | None]:
    return tokens.access_token, tokens.id_token


class TokenSubject:
    """The tokens of one session's principal. Renewed tokens are verified too, and must name the same principal."""

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
        self._known: dict[str, tuple[SubjectToken, _Known]] = {}
        self._seen: tuple[Secret | None, Secret | None] = (None, None)
        self._is_uncounted = False
        self._secrets: dict[int, Revealing] = {}

    @property
    def is_renewable(self) -> bool:
        return self._source is not None or self._tokens.refresh_token is not None

    def verify(self) -> Flow[Principal]:
        """Verify all tokens of the session. Return the principal that they name."""
        tokens = self._tokens
        seen = _tokens_to_verify(tokens)
        self._principal, self._known = yield from self._verify_all(tokens)
        self._seen, self._is_uncounted = seen, True
        return self._principal

    def issued_at(self) -> float:
        """When the oldest of the verified tokens was issued, in Unix seconds."""
        return min(known.issued_at for _, known in self._known.values())

    def proven_until(self) -> float:
        """When the first of the verified tokens expires (Unix seconds). Tokens that have already expired don't count."""
        now = self._trust.issuer.clock()
        ends = [known.expires_at for _, known in self._known.values()]
        self._is_uncounted = False
        return min((end for end in ends if end > now), default=min(ends))

    def renew(self) -> Flow[float]:
        """Get fresh tokens and verify them, unless another session did. Return the new `proven_until`.

        Raises:
            InvalidSubjectError: they are invalid, or name another principal; the previous tokens stay.
            CredentialError: no fresh tokens could be obtained.
        """
        yield from self._catch_up()
        # Tokens that were counted before don't extend the proof, even if one of them is still valid.
        if not self._is_uncounted or self.proven_until() <= self._trust.issuer.clock() + _SPARE:
            yield from self._renew_tokens()
        return self.proven_until()

    def _catch_up(self) -> Flow[None]:
        """Verify tokens that another session renewed. Expired ones are ignored."""
        tokens = _tokens_to_verify(self._tokens)
        if all(seen is token for seen, token in zip(self._seen, tokens, strict=True)):
            return
        try:
            yield from self.verify()
        except InvalidSubjectError as error:
            if error.code != "expired":
                raise

    def token(self, issuer: Issuer, types: Collection[str], /) -> Flow[SubjectToken]:
        """See `Subject`. A refresh token is sent only to the issuer that issued it."""
        token = self._pick(issuer, types)
        if token is None:
            yield from self._catch_up()
            token = self._pick(issuer, types)
        if token is None and self.is_renewable:
            yield from self._renew_tokens()
            token = self._pick(issuer, types)
        if token is None:
            raise CredentialRejectedError(
                "subject_token_missing",
                f"this session has no token of the principal that {issuer.url} accepts",
                remedy="open it with SubjectTokens(…) or a TokenSource that has one of the right type",
            )
        return token

    def _pick(self, issuer: Issuer, types: Collection[str]) -> SubjectToken | None:
        now = self._trust.issuer.clock()
        for token_type in types:
            if token_type == REFRESH_TOKEN:
                refresh_token = self._tokens.refresh_token
                if refresh_token is not None and issuer.url == self._trust.issuer.url:
                    return SubjectToken(refresh_token, REFRESH_TOKEN)
            for name, (subject, known) in self._known.items():
                if (
                    subject.token_type == token_type
                    and getattr(self._tokens, name) is subject.token
                    and now < known.expires_at - _SPARE
                ):
                    return subject
        return None

    def _verify_all(
        self, tokens: SubjectTokens
    ) -> Flow[tuple[Principal, dict[str, tuple[SubjectToken, _Known]]]]:
        """Verify all tokens. Return the principal, and the claims of each token; raise if the principal changed."""
        principal, verified = self._principal, dict[str, tuple[SubjectToken, _Known]]()
        secrets = (*_tokens_to_verify(tokens), tokens.refresh_token)
        keep(self._secrets, *(token for token in secrets if token is not None))
        for name in _VERIFIED:
            token: Secret | None = getattr(tokens, name)
            if token is None:
                continue
            try:
                stated_type = None if tokens.is_bare else _STATED[name]
                known = yield from _verify(
                    self._trust, token, agent=self._agent, stated_type=stated_type
                )
            except InvalidSubjectError as error:
                if error.code == "expired" and verified:
                    continue  # an ID token may expire first; the access token names the principal
                raise
            named = Principal(known.sub, iss=self._trust.issuer.url, profile=known.profile)
            if principal not in (None, named):
                raise InvalidSubjectError(
                    "subject_mismatch", "the tokens of one session name two principals"
                )
            principal = named
            verified[name] = (SubjectToken(token, known.token_type), known)
        if principal is None or not verified:
            raise InvalidSubjectError("subject_token_missing", "no token names the principal")
        return principal, verified

    def _renew_tokens(self) -> Flow[None]:
        if self._source is not None:
            tokens = _fetch_tokens(self._source)
            _, self._known = yield from self._verify_all(tokens)
            self._tokens = tokens
            self._seen, self._is_uncounted = _tokens_to_verify(tokens), True
            return
        key = digest_of(("subject", self._tokens.name, str(self._tokens.renewals)))
        yield from shared(Shared(key, self._refresh, once=True))
        yield from self.verify()

    def _refresh(self) -> Flow[_Known]:
        """Use the refresh token. A rotated one is kept at once, the access and ID tokens once they are verified."""
        tokens = self._tokens
        refresh_token = tokens.refresh_token
        if refresh_token is None:
            raise CredentialRejectedError("refresh_token_missing", "there is no refresh token left")
        form: list[tuple[str, str | Secret]] = [
            ("grant_type", REFRESH),
            ("refresh_token", refresh_token),
        ]
        try:
            answer = yield from self._trust.issuer.token(form, one_use=True, may_refresh=True)
        except CredentialRejectedError as error:
            if error.code == "invalid_grant":
                tokens.refresh_token = None
            raise
        tokens.refresh_token = answer.refresh_token or refresh_token
        fresh = SubjectTokens()
        fresh.access_token, fresh.id_token = answer.token, answer.id_token
        _, verified = yield from self._verify_all(fresh)
        tokens.access_token = fresh.access_token
        tokens.id_token = fresh.id_token or self._unless_expired(tokens.id_token)
        tokens.renewals += 1
        return verified["access_token"][1]

    def _unless_expired(self, token: Secret | None) -> Secret | None:
        """The previous ID token, if the issuer sent no new one and it is still valid."""
        verified = self._known.get("id_token")
        if verified is None or verified[0].token is not token:
            return None
        return token if self._trust.issuer.clock() < verified[1].expires_at - _SPARE else None


def _verify(
    trust: Trusted, token: Secret, *, agent: str | None, stated_type: str | None
) -> Flow[_Known]:
    """Verify one token. `stated_type` is what the caller says it is; None for a bare string."""
    if not _is_jwt(token):
        if stated_type == ID_TOKEN:
            raise InvalidSubjectError("wrong_typ", "the ID token isn't a JWT")
        return (yield from _introspect(trust, token, agent))
    parsed, claims = _read_jwt(token)
    typ = jose.read_typ(parsed.header)
    if typ not in TOKEN_TYPS:
        raise InvalidSubjectError(
            "wrong_typ", "the typ of the principal's token is of another kind"
        )
    if stated_type == ID_TOKEN and typ in ACCESS_TYPS:
        raise InvalidSubjectError("wrong_typ", "an access token was passed as an ID token")
    key = yield from _key(trust.issuer, parsed)
    _apply(lambda: jose.verify(parsed, [key], algorithms=trust.algorithms))
    token_type = stated_type or _shown_type(typ, claims) or trust.token_type or ACCESS_TOKEN
    is_id = token_type == ID_TOKEN
    now = trust.issuer.clock()
    _check_lifetime(claims.members, trust, now)
    if claims.text("iss") != trust.issuer.url:
        raise InvalidSubjectError("issuer_mismatch", "the principal's token names another issuer")
    _check_audience(claims, trust, [trust.audience, trust.client_id] if is_id else [trust.audience])
    if is_id and trust.client_id is not None and claims.get("azp") not in (None, trust.client_id):
        raise InvalidSubjectError(
            "client_mismatch", "the principal's ID token was issued to another client"
        )
    yield from _check_claims(claims, trust, agent)
    return _known_from(claims, token_type, now)


def _shown_type(typ: str | None, claims: Fields) -> str | None:
    """The type that a token shows; None where it shows none.

    `auth_time` shows nothing: Keycloak puts it into access tokens too. The claim `typ` is Keycloak's.
    """
    if typ in ACCESS_TYPS or claims.get("typ") == "Bearer":
        return ACCESS_TOKEN
    if claims.has("nonce") or claims.has("at_hash") or claims.get("typ") == "ID":
        return ID_TOKEN
    return None


def _check_lifetime(members: Mapping[str, JSON], trust: Trusted, now: float) -> None:
    longest = trust.issuer.allows.longest_life
    try:
        jose.check_lifetime(members, now=now, skew=_SKEW, max_lifetime=longest)
    except VerificationError as error:
        remedy = error.remedy
        if error.code == "lifetime_too_long":
            remedy = "have it issued for a shorter time, or set longest_life for the issuer"
        refusal = InvalidSubjectError(error.code, str(error), remedy=remedy)
    else:
        return
    raise refusal


def _key(issuer: Issuer, token: jose.Parsed) -> Flow[dict[str, JSON]]:
    kid, alg = token.header.get("kid"), token.header.get("alg")
    try:
        if kid is None:
            return (yield from issuer.only_key(alg if isinstance(alg, str) else ""))
        return (yield from issuer.key(kid if isinstance(kid, str) else ""))
    except CredentialRejectedError as error:
        if error.code != "unknown_key":
            raise
        message, remedy = str(error), error.remedy
    if kid is not None:
        message = f"{issuer.url} doesn't publish the key of the token"
    raise InvalidSubjectError("key_unknown", message, remedy=remedy)


def _check_audience(claims: Fields, trust: Trusted, audiences: Sequence[str | None]) -> None:
    allows = trust.issuer.allows
    names = [name for name in audiences if name is not None]
    if any(names_audience(claims, name, allows) for name in names):
        return
    ways_out = [audience_remedy(claims, name) for name in names]
    way_out = next((way for way in ways_out if way is not None), "set audience for the issuer")
    raise InvalidSubjectError(
        "audience_mismatch",
        f"the audience of the principal's token isn't exactly {audiences[0]}",
        remedy=f"have it issued for this agent, or {way_out}",
    )


def _check_claims(claims: Fields, trust: Trusted, agent: str | None) -> Flow[None]:
    """Check `events`, `cnf` and `may_act`, in a JWT or in an introspection response."""
    if claims.has("events"):
        raise InvalidSubjectError("wrong_typ", "a token with events (a logout token) was passed")
    if claims.has("cnf"):
        certificate = yield from trust.issuer.certificate()
        ours = None if certificate is None else certificate.thumbprint
        if ours is None or claims.get("cnf") != {"x5t#S256": ours}:
            raise InvalidSubjectError(
                "subject_bound",
                "the principal's token is bound to another party's key",
                remedy="have it issued unbound, for this agent's audience",
            )
    if agent is not None and not may_act(claims, agent, trust.client_id):
        raise InvalidSubjectError(
            "may_act",
            f"the principal's token allows another actor, not {agent}",
            remedy="have the token issued with this agent, or its client, in may_act",
        )


def _known_from(claims: Fields, token_type: str, now: float) -> _Known:
    sub, end = claims.text("sub"), claims.number("exp")
    if sub is None or end is None:
        raise InvalidSubjectError("claim_missing", "the principal's token has no sub or no exp")
    if end <= now:
        # No skew here: it would open a session that has already ended.
        raise InvalidSubjectError("expired", "the principal's token has expired")
    return _Known(sub, profile_of(claims.text("sub_profile")), token_type, now, end)


def profile_of(claimed: str | None) -> str:
    """The kind of principal that an issuer's token names; only `service` is claimed."""
    return "service" if claimed == "service" else "user"


def _introspect(trust: Trusted, token: Secret, agent: str | None) -> Flow[_Known]:
    """Ask the issuer about an opaque token (RFC 7662 §2). The response must pass the checks of a JWT's claims.

    `client_id` isn't checked: an access token may have been issued to any client.
    """
    form: list[tuple[str, str | Secret]] = [("token", token)]
    try:
        response = yield from trust.issuer.post("introspection", form, "about a token")
        claims = json_object(response, trust.issuer.url)
    except CredentialRejectedError as error:
        raise InvalidSubjectError(
            "not_introspectable",
            f"{trust.issuer.url} didn't introspect the principal's token ({error.code})",
        ) from None
    if claims.get("active") is not True:
        raise InvalidSubjectError("inactive", "the principal's token is no longer valid")
    kinds = [(claims.text(name) or "").lower() for name in ("token_type", "typ", "token_use")]
    if any("refresh" in kind for kind in kinds):
        raise InvalidSubjectError("wrong_typ", "a refresh token was passed as an access token")
    if "dpop" in kinds and not claims.has("cnf"):
        raise InvalidSubjectError("subject_bound", "the principal's token is bound to a key")
    now = trust.issuer.clock()
    known = _known_from(claims, ACCESS_TOKEN, now)
    _check_lifetime({"iat": now, **claims.members}, trust, now)
    if claims.has("iss") and claims.text("iss") != trust.issuer.url:
        raise InvalidSubjectError("issuer_mismatch", "the principal's token names another issuer")
    _check_audience(claims, trust, [trust.audience])
    yield from _check_claims(claims, trust, agent)
    return known
