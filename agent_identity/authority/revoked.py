# SPDX-License-Identifier: Apache-2.0
"""The list of what was revoked here, signed anew each time that it is asked for (DESIGN section 5; `verify.revocations` reads it).

What isn't reinstated stays ended whenever it was issued, so that its time is the list's own end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.authority.answers import OAuthError
from agent_identity.flow import HttpResponse
from agent_identity.verify.revocations import LIST_LIMIT, REVOCATIONS_TYPE, revocation_claims

if TYPE_CHECKING:
    from agent_identity.authority.requests import Asked
    from agent_identity.authority.keyring import Keyring
    from agent_identity.authority.store import Store

__all__ = ["RevocationList"]

LIFETIME: Final = 300
"""Seconds that a list is good for."""

_HEADERS: Final = {
    "content-type": "application/jwt",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}


class RevocationList:
    """Signs the list with the key that signs now."""

    def __init__(self, issuer: str, keyring: Keyring, store: Store) -> None:
        self._issuer = issuer
        self._keyring = keyring
        self._store = store

    def signed(self, now: float) -> str:
        """The list as a compact JWS; `seq` is its time in milliseconds, or one more than the last where the clock was set back."""
        ends = int(now) + LIFETIME
        revoked = {
            ref: ends if lifted_at is None else lifted_at
            for ref, lifted_at in self._store.revocations(now)
        }
        key = self._keyring.signing
        claims = revocation_claims(
            self._issuer,
            revoked,
            seq=self._store.next_seq(int(now * 1000)),
            now=int(now),
            lifetime=LIFETIME,
        )
        header = jose.header(key.alg, typ=REVOCATIONS_TYPE, kid=key.thumbprint)
        return key.compact(header, claims)

    def answer(self, _asked: Asked, now: float) -> HttpResponse:
        """What the endpoint answers.

        Raises:
            OAuthError: 503, it is longer than anybody reads, so that nothing is believed any more.
        """
        compact = self.signed(now)
        if len(compact) > LIST_LIMIT:
            raise OAuthError("temporarily_unavailable", "list_too_long", status=503)
        return HttpResponse(200, _HEADERS, compact.encode("ascii"))
