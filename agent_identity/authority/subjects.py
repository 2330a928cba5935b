# SPDX-License-Identifier: Apache-2.0
"""The subject token of a token exchange: it names the principal, and is checked before anything is issued.

Registered clients may present two kinds. A **subject assertion** (`subject_token_type` …:jwt) names a principal of the
authority's own directory. The client signs it with its registered key, and its terms have to allow `directory`:

    header  {typ: "agent-subject+jwt", alg, kid: <thumbprint of the client's key>}
    claims  iss = client_id · sub, sub_profile: the principal (`user`, `service` or `trigger`) · aud = the issuer
            iat, exp: at most 24 h apart · jti · txn: the session's transaction id

A session presents it for each of its tokens, so it may be used more than once. It is useless without the client's own
authentication. An **access token** of this authority (…:access_token) is accepted if its audience is the issuer or this client,
it was issued to this client, and its only actor is this client's agent: a chain is never flattened into a new hop 0.

Configured clients may present neither, only tokens of the organisation's identity providers (`Principals`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.authority.client_proofs import SKEW, verify_claims
from agent_identity.authority.requests import OAuthError
from agent_identity.authority.tokens import ACCESS_TOKEN_TYPE, principal_ref
from agent_identity.credentials.oauth.responses import LONGEST_LIFE
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN, ID_TOKEN, JWT
from agent_identity.credentials.principal_tokens import ACCESS_TYPS, TOKEN_TYPS, profile_of
from agent_identity.delegation.claims import Claims
from agent_identity.errors import ConfigurationError, VerificationError
from agent_identity.keys.algorithms import PROOF_ALGORITHMS
from agent_identity.values import Principal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from agent_identity.authority.authentication import Drive
    from agent_identity.authority.client_proofs import KeySource
    from agent_identity.authority.clients import ClientRecord, Configured
    from agent_identity.authority.tokens import Tokens
    from agent_identity.flow import Flow
    from agent_identity.values import JSON

SUBJECT_TYPE: Final = "agent-subject+jwt"
TRIGGER: Final = "trigger"

_PROFILES: Final = frozenset({"user", "service", TRIGGER})
_TEXT_LIMIT: Final = 512
_TXN: Final = re.compile(r"ses_[A-Za-z0-9_-]+")
_CLAIMS: Final = frozenset({"iss", "sub", "sub_profile", "aud", "iat", "exp", "jti", "txn"})


@dataclass(frozen=True, slots=True)
class Subject:
    """A principal whose token was verified. `scopes` None means that the token doesn't limit them. Times are Unix seconds.

    `iss` None is this authority's own directory. Tokens of other issuers may have no `jti`.
    """

    sub: str
    profile: str
    txn: str
    jti: str | None
    iat: int
    exp: int
    scopes: frozenset[str] | None = None
    iss: str | None = None

    @property
    def refs(self) -> tuple[str, ...]:
        """What it may be revoked by."""
        principal = principal_ref(self.profile, self.sub, self.iss)
        return (self.txn, principal, *(() if self.jti is None else (self.jti,)))


class Subjects:
    """Checks subject tokens for the client that presents them."""

    def __init__(self, issuer: str, tokens: Tokens, principals: Principals, drive: Drive) -> None:
        self._issuer = issuer
        self._tokens = tokens
        self._principals = principals
        self._drive = drive

    def read(
        self,
        token: str,
        token_type: str,
        client: ClientRecord,
        *,
        jkt: str,
        now: float,
        txn: str | None = None,
    ) -> Subject:
        """Verify a subject token; `jkt` is the key of the request's DPoP proof, `txn` the session that the request names.

        Raises:
            OAuthError: `invalid_request` for an unsupported token type, else `invalid_grant`.
            CredentialError: the keys of another issuer can't be fetched.
        """
        if token_type not in {JWT, ACCESS_TOKEN, ID_TOKEN}:
            raise OAuthError("invalid_request", "subject_token_type_unsupported")
        try:
            if client.configured is not None:
                return self._drive(
                    self._principals.read(
                        token, token_type, client, client.configured, txn=txn, jkt=jkt, now=now
                    )
                )
            subject = self._read_own(token, token_type, client, jkt, now)
        except VerificationError as error:
            raise OAuthError("invalid_grant", error.code) from None
        if txn not in {None, subject.txn}:
            raise OAuthError("invalid_grant", "txn_mismatch")
        return subject

    def _read_own(
        self, token: str, token_type: str, client: ClientRecord, jkt: str, now: float
    ) -> Subject:
        if token_type == JWT:
            return self._read_assertion(token, client, now)
        if token_type == ACCESS_TOKEN:
            return self._read_access_token(token, client, jkt, now)
        raise OAuthError("invalid_request", "subject_token_type_unsupported")

    def _read_assertion(self, token: str, client: ClientRecord, now: float) -> Subject:
        _check_directory(client)
        _, payload = jose.verify(token, client.keys, algorithms=PROOF_ALGORITHMS, typ=SUBJECT_TYPE)
        body = jose.loads_object(payload)
        claims = Claims(body, VerificationError)
        claims.check_names(_CLAIMS)
        if claims.text("iss") != client.client_id:
            raise VerificationError(
                "client_mismatch", "the subject token was signed by another client"
            )
        if body.get("aud") != self._issuer:
            raise VerificationError("audience_mismatch", "the subject token is for another issuer")
        jose.check_lifetime(body, now=now, skew=SKEW, max_lifetime=LONGEST_LIFE)
        return _read_subject(claims, now)

    def _read_access_token(self, token: str, client: ClientRecord, jkt: str, now: float) -> Subject:
        own = self._tokens.read(token, now)
        claims = Claims(own.claims, VerificationError)
        if own.typ != ACCESS_TOKEN_TYPE:
            raise VerificationError(
                "wrong_typ", "the subject token is a grant, not an access token"
            )
        if claims.text("aud") not in {self._issuer, client.client_id}:
            raise VerificationError(
                "audience_mismatch", "the subject token is for another audience"
            )
        if claims.text("client_id") != client.client_id:
            raise VerificationError(
                "client_mismatch", "the subject token was issued to another client"
            )
        actor = claims.nested("act")
        if actor.text("sub") != client.agent or actor.has("act"):
            raise VerificationError(
                "actor_mismatch", "the subject token names another agent as actor"
            )
        if claims.has("cnf") and claims.nested("cnf").text("jkt") != jkt:
            raise VerificationError("key_mismatch", "the subject token is bound to another key")
        return _read_subject(claims, now, claims.scopes())


def directory_subject(
    client: ClientRecord, principal: Principal, *, txn: str, now: float, expires_at: float
) -> Subject:
    """Make the subject for a principal of the authority's own directory, for a client in this process.

    Raises:
        OAuthError: `invalid_grant`, as for a subject assertion.
    """
    try:
        _check_directory(client)
        subject = Subject(
            sub=principal.sub,
            profile=principal.profile,
            txn=txn,
            jti=None,
            iat=int(now),
            exp=int(expires_at),
        )
        return _check_subject(subject, now)
    except VerificationError as error:
        raise OAuthError("invalid_grant", error.code) from None


def _check_directory(client: ClientRecord) -> None:
    if not client.terms.directory:
        raise VerificationError("no_directory", "the client's terms don't let it name principals")


def _read_subject(claims: Claims, now: float, scopes: frozenset[str] | None = None) -> Subject:
    subject = Subject(
        sub=claims.text("sub"),
        profile=claims.text("sub_profile"),
        txn=claims.text("txn"),
        jti=claims.text("jti"),
        iat=claims.integer("iat"),
        exp=claims.integer("exp"),
        scopes=scopes,
    )
    return _check_subject(subject, now)


def _check_subject(subject: Subject, now: float) -> Subject:
    if subject.profile not in _PROFILES:
        raise VerificationError("profile_unknown", "the principal isn't a user, service or trigger")
    if max(len(subject.sub), len(subject.txn), len(subject.jti or "")) > _TEXT_LIMIT:
        raise VerificationError(
            "claim_malformed", f"a claim has more than {_TEXT_LIMIT} characters"
        )
    if not _TXN.fullmatch(subject.txn):
        raise VerificationError("txn_malformed", "the txn isn't the id of a session, ses_…")
    try:
        Principal(subject.sub, profile=subject.profile)
    except ConfigurationError as error:
        raise VerificationError(error.code, "the principal's name is malformed") from None
    if subject.exp <= now:
        raise VerificationError("expired", "the subject token has expired")
    return subject


_SESSION_ID: Final = re.compile(r"ses_[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class IdentityProvider:
    """A trusted issuer of principals' tokens: its keys, and its signature algorithms."""

    keys: KeySource = field(repr=False)
    algorithms: Collection[str]


