# SPDX-License-Identifier: Apache-2.0
"""The access token beside a chain: whether both are of one principal and one key, and of this very request.

A token and the `ath` of the assertion come together or not at all. One that can't be verified here, since it is opaque or
its issuer isn't known, is held to what can be read of it and counts as not verified; one of a known issuer that fails is
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
    from agent_identity.verify.request import HttpSeen

__all__ = ["PROOF_AGE", "Shown", "TokenRules"]

PROOF_AGE: Final = 300.0
"""Seconds that a proof is good for."""

_LONGEST_LIFE: Final = 24 * 3600


class Shown(NamedTuple):
    """What came beside the chain: the token's claims where it was verified, the proof where one was asked for."""

    claims: Mapping[str, JSON] | None = None
    proof: Proof | None = None


class TokenRules(NamedTuple):
    """What one service asks of the tokens that it takes; `unlinked` lets one be of another issuer or principal than the chain."""

    anchors: Anchors
    audience: str
    skew: float
    unlinked: bool = False

    def check(self, ath: str | None, grants: Sequence[Grant], seen: HttpSeen, now: float) -> Shown:
        """Hold the token of a request to the chain beside it (newest first) and the assertion's `ath`.

        Raises:
            VerificationError: a rule was broken; `.code` says which.
        """
        authorization = seen.headers.get("authorization")
        _check_both_or_neither(authorization, ath)
        if authorization is None:
            return Shown()
        scheme, _, token = authorization.partition(" ")
        _check_ath(token, ath)
        is_bound = _is_bound_scheme(scheme)
        proof = self._proof(token, grants[0], seen, now) if is_bound else None
        return Shown(self._claims(token, grants, now, is_bound=is_bound), proof)

    def check_call(
        self, ath: str | None, grants: Sequence[Grant], token: str | None, now: float
    ) -> Shown:
        """The same for a token that came with a call: that the leaf's key signed its `ath` is the proof of a bound one."""
        _check_both_or_neither(token, ath)
        if token is None:
            return Shown()
        _check_ath(token, ath)
        read = _readable(token)
        is_bound = read is not None and "cnf" in read
        return Shown(self._claims(token, grants, now, is_bound=is_bound))

    def check_unasserted(self, grants: Sequence[Grant], seen: HttpSeen, now: float) -> Shown:
        """The token of a request that asserts no call: verified, and bound to the leaf's key, which is proven on this request."""
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
        return Shown(claims, proof)

    def _claims(
        self, token: str, grants: Sequence[Grant], now: float, *, is_bound: bool
    ) -> Mapping[str, JSON] | None:
        """The claims of a token that could be verified, held to the chain; None of one that can't be."""
        read = _readable(token)
        if read is None:
            return None
        _check_binding(read, grants[0], is_bound=is_bound)
        claims = self._verified(token, read.get("iss"), now)
        said = read if claims is None else claims
        if not self.unlinked and (claims is not None or said.get("iss") in _issuers(grants)):
            _check_principal(said, grants)
        if claims is not None and is_bound and "cnf" not in claims:
            raise VerificationError("binding_mismatch", "the token is bound to no key")
        return claims

    def _proof(self, token: str, leaf: Grant, seen: HttpSeen, now: float) -> Proof:
        compact = seen.headers.get("dpop")
        if compact is None:
            raise VerificationError("proof_missing", "a bound token came without its proof")
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
            raise VerificationError(
                "proof_mismatch", "the proof is of another key than the chain's"
            )
        return proof

    def _verified(self, token: str, issuer: JSON, now: float) -> Mapping[str, JSON] | None:
        """The claims of a token whose issuer is known here; a known issuer's token that fails is refused."""
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
        raise InvalidAssertionError("token_mismatch", "token and ath come together or not at all")


def _check_ath(token: str, ath: str | None) -> None:
    """The token is the one that was asserted; without an assertion only its form is looked at."""
    if len(token) > jose.MAX_TOKEN:
        raise VerificationError("token_too_large", "the access token is too large")
    if not token.isascii() or (ath is not None and not is_same(ath, hash_of(token))):
        raise InvalidAssertionError("token_mismatch", "the assertion goes with another token")


def _is_bound_scheme(scheme: str) -> bool:
    if scheme.lower() not in {"dpop", "bearer"}:
        raise VerificationError("scheme_unknown", "the token comes under an unknown scheme")
    return scheme.lower() == "dpop"


def _readable(token: str) -> Mapping[str, JSON] | None:
    """The claims that a JWT makes, whoever signed it; None for an opaque token."""
    try:
        return jose.loads_object(jose.unverified(token).payload)
    except VerificationError:
        return None


def _check_binding(claims: Mapping[str, JSON], leaf: Grant, *, is_bound: bool) -> None:
    if "cnf" not in claims:
        return
    if not is_bound:
        raise VerificationError("binding_ignored", "a bound token came as a plain bearer")
    confirmation = claims["cnf"]
    bound = confirmation.get("jkt") if isinstance(confirmation, dict) else None
    if not isinstance(bound, str) or not is_same(bound, leaf.jkt):
        raise VerificationError("binding_mismatch", "the token is bound to another key")


def _issuers(grants: Sequence[Grant]) -> tuple[str, ...]:
    """Whose tokens go with a chain: its anchor's, and those of the principal's issuer."""
    return (grants[-1].iss, grants[0].sub_iss)


def _check_principal(claims: Mapping[str, JSON], grants: Sequence[Grant]) -> None:
    if claims.get("sub") != grants[0].sub or claims.get("iss") not in _issuers(grants):
        raise VerificationError(
            "subject_mismatch",
            "the token is another principal's, or another issuer's than the chain",
            remedy='allow={"unlinked_token"} only where a token says nothing of the principal by design',
        )
