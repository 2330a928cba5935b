# SPDX-License-Identifier: Apache-2.0
"""The versions that the adapter names as tested are those that the lock files pin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent_identity_mcp import TESTED

LOCKS = Path(__file__).parents[3] / "requirements"


@pytest.mark.parametrize("distribution", sorted(TESTED))
def test_every_locked_version_is_named_and_no_other(distribution: str) -> None:
    texts = [lock.read_text("utf-8") for lock in sorted(LOCKS.glob("mcp-*.txt"))]
    texts.append((LOCKS / "mcp.txt").read_text("utf-8"))
    found = [re.findall(rf"^{distribution}==(\S+)", text, re.MULTILINE) for text in texts]
    assert tuple(version for versions in found for version in versions) == TESTED[distribution]