class Principals:
    """Verifies principals' tokens of other issuers.

    `providers` are the identity providers by issuer URL, `audiences` the audiences that their tokens may have, `issuer` this
    authority.
    """

    def __init__(
        self, issuer: str, providers: Mapping[str, IdentityProvider], audiences: Collection[str]
    ) -> None:
        self._issuer = issuer
        self._providers = providers
        self._audiences = frozenset(audiences)

    def read(
        self,
        token: str,
        token_type: str,
        client: ClientRecord,
        table: Configured,
        *,
        txn: str | None,
        jkt: str,
        now: float,
    ) -> Flow[Subject]:
        """Verify a token that a client presents; `txn` is the session's id in the client's request.

        Raises:
            VerificationError: the token is invalid, or this client may not present it.
            CredentialError: its issuer's keys can't be fetched.
        """
        parsed = _parse(token)
        typ = jose.read_typ(parsed.header)
        if token_type == ID_TOKEN and typ in ACCESS_TYPS:
            raise VerificationError("wrong_typ", "the token is an access token, not an ID token")
        iss = Claims(jose.loads_object(parsed.payload), VerificationError).text("iss")
        provider = self._providers.get(iss)
        if provider is None or iss not in table.subject_issuers:
            raise VerificationError(
                "issuer_unknown", "this client may not present tokens of this issuer"
            )
        body = yield from verify_claims(
            provider.keys, parsed, typs=TOKEN_TYPS, algorithms=provider.algorithms
        )
        claims = Claims(body, VerificationError)
        end = jose.check_lifetime(body, now=now, skew=SKEW, max_lifetime=LONGEST_LIFE)
        if end <= now:  # without skew, which would make an expired grant
            raise VerificationError("expired", "the principal's token has expired")
        _check_audience(body, self._audiences)
        _check_client(claims, table.subject_clients)
        _check_kind(claims, jkt)
        _check_actors(claims, client.agent, self._issuer)
        return _read_foreign_subject(
            claims, iss, txn, int(jose.numeric_date(body, "iat")), int(end)
        )


