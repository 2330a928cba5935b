# SPDX-License-Identifier: Apache-2.0
"""What became of a token: introspection (RFC 7662) and revocation (RFC 7009), both for clients that prove themselves.

A token of another's, an expired one and a revoked one look alike to who introspects: not active. A client revokes what was
issued to it and no one else's; a grant further down a chain (`Agent-Delegation` goes along) when the chain began with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.authority.authentication import SKEW
from agent_identity.authority.requests import OAuthError, answer, read_form
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
    from agent_identity.authority.requests import Asked
    from agent_identity.authority.store import Store
    from agent_identity.authority.tokens import OwnToken, Tokens
    from agent_identity.values import JSON


_SHOWN: Final = (
    *(
        "iss",
        "sub",
        "sub_profile",
        "sub_iss",
        "aud",
        "client_id",
        "scope",
        "exp",
        "iat",
        "nbf",
        "jti",
    ),
    *("txn", "act", "cnf"),
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

    def introspect(self, asked: Asked, now: float) -> HttpResponse:
        """Whether a token is active, and what it says.

        Raises:
            OAuthError: the client doesn't prove itself, or asks for nothing.
        """
        form = read_form(asked)
        self._authenticator.client(asked, form, now)
        try:
            token = self._tokens.read(form.text("token"), now)
        except VerificationError:
            return answer({"active": False})
        refs = (*token.refs(), *self._store.sources(token.jti), *self._revoked_client(token, now))
        if self._store.is_revoked(refs, token.iat):
            return answer({"active": False})
        shown: dict[str, JSON] = {
            name: token.claims[name] for name in _SHOWN if name in token.claims
        }
        return answer({"active": True, "token_type": _token_type(token), **shown})

    def _revoked_client(self, token: OwnToken, now: float) -> list[str]:
        """The client that a grant was issued to, if it was revoked: a grant only shows it to those who know the client's id."""
        if not token.is_grant:
            return []
        revoked = self._store.revocations(now)
        return [ref for ref, _ in revoked if is_issued_to(token.jti, ref)]

    def revoke(self, asked: Asked, now: float) -> HttpResponse:
        """End a token before its time; 200 for one that is unknown or over (RFC 7009 §2.2).

        Raises:
            OAuthError: the client doesn't prove itself, or the token is another's.
        """
        form = read_form(asked)
        client = self._authenticator.client(asked, form, now)
        compact = form.text("token")
        delegation = asked.headers.get(DELEGATION.lower())
        try:
            if delegation is None:
                ref, ends, is_its_own = self._token(compact, client, now)
            else:
                ref, ends, is_its_own = self._hop(compact, delegation, client, now)
        except VerificationError:
            return answer({})
        if not is_its_own:
            raise OAuthError("unauthorized_client", "token_of_another_client")
        self._store.revoke(ref, int(now), ends + int(SKEW) + 1)
        return answer({})

    def _token(self, compact: str, client: ClientRecord, now: float) -> tuple[str, int, bool]:
        token = self._tokens.read(compact, now)
        if token.is_grant:
            is_its_own = is_issued_to(token.jti, client.client_id)
        else:
            is_its_own = token.claims.get("client_id") == client.client_id
        return token.jti, token.exp, is_its_own

    def _hop(
        self, compact: str, delegation: str, client: ClientRecord, now: float
    ) -> tuple[str, int, bool]:
        chain = split_chain(delegation)
        if chain[0] != compact:
            raise OAuthError("invalid_request", "delegation_mismatch")
        issuer = self._tokens.issuer
        anchor = Anchor(issuer, self._keyring.jwks, evidence="issuer")
        grants = verify_chain(chain, (anchor,), now=now, skew=SKEW)
        # by its hash, as an agent may choose the `jti` of its own hops, and could choose another's
        hop = signing_input_hash(grants[0].compact)
        return hop, grants[0].exp, is_issued_to(grants[-1].jti, client.client_id)


def _token_type(token: OwnToken) -> str:
    if token.is_grant:
        return "N_A"
    return "DPoP" if "cnf" in token.claims else "Bearer"


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
        header = jose.encode_header(key.alg, typ=REVOCATIONS_TYPE, kid=key.thumbprint)
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
