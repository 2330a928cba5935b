# SPDX-License-Identifier: Apache-2.0
"""The service on the page about FastAPI runs, and answers what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "fastapi.md"


def blocks(language: str) -> list[str]:
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return fence.findall(PAGE.read_text(encoding="utf-8"))


def test_the_service_of_the_page_answers_what_the_page_says(tmp_path: Path) -> None:
    service, attempt = blocks("python")
    (tmp_path / "service.py").write_text(service, encoding="utf-8")
    (tmp_path / "attempt.py").write_text(attempt, encoding="utf-8")
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = os.pathsep.join(str(Path(path).resolve()) for path in paths if path)
    ended = subprocess.run(
        [sys.executable, "attempt.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": absolute},
    )
    assert ended.returncode == 0, ended.stderr
    (shown,) = blocks("text")
    assert ended.stdout == shown
