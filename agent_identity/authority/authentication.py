# SPDX-License-Identifier: Apache-2.0
"""How a client proves itself: `private_key_jwt` and nothing else (RFC 7523 §3, RFC 10070).

The assertion names the issuer as its one audience and is good once. There is no shared secret to steal and no client
without proof; an attempt at either is refused like a wrong assertion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.authority.answers import OAuthError
from agent_identity.delegation.claims import Claims
from agent_identity.errors import VerificationError

if TYPE_CHECKING:
    from agent_identity.authority.asked import Asked, Form
    from agent_identity.authority.clients import ClientRecord
    from agent_identity.authority.store import Store
    from agent_identity.verify.replay import Replay

__all__ = ["ALGORITHMS", "SKEW", "Authenticator"]

ALGORITHMS: Final = frozenset({"ES256", "ES384", "Ed25519", "EdDSA", "PS256", "RS256"})
SKEW: Final = 30.0
_ASSERTION: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_TYPE: Final = "client-authentication+jwt"
_LONGEST: Final = 300.0


class Authenticator:
    """Tells which client a request comes from."""

    def __init__(self, issuer: str, store: Store, replay: Replay) -> None:
        self._issuer = issuer
        self._store = store
        self._replay = replay

    def client(self, asked: Asked, form: Form, now: float) -> ClientRecord:
        """The client that signed the request's assertion.

        Raises:
            OAuthError: `invalid_client` (401), whatever is wrong.
        """
        if "authorization" in asked.headers or form.optional("client_secret") is not None:
            raise _invalid("private_key_jwt_only")
        if form.optional("client_assertion_type") != _ASSERTION:
            raise _invalid("client_assertion_missing")
        assertion = form.optional("client_assertion") or ""
        try:
            return self._verified(assertion, form.optional("client_id"), now)
        except VerificationError as error:
            raise _invalid(error.code) from None

    def _verified(self, assertion: str, client_id: str | None, now: float) -> ClientRecord:
        parsed = jose.unverified(assertion)
        # Read before it is verified, only to learn whose keys it has to be verified with.
        claimed = Claims(jose.loads_object(parsed.payload), VerificationError)
        client = self._store.client(claimed.text("iss"), now)
        if client is None:
            raise VerificationError("client_unknown", "nobody is registered under that name")
        _, payload = jose.verify(parsed, client.keys, algorithms=ALGORITHMS, typ=_TYPE)
        body = jose.loads_object(payload)
        claims = Claims(body, VerificationError)
        if claims.text("sub") != client.client_id or client_id not in {None, client.client_id}:
            raise VerificationError("client_mismatch", "the assertion speaks for another client")
        if body.get("aud") not in (self._issuer, [self._issuer]):
            raise VerificationError("audience_mismatch", "the assertion is for another audience")
        jose.check_lifetime(body, now=now, skew=SKEW, max_lifetime=_LONGEST)
        if jose.numeric_date(body, "iat") + SKEW < self._replay.not_before:
            raise VerificationError("issued_before_start", "older than what is remembered")
        key = ("client", client.client_id, claims.text("jti"))
        if not self._replay.remember(key, jose.numeric_date(body, "exp") + SKEW):
            raise VerificationError("replayed", "the assertion was used already")
        return client


def _invalid(why: str) -> OAuthError:
    return OAuthError("invalid_client", why, status=401)
