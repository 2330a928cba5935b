# SPDX-License-Identifier: Apache-2.0
"""Sessions by the thousand, twenty calls each: one access token each, no crossing, and memory that stays flat.

Ten thousand where `AGENT_IDENTITY_SOAK` is `full` (nox -s soak), a thousand where it is `tenth` (CI), else two hundred.
"""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path

import pytest

from agent_identity import AgentIdentity, current_credential, tool
from agent_identity.jose import loads_object, unverified
from agent_identity.testing import FakeIssuer

SHARE = {"full": 1, "tenth": 10}.get(os.environ.get("AGENT_IDENTITY_SOAK", ""), 50)
SESSIONS = 10_000 // SHARE
CALLS = 20
PEOPLE = min(500, SESSIONS // 4)
"""The ledger keeps the keys of the last eight thousand people at hand; here it is full before memory is looked at."""
BILLING = "https://billing.example"


@tool(resource=BILLING, scopes=["read"])
def whose() -> str:
    return str(loads_object(unverified(current_credential().reveal()).payload)["sub"])


def resident() -> int:
    """Bytes in memory now; the peak would remember the warm-up."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.system
def test_each_session_gets_one_token_of_its_own_and_memory_stays_flat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "agent-identity.toml"
    with FakeIssuer(lifetime=3600) as idp:
        path.write_text(
            f'[agent]\nname = "bot"\n[issuers.acme]\nissuer = "{idp.url}"\ntrust = ["subjects"]\n'
            f'client_id = "bot"\nclient_auth = "none"\n[resources."{BILLING}"]\n'
            '[policy]\nengine = "grants-only"\n[ledger]\nurl = "sqlite:"\n'
        )
        path.chmod(0o600)
        sizes: list[int] = []
        with AgentIdentity.from_config(path) as identity:
            issued = revoked = 0
            for number in range(SESSIONS):
                who = f"user-{number % PEOPLE}"
                with identity.on_behalf_of(idp.token(who, audience="bot"), purpose="soak"):
                    assert {whose() for _ in range(CALLS)} == {who}
                assert [claims["sub"] for claims in idp.tokens] == [who]
                issued += len(idp.tokens)
                revoked += len(idp.revoked)
                for kept in (idp.tokens, idp.revoked, idp.received):
                    kept.clear()
                if number % (SESSIONS // 10) == 0:
                    gc.collect()
                    sizes.append(resident())
        assert (issued, revoked) == (SESSIONS, SESSIONS)
    grown = sizes[-1] - sizes[len(sizes) // 2]
    assert grown < 8_000_000, sizes
