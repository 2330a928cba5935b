# SPDX-License-Identifier: Apache-2.0
"""Whom a client acts for: the subject token of an exchange, checked before anything is minted from it.

Two kinds are taken. A **subject assertion** (`subject_token_type` …:jwt) is signed by a client that has the directory
right, with the key that it is registered under, and names a principal of this authority's own directory:

    header  {typ: "agent-subject+jwt", alg, kid: <thumbprint of the client's key>}
    claims  iss = client_id · sub, sub_profile: the principal (`user`, `service` or `trigger`) · aud = the issuer
            iat, exp: at most 24 h apart · jti · txn: the session's transaction id

It is presented for each token of a session, so it is not one-use; it is worth nothing without the client's own proof.
An **access token** of this authority's (…:access_token) is taken when it is for the issuer or for this client, came to
this client, and says that this client's very agent acts by it: a chain is never flattened into a new hop 0.

Both are for clients that registered. One that a configuration names brings tokens of other issuers (`principals`), and neither
of these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.authority.client_proofs import SKEW, signed_by
from agent_identity.authority.requests import OAuthError, refused
from agent_identity.authority.tokens import ACCESS_TOKEN_TYPE, principal_ref
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
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a type name
ID_TOKEN: Final = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105 - a type name
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
TRIGGER: Final = "trigger"

_PROFILES: Final = frozenset({"user", "service", TRIGGER})
_LONGEST: Final = 24 * 3600.0
_TEXT_LIMIT: Final = 512
_TXN: Final = re.compile(r"ses_[A-Za-z0-9_-]+")
_CLAIMS: Final = frozenset({"iss", "sub", "sub_profile", "aud", "iat", "exp", "jti", "txn"})


@dataclass(frozen=True, slots=True)
class Subject:
    """A principal whose token was verified. `scopes` None: the token doesn't limit them. Times are Unix seconds.

    `iss` None is this authority's own directory. Other issuers' tokens may have no `jti`.
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
        """What may be revoked about it."""
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
        """The principal of a subject token; `jkt` is the key that proved itself on this request, `txn` the session it names.

        Raises:
            OAuthError: `invalid_request` for a kind that isn't taken here, else `invalid_grant`.
            CredentialError: the keys of another issuer can't be had.
        """
        if token_type not in {JWT, ACCESS_TOKEN, ID_TOKEN}:
            raise OAuthError("invalid_request", "subject_token_type_unsupported")
        try:
            if client.configured is not None:
                return self._others(token, token_type, client, client.configured, txn, jkt, now)
            subject = self._own(token, token_type, client, jkt, now)
        except VerificationError as error:
            raise refused("invalid_grant", error) from None
        if txn not in {None, subject.txn}:
            raise OAuthError("invalid_grant", "txn_mismatch")
        return subject

    def _others(
        self,
        token: str,
        token_type: str,
        client: ClientRecord,
        table: Configured,
        txn: str | None,
        jkt: str,
        now: float,
    ) -> Subject:
        read = self._principals.read(token, token_type, client, table, txn=txn, jkt=jkt, now=now)
        return self._drive(read)

    def _own(
        self, token: str, token_type: str, client: ClientRecord, jkt: str, now: float
    ) -> Subject:
        if token_type == JWT:
            return self._assertion(token, client, now)
        if token_type == ACCESS_TOKEN:
            return self._access_token(token, client, jkt, now)
        raise OAuthError("invalid_request", "subject_token_type_unsupported")

    def _assertion(self, token: str, client: ClientRecord, now: float) -> Subject:
        _check_directory(client)
        _, payload = jose.verify(token, client.keys, algorithms=PROOF_ALGORITHMS, typ=SUBJECT_TYPE)
        body = jose.loads_object(payload)
        claims = Claims(body, VerificationError)
        claims.check_names(_CLAIMS)
        if claims.text("iss") != client.client_id:
            raise VerificationError("client_mismatch", "another client speaks for this principal")
        if body.get("aud") != self._issuer:
            raise VerificationError("audience_mismatch", "the subject token is for another issuer")
        jose.check_lifetime(body, now=now, skew=SKEW, max_lifetime=_LONGEST)
        return _subject(claims, now)

    def _access_token(self, token: str, client: ClientRecord, jkt: str, now: float) -> Subject:
        own = self._tokens.read(token, now)
        claims = Claims(own.claims, VerificationError)
        if own.typ != ACCESS_TOKEN_TYPE:
            raise VerificationError("wrong_typ", "a grant is no access token")
        if claims.text("aud") not in {self._issuer, client.client_id}:
            raise VerificationError("audience_mismatch", "the subject token is for a resource")
        if claims.text("client_id") != client.client_id:
            raise VerificationError("client_mismatch", "the subject token came to another client")
        actor = claims.nested("act")
        if actor.text("sub") != client.agent or actor.has("act"):
            raise VerificationError("actor_mismatch", "another agent acts by the subject token")
        if claims.has("cnf") and claims.nested("cnf").text("jkt") != jkt:
            raise VerificationError("key_mismatch", "the subject token is bound to another key")
        return _subject(claims, now, claims.scopes())


