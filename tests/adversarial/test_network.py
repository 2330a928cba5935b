# SPDX-License-Identifier: Apache-2.0
"""A hostile issuer, asked by the flows as they ask a good one (cases of area D)."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent_identity.credentials.agent import Agent
from agent_identity.credentials.oauth.metadata import discover, read_keys
from agent_identity.credentials.oauth.registration import Registration, register
from agent_identity.credentials.oauth.token_types import JWT
from agent_identity.credentials.root_grants import IssuedGrants, RootWanted
from agent_identity.credentials.source import SubjectToken
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import HttpRequest, Pause, pure, run
from agent_identity.http.transport import Transport
from agent_identity.testing import KnownIssuer, assert_no_leak
from agent_identity.values import Principal, Secret

SUBJECT = "canary-subject-token-0123456789"
INITIAL = "canary-initial-token-0123456789"


class Host:
    """A web server on loopback that answers by path, and keeps every byte that reaches it."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.received: list[bytes] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("content-length", 0))
                body = self.rfile.read(length)
                outer.received.append(f"{self.path}\n{self.headers}".encode() + body)
                status, headers, answer = outer.answers.get(self.path, (404, {}, b"{}"))
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        serve = self._server.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def json(self, path: str, document: object, status: int = 200, **headers: str) -> None:
        self.answers[path] = (status, headers, json.dumps(document).encode())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def issuer() -> Iterator[Host]:
    host = Host()
    metadata = {
        "issuer": host.url,
        "token_endpoint": f"{host.url}/token",
        "registration_endpoint": f"{host.url}/register",
        "revocation_endpoint": f"{host.url}/revoke",
        "jwks_uri": f"{host.url}/jwks",
    }
    host.json("/.well-known/oauth-authorization-server", metadata)
    host.json("/register", {"client_id": "client"}, 201)
    host.json("/jwks", {"keys": []})
    yield host
    host.close()


@pytest.fixture
def elsewhere() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


class Subject:
    def token(self, issuer: Any, types: Any, /) -> Any:
        return pure(SubjectToken(Secret(SUBJECT), JWT))


def ask(host: Host) -> Any:
    """Everything an agent asks of its authority before its first call."""
    transport = Transport()
    agent = Agent("urn:agent-identity:agent:bot")

    def flow() -> Any:
        endpoints = yield from discover(host.url, time.time)
        yield from read_keys(endpoints.issuer, endpoints.jwks, time.time)
        found = yield from register(
            endpoints,
            Registration("bot", agent.uri, None, agent.key),
            initial_token=Secret(INITIAL),
            clock=time.time,
        )
        issuer = KnownIssuer(endpoints, found.client, clock=time.time)
        wanted = RootWanted(
            principal=Principal("alice"),
            subject=Subject(),
            agent=agent.uri,
            resources=frozenset({"https://billing.example"}),
            scopes=frozenset(),
            purpose="p",
            task=None,
            txn="ses_1",
            max_depth=3,
            lifetime=900,
            evidence="issuer",
            proof_key=agent.proof_key,
        )
        return (yield from IssuedGrants(issuer).grant(wanted))

    try:
        deadline = time.monotonic() + 60

        def world(asked: HttpRequest | Pause) -> Any:
            if isinstance(asked, Pause):
                return None
            return transport.exchange(asked, deadline)

        return run(flow(), world)
    finally:
        transport.close()


ENDPOINTS = ("/.well-known/oauth-authorization-server", "/jwks", "/register", "/token")


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["same host", "other host"])
def test_D08_a_redirect_is_refused_and_no_secret_reaches_where_it_points(
    issuer: Host, elsewhere: Host, path: str, status: int, target: str
) -> None:
    place = issuer if target == "same host" else elsewhere
    issuer.answers[path] = (status, {"location": f"{place.url}/taken?t={INITIAL}"}, b"")
    with pytest.raises(CredentialRejectedError) as caught:
        ask(issuer)
    assert caught.value.code == "redirected"
    assert elsewhere.received == []
    assert not [sent for sent in issuer.received if sent.startswith(b"/taken")]
    assert_no_leak([SUBJECT, INITIAL], caught.value)


ECHO = json.dumps({"error": "invalid_grant", "error_description": SUBJECT, "error_uri": INITIAL})


