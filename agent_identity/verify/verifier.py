# SPDX-License-Identifier: Apache-2.0
"""What a service checks before it believes a request: chain, assertion, token and proof, and that they belong together.

Everything here is offline: keys are given, nothing in a token supplies trust. Caps come before crypto, every rule has its
own code, and nothing is remembered as used before all other rules have passed. What is relaxed is relaxed by name.

`delegation.chain` has the rules of a chain, `anchors` says who is believed, `request` and `token` check what came with the
assertion. tests/unit/test_verifier.py has one test for each rule.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.delegation.assertion import (
    ASSERTION_TYPE,
    LIFETIME,
    Assertion,
    read_assertion,
)
from agent_identity.delegation.carriers import ASSERTION, DELEGATION, split_chain
from agent_identity.delegation.chain import ALGORITHMS, EVIDENCE, holder_key, verify_chain
from agent_identity.errors import (
    ConfigurationError,
    DeniedError,
    InvalidAssertionError,
    RevokedError,
    VerificationError,
)
from agent_identity.uris import htu_of
from agent_identity.values import LOCAL, Principal, scope_set
from agent_identity.verify.anchors import Anchors
from agent_identity.verify.replay import MemoryReplay, Replay
from agent_identity.verify.request import check_bound, is_same, read_request
from agent_identity.verify.token import PROOF_AGE, Shown, TokenRules

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from agent_identity.delegation.grant import Grant
    from agent_identity.verify.anchors import TrustAnchor
    from agent_identity.verify.dpop import Proof
    from agent_identity.verify.request import Headers, HttpSeen

__all__ = ["Actor", "VerifiedCall", "Verifier"]

_RELAXATIONS: Final = frozenset({"unbound_body"})


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
        _check_settings(evidence, frozenset(allow), public_url, skew)
        self._anchors = Anchors(trust)
        self._tokens = TokenRules(self._anchors, audience, skew)
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
        headers: Headers,
        body: bytes | None = None,
        *,
        scopes: Iterable[str],
    ) -> VerifiedCall:
        """Check one HTTP request; `scopes` is what the service needs for it, an explicit `()` for nothing.

        `url` is the whole URL as requested, `body` the bytes as received (None only where `unbound_body` is allowed).

        Raises:
            VerificationError: a rule was broken; `.code` says which.
            RevokedError: the principal, the session, a grant or an agent was revoked.
            DeniedError: the replay store is full, or away.
        """
        needed = scope_set(scopes)
        now = self._clock()
        seen = read_request(method, url, headers, body, public_url=self._public_url)
        assertion, grants = self._statements(seen, now)
        leaf = grants[0]
        self._check_assertion(assertion, leaf, now)
        check_bound(assertion, seen, unbound_body="unbound_body" in self._allow)
        if not needed <= leaf.scopes:
            raise InvalidAssertionError(
                "insufficient_scope", "the chain doesn't carry the scopes that this call needs"
            )
        shown = self._tokens.check(assertion.ath, grants, seen, now)
        _check_token_scopes(shown, needed)
        self._check_revocations(grants, shown)
        self._remember(assertion, leaf, shown.proof)
        return _verified(assertion, grants, token_verified=shown.claims is not None)

    def _statements(self, seen: HttpSeen, now: float) -> tuple[Assertion, tuple[Grant, ...]]:
        """What the request carries: an assertion, as yet only read, and its chain, checked."""
        compact = seen.headers.get(ASSERTION.lower())
        carried = seen.headers.get(DELEGATION.lower())
        if carried is None:
            raise InvalidAssertionError("chain_missing", "the request carries no delegation")
        if compact is None:
            raise InvalidAssertionError("assertion_missing", "the request asserts no call")
        assertion = read_assertion(compact)
        grants = verify_chain(
            split_chain(carried),
            self._anchors.known,
            now=now,
            skew=self._skew,
            evidence=self._evidence,
        )
        return assertion, grants

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
        if not is_same(assertion.grant_hash, leaf.hash()):
            raise InvalidAssertionError("grant_mismatch", "the assertion hangs below another grant")
        if not 0 < assertion.exp - assertion.iat <= LIFETIME:
            raise InvalidAssertionError("lifetime_exceeded", "an assertion lives a minute at most")
        if now >= assertion.exp + self._skew:
            raise InvalidAssertionError("expired", "the assertion has expired")
        # Grant and assertion may be of two clocks, so that the one can seem older than the other by the skew.
        if now < assertion.iat - self._skew or assertion.iat < leaf.iat - self._skew:
            raise InvalidAssertionError(
                "not_yet_valid", "the assertion is older than its grant, or from the future"
            )
        jose.verify(
            assertion.compact,
            (holder_key(assertion.jwk, leaf.jkt),),
            algorithms=ALGORITHMS,
            typ=ASSERTION_TYPE,
            max_header=1024,
            error=InvalidAssertionError,
        )

    def _check_revocations(self, grants: Sequence[Grant], shown: Shown) -> None:
        root = grants[-1]
        references = {
            root.txn,
            f"{root.sub_profile}:{root.sub_iss}#{root.sub}",
            f"{root.sub_profile}:{root.sub}",
        }
        for grant in grants:
            references |= {grant.jti, grant.agent, grant.jkt}
        token = None if shown.claims is None else shown.claims.get("jti")
        if isinstance(token, str):
            references.add(token)
        # By the oldest hop: the time of a later one is an agent's own word.
        issued = min(grant.iat for grant in grants)
        if any(
            self._anchors.has_revoked(issuer, references, issued)
            for issuer in {root.iss, root.sub_iss}
        ):
            raise RevokedError(
                "revoked", "the principal, the session, a grant or an agent was revoked"
            )

    def _remember(self, assertion: Assertion, leaf: Grant, proof: Proof | None) -> None:
        """The last rule: assertion and proof are used once. Whatever fails before this can be sent again."""
        issued = assertion.iat if proof is None else min(assertion.iat, proof.iat)
        if issued + self._skew < self._replay.not_before:
            raise InvalidAssertionError(
                "before_start",
                "the assertion is older than this verifier's memory of what was used",
            )
        self._use("assertion", leaf, assertion.jti, assertion.exp)
        if proof is not None:
            self._use("proof", leaf, proof.jti, proof.iat + PROOF_AGE)

    def _use(self, kind: str, leaf: Grant, jti: str, ends: float) -> None:
        used = (self._audience, leaf.jkt, kind, jti)
        if not self._replay.remember(used, ends + self._skew):
            raise InvalidAssertionError("replayed", f"the {kind} was used before")


def _check_settings(
    evidence: str, allow: frozenset[str], public_url: str | None, skew: float
) -> None:
    unknown = allow - _RELAXATIONS
    if unknown:
        raise ConfigurationError(
            "relaxation_unknown",
            f"there is no relaxation named {min(unknown)}",
            remedy=f"known are {', '.join(sorted(_RELAXATIONS))}",
        )
    if evidence not in EVIDENCE:
        raise ConfigurationError("evidence", f"evidence is one of {', '.join(EVIDENCE)}")
    if not 0 <= skew <= 60:  # noqa: PLR2004 - the text below says it
        raise ConfigurationError("skew", "the clock skew is between 0 and 60 seconds")
    if public_url is not None and not _is_base(public_url):
        raise ConfigurationError(
            "public_url", "public_url is an http or https URL without query and fragment"
        )


def _is_base(url: str) -> bool:
    try:
        htu_of(url)
    except DeniedError:
        return False
    return "?" not in url and "#" not in url


def _check_token_scopes(shown: Shown, needed: frozenset[str]) -> None:
    if shown.claims is None:
        return
    granted = shown.claims.get("scope", "")
    if not isinstance(granted, str) or not needed <= frozenset(granted.split(" ")):
        raise VerificationError("insufficient_scope", "the token lacks the scopes needed here")


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
