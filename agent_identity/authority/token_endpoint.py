# SPDX-License-Identifier: Apache-2.0
"""The token endpoint: who asks, with which key, for which grant. One order for all of them.

The client proves itself, then its proof of possession is looked at, then what was revoked, then the grant. Each step
refuses in its own words, and nothing is minted before the last.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.authority.authentication import SKEW
from agent_identity.authority.clients import CLIENT_CREDENTIALS, GRANT_TYPES
from agent_identity.authority.requests import OAuthError, answer, read_form, refused
from agent_identity.authority.subjects import ACCESS_TOKEN, JWT, TRIGGER
from agent_identity.authority.tokens import LIFETIME, TokenDraft, grant_id, principal_ref
from agent_identity.delegation.carriers import DELEGATION, split_chain
from agent_identity.delegation.chain import Anchor, verify_chain
from agent_identity.delegation.details import read_details
from agent_identity.delegation.grant import MAX_HOPS, mint_root, signing_input_hash
from agent_identity.errors import VerificationError
from agent_identity.forks import StillLock
from agent_identity.values import LOCAL, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from agent_identity.authority.authentication import Authenticator
    from agent_identity.authority.clients import ClientRecord
    from agent_identity.authority.dpop import Proofs
    from agent_identity.authority.keyring import Keyring
    from agent_identity.authority.requests import Asked, Form
    from agent_identity.authority.store import Store
    from agent_identity.authority.subjects import Subject, Subjects
    from agent_identity.authority.tokens import Tokens
    from agent_identity.delegation.details import Details
    from agent_identity.delegation.grant import Grant
    from agent_identity.flow import HttpResponse
    from agent_identity.values import JSON
    from agent_identity.verify.dpop import Proof

__all__ = [
    "GRANT",
    "GRANT_LIFETIME",
    "Exchange",
    "Rates",
    "TokenEndpoint",
    "allowed_scopes",
    "one_resource",
    "resources",
    "scope_member",
]


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
        tokens: Tokens,
        exchange: Exchange,
        count: Callable[[str], None],
    ) -> None:
        self._url = url
        self._authenticator = authenticator
        self._rates = rates
        self._proofs = proofs
        self._store = store
        self._tokens = tokens
        self._exchange = exchange
        self._count = count

    def answer(self, asked: Asked, now: float) -> HttpResponse:
        """Answer one token request.

        Raises:
            OAuthError: it is refused.
            CredentialError: an issuer's published keys can't be read.
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
        end = now + LIFETIME
        # The token names no agent; as a source, the agent still ends it when it is revoked.
        self._store.add_sources(draft.jti, (client.agent,), now, end + int(SKEW) + 1)
        body: dict[str, JSON] = {
            "access_token": self._tokens.mint(draft, now=now, expires_at=end),
            "token_type": "Bearer" if draft.jkt is None else "DPoP",
            "expires_in": LIFETIME,
        }
        return body | scope_member(draft.scopes)


def resources(form: Form, client: ClientRecord) -> tuple[str, ...]:
    """The resources that a grant is for; at least one."""
    if not form.resources:
        raise OAuthError("invalid_target", "resource_missing")
    for resource in form.resources:
        _check_resource(resource, client)
    return form.resources


def one_resource(form: Form, client: ClientRecord) -> str:
    """The one resource that an access token is for (RFC 8707 §2)."""
    if len(form.resources) != 1:
        raise OAuthError("invalid_target", "resource_missing")
    resource = form.resources[0]
    if resource == LOCAL:
        raise OAuthError("invalid_target", "resource_local")
    _check_resource(resource, client)
    return resource


def _check_resource(resource: str, client: ClientRecord) -> None:
    """An absolute URI without fragment, compared as it was sent, and one that the client may reach."""
    scheme, colon, rest = resource.partition(":")
    plain = resource.isascii() and resource.isprintable() and not set(' "#<>\\') & set(resource)
    if not (colon and rest and plain and scheme[:1].isalpha() and len(resource) <= 2048):  # noqa: PLR2004 - longer than any URI that a client or proxy carries
        raise OAuthError("invalid_target", "resource_malformed")
    allowed = client.terms.resources
    if allowed is not None and resource != LOCAL and resource not in allowed:
        raise OAuthError("invalid_target", "resource_not_allowed")


def allowed_scopes(asked: frozenset[str], *limits: Collection[str] | None) -> frozenset[str]:
    """The scopes as asked, if every limit has them all; a limit of None is none."""
    if any(limit is not None and not asked.issubset(limit) for limit in limits):
        raise OAuthError("invalid_scope", "scope_widened")
    return asked