@pytest.mark.parametrize("path", ENDPOINTS[2:])
@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (400, {}, ECHO),
        (401, {"www-authenticate": f'DPoP error="x", error_description="{SUBJECT}"'}, ECHO),
        (500, {"x-echo": INITIAL}, SUBJECT),
        (503, {"retry-after": SUBJECT}, ECHO),
        (200, {}, json.dumps({"access_token": SUBJECT, "token_type": SUBJECT, "scope": INITIAL})),
        (200, {}, json.dumps({"access_token": [SUBJECT], "token_type": "DPoP"})),
        (201, {}, json.dumps({"client_id": [INITIAL]})),
        (200, {"content-type": SUBJECT}, "{}"),
        (302, {"location": f"https://evil.example/?{SUBJECT}"}, SUBJECT),
    ],
    ids=["400", "401", "500", "503", "200 odd", "200 list", "201 odd", "type", "redirect"],
)
def test_H04_an_issuer_that_echoes_a_secret_puts_it_into_no_error(
    issuer: Host, path: str, status: int, headers: dict[str, str], body: str
) -> None:
    issuer.answers[path] = (status, headers, body.encode())
    with pytest.raises(Exception) as caught:
        ask(issuer)
    assert type(caught.value).__module__ == "agent_identity.errors"
    assert_no_leak([SUBJECT, INITIAL], caught.value)


GOOD = {
    "access_token": "x.y.z",
    "issued_token_type": "urn:agent-identity:token-type:grant",
    "token_type": "N_A",
    "expires_in": 900,
}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"error": "x"}, "malformed_answer"),
        ({"access_token": None}, "malformed_answer"),
        ({"access_token": ""}, "malformed_answer"),
        ({"access_token": ["x"]}, "malformed_answer"),
        ({"token_type": "mac"}, "wrong_token_type"),
        ({"issued_token_type": "urn:ietf:params:oauth:token-type:jwt"}, "wrong_token_type"),
        ({"expires_in": -5}, "already_expired"),
        ({"expires_in": 0}, "already_expired"),
        ({"expires_in": "an hour"}, "malformed_answer"),
        ({"scope": "invoices:pay"}, "scope_widened"),
        ({}, "malformed_grant"),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_an_answer_other_than_asked_for_is_refused(issuer: Host, change: Any, code: str) -> None:
    issuer.json("/token", GOOD | change)
    with pytest.raises(CredentialRejectedError) as caught:
        ask(issuer)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "body", [b"<html>", b"{", b"[]", b'{"a":1,"a":2}', b'{"expires_in": 1e999}', b"\xff"]
)
def test_an_answer_that_is_no_strict_json_is_refused(issuer: Host, body: bytes) -> None:
    issuer.answers["/token"] = (200, {}, body)
    with pytest.raises(CredentialRejectedError) as caught:
        ask(issuer)
    assert caught.value.code == "malformed_answer"


def test_an_answer_that_says_it_is_html_is_refused(issuer: Host) -> None:
    issuer.answers["/token"] = (200, {"content-type": "text/html"}, json.dumps(GOOD).encode())
    with pytest.raises(CredentialRejectedError) as caught:
        ask(issuer)
    assert caught.value.code == "not_json"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: m | {"issuer": m["issuer"] + "/"}, "issuer_mismatch"),
        (lambda m: m | {"issuer": "https://idp.example"}, "issuer_mismatch"),
        (lambda m: {k: v for k, v in m.items() if k != "issuer"}, "issuer_mismatch"),
        (lambda m: m | {"token_endpoint": "https://evil.example/token"}, "endpoint_origin"),
        (lambda m: m | {"jwks_uri": "http://127.0.0.1:1/jwks"}, "endpoint_origin"),
        (lambda m: m | {"token_endpoint": 7}, "endpoint_origin"),
        (lambda m: {k: v for k, v in m.items() if k != "token_endpoint"}, "metadata_incomplete"),
    ],
)
def test_metadata_that_speaks_for_somebody_else_is_refused(
    issuer: Host, change: Callable[[dict[str, Any]], dict[str, Any]], code: str
) -> None:
    path = "/.well-known/oauth-authorization-server"
    issuer.json(path, change(json.loads(issuer.answers[path][2])))
    with pytest.raises(CredentialRejectedError) as caught:
        ask(issuer)
    assert caught.value.code == code
    with contextlib.suppress(IndexError):
        assert b"/token" not in issuer.received[-1].splitlines()[0]


def test_a_nonce_that_changes_with_every_answer_is_followed_once(issuer: Host) -> None:
    challenge = {"error": "use_dpop_nonce"}
    issuer.json("/token", challenge, 400, **{"dpop-nonce": "another"})
    with pytest.raises(CredentialRejectedError) as caught:
        ask(issuer)
    assert caught.value.code == "use_dpop_nonce"
    sent = [head for head in issuer.received if head.startswith(b"/token")]
    assert len(sent) == 2
    proofs = {
        line for head in sent for line in head.splitlines() if line.lower().startswith(b"dpop:")
    }
    assertions = {
        part for head in sent for part in head.split(b"&") if b"client_assertion=" in part
    }
    assert len(proofs) == len(assertions) == 2
