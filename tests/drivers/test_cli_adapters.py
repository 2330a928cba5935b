# SPDX-License-Identifier: Apache-2.0
"""`agent-identity adapters`, with distributions in a folder as pip would install them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent_identity.cli.app import app

CODE = {
    "good": 'TESTED = {"pytest": ("8.4.0", "9.0.0"), "framework-of-nobody": ("1.0",)}',
    "bare": "",
    "broken": "import framework_of_nobody",
    "malformed": 'TESTED = {"pytest": "8.4.0"}',
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in CODE.items():
        (tmp_path / f"adapter_{name}.py").write_text(code)
        info = tmp_path / f"adapter_{name}-0.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: adapter-{name}\nVersion: 0.3\n"
        )
        (info / "entry_points.txt").write_text(
            f"[agent_identity.adapters]\n{name} = adapter_{name}\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    for name in CODE:
        monkeypatch.delitem(sys.modules, f"adapter_{name}", raising=False)


def rows() -> dict[str, Any]:
    done = CliRunner().invoke(app, ["adapters", "--json"])
    assert done.exit_code == 0
    return {row["name"]: row for row in json.loads(done.stdout)["adapters"]}


def test_an_adapter_is_listed_with_its_framework_and_the_tested_versions(installed: None) -> None:
    found = rows()
    assert found["good"] == {
        "name": "good",
        "distribution": "adapter-good",
        "version": "0.3",
        "frameworks": [
            {"distribution": "pytest", "version": pytest.__version__, "tested": ["8.4.0", "9.0.0"]},
            {"distribution": "framework-of-nobody", "version": None, "tested": ["1.0"]},
        ],
        "error": None,
    }
    assert (found["bare"]["frameworks"], found["bare"]["error"]) == ([], None)


def test_a_broken_adapter_is_a_row_with_its_error(installed: None) -> None:
    found = rows()
    assert found["broken"]["version"] == "0.3"
    assert found["broken"]["error"].startswith("ModuleNotFoundError: ")
    assert "TESTED" in found["malformed"]["error"]


def test_the_text_says_the_same(installed: None) -> None:
    done = CliRunner().invoke(app, ["adapters"])
    assert done.exit_code == 0
    assert f"good: adapter-good 0.3\n  pytest {pytest.__version__}; tested with 8.4.0, 9.0.0\n" in (
        done.stdout
    )
    assert "  framework-of-nobody is not installed; tested with 1.0\n" in done.stdout
    assert "broken: adapter-broken 0.3\n  can't be loaded: ModuleNotFoundError" in done.stdout


def test_without_adapters_the_list_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_identity.cli.adapters.GROUP", "agent_identity.none")
    assert CliRunner().invoke(app, ["adapters"]).stdout == "no adapter is installed\n"
    assert json.loads(CliRunner().invoke(app, ["adapters", "--json"]).stdout) == {"adapters": []}
