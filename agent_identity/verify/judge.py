# SPDX-License-Identifier: Apache-2.0
"""Applies the rules in order: limits and parsing, chain and assertion, call or request, token, scopes, revocations, replay.

Nothing is remembered as used before all other rules have passed. The head of a request is examined first, so that a server
reads the body only of a request that can pass. `delegation.chain` has the rules of a chain, `rules` those of an assertion,
`request` and `token` those of the HTTP request and its token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import orjson

from agent_identity import canonical, jose
from agent_identity.delegation.assertion import Assertion, read_assertion
from agent_identity.delegation.chain import Handover, verify_chain
from agent_identity.errors import InvalidAssertionError, VerificationError
from agent_identity.verify import rules
from agent_identity.verify.plugins import is_first_use, read_not_before
from agent_identity.verify.request import check_body, check_bound
from agent_identity.verify.result import VerifiedCall, call_of
from agent_identity.verify.token import PROOF_AGE, TokenEvidence, TokenRules

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent_identity.delegation.grant import Grant
    from agent_identity.values import JSON
    from agent_identity.verify.anchors import Anchors
    from agent_identity.verify.replay import Replay
    from agent_identity.verify.request import ReceivedRequest


class Submission(NamedTuple):
    """The input of a verification: a tool and its arguments, or an HTTP request, with its chain, assertion and token.

    A request has a tool and arguments if it carried a message that shows them.
    """

    chain: Sequence[str]
    assertion: str | None
    handover: Sequence[str]
    scopes: frozenset[str]
    token: str | None = None
    request: ReceivedRequest | None = None
    tool: str | None = None
    arguments: bytes = b""

    def anchor_tokens(self) -> Iterator[str]:
        """The tokens that an anchor's key may have signed: the roots of both chains, and the access token."""
        yield from (chain[-1] for chain in (self.chain, self.handover) if chain)
        token = self.token
        if self.request is not None:
            token = self.request.headers.get("authorization", "").partition(" ")[2]
        if token:
            yield token


class Examined(NamedTuple):
    """A request that passed all rules except two: that the body is the signed one, and that it is the first use.

    `ends` is when it expires (Unix seconds).
    """

    seen: Submission
    grants: tuple[Grant, ...]
    assertion: Assertion | None
    token_evidence: TokenEvidence
    scopes: frozenset[str]
    handover: Handover | None
    ends: float

    def __repr__(self) -> str:
        return f"<Examined call of {self.grants[0].agent}>"


class _SingleUse(NamedTuple):
    """An assertion or proof, which may be used once. Times are Unix seconds."""

    kind: str
    jti: str
    issued_at: float
    ends: float


