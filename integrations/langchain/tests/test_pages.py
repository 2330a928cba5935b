# SPDX-License-Identifier: Apache-2.0
"""The blocks of the pages about LangChain run as they are, with a model that follows a script."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from agent_identity_langchain import IdentityMiddleware

from .mcp_servers import Billing

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class FakeModel(GenericFakeChatModel):
    """Makes the calls of its script."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> FakeModel:
        return self


def says(*calls: tuple[str, dict[str, Any]]) -> FakeModel:
    turns = [
        AIMessage(
            "", tool_calls=[{"name": name, "args": args, "id": f"toolu_{at}", "type": "tool_call"}]
        )
        for at, (name, args) in enumerate(calls)
    ]
    return FakeModel(messages=itertools.chain(turns, itertools.repeat(AIMessage("done"))))


def blocks(page: str) -> list[str]:
    return BLOCK.findall((ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path))


LIST = ("list_invoices", {"customer": "ACME"})


def test_the_page_about_sub_agents_shows_who_called(capsys: pytest.CaptureFixture[str]) -> None:
    deep, as_tool = blocks("langchain-subagents.md")
    task = ("task", {"description": "look", "subagent_type": "researcher"})
    exec(deep, {"model": says(task, LIST)})  # noqa: S102 - the page's own block
    told = capsys.readouterr().out
    assert told.index("✔ task") < told.index("researcher") < told.index("✔ list_invoices")
    exec(as_tool, {"model": says(("ask_researcher", {"question": "?"}), LIST)})  # noqa: S102 - see above
    told = capsys.readouterr().out
    assert (
        told.index("✔ ask_researcher") < told.index("researcher\n") < told.index("✔ list_invoices")
    )


def test_the_page_about_interrupts_resumes_for_the_owner_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    agent, node = blocks("langchain-interrupts.md")
    names: dict[str, Any] = {"model": says(("pay_invoice", {"number": "2026-1041"}))}
    exec(agent, names)  # noqa: S102 - see above
    assert capsys.readouterr().out == "pay 2026-1041?\nresumed_by_another\n"
    names["middleware"] = IdentityMiddleware(names["identity"], rules={"pay_invoice": {}})
    exec(node, names)  # noqa: S102 - see above


def test_the_page_calls_a_server_in_sessions_of_both_kinds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, _, fresh, kept = blocks("langchain.md")
    names: dict[str, Any] = {"model": says(LIST)}
    exec(fresh, names)  # noqa: S102 - see above
    with names["identity"], Billing(names["identity"]) as server:
        names["BILLING"] = server.url
        names["rules"]["list_invoices"]["resource"] = server.url
        asyncio.run(names["main"]())
        exec(kept, names)  # noqa: S102 - see above
        names["model"] = says(LIST)
        asyncio.run(names["main"]())
    assert server.ran == ["ACME", "ACME"]
    assert {call.principal.sub for call in server.calls} == {"alice"}
    assert "✔ list_invoices" in capsys.readouterr().out


def test_the_program_of_the_page_prints_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "langchain.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = os.pathsep.join(str(Path(path).resolve()) for path in paths if path)
    ended = subprocess.run(
        [sys.executable, "-c", blocks("langchain.md")[0]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": absolute},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(shown)
    for word in ("alice", "close the October books", "list_invoices", "no-payments"):
        assert word in ended.stdout