def directory_subject(
    client: ClientRecord, principal: Principal, *, txn: str, now: float, expires_at: float
) -> Subject:
    """A principal of this authority's own directory, for whom a client in this process acts until `expires_at`.

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
        return _checked(subject, now)
    except VerificationError as error:
        raise refused("invalid_grant", error) from None


def _check_directory(client: ClientRecord) -> None:
    if not client.terms.directory:
        raise VerificationError("no_directory", "the client speaks for nobody")


def _subject(claims: Claims, now: float, scopes: frozenset[str] | None = None) -> Subject:
    subject = Subject(
        sub=claims.text("sub"),
        profile=claims.text("sub_profile"),
        txn=claims.text("txn"),
        jti=claims.text("jti"),
        iat=claims.integer("iat"),
        exp=claims.integer("exp"),
        scopes=scopes,
    )
    return _checked(subject, now)


def _checked(subject: Subject, now: float) -> Subject:
    if subject.profile not in _PROFILES:
        raise VerificationError("profile_unknown", "a principal of no known kind")
    if max(len(subject.sub), len(subject.txn), len(subject.jti or "")) > _TEXT_LIMIT:
        raise VerificationError("claim_malformed", "a claim is longer than any of ours")
    if not _TXN.fullmatch(subject.txn):
        raise VerificationError("txn_malformed", "a transaction is named by a session's id, ses_…")
    try:
        Principal(subject.sub, profile=subject.profile)
    except ConfigurationError as error:
        raise VerificationError(error.code, "a principal that is named like another one") from None
    if subject.exp <= now:
        raise VerificationError("expired", "the subject token has expired")
    return subject


_ACCESS_TYPS: Final = frozenset({"at+jwt", "application/at+jwt"})
_TYPS: Final = frozenset({None, "JWT"}) | _ACCESS_TYPS
_SESSION_ID: Final = re.compile(r"ses_[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class IdentityProvider:
    """An issuer whose word about principals is taken: its keys, and the algorithms by which it may sign."""

    keys: KeySource = field(repr=False)
    algorithms: Collection[str]


class Principals:
    """Reads the tokens of other issuers' principals.

    `providers` is by issuer URL, `audiences` what their tokens may be for, `issuer` the authority that asks.
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
        """The principal of a token that a client presents; `txn` is the session's id, as the client says it.

        Raises:
            VerificationError: the token isn't one from which this client gets a grant.
            CredentialError: its issuer's keys can't be had.
        """
        parsed = _taken_apart(token)
        typ = parsed.header.get("typ")
        if token_type == ID_TOKEN and typ in _ACCESS_TYPS:
            raise VerificationError("wrong_typ", "an access token was given as an ID token")
        iss = Claims(jose.loads_object(parsed.payload), VerificationError).text("iss")
        provider = self._providers.get(iss)
        if provider is None or iss not in table.subject_issuers:
            raise VerificationError("issuer_unknown", "not an issuer of this client's principals")
        body = yield from signed_by(
            provider.keys, parsed, typs=_TYPS, algorithms=provider.algorithms
        )
        claims = Claims(body, VerificationError)
        end = jose.check_lifetime(body, now=now, skew=SKEW, max_lifetime=_LONGEST)
        if end <= now:  # no skew here: it would make a grant that has ended
            raise VerificationError("expired", "the principal's token has expired")
        _check_audience(body, self._audiences)
        _check_client(claims, table.subject_clients)
        _check_kind(claims, jkt)
        _check_actors(claims, client.agent, self._issuer)
        return _foreign_subject(claims, iss, txn, int(jose.numeric_date(body, "iat")), int(end))


