# SPDX-License-Identifier: Apache-2.0
"""That no secret shows in what a tool returns or raises."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from agent_identity.session import current_credential
from agent_identity.testing.contract.driver import (
    BILLING,
    MODES,
    RULE,
    ToolCall,
    in_mode,
    kinds_of,
    run,
)
from agent_identity.testing.leaks import assert_no_leak
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.identity import AgentIdentity
    from agent_identity.testing.contract.driver import Driver


class Secrets:
    """Behaviours of the adapter contract."""

    @MODES
    @pytest.mark.parametrize("kind", ["text", "JSON", "mapping", "nested", "object"])
    def test_no_result_shows_a_secret(
        self, identity: AgentIdentity, driver: Driver, mode: str, kind: str
    ) -> None:
        tokens: list[Secret] = []

        def echo() -> Any:
            """Ask a service that echoes its request."""
            return _RESULTS[kind](_headers(tokens))

        tool = driver.make(in_mode(mode, echo), RULE)
        with identity.on_behalf_of("user:alice", purpose="p"):
            (result,) = run(driver, mode, tool, ToolCall("call_1", "echo", {}))
        assert not result.is_error
        assert tokens
        assert driver.shown
        assert_no_leak([each.reveal() for each in tokens], result.text, *driver.shown)

    @MODES
    @pytest.mark.parametrize("kind", ["text", "cause", "attribute"])
    def test_no_exception_shows_a_secret(
        self, identity: AgentIdentity, driver: Driver, mode: str, kind: str
    ) -> None:
        tokens: list[Secret] = []
        tool = driver.make(in_mode(mode, _failing(tokens, kind)), RULE)
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            raised: list[Exception] = []
            try:
                shown = [each.text for each in run(driver, mode, tool, ToolCall("1", "fail", {}))]
            except Exception as error:  # noqa: BLE001 - a framework raises the tool's own, or its own
                raised.append(error)
                shown = []
            assert kinds_of(session) == ["call.intended", "call.failed"]
        assert tokens
        assert_no_leak([each.reveal() for each in tokens], *raised, *shown, *driver.shown)


class _Service:
    """An object whose text shows what it was made of."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def __str__(self) -> str:
        return str(self._headers)


_RESULTS: Final[Mapping[str, Callable[[dict[str, str]], Any]]] = {
    "text": str,
    "JSON": json.dumps,
    "mapping": dict,
    "nested": lambda headers: {"request": [{"headers": headers}]},
    "object": _Service,
}


def _headers(tokens: list[Secret]) -> dict[str, str]:
    tokens.append(Secret(current_credential().reveal()))
    return current_credential().headers("GET", BILLING)


def _failing(tokens: list[Secret], kind: str) -> Callable[[], str]:
    def fail() -> str:
        """Fail with the request in the exception."""
        error = ValueError("the service answered 401")
        if kind == "attribute":
            error.headers = _headers(tokens)  # type: ignore[attr-defined]
        if kind == "cause":
            raise error from ValueError(str(_headers(tokens)))
        raise ValueError(str(_headers(tokens))) if kind == "text" else error

    return fail
