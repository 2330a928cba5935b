# SPDX-License-Identifier: Apache-2.0
"""The programs of the page and of the README run as they are, against a server of the installed generation."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from agent_identity import AgentIdentity
from agent_identity_mcp import connect

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "how-to" / "mcp.md"
README = Path(__file__).parents[1] / "README.md"
HERE = Path(__file__).parent


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def run(block: str, **replaced: str) -> dict[str, Any]:
    for old, new in replaced.values():
        assert old in block
        block = block.replace(old, new)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102 - the page's own block
    return names


def test_the_page_connects_over_http(billing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    billing.verifier = None  # of another identity
    run(blocks(PAGE)[0], url=("https://billing.example/mcp", billing.url))
    told = capsys.readouterr().out
    assert told.startswith("['fail', 'list_invoices', 'wait']\n10 invoices of ACME\n")
    assert "alice" in told
    (call,) = billing.calls()
    assert call.token


def test_the_page_guards_a_stdio_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(HERE / "stdio_server.py", tmp_path / "server.py")
    run(blocks(PAGE)[1], python=('command="python"', f'command="{sys.executable}"'))
    assert capsys.readouterr().out == "written\n"
    assert "dev.agent-identity/assertion" in (tmp_path / "notes.txt").read_text()


async def test_the_rules_of_the_page_are_rules(identity: AgentIdentity, billing: Any) -> None:
    rules = run(blocks(PAGE)[2])["rules"]
    async with connect(billing.url, identity=identity, rules=rules):
        pass


def test_the_readmes_program_calls_a_tool(billing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    billing.verifier = None
    (block,) = blocks(README)
    assert len([line for line in block.splitlines() if line]) == 10
    run(block, url=("https://billing.example/mcp", billing.url))
    assert "10 invoices of ACME" in capsys.readouterr().out
