# SPDX-License-Identifier: Apache-2.0
"""The authority's rules for issuing: the first grant of a chain, and access tokens.

The token endpoint and the identity of this process (`own_client.py`) both call this, once they have checked the client, the
principal and the client's key.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.authority.client_proofs import SKEW
from agent_identity.authority.requests import OAuthError
from agent_identity.authority.store import ended
from agent_identity.authority.subjects import TRIGGER
from agent_identity.authority.tokens import LIFETIME, TokenDraft, new_grant_id
from agent_identity.delegation.chain import Anchor, verify_chain
from agent_identity.delegation.grant import MAX_HOPS, mint_root, signing_input_hash
from agent_identity.errors import VerificationError
from agent_identity.values import LOCAL, is_line

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from agent_identity.authority.clients import ClientRecord
    from agent_identity.authority.keyring import Keyring
    from agent_identity.authority.store import Store
    from agent_identity.authority.subjects import Subject
    from agent_identity.authority.tokens import Tokens
    from agent_identity.delegation.details import Details
    from agent_identity.delegation.grant import Grant

GRANT_LIFETIME: Final = 900
"""Seconds a grant lives, at most."""

_DEPTH: Final = 3
_PHRASE_LIMIT: Final = 200
_RESOURCE_LIMIT: Final = 2048


class GrantRequest(NamedTuple):
    """A request for the first grant of a chain. `lifetime` is in seconds; None is the authority's default."""

    resources: Sequence[str]
    scopes: frozenset[str]
    jkt: str
    purpose: str | None
    task: str | None = None
    max_depth: int | None = None
    lifetime: int | None = None
    details: Details | None = None


class AccessToken(NamedTuple):
    """An issued access token. Times are Unix seconds."""

    compact: str
    jti: str
    scopes: frozenset[str]
    issued_at: int
    expires_at: int
    is_bound: bool = True


class Issuance:
    """Issues grants and access tokens. Each calls `count` with its kind: `grant` or `access_token`."""

    def __init__(
        self,
        issuer: str,
        keyring: Keyring,
        tokens: Tokens,
        store: Store,
        count: Callable[[str], None],
    ) -> None:
        self._issuer = issuer
        self._keyring = keyring
        self._tokens = tokens
        self._store = store
        self._count = count

    def check_client(self, client: ClientRecord, now: float) -> None:
        """Refuse a client that is revoked, or whose agent is.

        Raises:
            OAuthError: `invalid_grant`.
        """
        if self._store.is_revoked((client.client_id, client.agent), now):
            raise OAuthError("invalid_grant", "client_revoked")

    def grant(
        self, client: ClientRecord, subject: Subject, request: GrantRequest, now: int
    ) -> Grant:
        """Sign the first grant of a chain, for the client's agent.

        Raises:
            OAuthError: the request is refused.
        """
        self._check_revoked(client, subject, now)
        scopes = _check_scopes(request.scopes, client.terms.scopes, subject.scopes)
        purpose = _check_phrase("purpose", request.purpose)
        if purpose is None:
            raise OAuthError("invalid_request", "purpose_missing")
        key = self._keyring.signing
        try:
            grant = mint_root(
                key,
                key.thumbprint,
                iss=self._issuer,
                principal_sub=subject.sub,
                sub_iss=self._sub_iss(subject, client),
                sub_profile=subject.profile,
                agent=client.agent,
                jkt=request.jkt,
                aud=_check_resources(request.resources, client),
                scopes=scopes,
                details=request.details,
                purpose=purpose,
                task=_check_phrase("task", request.task),
                txn=subject.txn,
                now=now,
                expires_at=min(
                    subject.exp, now + min(request.lifetime or GRANT_LIFETIME, GRANT_LIFETIME)
                ),
                max_depth=_check_depth(request.max_depth, client),
                evidence="agent" if subject.profile == TRIGGER else "issuer",
                jti=new_grant_id(client.client_id),
            )
        except VerificationError as error:  # it would be larger than verifiers accept
            raise OAuthError("invalid_request", error.code) from None
        self._count("grant")
        return grant

    def access_token(
        self,
        client: ClientRecord,
        subject: Subject,
        grants: Sequence[Grant],
        resources: Sequence[str],
        scopes: frozenset[str],
        *,
        jkt: str,
        now: float,
    ) -> AccessToken:
        """Issue an access token to the holder of a verified chain, newest grant first, bound to the holder's key `jkt`.

        Raises:
            OAuthError: the request is refused.
        """
        self._check_chain(grants, client, subject)
        self._check_revoked(client, subject, now, grants)
        leaf = grants[0]
        if not hmac.compare_digest(leaf.jkt.encode(), jkt.encode()):
            raise OAuthError("invalid_grant", "key_mismatch")
        resource = _check_one_resource(resources, client)
        if resource not in leaf.aud:
            raise OAuthError("invalid_target", "resource_not_granted")
        scopes = _check_scopes(scopes, leaf.scopes, client.terms.scopes, subject.scopes)
        issued_at = int(now)
        end = min(leaf.exp, subject.exp, issued_at + LIFETIME)
        if end <= now:
            raise OAuthError("invalid_grant", "expired")
        draft = TokenDraft(
            sub=leaf.sub,
            sub_profile=leaf.sub_profile,
            resource=resource,
            client_id=client.client_id,
            scopes=scopes,
            txn=leaf.txn,
            act=leaf.act,
            jkt=leaf.jkt,
        )
        sources = [
            ref for grant in grants for ref in (grant.jti, signing_input_hash(grant.compact))
        ]
        return self._mint(draft, sources, issued_at, end)

    def client_token(
        self,
        client: ClientRecord,
        resources: Sequence[str],
        scopes: frozenset[str],
        *,
        jkt: str | None,
        now: int,
    ) -> AccessToken:
        """Issue an access token to a client in its own name (RFC 6749 §4.4).

        Raises:
            OAuthError: the request is refused.
        """
        draft = TokenDraft(
            sub=client.client_id,
            sub_profile="ai_agent",
            resource=_check_one_resource(resources, client),
            client_id=client.client_id,
            scopes=_check_scopes(scopes, client.terms.scopes),
            jkt=jkt,
        )
        # The token doesn't name the agent; as a source of it, the agent's revocation still ends it.
        return self._mint(draft, (client.agent,), now, now + LIFETIME)

    def _mint(
        self, draft: TokenDraft, sources: Sequence[str], issued_at: int, end: int
    ) -> AccessToken:
        self._store.add_sources(draft.jti, sources, issued_at, end + int(SKEW) + 1)
        compact = self._tokens.mint(draft, now=issued_at, expires_at=end)
        self._count("access_token")
        return AccessToken(
            compact, draft.jti, draft.scopes, issued_at, end, is_bound=draft.jkt is not None
        )

    def _check_revoked(
        self, client: ClientRecord, subject: Subject, now: float, grants: Sequence[Grant] = ()
    ) -> None:
        """Check client, principal and chain against the revocations, which are read once for all of them."""
        own = (client.client_id, client.agent)
        refs = {*subject.refs, *(ref for grant in grants for ref in _refs(grant))}
        revoked = self._store.revoked({*own, *refs})
        if not revoked:
            return
        if ended(revoked, own, now):
            raise OAuthError("invalid_grant", "client_revoked")
        if ended(revoked, refs, min([subject.iat, *(grant.iat for grant in grants)])):
            raise OAuthError("invalid_grant", "revoked")

    def verify_chain(self, chain: Sequence[str], now: float) -> Sequence[Grant]:
        """Verify a chain of this authority (compact grants, newest first).

        Raises:
            OAuthError: `invalid_grant`.
        """
        anchor = Anchor(self._issuer, self._keyring.jwks, evidence="issuer")
        try:
            return verify_chain(chain, (anchor,), now=now, skew=SKEW)
        except VerificationError as error:
            raise OAuthError("invalid_grant", error.code) from None

    def _check_chain(self, grants: Sequence[Grant], client: ClientRecord, subject: Subject) -> None:
        """Check that a chain is this authority's, and belongs to the principal and the client."""
        leaf, root = grants[0], grants[-1]
        if root.iss != self._issuer:
            raise OAuthError("invalid_grant", "issuer_mismatch")
        expected = (subject.sub, subject.profile, subject.txn, self._sub_iss(subject, client))
        if (leaf.sub, leaf.sub_profile, leaf.txn, leaf.sub_iss) != expected:
            raise OAuthError("invalid_grant", "subject_mismatch")
        if root.agent != client.agent:
            raise OAuthError("invalid_grant", "client_mismatch")

    def _sub_iss(self, subject: Subject, client: ClientRecord) -> str:
        return client.agent if subject.profile == TRIGGER else subject.iss or self._issuer


