# SPDX-License-Identifier: Apache-2.0
"""When a tool does not run, and what the model is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from agent_identity.errors import ConfigurationError, DeniedError, NoSessionError, RevokedError
from agent_identity.testing.contract.driver import MODES, RULE, ToolCall, in_mode, kinds_of, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.identity import AgentIdentity
    from agent_identity.testing.contract.driver import Driver

REASON: Final = "a reason that no model may read"


class Refusals:
    """Behaviours of the adapter contract."""

    @MODES
    def test_an_undescribed_tool_is_refused(
        self, identity: AgentIdentity, driver: Driver, mode: str
    ) -> None:
        ran: list[str] = []
        with identity.on_behalf_of("user:alice", purpose="p"):
            try:
                (result,) = run(
                    driver, mode, driver.make(in_mode(mode, _noting(ran)), None), _note()
                )
            except (ConfigurationError, DeniedError) as error:
                assert error.code == "tool_undescribed"
            else:
                assert result.is_error
                assert "tool_undescribed" in result.text
        assert ran == []

    @MODES
    def test_a_refusal_is_the_frameworks_own_error_value(
        self, identity: AgentIdentity, driver: Driver, mode: str
    ) -> None:
        ran: list[str] = []
        tool = driver.make(in_mode(mode, _noting(ran)), {"labels": {"denied"}})
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            (result,) = run(driver, mode, tool, _note("an argument of the call"))
            assert kinds_of(session) == ["call.denied"]
        assert (result.tool_call_id, result.is_error) == ("call_1", True)
        assert "policy_denied" in result.text
        assert "an argument of the call" not in result.text
        assert REASON not in result.text
        assert not any(REASON in each for each in driver.shown)
        assert ran == []

    @MODES
    def test_without_a_session_no_tool_runs(self, driver: Driver, mode: str) -> None:
        ran: list[str] = []
        with pytest.raises(NoSessionError):
            run(driver, mode, driver.make(in_mode(mode, _noting(ran)), RULE), _note())
        assert ran == []

    @MODES
    def test_a_revoked_principal_is_refused(
        self, identity: AgentIdentity, driver: Driver, mode: str
    ) -> None:
        ran: list[str] = []
        tool = driver.make(in_mode(mode, _noting(ran)), RULE)
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            identity.revoke("user:alice", reason="left the company")
            try:
                (result,) = run(driver, mode, tool, _note())
            except RevokedError:
                pass
            else:
                assert result.is_error
            assert "call.intended" not in kinds_of(session)
        assert ran == []


def _noting(ran: list[str]) -> Callable[[str], str]:
    def note(text: str) -> str:
        """Note a text."""
        ran.append(text)
        return "noted"

    return note


def _note(text: str = "x") -> ToolCall:
    return ToolCall("call_1", "note", {"text": text})
