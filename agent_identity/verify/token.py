# SPDX-License-Identifier: Apache-2.0
"""Checks the access token of a call or request: it must have the chain's principal and key, and belong to this request.

A token requires an `ath` in the assertion, and an `ath` a token. A token that can't be verified here (it is opaque, or its
issuer is unknown) is checked as far as it can be read, and counts as not verified. An invalid token of a known issuer is
refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity import jose
from agent_identity.delegation.grant import hash_of
from agent_identity.errors import InvalidAssertionError, VerificationError
from agent_identity.keys.algorithms import ALGORITHMS
from agent_identity.verify.dpop import Proof, verify_proof
from agent_identity.verify.request import is_same

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent_identity.delegation.grant import Grant
    from agent_identity.values import JSON
    from agent_identity.verify.anchors import Anchors
    from agent_identity.verify.request import ReceivedRequest

PROOF_AGE: Final = 300.0
"""Seconds for which a proof is valid."""

_LONGEST_LIFE: Final = 24 * 3600


class TokenEvidence(NamedTuple):
    """The token's claims, if it was verified, and its DPoP proof, if it is bound."""

    claims: Mapping[str, JSON] | None = None
    proof: Proof | None = None


class TokenRules(NamedTuple):
    """The rules of one service for tokens. `unlinked` accepts a token of another issuer or principal than the chain's."""

    anchors: Anchors
    audience: str
    skew: float
    unlinked: bool = False

    def check(
        self, ath: str | None, grants: Sequence[Grant], seen: ReceivedRequest, now: float
    ) -> TokenEvidence:
        """Check the token of a request against the chain (newest first) and the assertion's `ath`.

        Raises:
            VerificationError: a rule was broken; `.code` says which.
        """
        authorization = seen.headers.get("authorization")
        _check_both_or_neither(authorization, ath)
        if authorization is None:
            return TokenEvidence()
        scheme, _, token = authorization.partition(" ")
        _check_ath(token, ath)
        is_bound = _is_bound_scheme(scheme)
        proof = self._proof(token, grants[0], seen, now) if is_bound else None
        return TokenEvidence(self._claims(token, grants, now, is_bound=is_bound), proof)

    def check_call(
        self, ath: str | None, grants: Sequence[Grant], token: str | None, now: float
    ) -> TokenEvidence:
        """Check the token of a call. For a bound token, the `ath` that the leaf's key signed is the proof of possession."""
        _check_both_or_neither(token, ath)
        if token is None:
            return TokenEvidence()
        _check_ath(token, ath)
        read = _unverified_claims(token)
        is_bound = read is not None and "cnf" in read
        return TokenEvidence(self._claims(token, grants, now, is_bound=is_bound))

    def check_unasserted(
        self, grants: Sequence[Grant], seen: ReceivedRequest, now: float
    ) -> TokenEvidence:
        """Check the token of a request without an assertion: it must be verified, and bound to the leaf's key by a DPoP proof."""
        scheme, _, token = seen.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "dpop":
            raise VerificationError(
                "token_unbound",
                "a request without assertion needs a token bound to the chain's key",
            )
        _check_ath(token, None)
        proof = self._proof(token, grants[0], seen, now)
        claims = self._claims(token, grants, now, is_bound=True)
        if claims is None:
            raise VerificationError(
                "token_unverified", "a request without assertion needs a token that can be verified"
            )
        return TokenEvidence(claims, proof)

    def _claims(
        self, token: str, grants: Sequence[Grant], now: float, *, is_bound: bool
    ) -> Mapping[str, JSON] | None:
        """Verify a token, check it against the chain, and return its claims; None if it can't be verified here."""
        unverified = _unverified_claims(token)
        if unverified is None:
            return None
        _check_binding(unverified, grants[0], is_bound=is_bound)
        claims = self._verify(token, unverified.get("iss"), now)
        readable = unverified if claims is None else claims
        if not self.unlinked and (claims is not None or readable.get("iss") in _issuers(grants)):
            _check_principal(readable, grants)
        if claims is not None and is_bound and "cnf" not in claims:
            raise VerificationError("binding_mismatch", "the token isn't bound to a key")
        return claims

    def _proof(self, token: str, leaf: Grant, seen: ReceivedRequest, now: float) -> Proof:
        compact = seen.headers.get("dpop")
        if compact is None:
            raise VerificationError("proof_missing", "a bound token was sent without a DPoP proof")
        proof = verify_proof(
            compact,
            method=seen.method,
            url=seen.url,
            now=now,
            skew=self.skew,
            max_age=PROOF_AGE,
            access_token=token,
        )
        if not is_same(proof.jkt, leaf.jkt):
            raise VerificationError("proof_mismatch", "the proof's key isn't the chain's")
        return proof

    def _verify(self, token: str, issuer: JSON, now: float) -> Mapping[str, JSON] | None:
        """Verify a token of a trusted issuer and return its claims; None if the issuer isn't trusted here."""
        anchor = self.anchors.find(issuer)
        if anchor is None:
            return None
        _, payload = jose.verify(token, anchor.keys, algorithms=ALGORITHMS, typ="at+jwt")
        claims = jose.loads_object(payload)
        jose.check_lifetime(claims, now=now, skew=self.skew, max_lifetime=_LONGEST_LIFE)
        if claims.get("aud") not in (self.audience, [self.audience]):
            raise VerificationError("token_audience", "the token is for another resource")
        return claims


def _check_both_or_neither(token: str | None, ath: str | None) -> None:
    if (token is None) != (ath is None):
        raise InvalidAssertionError(
            "token_mismatch", "there is a token without an ath, or an ath without a token"
        )


def _check_ath(token: str, ath: str | None) -> None:
    """Check that the token is the asserted one. Without an assertion only its form is checked."""
    if len(token) > jose.MAX_TOKEN:
        raise VerificationError("token_too_large", "the access token is too large")
    if not token.isascii() or (ath is not None and not is_same(ath, hash_of(token))):
        raise InvalidAssertionError("token_mismatch", "the assertion is for another token")


def _is_bound_scheme(scheme: str) -> bool:
    if scheme.lower() not in {"dpop", "bearer"}:
        raise VerificationError("scheme_unknown", "the token has an unknown authentication scheme")
    return scheme.lower() == "dpop"


def _unverified_claims(token: str) -> Mapping[str, JSON] | None:
    """The unverified claims of a JWT; None for an opaque token."""
    try:
        return jose.loads_object(jose.unverified(token).payload)
    except VerificationError:
        return None


def _check_binding(claims: Mapping[str, JSON], leaf: Grant, *, is_bound: bool) -> None:
    if "cnf" not in claims:
        return
    if not is_bound:
        raise VerificationError("binding_ignored", "a bound token was sent as a bearer token")
    confirmation = claims["cnf"]
    bound = confirmation.get("jkt") if isinstance(confirmation, dict) else None
    if not isinstance(bound, str) or not is_same(bound, leaf.jkt):
        raise VerificationError("binding_mismatch", "the token is bound to another key")


def _issuers(grants: Sequence[Grant]) -> tuple[str, ...]:
    """The issuers whose tokens belong to a chain: its anchor, and the principal's issuer."""
    return (grants[-1].iss, grants[0].sub_iss)


def _check_principal(claims: Mapping[str, JSON], grants: Sequence[Grant]) -> None:
    if claims.get("sub") != grants[0].sub or claims.get("iss") not in _issuers(grants):
        raise VerificationError(
            "subject_mismatch",
            "the token has another principal or issuer than the chain",
            remedy='use allow={"unlinked_token"} only if the tokens don\'t name the principal by design',
        )
