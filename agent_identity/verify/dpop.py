# SPDX-License-Identifier: Apache-2.0
"""Verifies DPoP proofs: the sender of this request holds the key (RFC 9449 §4.3).

The key comes from the proof's own header, so a proof shows only possession: the caller compares `Proof.jkt` with the key that
a token or a grant is bound to, and remembers `Proof.jti` (`replay`) after all other rules have passed.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from agent_identity import jose
from agent_identity.delegation.claims import Claims
from agent_identity.delegation.grant import hash_of
from agent_identity.errors import ConfigurationError, DeniedError, VerificationError
from agent_identity.keys.algorithms import PROOF_ALGORITHMS
from agent_identity.keys.signing import JWK, thumbprint
from agent_identity.uris import htu_of

_TYPE: Final = "dpop+jwt"
_HEADER_LIMIT: Final = 1024


@dataclass(frozen=True, slots=True)
class Proof:
    """A verified proof: the thumbprint of its key, and when it was made (Unix seconds).

    `nonce` is the server's nonce in it, for a server that accepts more than one at a time.
    """

    jkt: str
    jti: str
    iat: float
    nonce: str | None = None


def verify_proof(
    proof: str,
    *,
    method: str,
    url: str,
    now: float,
    skew: float = 30.0,
    max_age: float = 300.0,
    access_token: str | None = None,
    nonce: str | None = None,
    error: type[VerificationError] = VerificationError,
) -> Proof:
    """Check a proof for one request. It is valid for `max_age` seconds after its `iat`.

    With `access_token` the proof must have that token's `ath`, with `nonce` that nonce. The caller checks whether the `jti`
    was used before.

    Raises:
        VerificationError: a rule was broken; `.code` says which. `error` names a subclass to raise instead.
    """
    parsed = jose.unverified(proof, max_header=_HEADER_LIMIT, error=error)
    jwk = parsed.header.get("jwk")
    if not isinstance(jwk, dict):
        raise error("dpop_key", "the proof carries no public key")
    jkt = _thumbprint(jwk, error)
    # The header has only this key, so a `kid` in it refers to it.
    key = {**jwk, "kid": parsed.header.get("kid")}
    _, payload = jose.verify(parsed, (key,), algorithms=PROOF_ALGORITHMS, typ=_TYPE, error=error)
    body = jose.loads_object(payload, error=error)
    claims = Claims(body, error)
    if claims.text("htm") != method:
        raise error("dpop_method", "the proof is for another method")
    if _htu(claims.text("htu"), error) != _htu(url, error):
        raise error("dpop_url", "the proof is for another URL")
    iat = jose.numeric_date(body, "iat", error=error)
    if not now - max_age <= iat <= now + skew:
        raise error("dpop_stale", "the proof is too old, or from the future")
    if access_token is not None and not _is_same(claims.text("ath"), _ath(access_token, error)):
        raise error("dpop_token", "the proof is for another access token")
    sent = claims.optional_text("nonce")
    if nonce is not None and not _is_same(sent or "", nonce):
        raise error("dpop_nonce", "the proof lacks the server's nonce")
    return Proof(jkt=jkt, jti=claims.text("jti"), iat=iat, nonce=sent)


def _thumbprint(jwk: JWK, error: type[VerificationError]) -> str:
    try:
        return thumbprint(jwk)
    except ConfigurationError:
        raise error("dpop_key", "the proof's key is of an unknown type") from None


def _htu(url: str, error: type[VerificationError]) -> str:
    try:
        return htu_of(url)
    except DeniedError:
        raise error("dpop_url", "a URL of the proof or the request is malformed") from None


def _ath(access_token: str, error: type[VerificationError]) -> str:
    if not access_token.isascii():
        raise error("dpop_token", "the access token has characters that are not ASCII")
    return hash_of(access_token)


def _is_same(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode("utf-8", "surrogatepass"), right.encode("utf-8"))
