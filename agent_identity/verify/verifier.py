# SPDX-License-Identifier: Apache-2.0
"""What a service checks before it believes a request: chain, assertion, token and proof, and that they belong together.

Everything here is offline: keys are given, nothing in a token supplies trust. Caps come before crypto, every rule has its
own code, and a `jti` is remembered only after all other rules have passed. What is relaxed is relaxed by name.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from agent_identity import jose
from agent_identity.delegation.assertion import (
    ASSERTION_TYPE,
    LIFETIME,
    Assertion,
    read_assertion,
)
from agent_identity.delegation.carriers import ASSERTION, DELEGATION, split_chain
from agent_identity.delegation.chain import ALGORITHMS, Anchor, holder_key, verify_chain
from agent_identity.delegation.grant import Grant, hash_of
from agent_identity.errors import (
    ConfigurationError,
    InvalidAssertionError,
    RevokedError,
    VerificationError,
)
from agent_identity.uris import htu_of
from agent_identity.values import LOCAL, Principal, b64url
from agent_identity.verify.dpop import verify_proof
from agent_identity.verify.replay import MemoryReplay, Replay

if TYPE_CHECKING:
    from agent_identity.keys import JWK
    from agent_identity.values import JSON

__all__ = [
    "Actor",
    "Revocations",
    "TrustAnchor",
    "UnsafeNoRevocations",
    "VerifiedCall",
    "Verifier",
]

Headers: TypeAlias = "Mapping[str, str] | Iterable[tuple[str, str]]"

_RELAXATIONS: Final = frozenset({"unbound_body"})
_SINGLE: Final = ("authorization", "dpop", ASSERTION.lower(), DELEGATION.lower())
_TOKEN_LIMIT: Final = 16_384


class Revocations(Protocol):
    """What has been revoked, as far as this service knows."""

    def is_revoked(self, references: Collection[str], issued_at: float, /) -> bool:
        """Whether any of the references (a principal, `txn`, `jti`, agent or instance) was revoked since `issued_at`."""
        ...


class UnsafeNoRevocations:
    """Knows of no revocation, ever: what an anchor issued is believed until it expires."""

    def is_revoked(self, references: Collection[str], issued_at: float, /) -> bool:  # noqa: ARG002 - the protocol's
        return False


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """Whose grants are believed here, and how far.

    `jwks` is a JWK set or a list of keys; `evidence` the most that this anchor may give; `subjects` the foreign `sub_iss` that
    it may speak for. `revocations` has no default that says nothing: leave it out by name, with `UnsafeNoRevocations()`.
    """

    issuer: str
    jwks: Mapping[str, JSON] | Sequence[JWK] | None = None
    revocations: Revocations | None = None
    evidence: str = "asserted"
    subjects: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Actor:
    """One agent of a verified chain; `vouched` only where an anchor, and not another agent, says who it is."""

    agent: str
    instance: str
    depth: int
    scopes: frozenset[str]
    vouched: bool


@dataclass(frozen=True, slots=True)
class VerifiedCall:
    """A request that passed every rule: for whom, through which agents (newest first), for what, and which call it is."""

    principal: Principal
    evidence: str
    purpose: str
    txn: str
    chain: tuple[Actor, ...]
    scopes: frozenset[str]
    call_id: str
    tool: str
    args_hash: str
    trace_id: str | None
    span_id: str | None
    token_verified: bool

    @property
    def agent(self) -> str:
        """The agent that acts."""
        return self.chain[0].agent


class Verifier:
    """Verifies requests to one service.

    `audience` is the service's own resource URI, `evidence` the least that its callers' principals must be known by,
    `public_url` what callers see of it behind a proxy, `clock` gives Unix seconds.

    Raises:
        ConfigurationError: something that decides security was left out, or a relaxation has an unknown name.
    """

    def __init__(
        self,
        trust: Iterable[TrustAnchor],
        *,
        audience: str,
        replay: Replay | None = None,
        evidence: str = "issuer",
        allow: Collection[str] = frozenset(),
        public_url: str | None = None,
        clock: Callable[[], float] = time.time,
        skew: float = 30.0,
    ) -> None:
        unknown = frozenset(allow) - _RELAXATIONS
        if unknown:
            raise ConfigurationError(
                "relaxation_unknown",
                f"there is no relaxation named {min(unknown)}",
                remedy=f"known are {', '.join(sorted(_RELAXATIONS))}",
            )
        if not 0 <= skew <= 60:  # noqa: PLR2004
            raise ConfigurationError("skew", "the clock skew is between 0 and 60 seconds")
        anchors = tuple(trust)
        self._anchors = tuple(_anchor(anchor) for anchor in anchors)
        self._revocations = tuple(_revocations(anchor) for anchor in anchors)
        self._audience = audience
        self._replay = MemoryReplay(clock=clock) if replay is None else replay
        self._evidence = evidence
        self._allow = frozenset(allow)
        self._public_url = public_url
        self._clock = clock
        self._skew = skew

    def verify_request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | Iterable[tuple[str, str]],
        body: bytes | None = None,
        *,
        scopes: Iterable[str],
    ) -> VerifiedCall:
        """Check one HTTP request; `scopes` is what the service needs for it, an explicit `()` for nothing.

        `url` is the whole URL as requested, `body` the bytes as received (None only where `unbound_body` is allowed).

        Raises:
            VerificationError: a rule was broken; `.code` says which.
            RevokedError: the principal, the session, a grant or an agent was revoked.
        """
        now = self._clock()
        sent = _single(headers)
        compact = sent.get(ASSERTION.lower())
        carried = sent.get(DELEGATION.lower())
        if carried is None:
            raise InvalidAssertionError("chain_missing", "the request carries no delegation")
        if compact is None:
            raise InvalidAssertionError("assertion_missing", "the request asserts no call")
        assertion = read_assertion(compact)
        grants = verify_chain(
            split_chain(carried),
            self._anchors,
            now=now,
            skew=self._skew,
            evidence=self._evidence,
        )
        leaf = grants[0]
        self._check_assertion(assertion, leaf, now)
        seen = url if self._public_url is None else _behind(self._public_url, url)
        self._check_request(assertion, method, seen, body)
        needed = frozenset(scopes)
        if not needed <= leaf.scopes:
            raise InvalidAssertionError(
                "insufficient_scope", "the chain doesn't carry the scopes that this call needs"
            )
        token_verified = self._check_token(sent, assertion, grants, method, seen, needed, now)
        self._check_revocations(grants)
        self._remember(assertion, leaf, now)
        return _verified(assertion, grants, token_verified=token_verified)

    def _check_assertion(self, assertion: Assertion, leaf: Grant, now: float) -> None:
        if assertion.use is not None or assertion.aud == LOCAL:
            raise InvalidAssertionError("not_for_sending", "an assertion for a ledger was sent")
        if assertion.aud != self._audience or self._audience not in leaf.aud:
            raise InvalidAssertionError(
                "audience_mismatch", "chain or assertion is for another resource"
            )
        said = (assertion.iss, assertion.sub, assertion.txn)
        if said != (leaf.agent, leaf.sub, leaf.txn):
            raise InvalidAssertionError("leaf_mismatch", "the assertion isn't the leaf agent's")
        if not _same(assertion.grant_hash, leaf.hash()):
            raise InvalidAssertionError("grant_mismatch", "the assertion hangs below another grant")
        if not 0 < assertion.exp - assertion.iat <= LIFETIME:
            raise InvalidAssertionError("lifetime_exceeded", "an assertion lives a minute at most")
        if now >= assertion.exp + self._skew:
            raise InvalidAssertionError("expired", "the assertion has expired")
        if now < assertion.iat - self._skew or assertion.iat < leaf.iat:
            raise InvalidAssertionError(
                "not_yet_valid", "the assertion is older than its grant, or new"
            )
        jose.verify(
            assertion.compact,
            (holder_key(assertion.jwk, leaf.jkt),),
            algorithms=ALGORITHMS,
            typ=ASSERTION_TYPE,
            max_header=1024,
            error=InvalidAssertionError,
        )

    def _check_request(
        self, assertion: Assertion, method: str, url: str, body: bytes | None
    ) -> None:
        call_id, dot, number = assertion.jti.rpartition(".")
        if not dot or call_id != assertion.call_id or not number.isdigit() or number[0] == "0":
            raise InvalidAssertionError("wrong_door", "the assertion isn't one of an HTTP request")
        if assertion.htm != method:
            raise InvalidAssertionError("method_mismatch", "the assertion is for another method")
        if assertion.htu is None or assertion.htu != htu_of(url):
            raise InvalidAssertionError("url_mismatch", "the assertion is for another URL")
        query = url.partition("#")[0].partition("?")[2]
        expected = _digest(query.encode("utf-8", "replace")) if query else None
        if not _same(assertion.htq, expected):
            raise InvalidAssertionError("query_mismatch", "the assertion is for another query")
        if assertion.content_digest is None or body is None:
            if "unbound_body" not in self._allow:
                raise InvalidAssertionError(
                    "body_unbound",
                    "the assertion doesn't bind the body",
                    remedy='stream no body, or allow={"unbound_body"} where one has to be',
                )
        elif not _same(assertion.content_digest, _digest(body)):
            raise InvalidAssertionError("body_mismatch", "the assertion is for another body")

    def _check_token(
        self,
        sent: Mapping[str, str],
        assertion: Assertion,
        grants: Sequence[Grant],
        method: str,
        url: str,
        needed: frozenset[str],
        now: float,
    ) -> bool:
        """Hold the access token to the chain beside it; False where it can't be verified here."""
        scheme, _, token = sent.get("authorization", "").partition(" ")
        if (assertion.ath is None) != (token == ""):
            raise InvalidAssertionError(
                "token_mismatch", "token and ath come together or not at all"
            )
        if token == "":
            return False
        if len(token) > _TOKEN_LIMIT or not token.isascii():
            raise VerificationError("token_too_large", "the access token is no token")
        if not _same(assertion.ath, hash_of(token)):
            raise InvalidAssertionError("token_mismatch", "the assertion goes with another token")
        leaf = grants[0]
        if scheme.lower() == "dpop":
            self._check_proof(sent, token, leaf, method, url, now)
        elif scheme.lower() != "bearer":
            raise VerificationError("scheme_unknown", "the token comes under an unknown scheme")
        claims = self._token_claims(token, now)
        if claims is None:
            return False
        _check_binding(claims, leaf, scheme)
        issuers = {grants[-1].iss, leaf.sub_iss}
        if claims.get("sub") != leaf.sub or claims.get("iss") not in issuers:
            raise VerificationError("subject_mismatch", "the token is another principal's")
        granted = claims.get("scope", "")
        if not isinstance(granted, str) or not needed <= frozenset(granted.split(" ")):
            raise VerificationError("insufficient_scope", "the token lacks the scopes needed here")
        return True

    def _check_proof(
        self,
        sent: Mapping[str, str],
        token: str,
        leaf: Grant,
        method: str,
        url: str,
        now: float,
    ) -> None:
        compact = sent.get("dpop")
        if compact is None:
            raise VerificationError("proof_missing", "a bound token came without its proof")
        proof = verify_proof(
            compact, method=method, url=url, now=now, skew=self._skew, access_token=token
        )
        if not _same(proof.jkt, leaf.jkt):
            raise VerificationError(
                "proof_mismatch", "the proof is of another key than the chain's"
            )
        until = proof.iat + 300.0 + self._skew
        if not self._replay.remember((self._audience, proof.jkt, f"dpop:{proof.jti}"), until):
            raise VerificationError("replayed", "the proof was used before")

    def _token_claims(self, token: str, now: float) -> Mapping[str, JSON] | None:
        """The claims of a token whose issuer is known here; a known issuer's token that fails is refused."""
        if token.count(".") != 2:  # noqa: PLR2004 - three parts make a compact JWS
            return None
        try:
            issuer = jose.loads_object(jose.unverified(token).payload).get("iss")
        except VerificationError:
            return None
        anchor = next((anchor for anchor in self._anchors if anchor.issuer == issuer), None)
        if anchor is None:
            return None
        _, payload = jose.verify(
            token, anchor.keys, algorithms=ALGORITHMS | {"RS256", "PS256", "ES384"}, typ="at+jwt"
        )
        claims = jose.loads_object(payload)
        jose.check_lifetime(
            claims,
            now=now,
            skew=self._skew,
            max_lifetime=24 * 3600,
            error=VerificationError,
        )
        if claims.get("aud") not in (self._audience, [self._audience]):
            raise VerificationError("token_audience", "the token is for another resource")
        return claims

    def _check_revocations(self, grants: Sequence[Grant]) -> None:
        root = grants[-1]
        references = {root.txn, f"{root.sub_profile}:{root.sub_iss}#{root.sub}"}
        references |= {f"{root.sub_profile}:{root.sub}"}
        for grant in grants:
            references |= {grant.jti, grant.agent, grant.jkt}
        issued = min(grant.iat for grant in grants)
        for anchor, revocations in zip(self._anchors, self._revocations, strict=True):
            if anchor.issuer == root.iss and revocations.is_revoked(references, issued):
                raise RevokedError(
                    "revoked", "the principal, the session, a grant or an agent was revoked"
                )

    def _remember(self, assertion: Assertion, leaf: Grant, now: float) -> None:
        start = getattr(self._replay, "not_before", 0)
        if assertion.iat + self._skew < start:
            raise InvalidAssertionError(
                "before_start",
                "the assertion is older than this verifier's memory of what was used",
            )
        until = max(float(assertion.exp), now) + self._skew
        if not self._replay.remember((self._audience, leaf.jkt, assertion.jti), until):
            raise InvalidAssertionError("replayed", "the assertion was used before")