def _taken_apart(token: str) -> jose.Parsed:
    try:
        return jose.unverified(token)
    except VerificationError as error:
        if error.code != "malformed_token":
            raise
    raise VerificationError(
        "opaque_token", "what was given is no JWT, and nobody is asked about it"
    )


def _check_audience(body: Mapping[str, JSON], audiences: Collection[str]) -> None:
    """Each audience has to be one of ours: another one that the token names could show it here."""
    named = body.get("aud")
    found = named if isinstance(named, list) else [named]
    if not found or not all(isinstance(each, str) and each in audiences for each in found):
        raise VerificationError("audience_mismatch", "the principal's token isn't for us alone")


def _check_client(claims: Claims, clients: Collection[str]) -> None:
    """Both names of the client that the token was given to, where it has both."""
    named = {claims.text(name) for name in ("azp", "client_id") if claims.has(name)}
    if not named.issubset(clients) or (clients and not named):
        raise VerificationError(
            "subject_client_mismatch", "the principal's token was given to another client"
        )


def _check_kind(claims: Claims, jkt: str) -> None:
    if claims.has("events"):
        raise VerificationError(
            "wrong_typ", "what was given tells of an event, as logout tokens do"
        )
    if claims.has("cnf") and claims.mapping("cnf") != {"jkt": jkt}:
        raise VerificationError("key_mismatch", "the principal's token is bound to another key")


def _check_actors(claims: Claims, agent: str, issuer: str) -> None:
    """RFC 8693 §4.1 and §4.4: who acts by the token already, and who may."""
    if claims.has("act") and not _names(claims.nested("act"), agent, issuer):
        raise VerificationError("actor_mismatch", "another agent acts by the principal's token")
    if claims.has("may_act") and not _names(claims.nested("may_act"), agent, issuer):
        raise VerificationError("may_act", "the principal's token lets another actor act for them")


def _names(actor: Claims, agent: str, issuer: str) -> bool:
    """Whether an actor is this agent, by every claim of it: no actor behind it, and vouched for by this authority."""
    known = {"sub": agent, "iss": issuer, "sub_profile": "ai_agent"}
    return actor.has("sub") and actor.is_within(known)


def _foreign_subject(
    claims: Claims, iss: str, txn: str | None, issued_at: int, end: int
) -> Subject:
    if txn is None or not _SESSION_ID.fullmatch(txn):
        raise VerificationError(
            "txn_malformed", "the request names no session: ses_ and 32 hex digits"
        )
    sub, jti = claims.text("sub"), claims.optional_text("jti")
    if max(len(sub), len(jti or "")) > _TEXT_LIMIT or not sub.isprintable():
        raise VerificationError("claim_malformed", "a claim is longer than any of ours")
    profile = "service" if claims.optional_text("sub_profile") == "service" else "user"
    return Subject(sub=sub, profile=profile, txn=txn, jti=jti, iat=issued_at, exp=end, iss=iss)
