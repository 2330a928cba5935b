# SPDX-License-Identifier: Apache-2.0
"""The authority behind a real server: our own client flows, raw sockets, and what a web page could try."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import httpx
import jwt
import pytest
import uvicorn

from agent_identity.authority import Authority
from agent_identity.credentials.agent import Agent as Instance
from agent_identity.credentials.oauth.dpop import ProofKey
from agent_identity.credentials.oauth.metadata import discover
from agent_identity.credentials.oauth.registration import Registration, register
from agent_identity.credentials.root_grants import IssuedGrants, RootWanted
from agent_identity.credentials.source import Wanted
from agent_identity.credentials.sources import token_exchange
from agent_identity.credentials.sources.token_exchange import TokenExchange
from agent_identity.delegation.grant import mint_child
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Shared, run
from agent_identity.http.transport import Transport
from agent_identity.keys.signing import SigningKey
from agent_identity.testing import KnownIssuer
from agent_identity.values import Principal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BILLING = "https://billing.example/api"
BOT = "urn:agent-identity:agent:invoice-bot"


@contextmanager
def served(state_dir: Path | None = None, *, path: str = "", **options) -> Iterator[Authority]:
    """An authority served by uvicorn on a free loopback port, which is its issuer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        authority = Authority(state_dir, issuer=f"http://127.0.0.1:{port}{path}", **options)
        config = uvicorn.Config(authority.asgi(), log_level="critical", ws="none", loop="asyncio")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            limit = time.monotonic() + 60
            while not server.started and time.monotonic() < limit:
                time.sleep(0.01)  # uvicorn has no event for it
            assert server.started
            yield authority
        finally:
            server.should_exit = True
            thread.join(10)
            authority.close()


class Agent:
    """An agent that has only the issuer's URL and the registration token, and speaks over real sockets."""

    def __init__(self, authority: Authority, directory_subject: type) -> None:
        self._directory_subject = directory_subject
        self.transport = Transport()
        self.instance = Instance(BOT)
        self.key = self.instance.key
        self.proof_key = self.instance.proof_key
        self.endpoints = self.run(discover(authority.issuer, time.time))
        client = self.run(
            register(
                self.endpoints,
                Registration("invoice-bot", BOT, None, self.key),
                initial_token=authority.registration_token(),
                clock=time.time,
            )
        ).client
        self.client = client
        self.issuer = KnownIssuer(self.endpoints, client, clock=time.time)

    def run(self, flow):
        def world(ask):
            if isinstance(ask, Shared):
                return run(ask.start(), world)
            return self.transport.exchange(ask, time.monotonic() + 10)

        return run(flow, world)

    def subject(self, who: str = "user:alice", txn: str = "ses_1"):
        end = time.time() + 3600
        return self._directory_subject(Principal.parse(who), self.instance, txn=txn, expires_at=end)

    def grant(self, subject=None, txn: str = "ses_1"):
        wanted = RootWanted(
            principal=Principal("alice"),
            subject=subject or self.subject(txn=txn),
            agent=BOT,
            resources=frozenset({BILLING}),
            scopes=frozenset({"invoices:read"}),
            purpose="close the October books",
            task=None,
            txn=txn,
            max_depth=3,
            lifetime=900,
            evidence="issuer",
            proof_key=self.proof_key,
        )
        return self.run(IssuedGrants(self.issuer).grant(wanted))

    def token(self, chain, *, subject=None, proof_key=None):
        wanted = Wanted(
            resource=BILLING,
            scopes=frozenset({"invoices:read"}),
            principal=Principal("alice"),
            subject=subject or self.subject(),
            chain=tuple(chain),
            agent=chain[0].agent,
            proof_key=proof_key or self.proof_key,
            txn=chain[0].txn,
            purpose="close the October books",
        )
        source = TokenExchange(self.issuer, actor="grant", names_principal=True)
        return self.run(source.fetch(wanted))

    def close(self) -> None:
        self.transport.close()


@pytest.fixture(params=[{}, {"path": "/tenants/a"}, {"require_nonce": True}], ids=str)
def authority(request, tmp_path) -> Iterator[Authority]:
    with served(tmp_path, **request.param) as one:
        yield one


@pytest.fixture
def agent(authority, directory_subject) -> Iterator[Agent]:
    one = Agent(authority, directory_subject)
    yield one
    one.close()


def test_an_agent_gets_a_token_that_the_resource_can_check(authority, agent) -> None:
    root = agent.grant()
    issued = agent.token([root])
    found = httpx.get(agent.endpoints.jwks).json()
    token = issued.token.reveal()
    keys = {key["kid"]: key for key in found["keys"]}
    claims = jwt.decode(
        token,
        jwt.PyJWK(keys[jwt.get_unverified_header(token)["kid"]]),
        algorithms=["ES256"],
        audience=BILLING,
        issuer=authority.issuer,
    )
    assert (claims["sub"], claims["act"]["sub"]) == ("alice", BOT)
    assert claims["cnf"]["jkt"] == agent.key.thumbprint
    assert authority.issued == {"grant": 1, "access_token": 1}


