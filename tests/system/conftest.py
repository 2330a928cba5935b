# SPDX-License-Identifier: Apache-2.0
"""System tests: real processes, and a skip that counts as a failure where everything has to be there.

`AGENT_IDENTITY_TESTS_REQUIRE_ALL=1` says so; CI sets it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest


def _required(report: Any) -> Any:
    asked = os.environ.get("AGENT_IDENTITY_TESTS_REQUIRE_ALL") == "1"
    if asked and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, although everything is required here: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    return _required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    return _required((yield))
