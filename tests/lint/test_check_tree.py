# SPDX-License-Identifier: Apache-2.0
"""That the tree's own linter sees what it is for."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import pytest

LINTER = runpy.run_path(str(Path(__file__).with_name("check_tree.py")))
SPDX = "# SPDX-License-Identifier: Apache-2.0\n"
HOME = "/" + "root/"
CORE = "agent_identity/policy/rules.py"


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("tests/a.py", "import os\n", "SPDX"),
        ("docs/a.md", f"see {HOME}notes", "one machine"),
        (CORE, f'{SPDX}PLACE = "{HOME}x"\n', "one machine"),
        ("requirements/core.txt", "--index-url https://mirror.example/simple\n", "a host"),
        (CORE, f'{SPDX}db.execute("BEGIN")\n', "IMMEDIATE"),
        (CORE, f'{SPDX}db.execute("BEGIN DEFERRED TRANSACTION")\n', "IMMEDIATE"),
        (CORE, f"{SPDX}ok = token == other\n", "compare_digest"),
        (CORE, f"{SPDX}ok = self.dpop_nonce != sent\n", "compare_digest"),
        (CORE, f"{SPDX}import json\njson.loads(data)\n", "jose.loads"),
        (CORE, f"{SPDX}def f():\n    import httpx\n", "httpx"),
        (CORE, f"{SPDX}from httpx import Client\n", "httpx"),
        ("tests/unit/a.py", f"{SPDX}assert time.monotonic() - began < 1\n", "how long"),
        ("tests/unit/a.py", f"{SPDX}assert 0.3 < took < 1.5\n", "how long"),
    ],
)
def test_what_is_forbidden_is_found(name: str, text: str, what: str) -> None:
    found = list(LINTER["findings"](name, text.encode()))
    assert [what in said for _, said in found] == [True]
    assert found[0][0] <= text.count("\n") + 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (CORE, f'{SPDX}db.execute("BEGIN IMMEDIATE")\n'),
        (CORE, f'{SPDX}"-----BEGIN PRIVATE KEY-----"\n'),
        (CORE, f'{SPDX}ok = token_type == "DPoP" and token == ""\n'),
        (CORE, f"{SPDX}ok = answer.token is None or issued_token_type != ACCESS_TOKEN\n"),
        (CORE, f"{SPDX}from agent_identity import jose\njose.loads(data)\n"),
        (CORE, f"{SPDX}if TYPE_CHECKING:\n    import httpx\n"),
        ("agent_identity/http/transport.py", f"{SPDX}import httpx\n"),
        ("tests/unit/a.py", f"{SPDX}import json, httpx\njson.loads(data)\n"),
        ("tests/unit/a.py", f"{SPDX}assert token.expires_at <= time.time() + 301\n"),
        ("docs/a.md", "https://example.com/work/1 and a/work/b"),
    ],
)
def test_what_is_allowed_is_left_alone(name: str, text: str) -> None:
    assert list(LINTER["findings"](name, text.encode())) == []


def test_it_looks_at_every_file_that_git_has_or_would_add(tmp_path: Path, capsys) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    for name in ("kept.py", "new.py", "ignored.py"):
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    git("add", "kept.py")
    assert LINTER["main"](tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name}:1: the first line is no SPDX line" for name in ("kept.py", "new.py")]
    for name in ("kept.py", "new.py"):
        (tmp_path / name).write_text(SPDX)
    assert LINTER["main"](tmp_path) == 0