def _parse(token: str) -> jose.Parsed:
    try:
        return jose.unverified(token)
    except VerificationError as error:
        if error.code != "malformed_token":
            raise
    raise VerificationError("opaque_token", "the principal's token isn't a JWT")


def _check_audience(body: Mapping[str, JSON], audiences: Collection[str]) -> None:
    """Check that every audience is accepted: any other one could replay the token here."""
    aud = body.get("aud")
    listed = aud if isinstance(aud, list) else [aud]
    if not listed or not all(isinstance(each, str) and each in audiences for each in listed):
        raise VerificationError("audience_mismatch", "the principal's token has another audience")


def _check_client(claims: Claims, clients: Collection[str]) -> None:
    """Check the client that the token was issued to, by `azp` and `client_id` if it has both."""
    named = {claims.text(name) for name in ("azp", "client_id") if claims.has(name)}
    if not named.issubset(clients) or (clients and not named):
        raise VerificationError(
            "subject_client_mismatch", "the principal's token was issued to another client"
        )


def _check_kind(claims: Claims, jkt: str) -> None:
    if claims.has("events"):
        raise VerificationError("wrong_typ", "the token describes an event, as a logout token does")
    if claims.has("cnf") and claims.mapping("cnf") != {"jkt": jkt}:
        raise VerificationError("key_mismatch", "the principal's token is bound to another key")


def _check_actors(claims: Claims, agent: str, issuer: str) -> None:
    """Check `act` and `may_act`, the token's actor and its permitted actor (RFC 8693 §4.1, §4.4)."""
    if claims.has("act") and not _is_named(claims.nested("act"), agent, issuer):
        raise VerificationError(
            "actor_mismatch", "the principal's token names another agent as actor"
        )
    if claims.has("may_act") and not _is_named(claims.nested("may_act"), agent, issuer):
        raise VerificationError(
            "may_act", "the principal's token permits another actor, not this agent"
        )


def _is_named(actor: Claims, agent: str, issuer: str) -> bool:
    """Whether every claim of an actor names this agent: no other issuer, and no actor behind it."""
    expected = {"sub": agent, "iss": issuer, "sub_profile": "ai_agent"}
    return actor.has("sub") and actor.is_within(expected)


def _read_foreign_subject(
    claims: Claims, iss: str, txn: str | None, issued_at: int, end: int
) -> Subject:
    if txn is None or not _SESSION_ID.fullmatch(txn):
        raise VerificationError(
            "txn_malformed", "the request's txn isn't a session's id: ses_ and 32 hex digits"
        )
    sub, jti = claims.text("sub"), claims.optional_text("jti")
    if max(len(sub), len(jti or "")) > _TEXT_LIMIT or not sub.isprintable():
        raise VerificationError("claim_malformed", "sub or jti is too long, or not printable")
    profile = profile_of(claims.optional_text("sub_profile"))
    return Subject(sub=sub, profile=profile, txn=txn, jti=jti, iat=issued_at, exp=end, iss=iss)
