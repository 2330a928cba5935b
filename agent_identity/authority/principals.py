# SPDX-License-Identifier: Apache-2.0
"""Principals of other issuers: what their token has to say before hop 0 is made from it (DESIGN section 5, Anchors).

A token that reaches an agent may have been stolen on the way, or been made for something else. So it has to be

    of an issuer that is trusted for principals here, signed by it, and of now
    for this organisation's audiences and for nobody else
    given to a client that the agent's table names (`azp`, `client_id`), and to none where the table names none
    unbound, or bound to the very key that the grant is going to be bound to (`cnf.jkt`)
    a principal's own: nobody else acts by it already (`act`), and where it says who may (`may_act`), that is this agent

What a token doesn't say it doesn't say: there is no directory to ask, and an opaque token is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.authority.client_proofs import SKEW, signed_by
from agent_identity.authority.subjects import ID_TOKEN, Subject
from agent_identity.delegation.claims import Claims
from agent_identity.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from agent_identity.authority.client_proofs import KeySource
    from agent_identity.authority.clients import ClientRecord, Configured
    from agent_identity.flow import Flow
    from agent_identity.values import JSON

__all__ = ["IdentityProvider", "Principals"]

_ACCESS_TYPS: Final = frozenset({"at+jwt", "application/at+jwt"})
_TYPS: Final = frozenset({None, "JWT"}) | _ACCESS_TYPS
_LONGEST: Final = 24 * 3600.0
_TEXT_LIMIT: Final = 512
_TXN: Final = re.compile(r"ses_[0-9a-f]{32}")


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
        return _subject(claims, iss, txn, int(jose.numeric_date(body, "iat")), int(end))


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
        raise VerificationError("actor_mismatch", "somebody else acts by the principal's token")
    if claims.has("may_act") and not _names(claims.nested("may_act"), agent, issuer):
        raise VerificationError("may_act", "the principal's token lets another actor act for them")


def _names(actor: Claims, agent: str, issuer: str) -> bool:
    """Whether an actor is this agent, by every claim of it: no actor behind it, and vouched for by this authority."""
    known = {"sub": agent, "iss": issuer, "sub_profile": "ai_agent"}
    return actor.has("sub") and actor.is_within(known)


def _subject(claims: Claims, iss: str, txn: str | None, issued_at: int, end: int) -> Subject:
    if txn is None or not _TXN.fullmatch(txn):
        raise VerificationError(
            "txn_malformed", "the request names no session: ses_ and 32 hex digits"
        )
    sub, jti = claims.text("sub"), claims.optional_text("jti")
    if max(len(sub), len(jti or "")) > _TEXT_LIMIT or not sub.isprintable():
        raise VerificationError("claim_malformed", "a claim is longer than any of ours")
    profile = "service" if claims.optional_text("sub_profile") == "service" else "user"
    return Subject(sub=sub, profile=profile, txn=txn, jti=jti, iat=issued_at, exp=end, iss=iss)
