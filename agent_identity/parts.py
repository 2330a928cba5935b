# SPDX-License-Identifier: Apache-2.0
"""What an identity's sessions share, and the gate that keeps calls out while the ledger can't be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.issuer import Issuer
    from agent_identity.http.world import World
    from agent_identity.policy import Policy, Request
    from agent_identity.provenance.ledger import Ledger
    from agent_identity.values import Decision

__all__ = ["Gate", "Parts"]


class Gate:
    """Shut while the ledger can't be written: an outcome is missing from it, and no further call begins."""

    __slots__ = ("_is_shut", "_ledger")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_shut = False

    def shut(self) -> None:
        self._is_shut = True

    def check(self) -> None:
        """Pass, or try the ledger once more.

        Raises:
            LedgerError: it still can't be written.
        """
        if self._is_shut:
            self._ledger.probe()
            self._is_shut = False


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one identity.

    `policy_now` is the policy as a plain function, None where it has to be asked of somebody; `resources` maps a resource to the most scopes that may be asked for there.
    """

    agent: Agent
    issuer: Issuer
    policy: Policy
    policy_now: Callable[[Request], Decision] | None
    world: World
    ledger: Ledger
    gate: Gate
    resources: Mapping[str, frozenset[str]] | None
    clock: Callable[[], float]
    grant_lifetime: float = 900.0
    policy_epoch: int = 0
