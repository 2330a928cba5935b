# SPDX-License-Identifier: Apache-2.0
"""DPoP at the authority's own endpoints: whose key it is, once, and with our nonce where we ask for one (RFC 9449 §5, §8)."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from agent_identity.authority.requests import OAuthError, refused
from agent_identity.errors import VerificationError
from agent_identity.values import b64url
from agent_identity.verify.dpop import verify_proof

if TYPE_CHECKING:
    from agent_identity.authority.clients import ClientRecord
    from agent_identity.authority.requests import Asked
    from agent_identity.verify.dpop import Proof
    from agent_identity.verify.replay import Replay


_SKEW: Final = 30.0
_MAX_AGE: Final = 300.0
_NONCE_LIFE: Final = 300


class Proofs:
    """Checks proofs. `nonce_key` None asks for no nonce; with one, a nonce is good for five to ten minutes.

    `run` is what registers clients since `replay` remembers.
    """

    def __init__(self, replay: Replay, nonce_key: bytes | None, run: str) -> None:
        self._replay = replay
        self._nonce_key = nonce_key
        self._run = run

    def check(self, asked: Asked, url: str, client: ClientRecord, now: float) -> Proof | None:
        """The proof on a client's request to `url`; None where there is none.

        Raises:
            OAuthError: `invalid_dpop_proof`, or `use_dpop_nonce` with a nonce to use.
        """
        header = asked.headers.get("dpop")
        if header is None:
            return None
        try:
            proof = verify_proof(
                header, method=asked.method, url=url, now=now, skew=_SKEW, max_age=_MAX_AGE
            )
        except VerificationError as error:
            raise refused("invalid_dpop_proof", error) from None
        if not self._has_nonce(proof, now):
            raise OAuthError("use_dpop_nonce", "nonce_needed", headers=self.headers(now))
        # Where the clock was set back to before this run, its clients have sent nothing that was used in another.
        is_set_back = now < self._replay.not_before and client.registrar == self._run
        if proof.iat + _SKEW < self._replay.not_before and not is_set_back:
            raise OAuthError("invalid_dpop_proof", "issued_before_start")
        if not self._replay.remember(("dpop", proof.jkt, proof.jti), proof.iat + _MAX_AGE):
            raise OAuthError("invalid_dpop_proof", "replayed")
        return proof

    def headers(self, now: float) -> dict[str, str]:
        """What an answer carries, so that the next proof has a nonce of ours."""
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
