# SPDX-License-Identifier: Apache-2.0
"""A DPoP proof: this very request comes from whoever holds that key (RFC 9449 §4.3).

The proof's own header supplies the key, which therefore proves nothing but possession: the caller compares `Proof.jkt`
with the key that a token or a grant is bound to, and remembers `Proof.jti` (`replay`), after every other rule passed.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from agent_identity import jose
from agent_identity.delegation.claims import Claims
from agent_identity.errors import ConfigurationError, DeniedError, VerificationError
from agent_identity.keys.algorithms import PROOF_ALGORITHMS
from agent_identity.keys.signing import JWK, thumbprint
from agent_identity.uris import htu_of
from agent_identity.values import b64url

__all__ = ["Proof", "verify_proof"]

_TYPE: Final = "dpop+jwt"
_HEADER_LIMIT: Final = 1024


@dataclass(frozen=True, slots=True)
class Proof:
    """What a proof shows: the thumbprint of the key that signed it, and when (Unix seconds).

    `nonce` is the server's nonce that it carries, for a server that accepts more than one at a time.
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
    """Check a proof for one request; `max_age` is how many seconds it is good for after its `iat`.

    With `access_token` the proof has to carry that token's `ath`, with `nonce` that very nonce. Whether the `jti` was seen
    before is the caller's to ask.

    Raises:
        VerificationError: a rule was broken; `.code` says which. `error` names a subclass to raise instead.
    """
    parsed = jose.unverified(proof, max_header=_HEADER_LIMIT, error=error)
    jwk = parsed.header.get("jwk")
    if not isinstance(jwk, dict):
        raise error("dpop_key", "the proof carries no public key")
    jkt = _thumbprint(jwk, error)
    # The key is the header's own, so that a `kid` beside it can only mean that one.
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
        raise error("dpop_key", "the proof's key is none that we know") from None


def _htu(url: str, error: type[VerificationError]) -> str:
    try:
        return htu_of(url)
    except DeniedError:
        raise error("dpop_url", "a URL of the proof or the request is malformed") from None


def _ath(access_token: str, error: type[VerificationError]) -> str:
    if not access_token.isascii():
        raise error("dpop_token", "an access token has foreign characters")
    return b64url(hashlib.sha256(access_token.encode("ascii")).digest())


def _is_same(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode("utf-8", "surrogatepass"), right.encode("utf-8"))
