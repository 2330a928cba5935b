# SPDX-License-Identifier: Apache-2.0
"""A service on loopback that verifies what it gets, for tests of what a credential sends."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agent_identity import AgentIdentity, Session, VerificationError
from agent_identity.adapters import Tool
from agent_identity.authority import Authority
from agent_identity.credentials.oauth.dpop import ProofKey
from agent_identity.delegation.grant import hash_of
from agent_identity.jose import loads_object, unverified
from agent_identity.uris import htu_of
from agent_identity.values import b64url
from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, Verifier


class Service:
    """A service that verifies each request; `nonces` are those it wants to see in proofs, newest last."""

    def __init__(self, identity: AgentIdentity, tls: ssl.SSLContext | None = None) -> None:
        outer = self
        self.nonces: list[str] = []
        self.heads: list[dict[str, str]] = []
        self.calls: list[Any] = []
        self.redirect: str | None = None

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.headers.get("transfer-encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size + 2)[:-2]
                    self.rfile.readline()
                outer.heads.append(dict(self.headers))
                status, headers = outer.answer(self.command, self.path, self.headers, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else b"{}")

            do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.origin = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.origin}/api"
        self.verifier = identity.verifier(audience=self.url)
        serve = self._server.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(
        self, method: str, path: str, headers: Any, body: bytes
    ) -> tuple[int, dict[str, str]]:
        if self.redirect is not None:
            return 307, {"location": self.redirect}
        wanted = self.nonces[-1] if self.nonces else None
        if wanted is not None and nonce_of(headers["dpop"]) != wanted:
            return 401, {
                "www-authenticate": 'DPoP error="use_dpop_nonce"',
                "dpop-nonce": wanted,
            }
        try:
            self.calls.append(
                self.verifier.verify_request(
                    method, self.origin + path, list(headers.items()), body, scopes=["read"]
                )
            )
        except VerificationError as error:
            return 403, {"x-code": error.code}
        return 200, {}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def nonce_of(proof: str) -> object:
    return loads_object(unverified(proof).payload).get("nonce")


@pytest.fixture
def make_service(bot: AgentIdentity) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(**options: Any) -> Service:
        made.append(Service(bot, **options))
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    return make_service()


@pytest.fixture
def other(make_service: Callable[..., Service]) -> Service:
    """Somebody else's service."""
    return make_service()


class Caller:
    """An agent that signs requests to one service, and what that service verifies them with."""

    def __init__(self, identity: AgentIdentity, session: Session, url: str, clock: Any) -> None:
        self.identity = identity
        self.session = session
        self.url = url
        self.clock = clock

    def headers(
        self,
        method: str,
        target: str,
        body: bytes | None = b"",
        *,
        scopes: tuple[str, ...] = ("read",),
        tool: str = "sign",
    ) -> dict[str, str]:
        """The headers of one request; `target` is path and query."""
        with self.session.call(Tool(tool, resource=self.url, scopes=scopes), {}) as call:
            credential = call.credential()
            return credential.headers(method, self.url + target, body)

    def signed_anyhow(self, method: str, target: str) -> dict[str, str]:
        """The same for a target that no credential signs, by the agent's own key."""
        sent = self.headers(method, "/")
        url, key = self.url + target, self.session._state.agent.key
        token = sent["Authorization"].partition(" ")[2]
        claims = loads_object(unverified(sent["Agent-Assertion"]).payload) | {"htu": htu_of(url)}
        header = {"typ": "agent-assertion+jwt", "alg": key.alg, "jwk": key.public_jwk}
        return sent | {
            "Agent-Assertion": key.compact(
                b64url(json.dumps(header).encode()), json.dumps(claims).encode()
            ),
            "DPoP": ProofKey(key).proof(method, url, self.clock(), ath=hash_of(token)),
        }

    def verifier(self, **options: Any) -> Verifier:
        authority = self.identity.authority
        anchor = TrustAnchor(
            authority.issuer,
            jwks=authority.jwks(),
            revocations=options.pop("revocations", UnsafeNoRevocations()),
            evidence="issuer",
        )
        return Verifier([anchor], audience=self.url, **({"clock": self.clock} | options))


@pytest.fixture
def calling(make_identity, clock) -> Callable[..., Any]:
    """Opens a session of alice's whose calls go to a service: `with calling(url) as caller`."""
    identity = make_identity(clock=clock, authority=Authority(clock=clock))

    @contextmanager
    def opened(url: str) -> Iterator[Caller]:
        with identity.on_behalf_of("user:alice", purpose="close the books") as session:
            yield Caller(identity, session, url, clock)

    return opened
