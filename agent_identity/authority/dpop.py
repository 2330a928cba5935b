# SPDX-License-Identifier: Apache-2.0
"""DPoP at the authority's endpoints: each proof is accepted once, with the authority's nonce if required (RFC 9449 §5, §8)."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from agent_identity.authority.requests import OAuthError
from agent_identity.errors import VerificationError
from agent_identity.values import b64url
from agent_identity.verify.dpop import verify_proof

if TYPE_CHECKING:
    from agent_identity.authority.clients import ClientRecord
    from agent_identity.authority.requests import ParsedRequest
    from agent_identity.verify.dpop import Proof
    from agent_identity.verify.replay import Replay

__all__ = ["Proofs"]

_SKEW: Final = 30.0
_MAX_AGE: Final = 300.0
_NONCE_LIFE: Final = 300


class Proofs:
    """Checks proofs. `nonce_key` None requires no nonce; with a key, a nonce is valid for five to ten minutes.

    `run` identifies this run of the authority, which began when `replay` did.
    """

    def __init__(self, replay: Replay, nonce_key: bytes | None, run: str) -> None:
        self._replay = replay
        self._nonce_key = nonce_key
        self._run = run

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
                header, method=request.method, url=url, now=now, skew=_SKEW, max_age=_MAX_AGE
            )
        except VerificationError as error:
            raise OAuthError("invalid_dpop_proof", error.code) from None
        if not self._has_nonce(proof, now):
            raise OAuthError("use_dpop_nonce", "nonce_needed", headers=self.headers(now))
        # If the clock was set back after this run registered the client, no earlier run has seen its proofs.
        is_set_back = now < self._replay.not_before and client.registrar == self._run
        if proof.iat + _SKEW < self._replay.not_before and not is_set_back:
            raise OAuthError("invalid_dpop_proof", "issued_before_start")
        if not self._replay.remember(("dpop", proof.jkt, proof.jti), proof.iat + _MAX_AGE):
            raise OAuthError("invalid_dpop_proof", "replayed")
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