def scope_member(scopes: frozenset[str]) -> dict[str, JSON]:
    """The `scope` of an answer; no scope, no member."""
    return {"scope": " ".join(sorted(scopes))} if scopes else {}


GRANT: Final = "urn:agent-identity:token-type:grant"
GRANT_LIFETIME: Final = 900
"""Seconds a grant lives, at most."""

_DEPTH: Final = 3


class Exchange:
    """The two exchanges, for a client that has proved itself."""

    def __init__(
        self, issuer: str, keyring: Keyring, tokens: Tokens, subjects: Subjects, store: Store
    ) -> None:
        self._issuer = issuer
        self._keyring = keyring
        self._tokens = tokens
        self._subjects = subjects
        self._store = store

    def answer(
        self, asked: Asked, form: Form, client: ClientRecord, proof: Proof | None, now: float
    ) -> dict[str, JSON]:
        """What the token endpoint answers.

        Raises:
            OAuthError: the request is refused.
        """
        wanted = form.optional("requested_token_type") or ACCESS_TOKEN
        is_detailed = form.optional("authorization_details") is not None
        if form.has_audience or (is_detailed and wanted != GRANT):
            raise OAuthError("invalid_request", "parameter_unsupported")
        if wanted not in {GRANT, ACCESS_TOKEN}:
            raise OAuthError("invalid_request", "requested_token_type_unsupported")
        if wanted != GRANT and client.configured is not None:
            raise OAuthError("unauthorized_client", "grants_only")
        if proof is None:
            raise OAuthError("invalid_dpop_proof", "proof_missing")
        subject = self._subject(form, client, proof, now)
        if wanted == GRANT:
            return self._grant(form, client, subject, proof, int(now))
        grants = self._chain(asked, form, client, subject, now)
        if not hmac.compare_digest(grants[0].jkt.encode(), proof.jkt.encode()):
            raise OAuthError("invalid_grant", "key_mismatch")
        return self._access_token(form, client, subject, grants, now)

    def _subject(self, form: Form, client: ClientRecord, proof: Proof, now: float) -> Subject:
        subject = self._subjects.read(
            form.text("subject_token"),
            form.text("subject_token_type"),
            client,
            jkt=proof.jkt,
            now=now,
            txn=form.optional("txn"),
        )
        if self._store.is_revoked(subject.refs, subject.iat):
            raise OAuthError("invalid_grant", "revoked")
        return subject

    def _grant(
        self, form: Form, client: ClientRecord, subject: Subject, proof: Proof, now: int
    ) -> dict[str, JSON]:
        if form.optional("actor_token") is not None:
            raise OAuthError("invalid_request", "actor_token_unsupported")
        try:
            grant = self._minted(form, client, subject, proof, now)
        except VerificationError as error:  # it would be larger than any verifier reads
            raise refused("invalid_request", error) from None
        body: dict[str, JSON] = {
            "access_token": grant.compact,
            "issued_token_type": GRANT,
            "token_type": "N_A",
            "expires_in": grant.exp - now,
        }
        return body | scope_member(grant.scopes)

    def _minted(
        self, form: Form, client: ClientRecord, subject: Subject, proof: Proof, now: int
    ) -> Grant:
        scopes = allowed_scopes(form.scopes(), client.terms.scopes, subject.scopes)
        purpose = form.phrase("purpose")
        if purpose is None:
            raise OAuthError("invalid_request", "purpose_missing")
        depth = _depth(form, client)
        lifetime = form.number("requested_expires_in", least=1) or GRANT_LIFETIME
        key = self._keyring.signing
        return mint_root(
            key,
            key.thumbprint,
            iss=self._issuer,
            principal_sub=subject.sub,
            sub_iss=self._sub_iss(subject, client),
            sub_profile=subject.profile,
            agent=client.agent,
            jkt=proof.jkt,
            aud=resources(form, client),
            scopes=scopes,
            details=_details(form),
            purpose=purpose,
            task=form.phrase("task"),
            txn=subject.txn,
            now=now,
            expires_at=min(subject.exp, now + min(lifetime, GRANT_LIFETIME)),
            max_depth=depth,
            evidence="agent" if subject.profile == TRIGGER else "issuer",
            jti=grant_id(client.client_id),
        )

    def _access_token(
        self,
        form: Form,
        client: ClientRecord,
        subject: Subject,
        grants: Sequence[Grant],
        now: float,
    ) -> dict[str, JSON]:
        leaf = grants[0]
        resource = one_resource(form, client)
        if resource not in leaf.aud:
            raise OAuthError("invalid_target", "resource_not_granted")
        scopes = allowed_scopes(form.scopes(), leaf.scopes, client.terms.scopes, subject.scopes)
        issued_at = int(now)
        end = min(leaf.exp, subject.exp, issued_at + LIFETIME)
        if end <= now:
            raise OAuthError("invalid_grant", "expired")
        jti = new_id("tok_")
        sources = [
            ref for grant in grants for ref in (grant.jti, signing_input_hash(grant.compact))
        ]
        self._store.add_sources(jti, sources, issued_at, end + int(SKEW) + 1)
        draft = TokenDraft(
            jti=jti,
            sub=leaf.sub,
            sub_profile=leaf.sub_profile,
            resource=resource,
            client_id=client.client_id,
            scopes=scopes,
            txn=leaf.txn,
            act=leaf.act,
            jkt=leaf.jkt,
        )
        body: dict[str, JSON] = {
            "access_token": self._tokens.mint(draft, now=issued_at, expires_at=end),
            "issued_token_type": ACCESS_TOKEN,
            "token_type": "DPoP",
            "expires_in": end - issued_at,
        }
        return body | scope_member(scopes)

    def _chain(
        self, asked: Asked, form: Form, client: ClientRecord, subject: Subject, now: float
    ) -> Sequence[Grant]:
        """The chain on the request, leaf first, once all of it has been checked against the subject token."""
        actor_token = form.text("actor_token")
        if form.text("actor_token_type") != JWT:
            raise OAuthError("invalid_request", "actor_token_type_unsupported")
        header = asked.headers.get(DELEGATION.lower())
        if header is None:
            raise OAuthError("invalid_request", "delegation_missing")
        anchor = Anchor(self._issuer, self._keyring.jwks, evidence="issuer")
        try:
            chain = split_chain(header)
            if chain[0] != actor_token:
                raise OAuthError("invalid_grant", "actor_token_mismatch")
            grants = verify_chain(chain, (anchor,), now=now, skew=SKEW)
        except VerificationError as error:
            raise refused("invalid_grant", error) from None
        leaf, root = grants[0], grants[-1]
        said = (subject.sub, subject.profile, subject.txn, self._sub_iss(subject, client))
        if (leaf.sub, leaf.sub_profile, leaf.txn, leaf.sub_iss) != said:
            raise OAuthError("invalid_grant", "subject_mismatch")
        if root.agent != client.agent:
            raise OAuthError("invalid_grant", "client_mismatch")
        principal = principal_ref(subject.profile, subject.sub)
        refs = {leaf.txn, principal, *(ref for grant in grants for ref in _refs(grant))}
        if self._store.is_revoked(refs, min(grant.iat for grant in grants)):
            raise OAuthError("invalid_grant", "revoked")
        return grants

    def _sub_iss(self, subject: Subject, client: ClientRecord) -> str:
        return client.agent if subject.profile == TRIGGER else subject.iss or self._issuer


