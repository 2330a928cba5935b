# SPDX-License-Identifier: Apache-2.0
"""The adapter contract: what every adapter does, as tests that pytest collects in the adapter's own distribution.

    class TestMyAdapter(Contract):
        @pytest.fixture
        def driver(self, identity: AgentIdentity) -> MyDriver:
            return MyDriver(identity)

A behaviour that the framework makes impossible is set to None in the class, with a comment that says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent_identity.identity import AgentIdentity
from agent_identity.testing.contract.calls import Calls
from agent_identity.testing.contract.driver import Driver, Result, ToolCall
from agent_identity.testing.contract.records import Records
from agent_identity.testing.contract.refusals import REASON, Refusals
from agent_identity.testing.contract.secrets import Secrets
from agent_identity.values import Decision

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Contract", "Driver", "Result", "ToolCall"]


class Contract(Calls, Refusals, Records, Secrets):
    """The behaviours. A test class of an adapter inherits them, and defines the fixture `driver`."""

    @pytest.fixture
    def identity(self, tmp_path: Path) -> Iterator[AgentIdentity]:
        from agent_identity.authority import Authority  # noqa: PLC0415 - only tests that run load it
        from agent_identity.provenance.ledger import open_ledger  # noqa: PLC0415 - see above

        ledger = open_ledger("memory:", state_dir=tmp_path)
        with AgentIdentity(
            "contract-agent", authority=Authority(), ledger=ledger, policy=_policy
        ) as made:
            yield made


def _policy(request: Any) -> Decision:
    if "denied" in request.resource.properties["labels"]:
        return Decision.deny(REASON)
    return Decision.permit()