def _check_resources(resources: Sequence[str], client: ClientRecord) -> tuple[str, ...]:
    """Check the resources that a grant is for; at least one."""
    if not resources:
        raise OAuthError("invalid_target", "resource_missing")
    for resource in resources:
        _check_resource(resource, client)
    return tuple(resources)


def _check_one_resource(resources: Sequence[str], client: ClientRecord) -> str:
    """Check that an access token is for exactly one resource, and return it (RFC 8707 §2)."""
    if len(resources) != 1:
        raise OAuthError("invalid_target", "resource_missing")
    if resources[0] == LOCAL:
        raise OAuthError("invalid_target", "resource_local")
    _check_resource(resources[0], client)
    return resources[0]


def _check_resource(resource: str, client: ClientRecord) -> None:
    """Refuse a resource that isn't an absolute URI without fragment, or isn't in the client's terms."""
    scheme, colon, rest = resource.partition(":")
    plain = resource.isascii() and resource.isprintable() and not set(' "#<>\\') & set(resource)
    if not (colon and rest and plain and scheme[:1].isalpha() and len(resource) <= _RESOURCE_LIMIT):
        raise OAuthError("invalid_target", "resource_malformed")
    allowed = client.terms.resources
    if allowed is not None and resource != LOCAL and resource not in allowed:
        raise OAuthError("invalid_target", "resource_not_allowed")


def _check_scopes(requested: frozenset[str], *limits: Collection[str] | None) -> frozenset[str]:
    """Check that each of `limits` contains the requested scopes; None doesn't limit them."""
    if any(limit is not None and not requested.issubset(limit) for limit in limits):
        raise OAuthError("invalid_scope", "scope_widened")
    return requested


def _check_phrase(name: str, value: str | None) -> str | None:
    """Check a short text for people: one line, so that no control character gets into a grant."""
    if value is not None and (len(value) > _PHRASE_LIMIT or not is_line(value)):
        raise OAuthError("invalid_request", f"{name}_malformed")
    return value


def _check_depth(requested: int | None, client: ClientRecord) -> int:
    """Check how many delegations may follow: as requested or the default, and at most the client's terms."""
    most = min(client.terms.max_depth, MAX_HOPS)
    if requested is not None and requested > most:
        raise OAuthError("invalid_request", "max_depth_widened")
    return min(_DEPTH, most) if requested is None else requested


def _refs(grant: Grant) -> tuple[str, ...]:
    """What a hop may be revoked by: its own id and hash, its agent, and that agent's instance."""
    return (grant.jti, signing_input_hash(grant.compact), grant.agent, grant.jkt)
