# SPDX-License-Identifier: Apache-2.0
"""The grants of a session's chain, newest first.

Each hop is made when a resource is first reached, for that resource and the scopes of the call. A parent's hop is made when a
child first needs it. Equal requests share a hop, and the request that makes a hop also records it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.credentials.cache import CacheKey
from agent_identity.credentials.root_grants import RootWanted
from agent_identity.credentials.source import Described
from agent_identity.delegation.grant import mint_child
from agent_identity.errors import DeniedError
from agent_identity.flow import Shared, append, shared
from agent_identity.provenance.records import GRANT_MADE
from agent_identity.runtime.parts import grant_details
from agent_identity.values import LOCAL

if TYPE_CHECKING:
    from agent_identity.delegation.chain import Handover
    from agent_identity.delegation.grant import Grant
    from agent_identity.flow import Flow
    from agent_identity.keys.signing import JWK
    from agent_identity.runtime.state import SessionState
    from agent_identity.values import JSON


def make_chain(
    session: SessionState, audiences: frozenset[str], scopes: frozenset[str]
) -> Flow[tuple[Grant, ...]]:
    """Make the grants of a session for some resources and scopes, or get them from the cache."""
    if session.accepted is not None:
        return _check_handover_key(session, session.accepted)
    if session.parent is None:
        key = _hop_key(session, "", audiences, scopes)
        root = yield from shared(Shared(key, lambda: _request_root(session, audiences, scopes)))
        return (root,)
    above = yield from make_chain(session.parent, audiences, scopes)
    key = _hop_key(session, above[0].hash(), audiences, scopes)
    hop = yield from shared(Shared(key, lambda: _make_hop(session, above, audiences, scopes)))
    return (hop, *above)


def share_key(
    session: SessionState, source: Described, chain: str, resource: str, scopes: frozenset[str]
) -> bytes:
    """Make the key under which a grant or credential is cached; it is dropped when the session ends."""
    key = CacheKey(
        grant_type=source.kind,
        issuer=source.issuer,
        client=source.client,
        principal=(str(session.principal), session.txn, session.id),
        chain=chain,
        resource=resource,
        audience=source.audience,
        scopes=scopes,
        details=source.details,
        parameters=source.parameters,
        binding_key=session.agent.key.thumbprint,
        policy_epoch=session.parts.policy_epoch,
    ).digest()
    session.cache_keys.add(key)
    return key


def sign_hop(
    session: SessionState,
    above: tuple[Grant, ...],
    *,
    jkt: str,
    audiences: frozenset[str],
    scopes: frozenset[str],
    expires_at: float,
    now: float,
) -> Grant:
    """Sign the grant of a child session with its parent's key, for the holder of the key `jkt`; times are Unix seconds."""
    parent = session.parent
    assert parent is not None  # noqa: S101 - only children get a hop
    return mint_child(
        parent.agent.key,
        above[0],
        agent=session.agent.uri,
        jkt=jkt,
        aud=audiences,
        scopes=scopes,
        details=grant_details(session.limits, session.parts.resources, audiences),
        task=session.task,
        now=int(now),
        expires_at=int(expires_at),
    )


def record_grant(session: SessionState, chain: tuple[Grant, ...]) -> Flow[None]:
    """Record a grant with its whole chain, and with the anchor's key that signed it: the anchor deletes old keys."""
    grant, root = chain[0], chain[-1]
    if session.anchor_key is None:
        key = yield from session.parts.anchor.key(root.kid or "")
    else:
        key = _public_members(session.anchor_key)
    yield from append(
        session.draft(
            GRANT_MADE,
            {
                "agent": grant.agent,
                "depth": grant.depth,
                "scope": [*sorted(grant.scopes)],
                "aud": [*sorted(grant.aud)],
                "expires_at": grant.exp,
                "grant_hash": grant.hash(),
                "evidence": grant.evidence,
                "anchor": root.iss,
                "anchor_key": key,
            },
            {"chain": [hop.compact for hop in chain]},
            ref=grant.jti,
        )
    )


def _public_members(jwk: JWK) -> dict[str, JSON]:
    """Copy a public key as JSON; all members that matter are text."""
    return {name: value for name, value in jwk.items() if isinstance(value, str)}


def _hop_key(
    session: SessionState, above: str, audiences: frozenset[str], scopes: frozenset[str]
) -> bytes:
    parts = session.parts
    source = Described("hop", parts.anchor.name, parts.agent.key.thumbprint)
    return share_key(session, source, above, " ".join(sorted(audiences)), scopes)


def _check_handover_key(session: SessionState, handover: Handover) -> tuple[Grant, ...]:
    """Check that this process still has the key of the grants that it accepted; it can't make others."""
    if session.agent.key.thumbprint != handover.grants[0].jkt:
        raise DeniedError(
            "key_renewed",
            "the hand-over is for the key that the agent had before this process forked",
            remedy="ask the sender for another hand-over, or configure [agent] key",
        )
    return handover.grants


def _request_root(
    session: SessionState, audiences: frozenset[str], scopes: frozenset[str]
) -> Flow[Grant]:
    parts = session.parts
    now = parts.clock()
    session.check(now)
    lifetime = min(parts.grant_lifetime, session.expires_at - now, session.proof.until - now)
    if lifetime < 1:
        raise DeniedError("session_expired", "the session ends within a second")
    grant = yield from parts.anchor.grant(
        RootWanted(
            principal=session.principal,
            subject=session.subject,
            agent=session.agent.uri,
            resources=audiences or frozenset({LOCAL}),
            scopes=scopes,
            details=grant_details(session.limits, parts.resources, audiences),
            purpose=session.purpose,
            task=session.task,
            txn=session.txn,
            max_depth=session.max_depth,
            lifetime=lifetime,
            evidence=session.evidence,
            proof_key=session.agent.proof_key,
        )
    )
    yield from record_grant(session, (grant,))
    return grant


def _make_hop(
    session: SessionState,
    above: tuple[Grant, ...],
    audiences: frozenset[str],
    scopes: frozenset[str],
) -> Flow[Grant]:
    now = session.parts.clock()
    grant = sign_hop(
        session,
        above,
        jkt=session.agent.key.thumbprint,
        audiences=audiences,
        scopes=scopes,
        expires_at=min(session.expires_at, now + session.parts.grant_lifetime),
        now=now,
    )
    yield from record_grant(session, (grant, *above))
    return grant