def test_a_sub_agent_gets_a_token_below_its_parents(authority, agent) -> None:
    key = SigningKey.generate()
    root = agent.grant()
    now = int(time.time())
    leaf = mint_child(
        agent.key,
        root,
        agent="urn:agent-identity:agent:archive-bot",
        jkt=key.thumbprint,
        aud=[BILLING],
        scopes=["invoices:read"],
        task="archive",
        now=now,
        expires_at=now + 60,
    )
    issued = agent.token([leaf, root], proof_key=ProofKey(key))
    claims = jwt.decode(issued.token.reveal(), options={"verify_signature": False})
    assert claims["act"]["act"]["sub"] == BOT
    assert claims["exp"] <= now + 60


def test_B08_a_spliced_request_is_refused(authority, agent, monkeypatch) -> None:
    # An attacker's client doesn't hold itself to anything.
    monkeypatch.setattr(token_exchange, "check_same_context", lambda *_: None)
    alices = agent.grant()
    for other in (agent.subject("user:bob"), agent.subject(txn="ses_2")):
        with pytest.raises(CredentialRejectedError) as refused:
            agent.token([alices], subject=other)
        assert refused.value.code == "invalid_grant"
    assert authority.issued["access_token"] == 0


def test_many_agents_at_once_get_their_own(authority, agent) -> None:
    def one(number: int) -> str:
        txn = f"ses_{number}"
        return agent.token([agent.grant(txn=txn)], subject=agent.subject(txn=txn)).token.reveal()

    agent.grant()  # learns the nonce, where there is one
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(one, range(16)))
    told = {jwt.decode(token, options={"verify_signature": False})["txn"] for token in tokens}
    assert told == {f"ses_{number}" for number in range(16)}
    assert authority.issued["access_token"] == 16


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
    ids=str,
)
def test_E11_a_page_with_a_rebound_name_reaches_nothing(headers) -> None:
    with served() as authority, httpx.Client() as client:
        before = authority.registration_token().reveal()
        document = {"agent_id": BOT, "jwks": {"keys": [SigningKey.generate().public_jwk]}}
        sent = {"Authorization": f"Bearer {before}"} | headers
        response = client.post(authority.endpoints.registration, headers=sent, json=document)
        assert response.status_code in {403, 421}
        assert response.json().keys() == {"error", "error_description"}
        assert "access-control-allow-origin" not in response.headers
        assert authority._store._database.current.execute(
            "SELECT count(*) FROM clients"
        ).fetchone() == (0,)


def test_a_body_that_is_too_large_is_cut_off() -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b"a" * 65_536

    with served() as authority, httpx.Client() as client:
        url = authority.endpoints.token
        assert client.post(url, content=b"a" * (128 * 1024 + 1)).status_code == 413
        with suppress(httpx.TransportError):  # it answers and hangs up before all of it was sent
            assert client.post(url, content=endless()).status_code == 413
        assert client.get(authority.endpoints.jwks).status_code == 200


async def test_a_body_that_comes_too_slowly_is_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr("agent_identity.authority.asgi.BODY_TIMEOUT", 0.05)
    app = Authority(issuer="http://127.0.0.1:8600").asgi()
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        await asyncio.sleep(30)
        return {"type": "http.request"}

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/token", "headers": []}
    await app(scope, receive, send)
    assert (sent[0]["status"], b"body_too_slow" in sent[1]["body"]) == (408, True)


def raw(authority: Authority, data: bytes) -> tuple[int, bytes]:
    """Send bytes as they are; the status and body of the first answer."""
    port = int(authority.issuer.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_headers_that_come_twice_are_refused() -> None:
    with served() as authority:
        host = authority.issuer.removeprefix("http://").encode()
        lines = [
            b"POST /token HTTP/1.1",
            b"Host: " + host,
            b"DPoP: a",
            b"DPoP: b",
            b"Content-Length: 0",
            b"Connection: close",
        ]
        status, body = raw(authority, b"\r\n".join(lines) + b"\r\n\r\n")
        assert status == 400
        assert json.loads(body)["error_description"] == "header_repeated"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/jwks", 200),
        (b"/x/../jwks", 404),
        (b"/%6awks", 404),
        (b"//jwks", 404),
        (b"/jwks?x=1", 200),
        (b"/.well-known/oauth-authorization-server", 200),
    ],
)
def test_a_path_means_what_was_sent(target, status) -> None:
    with served() as authority:
        host = authority.issuer.removeprefix("http://").encode()
        line = b"GET %b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (target, host)
        assert raw(authority, line)[0] == status


def test_a_rotated_key_is_published_at_once(tmp_path, directory_subject) -> None:
    with served(tmp_path) as authority:
        agent = Agent(authority, directory_subject)
        before = agent.grant()
        authority.rotate()
        kids = [key["kid"] for key in httpx.get(agent.endpoints.jwks).json()["keys"]]
        assert jwt.get_unverified_header(before.compact)["kid"] == kids[1]
        after = agent.grant()
        assert jwt.get_unverified_header(after.compact)["kid"] == kids[0]
        assert agent.token([before])
        agent.close()
