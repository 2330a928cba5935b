# SPDX-License-Identifier: Apache-2.0
"""The token endpoint: who asks, with which key, for which grant. One order for all of them.

The client proves itself, then its proof of possession is looked at, then what was revoked, then the grant. Each step
refuses in its own words, and nothing is minted before the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.authority.answers import OAuthError, answer
from agent_identity.authority.requests import read_form
from agent_identity.authority.authentication import SKEW
from agent_identity.authority.clients import CLIENT_CREDENTIALS, GRANT_TYPES, JWT_BEARER
from agent_identity.authority.exchange import GRANT
from agent_identity.authority.subjects import JWT
from agent_identity.authority.targets import allowed_scopes, one_resource, scope_member
from agent_identity.authority.tokens import LIFETIME, TokenDraft

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from agent_identity.authority.requests import Asked, Form
    from agent_identity.authority.authentication import Authenticator
    from agent_identity.authority.clients import ClientRecord
    from agent_identity.authority.exchange import Exchange
    from agent_identity.authority.dpop import Proofs
    from agent_identity.authority.rates import Rates
    from agent_identity.authority.store import Store
    from agent_identity.authority.subjects import Subjects
    from agent_identity.authority.tokens import Tokens
    from agent_identity.flow import HttpResponse
    from agent_identity.values import JSON
    from agent_identity.verify.dpop import Proof

__all__ = ["TokenEndpoint"]


class TokenEndpoint:
    """Answers POST /token. `count` is told of every token that leaves: `access_token` or `grant`."""

    def __init__(
        self,
        url: str,
        *,
        authenticator: Authenticator,
        rates: Rates,
        proofs: Proofs,
        store: Store,
        subjects: Subjects,
        tokens: Tokens,
        exchange: Exchange,
        count: Callable[[str], None],
    ) -> None:
        self._url = url
        self._authenticator = authenticator
        self._rates = rates
        self._proofs = proofs
        self._store = store
        self._subjects = subjects
        self._tokens = tokens
        self._exchange = exchange
        self._count = count

    def answer(self, asked: Asked, now: float) -> HttpResponse:
        """Answer one token request.

        Raises:
            OAuthError: it is refused.
            CredentialError: keys that somebody else publishes can't be had.
        """
        form = read_form(asked)
        grant_type = form.text("grant_type")
        client = self._authenticator.client(asked, form, now)
        self._rates.check(client, now)
        if grant_type not in GRANT_TYPES:
            raise OAuthError("unsupported_grant_type", "grant_type_unknown")
        if grant_type not in client.grant_types:
            raise OAuthError("unauthorized_client", "grant_type_not_registered")
        proof = self._proofs.check(asked, self._url, client, now)
        if self._store.is_revoked((client.client_id, client.agent), now):
            raise OAuthError("invalid_grant", "client_revoked")
        if grant_type == CLIENT_CREDENTIALS:
            body = self._client_credentials(form, client, proof, int(now))
        elif grant_type == JWT_BEARER:
            body = self._jwt_bearer(form, client, proof, now)
        else:
            body = self._exchange.answer(asked, form, client, proof, now)
        self._count("grant" if body.get("issued_token_type") == GRANT else "access_token")
        return answer(body, headers=self._proofs.headers(now))

    def _client_credentials(
        self, form: Form, client: ClientRecord, proof: Proof | None, now: int
    ) -> dict[str, JSON]:
        """The client in its own name (RFC 6749 §4.4)."""
        draft = TokenDraft(
            sub=client.client_id,
            sub_profile="ai_agent",
            resource=one_resource(form, client),
            client_id=client.client_id,
            scopes=allowed_scopes(form.scopes(), client.terms.scopes),
            jkt=proof.jkt if proof else None,
        )
        # The token names no agent, and still ends with it.
        return self._issued(draft, now, now + LIFETIME, sources=(client.agent,))

    def _jwt_bearer(
        self, form: Form, client: ClientRecord, proof: Proof | None, now: float
    ) -> dict[str, JSON]:
        """The principal of a subject assertion, with the client's agent acting (RFC 7523 §2.1)."""
        jkt = proof.jkt if proof else None
        subject = self._subjects.read(form.text("assertion"), JWT, client, jkt=jkt, now=now)
        if self._store.is_revoked(subject.refs, subject.iat):
            raise OAuthError("invalid_grant", "revoked")
        if any("\n" in ref for ref in subject.refs):  # the store keeps one a line
            raise OAuthError("invalid_grant", "claim_malformed")
        act: dict[str, JSON] = {
            "iss": self._tokens.issuer,
            "sub": client.agent,
            "sub_profile": "ai_agent",
        }
        draft = TokenDraft(
            sub=subject.sub,
            sub_profile=subject.profile,
            resource=one_resource(form, client),
            client_id=client.client_id,
            scopes=allowed_scopes(form.scopes(), client.terms.scopes, subject.scopes),
            txn=subject.txn,
            act=act,
            jkt=jkt,
        )
        return self._issued(draft, int(now), subject.exp, sources=subject.refs)

    def _issued(
        self, draft: TokenDraft, now: int, expires_at: int, *, sources: Collection[str]
    ) -> dict[str, JSON]:
        """The answer with the token; `sources` are further references that the token ends with."""
        end = min(now + LIFETIME, expires_at)
        self._store.add_sources(draft.jti, sources, now, end + int(SKEW) + 1)
        body: dict[str, JSON] = {
            "access_token": self._tokens.mint(draft, now=now, expires_at=end),
            "token_type": "Bearer" if draft.jkt is None else "DPoP",
            "expires_in": end - now,
        }
        return body | scope_member(draft.scopes)
