# SPDX-License-Identifier: Apache-2.0
"""The versions that the adapter names as tested are those that the lock files pin."""

from __future__ import annotations

import re
from pathlib import Path

from agent_identity_langchain import TESTED

LOCKS = Path(__file__).parents[3] / "requirements"


def test_every_locked_version_is_named_and_no_other() -> None:
    texts = [lock.read_text("utf-8") for lock in sorted(LOCKS.glob("langchain-*.txt"))]
    texts.append((LOCKS / "langchain.txt").read_text("utf-8"))
    found = [re.findall(r"^langchain==(\S+)", text, re.MULTILINE) for text in texts]
    assert tuple(version for versions in found for version in versions) == TESTED["langchain"]
