# SPDX-License-Identifier: Apache-2.0
"""DPoP at the authority's endpoints: each proof is accepted once, with the authority's nonce if required (RFC 9449 §5, §8)."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from agent_identity.authority.client_proofs import SKEW
from agent_identity.authority.requests import OAuthError
from agent_identity.errors import VerificationError
from agent_identity.values import b64url
from agent_identity.verify.dpop import verify_proof

if TYPE_CHECKING:
    from agent_identity.authority.authentication import UsedOnce
    from agent_identity.authority.clients import ClientRecord
    from agent_identity.authority.requests import ParsedRequest
    from agent_identity.verify.dpop import Proof

_MAX_AGE: Final = 300.0
_NONCE_LIFE: Final = 300


class Proofs:
    """Checks proofs. `nonce_key` None requires no nonce; with a key, a nonce is valid for five to ten minutes."""

    def __init__(self, used: UsedOnce, nonce_key: bytes | None) -> None:
        self._used = used
        self._nonce_key = nonce_key

    def check(
        self, request: ParsedRequest, url: str, client: ClientRecord, now: float
    ) -> Proof | None:
        """Check the proof of a client's request to `url`; None if the request has no proof.

        Raises:
            OAuthError: `invalid_dpop_proof`, or `use_dpop_nonce` with a nonce to use.
        """
        header = request.headers.get("dpop")
        if header is None:
            return None
        try:
            proof = verify_proof(
                header, method=request.method, url=url, now=now, skew=SKEW, max_age=_MAX_AGE
            )
            if not self._has_nonce(proof, now):
                raise OAuthError("use_dpop_nonce", "nonce_needed", headers=self.headers(now))
            key = ("dpop", proof.jkt, proof.jti)
            self._used.check(client, key, proof.iat, proof.iat + _MAX_AGE, now)
        except VerificationError as error:
            raise OAuthError("invalid_dpop_proof", error.code) from None
        return proof

    def headers(self, now: float) -> dict[str, str]:
        """The response header with the nonce for the client's next proof."""
        if self._nonce_key is None:
            return {}
        return {"dpop-nonce": self._nonce(int(now) // _NONCE_LIFE, self._nonce_key)}

    def _has_nonce(self, proof: Proof, now: float) -> bool:
        if self._nonce_key is None:
            return True
        window = int(now) // _NONCE_LIFE
        sent = (proof.nonce or "").encode("utf-8", "surrogatepass")
        return any(
            hmac.compare_digest(sent, self._nonce(at, self._nonce_key).encode())
            for at in (window, window - 1)
        )

    def _nonce(self, window: int, key: bytes) -> str:
        return b64url(hmac.digest(key, b"%d" % window, hashlib.sha256)[:16])