class Judge:
    """The rules of one service, with its anchors, its audience, its relaxations, and its replay store."""

    def __init__(
        self,
        anchors: Anchors,
        *,
        audience: str,
        evidence: str,
        skew: float,
        allow: frozenset[str],
        replay: Replay,
    ) -> None:
        self._anchors = anchors
        self._audience = audience
        self._evidence = evidence
        self._skew = skew
        self._allow = allow
        self._replay = replay
        self._tokens = TokenRules(anchors, audience, skew, unlinked="unlinked_token" in allow)

    def examine(self, seen: Submission, now: float) -> Examined:
        """Apply all rules at `now` except those about the body and about replay. Nothing is remembered yet.

        Raises:
            VerificationError: a rule was broken; `.code` says which.
            RevokedError: the principal, the session, a grant or an agent was revoked.
        """
        assertion = None if seen.assertion is None else read_assertion(seen.assertion)
        anchors = self._anchors.now()
        grants = verify_chain(
            seen.chain, anchors, now=now, skew=self._skew, evidence=self._evidence
        )
        leaf = grants[0]
        if assertion is not None:
            rules.check_assertion(assertion, leaf, self._audience, now=now, skew=self._skew)
            rules.check_approval(assertion, grants)
        rules.check_audience(grants, self._audience)
        self._check_use(seen, assertion, leaf)
        if not seen.scopes <= leaf.scopes:
            raise InvalidAssertionError(
                "insufficient_scope", "the chain doesn't carry the scopes that this call needs"
            )
        token_evidence = self._check_token(seen, assertion, grants, now)
        scopes = _scopes(leaf, token_evidence)
        if not seen.scopes <= scopes:
            raise VerificationError("insufficient_scope", "the token lacks the scopes needed here")
        handover = None
        if seen.handover:
            handover = rules.read_handover(
                seen.handover,
                grants,
                anchors,
                now=now,
                skew=self._skew,
                evidence=self._evidence,
            )
        ends = _expiry(grants[0], assertion, token_evidence, self._skew)
        examined = Examined(seen, grants, assertion, token_evidence, scopes, handover, ends)
        self._check_revocations(examined)
        return examined

    def check_again(self, examined: Examined, now: float) -> None:
        """Check expiry and revocations again, after the body was read.

        Raises:
            InvalidAssertionError: `expired`.
            RevokedError: it was revoked in the meantime.
        """
        if now >= examined.ends:
            raise InvalidAssertionError("expired", "it expired while its body was read")
        self._check_revocations(examined)

    def admit(self, examined: Examined, body: bytes | None) -> VerifiedCall:
        """Check the body and that this is the first use, and return the verified call.

        Raises:
            InvalidAssertionError: `body_mismatch`, `replayed` or `before_start`.
            DeniedError: the replay store is full or unavailable.
        """
        assertion, grants = examined.assertion, examined.grants
        if assertion is not None and examined.seen.request is not None:
            check_body(assertion, body)
        self._remember(assertion, grants[0], examined.token_evidence)
        return call_of(
            grants,
            assertion,
            scopes=examined.scopes,
            token_verified=examined.token_evidence.claims is not None,
            handover=examined.handover,
        )

    def _check_revocations(self, examined: Examined) -> None:
        grants, handover = examined.grants, examined.handover
        chains = (grants,) if handover is None else (grants, handover.grants)
        rules.check_revocations(self._anchors, chains)
        if examined.token_evidence.claims is not None:
            rules.check_token_revocation(self._anchors, examined.token_evidence.claims, grants)

    def _check_use(self, seen: Submission, assertion: Assertion | None, leaf: Grant) -> None:
        """Check that the assertion is of the right kind, and matches the call or the request."""
        unbound_body = "unbound_body" in self._allow
        if seen.tool is not None:
            if assertion is None:
                raise InvalidAssertionError("assertion_missing", "the call has no assertion")
            if seen.request is None:
                rules.check_is_for_call(assertion)
            else:
                check_bound(assertion, seen.request, unbound_body=unbound_body)
            rules.check_call(assertion, seen.tool, canonical.digest(seen.arguments))
            _check_details(leaf, self._audience, seen.tool, seen.arguments)
            return
        if seen.request is not None and assertion is not None:
            check_bound(assertion, seen.request, unbound_body=unbound_body)
        elif "unasserted" not in self._allow:
            raise InvalidAssertionError(
                "assertion_missing",
                "the request asserts no call",
                remedy="have the caller send it inside a tool, since session.http() and session.credential(…) outside a tool assert no "
                'call; or set allow={"unasserted"}, which accepts such requests with a token that is bound to the chain\'s key',
            )
        rules.check_details_unseen(
            leaf,
            self._audience,
            None if assertion is None else assertion.tool,
            unseen_arguments="unseen_arguments" in self._allow,
        )

    def _check_token(
        self, seen: Submission, assertion: Assertion | None, grants: Sequence[Grant], now: float
    ) -> TokenEvidence:
        if seen.request is None:
            ath = None if assertion is None else assertion.ath
            return self._tokens.check_call(ath, grants, seen.token, now)
        if assertion is None:
            return self._tokens.check_unasserted(grants, seen.request, now)
        return self._tokens.check(assertion.ath, grants, seen.request, now)

    def _remember(
        self, assertion: Assertion | None, leaf: Grant, token_evidence: TokenEvidence
    ) -> None:
        """The last rule: assertion and proof are used once. A request that failed an earlier rule can be sent again."""
        used: list[_SingleUse] = []
        if assertion is not None:
            used.append(_SingleUse("assertion", assertion.jti, assertion.iat, assertion.exp))
        if token_evidence.proof is not None:
            proof = token_evidence.proof
            used.append(_SingleUse("proof", proof.jti, proof.iat, proof.iat + PROOF_AGE))
        not_before = read_not_before(self._replay) if used else 0
        for each in used:
            if each.issued_at + self._skew < not_before:
                raise InvalidAssertionError(
                    "before_start",
                    "the assertion is older than this verifier's replay store",
                )
        for each in used:
            key = (self._audience, leaf.jkt, each.kind, each.jti)
            if not is_first_use(self._replay, key, each.ends + self._skew):
                raise InvalidAssertionError("replayed", f"the {each.kind} was used before")


def _check_details(leaf: Grant, audience: str, tool: str, encoded: bytes) -> None:
    if leaf.details is None:
        return
    arguments: dict[str, JSON] = orjson.loads(encoded)
    if not leaf.details.allows(tool, audience, arguments):
        raise InvalidAssertionError(
            "details_exceeded", "the chain's details don't allow this tool with these arguments"
        )


def _expiry(
    leaf: Grant, assertion: Assertion | None, token_evidence: TokenEvidence, skew: float
) -> float:
    """When the first of chain, assertion, token and proof expires, each by its own rule."""
    ends = [leaf.exp + skew]
    if assertion is not None:
        ends.append(assertion.exp + skew)
    if token_evidence.claims is not None:
        ends.append(jose.numeric_date(token_evidence.claims, "exp") + skew)
    if token_evidence.proof is not None:
        ends.append(token_evidence.proof.iat + PROOF_AGE)
    return min(ends)


def _scopes(leaf: Grant, token_evidence: TokenEvidence) -> frozenset[str]:
    """The scopes that are in the chain and in the verified token."""
    if token_evidence.claims is None:
        return leaf.scopes
    granted = token_evidence.claims.get("scope", "")
    return leaf.scopes & frozenset(granted.split(" ")) if isinstance(granted, str) else frozenset()