def _anchor(anchor: TrustAnchor) -> Anchor:
    if anchor.jwks is None:
        raise ConfigurationError(
            "anchor_keys", f"the anchor {anchor.issuer} has no keys", remedy="pass its jwks"
        )
    keys = _keys(anchor.jwks)
    if not keys:
        raise ConfigurationError("anchor_keys", f"the anchor {anchor.issuer} has no keys")
    if anchor.evidence not in ("asserted", "agent", "issuer"):
        raise ConfigurationError("evidence", "evidence is issuer, agent or asserted")
    return Anchor(
        anchor.issuer,
        keys,
        anchor.evidence,
        frozenset(anchor.subjects),
    )


def _keys(jwks: Mapping[str, JSON] | Sequence[JWK]) -> tuple[JWK, ...]:
    if not isinstance(jwks, Mapping):
        return tuple(jwks)
    found = jwks.get("keys")
    return tuple(key for key in found if isinstance(key, dict)) if isinstance(found, list) else ()


def _revocations(anchor: TrustAnchor) -> Revocations:
    if anchor.revocations is None:
        raise ConfigurationError(
            "revocations_missing",
            f"nothing says what {anchor.issuer} has revoked",
            remedy="pass revocations=…, or UnsafeNoRevocations() to do without",
        )
    return anchor.revocations


