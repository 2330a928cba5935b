# SPDX-License-Identifier: Apache-2.0
"""A whole identity against an authority that it reaches over real HTTP, with and without demanded nonces."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn

from agent_identity import AgentIdentity, CredentialUnavailableError, current_credential, tool
from agent_identity.authority import Authority
from agent_identity.jose import loads_object, unverified
from agent_identity.provenance.memory import MemoryLedger

BILLING = "https://billing.example"


class Served:
    """An authority behind uvicorn on loopback, and an identity that knows no other way to it."""

    def __init__(self, state: Path, kind: type[AgentIdentity], *, require_nonce: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.authority = Authority(state, issuer=url, require_nonce=require_nonce)
        config = uvicorn.Config(
            self.authority.asgi(), log_level="critical", ws="none", loop="asyncio"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self._thread.start()
        limit = time.monotonic() + 60
        while not self._server.started and time.monotonic() < limit:
            time.sleep(0.01)  # uvicorn has no event for it
        self.identity = kind("invoice-bot", authority=self.authority, ledger=MemoryLedger())

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._listener.close()

    def close(self) -> None:
        self.stop()
        self.identity.close()


@pytest.fixture(params=[False, True], ids=["plain", "nonces"])
def served(request, tmp_path: Path, client_elsewhere: type[AgentIdentity]) -> Iterator[Served]:
    one = Served(tmp_path, client_elsewhere, require_nonce=request.param)
    yield one
    one.close()


@tool(resource=BILLING, scopes=["invoices:read"])
def read(customer: str) -> str:
    return current_credential().reveal()


@tool(resource=BILLING, scopes=["invoices:read"])
async def aread(customer: str) -> str:
    return current_credential().reveal()


def test_sync_calls_and_a_sub_agents_get_tokens_of_their_own(served: Served) -> None:
    with served.identity.on_behalf_of("user:alice", purpose="p") as session:
        tokens = [read("ACME"), read("Globex")]
        with session.delegate("archive-bot"):
            tokens.append(read("Initech"))
    assert len(set(tokens)) == 2
    assert served.authority.issued == {"grant": 1, "access_token": 2}
    trace = served.identity.who_triggered(session)
    assert (trace.verified, [call["outcome"] for call in trace.calls]) == (True, ["completed"] * 3)


async def test_async_calls_at_once_share_one_grant_and_one_token(served: Served) -> None:
    async with served.identity.on_behalf_of("user:alice", purpose="p"):
        tokens = await asyncio.gather(*(aread(f"customer {number}") for number in range(20)))
    assert len(set(tokens)) == 1
    assert served.authority.issued == {"grant": 1, "access_token": 1}
    await served.identity._parts.world.aclose()


def test_threads_and_principals_never_share_a_token(served: Served) -> None:
    def one(who: str) -> str:
        with served.identity.on_behalf_of(f"user:{who}", purpose="p"):
            return read("ACME")

    with ThreadPoolExecutor(6) as pool:
        tokens = list(pool.map(one, [f"p{number}" for number in range(12)]))
    assert len(set(tokens)) == 12
    assert served.authority.issued == {"grant": 12, "access_token": 12}


def test_an_authority_that_went_away_is_an_error_and_a_token_in_hand_still_serves(
    served: Served,
) -> None:
    with served.identity.on_behalf_of("user:alice", purpose="p") as session:
        token = read("ACME")
        served.stop()
        assert read("Globex") == token
        with pytest.raises(CredentialUnavailableError) as caught:
            session.credential("https://mail.example")
    assert (caught.value.code, caught.value.retryable) == ("issuer_unreachable", True)


def test_an_agent_that_registers_by_its_file_gets_a_token_of_its_own(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one identity that asks the authority for client credentials."""
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "agent"))
    monkeypatch.setenv("REGISTRATION", served.authority.registration_token().reveal())
    file = tmp_path / "agent-identity.toml"
    file.write_text(f"""\
[agent]
name = "report-bot"
[issuers.authority]
issuer = "{served.authority.issuer}"
registration = "dynamic"
registration_token = "env:REGISTRATION"
[resources."{BILLING}"]
source = "client-credentials"
issuer = "authority"
scopes = ["invoices:read"]
[policy]
engine = "grants-only"
[ledger]
url = "memory:"
""")
    file.chmod(0o600)
    with AgentIdentity.from_config(file) as identity:
        with identity.autonomous(trigger="cron:nightly-close", purpose="p") as session:
            credential = session.credential(BILLING, ["invoices:read"])
            claims = loads_object(unverified(credential.reveal()).payload)
            jkt = session._state.agent.key.thumbprint
    assert claims["sub"] == claims["client_id"]
    assert (claims["aud"], claims["cnf"]) == (BILLING, {"jkt": jkt})
    assert served.authority.issued == {"access_token": 1}
