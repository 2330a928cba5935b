# SPDX-License-Identifier: Apache-2.0
"""What the page about LangChain shows as a whole program runs, and prints what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "langchain.md"


def blocks(language: str) -> list[str]:
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return fence.findall(PAGE.read_text(encoding="utf-8"))


def test_the_program_of_the_page_prints_what_the_page_says(tmp_path: Path) -> None:
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = os.pathsep.join(str(Path(path).resolve()) for path in paths if path)
    ended = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": absolute},
    )
    assert ended.returncode == 0, ended.stderr
    (shown,) = blocks("text")
    assert ended.stdout.startswith(shown)
    for word in ("alice", "close the October books", "list_invoices", "no-payments"):
        assert word in ended.stdout
