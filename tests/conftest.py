# SPDX-License-Identifier: Apache-2.0
"""What most tests need: an identity whose calls go the whole way, with everything in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from agent_identity import AgentIdentity
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger

BILLING = "https://billing.example"


class FakeClock:
    """Unix seconds that a test moves."""

    def __init__(self, now: float = 1_795_518_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make_identity() -> Iterator[Callable[..., AgentIdentity]]:
    made: list[AgentIdentity] = []

    def make(name: str = "invoice-bot", **parts: object) -> AgentIdentity:
        parts.setdefault("authority", Authority())
        parts.setdefault("ledger", MemoryLedger())
        identity = AgentIdentity(name, **parts)  # type: ignore[arg-type]
        made.append(identity)
        return identity

    yield make
    for identity in made:
        identity.close()


@pytest.fixture
def bot(make_identity: Callable[..., AgentIdentity]) -> AgentIdentity:
    return make_identity()
