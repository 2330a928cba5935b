# SPDX-License-Identifier: Apache-2.0
"""What a skip means where everything is required."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

SUITE = {
    "test_inside.py": "import pytest\ndef test_one():\n    pytest.skip('no server')\n",
    "test_marked.py": "import pytest\n@pytest.mark.skip\ndef test_two():\n    pass\n",
    "test_module.py": "import pytest\npytest.importorskip('no_such_module')\n",
    "test_xfail.py": "import pytest\n@pytest.mark.xfail\ndef test_three():\n    assert False\n",
}


@pytest.mark.parametrize("asked", ["", "1"])
def test_a_skip_is_a_failure_only_where_everything_is_required(tmp_path: Path, asked: str) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    for name, text in SUITE.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rfEx",
            "--continue-on-collection-errors",
            tmp_path,
        ],
        env=os.environ | {"AGENT_IDENTITY_TESTS_REQUIRE_ALL": asked},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert "1 xfailed" in done.stdout
    assert (done.returncode != 0) == (asked == "1")
    for named in ("FAILED test_inside.py", "ERROR test_marked.py", "ERROR test_module.py"):
        assert (named in done.stdout) == (asked == "1"), done.stdout
