# SPDX-License-Identifier: Apache-2.0
"""The world as a configuration says, for commands that only look at it: no session, and nothing to record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.assembly.doors import svids_of, transport_of
from agent_identity.assembly.settings import Settings
from agent_identity.config import state_directory
from agent_identity.http.surroundings import Surroundings
from agent_identity.http.world import World
from agent_identity.provenance.ledger import open_ledger

if TYPE_CHECKING:
    from agent_identity.config import Configuration

__all__ = ["world_of"]


def world_of(configuration: Configuration) -> World:
    """What answers flows of these commands. Whoever made it closes it."""
    settings = Settings.of(configuration)
    return World(
        lambda: transport_of(settings, {}),
        open_ledger("memory:", state_dir=state_directory()),  # nothing is recorded: nothing is done
        surroundings=Surroundings(svids=svids_of(configuration)),
        deadline=settings.deadline,
    )
