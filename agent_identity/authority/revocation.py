# SPDX-License-Identifier: Apache-2.0
"""Introspection (RFC 7662) and revocation (RFC 7009) for authenticated clients, and the signed revocation list.

Introspection answers `active: false` alike for an expired, a revoked and a foreign token. A client may revoke what was issued
to it. It may revoke a grant further down a chain, sent with `Agent-Delegation`, if the chain's first grant was issued to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.authority.authentication import SKEW
from agent_identity.authority.requests import OAuthError, json_response, read_form
from agent_identity.authority.tokens import is_issued_to
from agent_identity.delegation.carriers import DELEGATION, split_chain
from agent_identity.delegation.chain import Anchor, verify_chain
from agent_identity.delegation.grant import signing_input_hash
from agent_identity.errors import VerificationError
from agent_identity.flow import HttpResponse
from agent_identity.verify.revocations import LIST_LIMIT, REVOCATIONS_TYPE, revocation_claims

if TYPE_CHECKING:
    from agent_identity.authority.authentication import Authenticator
    from agent_identity.authority.clients import ClientRecord
    from agent_identity.authority.keyring import Keyring
    from agent_identity.authority.requests import ParsedRequest
    from agent_identity.authority.store import Store
    from agent_identity.authority.tokens import OwnToken, Tokens
    from agent_identity.values import JSON

_INTROSPECTED: Final = (
    *("iss", "sub", "sub_profile", "sub_iss", "aud", "client_id", "scope"),
    *("exp", "iat", "nbf", "jti", "txn", "act", "cnf"),
)


class Inspection:
    """Answers POST /introspect and POST /revoke."""

    def __init__(
        self, authenticator: Authenticator, keyring: Keyring, tokens: Tokens, store: Store
    ) -> None:
        self._authenticator = authenticator
        self._keyring = keyring
        self._tokens = tokens
        self._store = store

    def introspect(self, request: ParsedRequest, now: float) -> HttpResponse:
        """Answer whether a token is active, with its claims.

        Raises:
            OAuthError: the client isn't authenticated, or the request has no token.
        """
        form = read_form(request)
        self._authenticator.client(request, form, now)
        try:
            token = self._tokens.read(form.text("token"), now)
        except VerificationError:
            return json_response({"active": False})
        refs = (
            *token.refs(),
            *self._store.sources(token.jti),
            *self._find_revoked_client(token, now),
        )
        if self._store.is_revoked(refs, token.iat):
            return json_response({"active": False})
        claims: dict[str, JSON] = {
            name: token.claims[name] for name in _INTROSPECTED if name in token.claims
        }
        return json_response({"active": True, "token_type": _token_type(token), **claims})

    def _find_revoked_client(self, token: OwnToken, now: float) -> list[str]:
        """Find the revoked client that a grant was issued to. The grant contains a hash of its id, so each id has to be tried."""
        if not token.is_grant:
            return []
        revoked = self._store.revocations(now)
        return [ref for ref, _ in revoked if is_issued_to(token.jti, ref)]

    def revoke(self, request: ParsedRequest, now: float) -> HttpResponse:
        """Revoke a token; 200 also if it is unknown or expired (RFC 7009 §2.2).

        Raises:
            OAuthError: the client isn't authenticated, or the token was issued to another client.
        """
        form = read_form(request)
        client = self._authenticator.client(request, form, now)
        compact = form.text("token")
        delegation = request.headers.get(DELEGATION.lower())
        try:
            if delegation is None:
                ref, ends, is_its_own = self._read_token(compact, client, now)
            else:
                ref, ends, is_its_own = self._read_hop(compact, delegation, client, now)
        except VerificationError:
            return json_response({})
        if not is_its_own:
            raise OAuthError("unauthorized_client", "token_of_another_client")
        self._store.revoke(ref, int(now), ends + int(SKEW) + 1)
        return json_response({})

    def _read_token(self, compact: str, client: ClientRecord, now: float) -> tuple[str, int, bool]:
        token = self._tokens.read(compact, now)
        if token.is_grant:
            is_its_own = is_issued_to(token.jti, client.client_id)
        else:
            is_its_own = token.claims.get("client_id") == client.client_id
        return token.jti, token.exp, is_its_own

    def _read_hop(
        self, compact: str, delegation: str, client: ClientRecord, now: float
    ) -> tuple[str, int, bool]:
        chain = split_chain(delegation)
        if chain[0] != compact:
            raise OAuthError("invalid_request", "delegation_mismatch")
        issuer = self._tokens.issuer
        anchor = Anchor(issuer, self._keyring.jwks, evidence="issuer")
        grants = verify_chain(chain, (anchor,), now=now, skew=SKEW)
        # By its hash: an agent chooses the `jti` of its own hops, and could choose another grant's.
        hop = signing_input_hash(grants[0].compact)
        return hop, grants[0].exp, is_issued_to(grants[-1].jti, client.client_id)


def _token_type(token: OwnToken) -> str:
    if token.is_grant:
        return "N_A"
    return "DPoP" if "cnf" in token.claims else "Bearer"


LIFETIME: Final = 300
"""Seconds that a list is valid."""

_HEADERS: Final = {
    "content-type": "application/jwt",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}


class RevocationList:
    """Signs the revocation list with the current key."""

    def __init__(self, issuer: str, keyring: Keyring, store: Store) -> None:
        self._issuer = issuer
        self._keyring = keyring
        self._store = store

    def sign(self, now: float) -> str:
        """Sign the list as a compact JWS. `seq` is `now` in milliseconds, or the last `seq` plus one if the clock was set back."""
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
        header = jose.encode_header(key.alg, typ=REVOCATIONS_TYPE, kid=key.thumbprint)
        return key.compact(header, claims)

    def answer(self, _request: ParsedRequest, now: float) -> HttpResponse:
        """Answer a request for the list.

        Raises:
            OAuthError: 503, the list is longer than verifiers accept.
        """
        compact = self.sign(now)
        if len(compact) > LIST_LIMIT:
            raise OAuthError("temporarily_unavailable", "list_too_long", status=503)
        return HttpResponse(200, _HEADERS, compact.encode("ascii"))
