# SPDX-License-Identifier: Apache-2.0
"""How a session reaches a resource: a grant for every hop down to it, then the credential that its own hop earns.

Grants are made when a resource is first reached, for that resource and the scopes of the call, root first; a parent's hop
is made when a child first needs it. Everything is shared by who asks for the same, and recorded by whoever fetched it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from agent_identity.credentials.cache import CacheKey, fresh_until
from agent_identity.credentials.hop0 import first_grant
from agent_identity.credentials.token_exchange import exchange_token
from agent_identity.delegation.assertion import Statement
from agent_identity.delegation.carriers import join_chain
from agent_identity.delegation.grant import Grant, mint_child
from agent_identity.errors import ConfigurationError, DeniedError
from agent_identity.flow import Draft, Shared, append, shared
from agent_identity.provenance.records import CREDENTIAL_ACQUIRED, GRANT_MADE
from agent_identity.values import LOCAL

if TYPE_CHECKING:
    from agent_identity.credentials.oauth import Issued
    from agent_identity.credentials.proofs import ProofKey
    from agent_identity.flow import Flow
    from agent_identity.http.credential import Credential
    from agent_identity.pipeline import Call
    from agent_identity.session import Session

__all__ = ["Reach", "reach"]


class Reach:
    """What a session needs to call one resource with certain scopes, until `fresh_until` (Unix seconds)."""

    __slots__ = (
        *("chain", "delegation", "fresh_until", "grant_hash", "issued", "leaf", "resource"),
        *("_fresh_monotonic", "proof_key", "scopes", "statement"),
    )

    def __init__(
        self,
        session: Session,
        resource: str,
        scopes: frozenset[str],
        chain: tuple[Grant, ...],
        issued: Issued | None,
    ) -> None:
        self.resource = resource
        self.scopes = scopes
        self.chain = chain
        self.leaf: Grant = chain[0]
        self.issued = issued
        self.grant_hash: str = self.leaf.hash()
        self.delegation: str = join_chain([grant.compact for grant in chain])
        self.statement: Statement = Statement(session.agent.key, self.leaf, resource)
        ends = [fresh_until(grant) for grant in chain]
        if issued is not None:
            ends.append(fresh_until(issued))
        self.fresh_until: float = min(ends)
        self._fresh_monotonic = time.monotonic() + self.fresh_until - session.parts.clock()
        self.proof_key: ProofKey = session.agent.proof_key

    def is_fresh(self, now: float) -> bool:
        """Whether it serves at `now`; it ends by the wall clock or by the monotonic one, whichever comes first."""
        return now < self.fresh_until and time.monotonic() < self._fresh_monotonic

    def credential(self, session: Session, call: Call | None) -> Credential:
        """The credential as a tool is handed it; with a call, it asserts that call on every request.

        Raises:
            ConfigurationError: what is reached is local and has no credential.
        """
        from agent_identity.http.credential import Credential  # noqa: PLC0415 - httpx loads on first use

        if self.issued is None:
            raise ConfigurationError("no_resource", "a local tool has no credential")
        parts = session.parts
        return Credential(
            self.issued,
            proof_key=self.proof_key,
            nonces=parts.issuer.nonces,
            delegation=self.delegation,
            statement=None if call is None else self.statement,
            facts=None if call is None else call.facts,
            numbers=None if call is None else call.numbers,
            check=lambda: self._check_use(session, call),
            clock=parts.clock,
        )

    def _check_use(self, session: Session, call: Call | None) -> None:
        session.check(session.parts.clock())
        if call is not None:
            call.check_running()
        if session.agent.proof_key is not self.proof_key:
            raise DeniedError(
                "key_renewed", "the agent has another key in this process since it forked"
            )


def reach(session: Session, resource: str, scopes: frozenset[str]) -> Flow[Reach]:
    """Get all that a call to `resource` needs; a local resource needs no credential.

    Raises:
        CredentialError: an issuer refused or could not be reached.
        LedgerError: what was issued could not be recorded, so it isn't used.
    """
    audiences = session.limits.resources or frozenset({resource} - {LOCAL})
    chain = yield from _chain(session, audiences, scopes)
    issued = None
    if resource != LOCAL:
        key = _key(session, "token-exchange", chain[0].hash(), resource, scopes)
        issued = yield from shared(Shared(key, lambda: _exchange(session, chain, resource, scopes)))
    return Reach(session, resource, scopes, chain, issued)


def _key(
    session: Session, grant_type: str, chain: str, resource: str, scopes: frozenset[str]
) -> bytes:
    parts = session.parts
    key = CacheKey(
        grant_type=grant_type,
        issuer=parts.issuer.url,
        client=parts.agent.key.thumbprint,
        principal=(str(session.principal), session.txn, session.id),
        chain=chain,
        resource=resource,
        audience="",
        scopes=scopes,
        details="",
        binding_key=session.agent.key.thumbprint,
        policy_epoch=parts.policy_epoch,
    ).digest()
    session.cache_keys.add(key)  # dropped when the session ends: nobody else can ask by this key
    return key


def _chain(
    session: Session, audiences: frozenset[str], scopes: frozenset[str]
) -> Flow[tuple[Grant, ...]]:
    place = " ".join(sorted(audiences))
    if session.parent is None:
        key = _key(session, "hop-0", "", place, scopes)
        root = yield from shared(Shared(key, lambda: _root(session, audiences, scopes)))
        return (root,)
    above = yield from _chain(session.parent, audiences, scopes)
    key = _key(session, "hop", above[0].hash(), place, scopes)
    hop = yield from shared(Shared(key, lambda: _child(session, above, audiences, scopes)))
    return (hop, *above)


def _root(session: Session, audiences: frozenset[str], scopes: frozenset[str]) -> Flow[Grant]:
    parts = session.parts
    endpoints = yield from parts.issuer.endpoints()
    client = yield from parts.issuer.client()
    now = parts.clock()
    session.check(now)
    if session.expires_at - now < 1:
        raise DeniedError("session_expired", "the session ends within a second")
    grant = yield from first_grant(
        endpoints,
        client,
        subject=parts.issuer.subject(
            client, session.principal, txn=session.txn, expires_at=session.expires_at
        ),
        principal=session.principal,
        agent=session.agent.uri,
        resources=audiences or {LOCAL},
        scopes=scopes,
        purpose=session.purpose,
        task=session.task,
        txn=session.txn,
        max_depth=session.max_depth,
        lifetime=min(parts.grant_lifetime, session.expires_at - now),
        proof_key=session.agent.proof_key,
        nonces=parts.issuer.nonces,
        clock=parts.clock,
    )
    yield from append((yield from _grant_draft(session, (grant,))))
    return grant


def _child(
    session: Session,
    above: tuple[Grant, ...],
    audiences: frozenset[str],
    scopes: frozenset[str],
) -> Flow[Grant]:
    parent = session.parent
    assert parent is not None  # noqa: S101 - `_chain` asks for a child's hop only below a parent
    now = session.parts.clock()
    grant = mint_child(
        parent.agent.key,
        above[0],
        agent=session.agent.uri,
        jkt=session.agent.key.thumbprint,
        aud=audiences,
        scopes=scopes,
        task=session.task,
        now=int(now),
        expires_at=int(min(session.expires_at, now + session.parts.grant_lifetime)),
    )
    yield from append((yield from _grant_draft(session, (grant, *above))))
    return grant


def _exchange(
    session: Session, chain: tuple[Grant, ...], resource: str, scopes: frozenset[str]
) -> Flow[Issued]:
    parts = session.parts
    endpoints = yield from parts.issuer.endpoints()
    client = yield from parts.issuer.client()
    session.check(parts.clock())
    issued = yield from exchange_token(
        endpoints,
        client,
        subject=parts.issuer.subject(
            client, session.principal, txn=session.txn, expires_at=session.expires_at
        ),
        chain=chain,
        resource=resource,
        scopes=scopes,
        proof_key=session.agent.proof_key,
        nonces=parts.issuer.nonces,
        clock=parts.clock,
    )
    yield from append(
        Draft(
            CREDENTIAL_ACQUIRED,
            session.pseudonym,
            session.id,
            None,
            None,
            None,
            issued.jti,
            {
                "resource": resource,
                "issuer": issued.issuer,
                "scope": [*sorted(issued.scopes)],
                "token_type": issued.token_type,
                "expires_at": int(issued.expires_at),
                "bound": issued.token_type == "DPoP",  # noqa: S105 - a type
            },
            None,
        )
    )
    return issued


def _grant_draft(session: Session, chain: tuple[Grant, ...]) -> Flow[Draft]:
    grant, root = chain[0], chain[-1]
    # The anchor's key is kept as it was used: the anchor itself forgets it, long before anybody asks.
    key = yield from session.parts.issuer.key(root.kid or "")
    return Draft(
        GRANT_MADE,
        session.pseudonym,
        session.id,
        None,
        None,
        None,
        grant.jti,
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
        {"grant": grant.compact, "chain": [hop.compact for hop in chain]},
    )
