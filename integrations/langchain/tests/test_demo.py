# SPDX-License-Identifier: Apache-2.0
"""`agent-identity demo --langchain`: MCP tools, a sub-agent, an interrupt and a restart of the process, in one tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_identity import AgentIdentity
from agent_identity_langchain.demo import play

COMMAND_LINE = "from agent_identity.cli import main; main()"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, list[str], str]]:
    """An identity over the ledger of a demo, what the demo told, and the session that it ended with."""
    folder = tmp_path_factory.mktemp("demo") / "state"
    told: list[str] = []
    session = play(folder, told.append)
    with AgentIdentity.embedded("reader", state_dir=folder) as identity:
        yield identity, told, session


def facts(trace: Any) -> list[tuple[Any, ...]]:
    return [
        (call["tool"], call["agent"].rpartition(":")[2], call["outcome"]) for call in trace.calls
    ]


def test_the_work_of_both_processes_is_one_tree(played: Any) -> None:
    identity, _, session = played
    trace = identity.who_triggered(session)
    before = [
        ("add_up", "invoice-bot", "completed"),
        ("book_total", "invoice-bot", "cancelled"),
        ("list_invoices", "invoice-bot", "completed"),
    ]
    assert sorted(facts(trace)[:3]) == before
    assert facts(trace)[3:] == [
        ("book_total", "invoice-bot", "completed"),
        ("ask_archivist", "invoice-bot", "completed"),
        ("list_invoices", "archive-bot", "completed"),
        ("pay_invoice", "invoice-bot", "denied"),
    ]
    ids = {call["call_id"]: call for call in trace.calls}
    (inner,) = [call for call in trace.calls if call["agent"].endswith("archive-bot")]
    assert ids[inner["parent"]]["tool"] == "ask_archivist"
    assert trace.verified
    (stopped,) = [call for call in trace.calls if call["outcome"] == "cancelled"]
    assert f"continues {stopped['call_id']}" in str(trace)


def test_each_mcp_call_has_a_credential_for_the_server(played: Any) -> None:
    identity, told, session = played
    calls = identity.who_triggered(session).calls
    signed = [call for call in calls if call["tool"] == "list_invoices"]
    assert [call["credential"]["scopes"] for call in signed] == [["invoices:read"]] * 2
    assert told[-1] == "the MCP server verified 2 calls: by archive-bot and invoice-bot"


def test_the_models_id_names_both_passes_of_the_interrupted_call(played: Any) -> None:
    identity, _, session = played
    calls = identity.who_triggered(session).calls
    first, second = (call["call_id"] for call in calls if call["tool"] == "book_total")
    (intent,) = [
        each
        for each in identity.ledger.find(first)
        if each.call_id == first and each.kind == "call.intended"
    ]
    trace = identity.who_triggered(intent.ref)
    assert [call["call_id"] for call in trace.calls] == [first, second]
    assert (trace.decision, trace.outcome) == ("permit", "completed")


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_shows_the_tree(tmp_path: Path, as_json: bool) -> None:
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = os.pathsep.join(str(Path(path).resolve()) for path in paths if path)
    arguments = ["demo", "--langchain", "--state-dir", str(tmp_path / "state")]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, *arguments, *(["--json"] if as_json else [])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": absolute},
    )
    assert (done.returncode, done.stderr) == (0, "")
    if as_json:
        document = json.loads(done.stdout)
        assert document["ledger_ok"] is True
        assert len(document["trace"]["calls"]) == 7
    else:
        assert "resumes with the answer yes" in done.stdout
        assert done.stdout.count("book_total locally") == 2
        assert "every link of the ledger is intact" in done.stdout
