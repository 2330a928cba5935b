# SPDX-License-Identifier: Apache-2.0
"""A configuration file as somebody writes it, and what reading it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_identity.config import Configuration, read_configuration
from agent_identity.config.problems import InvalidConfigurationError, Problem

ISSUER = """\
[issuers.acme]
issuer = "https://idp.acme.example"
client_id = "invoice-bot"
client_key = "file:client.pem"
"""
POLICY = """\
[policy]
engine = "grants-only"
"""

Write = Callable[[str], Path]
Read = Callable[..., Configuration]
Refuse = Callable[..., tuple[Problem, ...]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "agent-identity.toml"
        file.write_text(text, encoding="utf-8")
        file.chmod(0o600)
        return file

    return write


@pytest.fixture
def read(write: Write) -> Read:
    def read(text: str, *, needs_policy: bool = False) -> Configuration:
        return read_configuration(write(_of_somebody(text)), needs_policy=needs_policy)

    return read


@pytest.fixture
def refuse(read: Read) -> Refuse:
    """Read what can't be read, and give the problems."""

    def refuse(text: str, *, needs_policy: bool = False) -> tuple[Problem, ...]:
        with pytest.raises(InvalidConfigurationError) as caught:
            read(text, needs_policy=needs_policy)
        return caught.value.problems

    return refuse


@pytest.fixture
def issuer() -> str:
    return ISSUER


@pytest.fixture
def policy() -> str:
    return POLICY


def _of_somebody(text: str) -> str:
    """The file with an agent at its end, where it asks somebody and doesn't say who: lines stay what they are."""
    if re.search(r"^\[?agent\b", text, re.MULTILINE) or not re.search(
        r"^\[(issu|res)", text, re.MULTILINE
    ):
        return text
    return f'{text}\n[agent]\nname = "bot"\n'