def _depth(form: Form, client: ClientRecord) -> int:
    """How many delegations may follow: as asked for, or the usual, and never more than the client's terms."""
    most = min(client.terms.max_depth, MAX_HOPS)
    depth = form.number("max_depth")
    if depth is not None and depth > most:
        raise OAuthError("invalid_request", "max_depth_widened")
    return min(_DEPTH, most) if depth is None else depth


def _details(form: Form) -> Details | None:
    """The details asked for, which limit the grant further (RFC 9396 §2); a type that isn't ours is refused (§5)."""
    text = form.optional("authorization_details")
    if text is None:
        return None
    try:
        return read_details(jose.loads(text.encode()), VerificationError)
    except VerificationError as error:
        raise refused("invalid_authorization_details", error) from None


def _refs(grant: Grant) -> tuple[str, ...]:
    """All that may be revoked about a hop: itself, its agent, and that agent's instance."""
    return (grant.jti, signing_input_hash(grant.compact), grant.agent, grant.jkt)


_MINUTE: Final = 60.0


class Rates:
    """Buckets of configured clients; None is no limit. Each process counts for itself."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self._still = StillLock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def check(self, client: ClientRecord, now: float) -> None:
        """Take one request out of a client's bucket; `now` is Unix seconds.

        Raises:
            OAuthError: 429, it is empty; with the seconds until it isn't.
        """
        if self._per_minute is None or client.configured is None:
            return
        most, each = float(self._per_minute), _MINUTE / self._per_minute
        with self._still.lock:
            left, seen = self._buckets.get(client.client_id, (most, now))
            left = min(most, left + max(0.0, now - seen) / each)
            if left >= 1:
                self._buckets[client.client_id] = (left - 1, now)
                return
            self._buckets[client.client_id] = (left, now)
        wait = {"retry-after": str(int((1 - left) * each) + 1)}
        raise OAuthError("temporarily_unavailable", "rate_exceeded", status=429, headers=wait)
