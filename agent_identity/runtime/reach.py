# SPDX-License-Identifier: Apache-2.0
"""What a session needs to reach one resource: the grants of its chain, and the credential."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from agent_identity.credentials.cache import fresh_until
from agent_identity.delegation.assertion import Statement
from agent_identity.delegation.carriers import join_chain
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.oauth.dpop import ProofKey
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.delegation.grant import Grant
    from agent_identity.http.credential import Ready
    from agent_identity.runtime.parts import Resource


class Reach:
    """The grants and the credential for one resource with certain scopes, until `fresh_until` (Unix seconds).

    `place` is the resource's configuration, None for a local resource, which needs no credential. `key` is the cache key of the
    credential. `is_per_call` is True if each call adds a transaction token. `proven_until` is when the proof of the principal
    ends, `now` the time.
    """

    __slots__ = (
        *("chain", "delegation", "fresh_until", "grant_hash", "is_per_call", "issued", "key"),
        *("_fresh_monotonic", "leaf", "place", "proof_key", "resource", "scopes", "statement"),
    )

    def __init__(
        self,
        agent: Agent,
        resource: str,
        scopes: frozenset[str],
        chain: tuple[Grant, ...],
        place: Resource | None,
        issued: Issued | None,
        key: bytes | None,
        *,
        proven_until: float,
        now: float,
        header_limit: int,
    ) -> None:
        self.resource = resource
        self.scopes = scopes
        self.chain = chain
        self.leaf: Grant = chain[0]
        self.place = place
        self.issued = issued
        self.key = key
        self.is_per_call: bool = place is not None and place.transaction is not None
        self.grant_hash: str = self.leaf.hash()
        self.delegation: str = join_chain([grant.compact for grant in chain], limit=header_limit)
        self.statement: Statement = Statement(agent.key, self.leaf, resource)
        ends = [proven_until, *[fresh_until(grant) for grant in chain]]
        if issued is not None:
            ends.append(fresh_until(issued))
        self.fresh_until: float = min(ends)
        self._fresh_monotonic = time.monotonic() + self.fresh_until - now
        self.proof_key: ProofKey = agent.proof_key

    def is_fresh(self, now: float) -> bool:
        """Whether it is still fresh at `now`, by both the wall clock and the monotonic clock."""
        return now < self.fresh_until and time.monotonic() < self._fresh_monotonic

    def ready(self, *, with_call: bool) -> Ready:
        """The parts of a `Credential`.

        Raises:
            ConfigurationError: a local tool has no credential.
        """
        from agent_identity.http.credential import Ready  # noqa: PLC0415 - httpx loads on first use

        if self.issued is None or self.place is None:
            raise ConfigurationError("no_resource", "a local tool has no credential")
        shows = self.place.sends_assertion
        return Ready(
            self.issued,
            self.delegation if shows else None,
            self.statement if shows and with_call else None,
        )
