# SPDX-License-Identifier: Apache-2.0
"""The world as a configuration says, for commands that only look at it: no session, and nothing to record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.config import state_directory, workload_api
from agent_identity.http.surroundings import Surroundings
from agent_identity.http.transport import Transport
from agent_identity.http.world import World
from agent_identity.provenance.ledger import open_ledger

if TYPE_CHECKING:
    from agent_identity.config import Configuration
    from agent_identity.http.surroundings import Svids

__all__ = ["world_of"]


def world_of(configuration: Configuration) -> World:
    """What answers flows of these commands. Whoever made it closes it."""
    return World(
        lambda: Transport(
            body_limit=configuration.http.body_limit,
            allow_private=frozenset(configuration.http.allow_private),
            authorities=configuration.http.ca,
        ),
        open_ledger("memory:", state_dir=state_directory()),  # nothing is recorded: nothing is done
        surroundings=Surroundings(svids=_svids(configuration)),
        deadline=configuration.http.deadline,
    )


def _svids(configuration: Configuration) -> Svids | None:
    address = workload_api(configuration.spiffe.socket)
    if address is None:
        return None
    from agent_identity.http.svids import WorkloadApi  # noqa: PLC0415 - for those who have one

    return WorkloadApi(address, trust_domain=configuration.spiffe.trust_domain)
