# SPDX-License-Identifier: Apache-2.0
"""Real processes: alpha hands work to beta over HTTP, beta calls a FastAPI service, and each keeps a ledger of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.system

ROLES = Path(__file__).parent / "handover" / "roles.py"


class Process:
    """One role in a process of its own; it answers in lines of JSON."""

    def __init__(self, role: str, state_dir: Path, settings: dict[str, Any] | None = None) -> None:
        command = [sys.executable, str(ROLES), role, str(state_dir)]
        command += [] if settings is None else [json.dumps(settings)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.said = self.read()

    def read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self._process.args} ended"
        return json.loads(line)

    def order(self, order: dict[str, Any]) -> dict[str, Any]:
        self.tell(order)
        return self.read()

    def tell(self, said: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(said) + "\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait(20)
        self._process.stdout.close()


class World:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder

        def start(role: str, settings: dict[str, Any] | None = None) -> Process:
            process = Process(role, folder / role, settings)
            stack.callback(process.stop)
            return process

        self.alpha = start("alpha")
        trust = self.alpha.said
        there = start("archive", trust).said["url"]
        agents = {
            name: start(name, trust | {"archive": there, "skew": 30}).said["url"]
            for name in ("beta", "gamma")
        }
        self.alpha.tell({"archive": there} | agents)

    def why(self, role: str, ref: str) -> dict[str, Any]:
        """What that side's own ledger answers, asked on the command line."""
        found = subprocess.run(
            [
                *(sys.executable, "-c", "from agent_identity.cli import main; main()", "why", ref),
                *("--json", "--state-dir", str(self.folder / role)),
            ],
            capture_output=True,
            text=True,
            check=False,
            env={k: v for k, v in os.environ.items() if not k.startswith("AGENT_IDENTITY")},
        )
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)


@contextmanager
def running(folder: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(folder, stack)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("hand-over")) as found:
        yield found


TASK = {"customer": "ACME"}


def test_beta_acts_for_alice_and_the_service_knows_through_whom(world: World) -> None:
    told = world.alpha.order({"task": TASK})
    first = told["answer"]["first"]
    assert first["status"] == 200
    assert first["said"] == {
        "archived": "ACME",
        "for": "alice",
        "purpose": "close the October books",
        "txn": told["txn"],
        "chain": ["urn:agent-identity:agent:beta", "urn:agent-identity:agent:alpha"],
        "token_verified": False,
    }


def test_each_ledger_names_the_same_principal_purpose_transaction_and_chain(world: World) -> None:
    told = world.alpha.order({"task": TASK})
    here, there = world.why("alpha", told["child"]), world.why("beta", told["answer"]["session"])
    by_txn = world.why("beta", told["txn"])
    for said in (here, there, by_txn):
        assert said["principal"]["sub"] == "alice"
        assert said["principal"]["profile"] == "user"
        assert said["purpose"] == "close the October books"
        assert [(hop["agent"], hop["depth"]) for hop in said["chain"]] == [
            ("urn:agent-identity:agent:alpha", 0),
            ("urn:agent-identity:agent:beta", 1),
        ]
        assert said["verified"] is True
    assert [call["tool"] for call in there["calls"]] == ["archive"]
    assert [call["tool"] for call in world.why("alpha", told["txn"])["calls"]] == ["ask"]


def test_beta_without_the_hand_over_is_refused_by_the_service(world: World) -> None:
    told = world.alpha.order({"task": TASK | {"alone": True}, "hand_over": False})
    first = told["answer"]["first"]
    assert first["status"] == 401
    assert first["said"]["title"] == "The credentials were refused"
    nothing = world.alpha.order({"task": TASK, "hand_over": False})
    assert nothing["answer"] == {"code": "handover_missing"}


def test_B24_gamma_with_betas_hand_over_is_refused_at_home_and_by_the_service(
    world: World,
) -> None:
    told = world.alpha.order({"task": TASK | {"forge": True}, "to": "gamma"})
    assert told["answer"]["code"] == "handover_key"
    assert told["answer"]["forged"]["status"] == 401


def test_beta_after_its_end_is_refused_at_home_and_by_the_service(world: World) -> None:
    told = world.alpha.order({"task": TASK | {"wait": True}, "expires_in": 2})
    answer = told["answer"]
    assert answer["first"]["status"] == 200
    assert answer["code"] == "session_expired"
    assert answer["late"]["status"] == 401
