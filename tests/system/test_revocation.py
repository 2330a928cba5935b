# SPDX-License-Identifier: Apache-2.0
"""A revocation reaches other processes that share the state directory, and survives them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_identity import AgentIdentity

AGENT = """
import sys
from agent_identity import AgentIdentity, NoSessionError, RevokedError, current_session, tool

@tool()
def work():
    return current_session().principal.sub

with AgentIdentity.embedded("invoice-bot", state_dir=sys.argv[1]) as identity:
    try:
        with identity.on_behalf_of("user:alice", purpose="close the books") as session:
            work()
            print(session.id, flush=True)
            while True:
                work()
    except RevokedError as error:
        print(error.code, flush=True)
"""

COMMAND = [sys.executable, "-c", "from agent_identity.cli import main; main()"]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Any]:
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", AGENT, str(tmp_path)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def operator(state: Path, *command: str) -> tuple[int, str]:
    done = subprocess.run(
        [*COMMAND, *command, "--state-dir", str(state)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("user:alice", "principal_revoked"),
        ("SESSION", "session_revoked"),
        ("agent:invoice-bot", "agent_revoked"),
        ("*", "everything_revoked"),
    ],
)
def test_the_command_ends_sessions_of_running_processes(
    agent: Any, tmp_path: Path, ref: str, expected: str
) -> None:
    first = agent()
    session = first.stdout.readline().strip()
    status, text = operator(
        tmp_path, "revoke", session if ref == "SESSION" else ref, "--reason", "odd", "--json"
    )
    assert status == 0, text
    answer = json.loads(text)
    assert (answer["revoked"], answer["reason"], answer["new"]) == (True, "odd", False)
    assert answer["by"].startswith("os:")
    assert first.stdout.readline().strip() == expected
    with AgentIdentity.embedded("reader", state_dir=tmp_path) as reader:
        made = [each for each in reader.ledger.records() if each.kind == "revocation.made"]
        assert made[0].body["by"] == answer["by"]
        assert reader.ledger.verify().ok
    if ref != "SESSION":
        assert agent().stdout.readline().strip() == expected


def test_one_agent_process_revokes_for_the_others(agent: Any, tmp_path: Path) -> None:
    first = agent()
    first.stdout.readline()
    with AgentIdentity.embedded("supervisor", state_dir=tmp_path) as supervisor:
        supervisor.revoke("agent:invoice-bot", reason="odd")
        assert first.stdout.readline().strip() == "agent_revoked"


def test_the_commands_refuse_what_they_do_not_know(agent: Any, tmp_path: Path) -> None:
    agent().stdout.readline()
    status, text = operator(tmp_path, "revoke", "ses_" + "0" * 32)
    assert (status, "reference_unknown" in text, "user:alice" in text) == (2, True, True)
    status, text = operator(tmp_path, "reinstate", "user:alice")
    assert (status, "not_revoked" in text) == (2, True)
    status, text = operator(tmp_path, "revoke", "user:zoe")
    assert (status, "new here" in text) == (0, True)
    status, text = operator(tmp_path, "reinstate", "user:zoe")
    assert (status, "reinstated" in text) == (0, True)
