# SPDX-License-Identifier: Apache-2.0
"""Every example runs by itself, leaves nothing behind, and shows what it says it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
JWS = re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}")
SHOWN = {
    "first_call.py": [
        r"outside a session: no_session",
        r"invoice-bot would send Agent-Assertion, Agent-Delegation, Authorization, DPoP",
        r"ACME has 2 invoices",
        r"a sub-agent without scopes: scope_not_granted",
        r"user:alice: close the October books",
        r"archive-bot: archive Globex",
        r"verified \(\d+ records, signed; no external checkpoint\)",
    ],
    "policy.py": [
        r"permitted: paid 480 for 2026-1041",
        r"denied by amount-limit",
        r"permitted: sent 12 characters",
        r"denied by no-exfiltration",
        r"on record: send_mail was denied by no-exfiltration",
    ],
    "async_agent.py": [
        r"alice: 1500, \['page 1', 'page 2'\], done for alice",
        r"bob: 1500, \['page 1', 'page 2'\], done for bob",
        r"pages completed",
        r"never_ends cancelled",
    ],
    "verify_in_a_service.py": [
        r"as signed: 200 book for alice through invoice-bot, to close the October books",
        r"refused \(replayed\).*\n *the same once more: 401 The credentials were refused",
        r"refused \(body_mismatch\).*\n *another body: 401 The credentials were refused",
        r"refused \(url_mismatch\).*\n *another path: 401 The credentials were refused",
        r"credentials_required \(chain_missing\).*\n *without its chain: 401 Credentials are required",
    ],
    "fastapi_service.py": [
        r"is it there: 200 well",
        r"by nobody: 401 Credentials are required",
        r"as signed: 200 2 invoices of ACME for alice, to close the October books",
        r"the same once more: 401 The credentials were refused",
        r"insufficient_scope \(insufficient_scope\).*\n *a payment: 200 paid 2026-1041 for alice through invoice-bot",
        r"by another tool: 403 The call is not allowed here",
    ],
    "a2a_handover.py": [
        r"archived ACME by Agent-Assertion, Agent-Delegation, for alice, beta < alpha, to close the books",
        r"without a hand-over, refused: handover_missing",
        r"alpha \(in another process\)",
        r"verified \(\d+ records, signed; no external checkpoint\)",
    ],
    "six_resources.py": [
        r"billing  DPoP of alice, for this service, bound to the agent's key, with its chain",
        r"crm      DPoP of alice, for this service, bound to the agent's key, with its chain",
        r"reports  Bearer of close-bot, for this service, unbound, with its chain",
        r"deploys  Bearer of close-bot, for this service, unbound, with its chain",
        r"search   X-Api-Key, no chain",
        r"archive  Basic, no chain",
        r"refused 30 of 30 strays; 6 requests reached six services",
        r'"leaked": \[\]',
        r"#alice: close the October books",
        r"verified \(\d+ records, signed; no external checkpoint\)",
    ],
    "langchain_agent.py": [
        r"list_invoices, success: 2 invoices of ACME; sent DPoP <(secret|token)>",
        r"pay_invoice, error: .*policy_denied",
        r"The books are closed",
        r"user:alice: close the October books",
    ],
}


FRAMEWORKS = {"a2a_handover.py", "langchain_agent.py"}
"""Examples that need what isn't part of this environment; `nox -s examples` and the integrations have it."""


def test_every_example_is_tried() -> None:
    assert sorted(SHOWN) == EXAMPLES


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_shows_what_it_says(name: str, tmp_path: Path) -> None:
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = os.pathsep.join(str(Path(path).resolve()) for path in paths if path)
    places = {"AGENT_IDENTITY_STATE_DIR": str(tmp_path / "default"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=os.environ | places | {"PYTHONPATH": absolute},
    )
    assert (done.returncode, done.stderr) == (0, "")
    if name in FRAMEWORKS and done.stdout.startswith("skipped: "):
        assert re.fullmatch(r"skipped: \w+ isn't installed\n", done.stdout)
        return
    missing = [line for line in SHOWN[name] if not re.search(line, done.stdout)]
    assert missing == [], done.stdout
    assert JWS.search(done.stdout) is None
    assert [path.name for path in tmp_path.iterdir()] == []
