# SPDX-License-Identifier: Apache-2.0
"""The programs of docs/how-to/mcp-sign-in.md run as they are, against the authorization server of the mcp package."""

from __future__ import annotations

import re
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_identity_mcp.generations import IS_SECOND, http

from .example_issuer import SCOPE, ExampleProvider

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "mcp-sign-in.md"
SERVER = "https://billing.example/mcp"


def blocks(language: str) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def sign_in(url: str) -> bool:
    """What the person's browser does."""
    with http.Client(trust_env=False) as browser:
        answer = browser.get(url)
        browser.get(answer.headers["location"])
    return True


def test_the_page_has_a_person_sign_in(
    reference: Callable[[], Any],
    provider: ExampleProvider,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(webbrowser, "open", sign_in)
    watched = reference()
    exec(blocks("python")[0].replace(SERVER, watched.url), {})  # noqa: S102 - the page's own block
    assert capsys.readouterr().out == "invoices of ACME\n"
    assert [request.scopes for request in provider.requests] == [[SCOPE]]


@pytest.mark.skipif(not IS_SECOND, reason="the block is for mcp 2")
def test_the_page_authorizes_a_connection_of_its_own(
    reference: Callable[[], Any],
    provider: ExampleProvider,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from agent_identity import AgentIdentity

    watched = reference()
    file = Path("agent-identity.toml")
    file.write_text(blocks("toml")[0].replace(SERVER, watched.url))
    file.chmod(0o600)
    read = AgentIdentity.from_config
    monkeypatch.setattr(
        AgentIdentity,
        "from_config",
        lambda path: read(
            path, ledger="memory:", on_interaction=lambda p: sign_in(p.authorization_url)
        ),
    )
    exec(blocks("python")[1].replace(SERVER, watched.url), {})  # noqa: S102 - the page's own block
    assert capsys.readouterr().out == "invoices of ACME\n"
    # the issuer reads no metadata documents, so the agent registered; and it asks for one of the configured scopes
    assert list(provider.clients) != ["https://agents.example/invoice-bot.json"]
    assert [request.scopes for request in provider.requests] == [[SCOPE]]