def _single(headers: Headers) -> dict[str, str]:
    """Headers by lower-case name; a repeated one that decides anything here is refused."""
    pairs = [*_pairs(headers)]
    counts = Counter(name.lower() for name, _ in pairs)
    if any(counts[name] > 1 for name in _SINGLE):
        raise VerificationError("header_repeated", "a header that decides who asks came twice")
    return {name.lower(): value for name, value in pairs}


def _pairs(headers: Headers) -> Iterator[tuple[str, str]]:
    if isinstance(headers, Mapping):
        yield from headers.items()  # pyright: ignore[reportReturnType]  # no mapping is meant as pairs
    else:
        yield from headers


def _behind(public_url: str, url: str) -> str:
    """The URL as the caller saw it, where a proxy changed its origin."""
    path = url.split("://", 1)[-1]
    slash = path.find("/")
    return public_url.rstrip("/") + (path[slash:] if slash >= 0 else "/")


def _check_binding(claims: Mapping[str, JSON], leaf: Grant, scheme: str) -> None:
    confirmation = claims.get("cnf")
    if confirmation is None:
        return
    bound = confirmation.get("jkt") if isinstance(confirmation, dict) else None
    if scheme.lower() != "dpop":
        raise VerificationError("binding_ignored", "a bound token came as a plain bearer")
    if not isinstance(bound, str) or not _same(bound, leaf.jkt):
        raise VerificationError("binding_mismatch", "the token is bound to another key")


def _verified(
    assertion: Assertion, grants: Sequence[Grant], *, token_verified: bool
) -> VerifiedCall:
    leaf, root = grants[0], grants[-1]
    return VerifiedCall(
        principal=Principal(leaf.sub, iss=leaf.sub_iss, profile=leaf.sub_profile),
        evidence=root.evidence or "asserted",
        purpose=leaf.purpose,
        txn=leaf.txn,
        chain=tuple(
            Actor(grant.agent, grant.jkt, grant.depth, grant.scopes, grant.depth == 0)
            for grant in grants
        ),
        scopes=leaf.scopes,
        call_id=assertion.call_id,
        tool=assertion.tool,
        args_hash=assertion.args_hash,
        trace_id=assertion.trace_id,
        span_id=assertion.span_id,
        token_verified=token_verified,
    )


def _digest(data: bytes) -> str:
    return b64url(hashlib.sha256(data).digest())


def _same(left: str | None, right: str | None) -> bool:
    """Equality that takes as long whatever differs; two absent values are equal."""
    if left is None or right is None:
        return left is right
    return hmac.compare_digest(left.encode(), right.encode())
