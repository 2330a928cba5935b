# SPDX-License-Identifier: Apache-2.0
"""`agent-identity demo` has an MCP server beside its HTTP service, which is told by whom it is called."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from agent_identity.cli.demo import mcp
from agent_identity.cli.demo.story import run_demo


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter's entry point, also where only its source is on the path."""
    entry = EntryPoint("mcp", "agent_identity_mcp", mcp.GROUP)
    monkeypatch.setattr(mcp, "entry_points", lambda **named: [entry])


def test_the_demo_calls_its_mcp_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(tmp_path, as_json=True) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert {"call": 'send_statement("ACME", …)', "outcome": "permitted"} in told["calls"]
    (call,) = [each for each in told["trace"]["calls"] if each["tool"].endswith("send_statement")]
    assert (call["outcome"], call["labels"]) == ("completed", ["sends:external"])
    assert call["resource"].endswith("/mcp")
    assert told["ledger_ok"]


def test_its_answer_says_who_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(tmp_path, as_json=False) == 0
    told = capsys.readouterr().out
    assert "over MCP: 1680.50 to ACME, asked for alice by invoice-bot" in told
    assert mcp.MISSING not in told
