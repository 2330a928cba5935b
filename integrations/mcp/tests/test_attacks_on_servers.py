# SPDX-License-Identifier: Apache-2.0
"""What an attacker sends to a server that knows who is asking. No tool runs, and the answer doesn't say which rule failed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agent_identity import AgentIdentity
from agent_identity.adapters import RemoteServer
from agent_identity.verify import TrustAnchor, Verifier
from agent_identity_mcp import connect
from agent_identity_mcp.generations import http
from agent_identity_mcp.server import VerifyMiddleware, tool_meta, verified_call

PURPOSE = "close the October books"
META = "dev.agent-identity/"
STATEMENTS = ("agent-assertion", "agent-delegation", "authorization", "dpop")
LATER = 3600.0
METADATA = "https://billing.example/.well-known/oauth-protected-resource"


class Rig:
    """A server, what ran on it, and a client whose calls are caught before they arrive."""

    def __init__(self, identity: AgentIdentity, watched: Any) -> None:
        self.identity = identity
        self.watched = watched
        self.ran: list[str] = []
        self.late = 0.0
        self.session: Any = None
        self.is_over = asyncio.Event()
        self.catching: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        return str(self.watched.url)

    async def catch(self, tool: str = "pay", user: str = "alice") -> Caught:
        """The request of a call, which the server never gets. Its session stays open."""
        caught: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def keep(request: Any) -> Any:
            if request.rpc != "tools/call":
                return None
            loop = caught.get_loop()
            loop.call_soon_threadsafe(caught.set_result, request)
            empty = {"content": [], "isError": True, "resultType": "complete"}
            result = {"jsonrpc": "2.0", "id": request.message["id"], "result": empty}
            return 200, {"content-type": "application/json"}, json.dumps(result).encode()

        async def call() -> None:
            async with (
                connect(self.url, identity=self.identity) as client,
                self.identity.on_behalf_of(f"user:{user}", purpose=PURPOSE) as self.session,
            ):
                await client.call_tool(tool, {"amount": 1})
                self.watched.instead = None
                answered.set()
                await self.is_over.wait()

        self.watched.instead = keep
        answered = asyncio.Event()
        self.catching.append(asyncio.create_task(call()))
        request = await caught
        await answered.wait()
        return Caught(self, dict(request.headers), request.body)

    async def close(self) -> None:
        self.is_over.set()
        await asyncio.gather(*self.catching)


class Caught:
    """A request that an attacker has, and may change."""

    def __init__(self, rig: Rig, headers: dict[str, str], body: bytes) -> None:
        self.rig = rig
        self.headers = headers
        self.body = body

    @property
    def message(self) -> Any:
        return json.loads(self.body)

    @property
    def meta(self) -> Any:
        return self.message["params"]["_meta"]

    def but(
        self,
        change: Callable[[Any], object] | None = None,
        *,
        without: tuple[str, ...] = (),
        **headers: str,
    ) -> Caught:
        message = self.message
        if change is not None:
            change(message)
        kept = {name: value for name, value in self.headers.items() if name not in without}
        body = self.body if change is None else json.dumps(message).encode()
        return Caught(self.rig, kept | {k.replace("_", "-"): v for k, v in headers.items()}, body)

    async def send(self, url: str | None = None) -> Any:
        dropped = ("host", "content-length", "connection", "accept-encoding")
        headers = {name: value for name, value in self.headers.items() if name not in dropped}
        async with http.AsyncClient() as client:
            return await client.post(url or self.rig.url, headers=headers, content=self.body)

    async def is_refused(self, status: int = 401, code: int | None = None) -> Any:
        before = list(self.rig.ran)
        response = await self.send()
        assert response.status_code == status
        assert self.rig.ran == before
        answer = response.json()
        assert answer["jsonrpc"] == "2.0"
        assert answer["error"]["code"] == (status if code is None else code)
        assert "result" not in answer
        return response


@pytest.fixture
async def open_rig(
    identity: AgentIdentity, make: Any, start: Any
) -> AsyncIterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def opened(*allow: str, **options: Any) -> Rig:
        rigs.append(make_rig(identity, make, start, allow=frozenset(allow), **options))
        return rigs[-1]

    yield opened
    for rig in rigs:
        await rig.close()


@pytest.fixture
def rig(open_rig: Any) -> Rig:
    return open_rig()


def make_rig(
    identity: AgentIdentity,
    make: Any,
    start: Any,
    *,
    allow: frozenset[str],
    metadata: str | None = METADATA,
) -> Rig:
    server, make_app = make()
    app = make_app()
    watched = start(app)
    made = Rig(identity, watched)

    @server.tool()
    async def pay(amount: int) -> str:
        """Pay."""
        made.ran.append(f"{amount} for {verified_call().principal.sub}")
        return "paid"

    @server.tool()
    async def refund(amount: int) -> str:
        """Refund."""
        made.ran.append(f"{amount} back to {verified_call().principal.sub}")
        return "refunded"

    @server.tool(meta=tool_meta(scopes=["admin"]))
    async def close_account(amount: int) -> str:
        """Close an account."""
        made.ran.append(f"closed {amount}")
        return "closed"

    authority = identity.authority
    anchor = TrustAnchor(
        authority.issuer, jwks=authority.jwks(), revocations=authority, evidence="issuer"
    )
    verifier = Verifier(
        [anchor], audience=watched.url, allow=allow, clock=lambda: time.time() + made.late
    )
    watched.app = VerifyMiddleware(
        app,
        verifier,
        server=server,
        body_limit=32 * 1024,
        resource_metadata=metadata,
    )
    return made


def set_arguments(value: Any) -> Callable[[Any], object]:
    return lambda message: message["params"].update(arguments=value)


async def test_the_caught_request_itself_is_accepted_once(rig: Rig) -> None:
    caught = await rig.catch()
    response = await caught.send()
    assert (response.status_code, rig.ran) == (200, ["1 for alice"])
    await caught.is_refused()
    assert rig.ran == ["1 for alice"]


async def test_a_call_without_statements_is_told_where_tokens_are_issued(rig: Rig) -> None:
    caught = await rig.catch()
    bare = caught.but(lambda message: message["params"].pop("_meta"), without=STATEMENTS)
    if "mcp-method" in caught.headers:  # 2026-07-28 needs the rest of its `_meta`
        own = {k: v for k, v in caught.meta.items() if not k.startswith(META)}
        bare = caught.but(lambda m: m["params"].update(_meta=own), without=STATEMENTS)
    refused = await bare.is_refused()
    challenge = refused.headers["www-authenticate"]
    assert challenge.startswith("DPoP ")
    assert 'resource_metadata="https://billing.example/.well-known/' in challenge
    assert refused.json()["error"]["message"] == "Credentials are required"
    assert refused.json()["id"] == caught.message["id"]


@pytest.mark.parametrize("name", ["agent-assertion", "agent-delegation"])
async def test_a_call_whose_request_is_not_asserted_is_refused(rig: Rig, name: str) -> None:
    await (await rig.catch()).but(without=(name,)).is_refused()


@pytest.mark.parametrize("name", ["assertion", "delegation"])
async def test_a_call_that_is_not_asserted_itself_is_refused(rig: Rig, name: str) -> None:
    caught = await rig.catch()
    await caught.but(lambda m: m["params"]["_meta"].pop(f"{META}{name}")).is_refused()


async def test_the_assertion_of_a_request_is_none_of_its_call_and_the_other_way_round(
    rig: Rig,
) -> None:
    caught = await rig.catch()
    both = caught.headers["agent-assertion"], caught.meta[f"{META}assertion"]
    await caught.but(agent_assertion=both[1]).is_refused()
    swapped = caught.but(lambda m: m["params"]["_meta"].update({f"{META}assertion": both[0]}))
    await swapped.is_refused()


async def test_changed_arguments_are_refused(rig: Rig) -> None:
    caught = await rig.catch()
    await caught.but(set_arguments({"amount": 1000})).is_refused()
    await caught.but(set_arguments({"amount": 1, "note": "x"})).is_refused()
    await caught.but(set_arguments(None)).is_refused()


async def test_changed_arguments_are_refused_also_where_no_body_is_bound(open_rig: Any) -> None:
    rig = open_rig("unbound_body")
    caught = (await rig.catch()).but(without=("agent-assertion", "agent-delegation", "dpop"))
    await caught.but(set_arguments({"amount": 1000})).is_refused()
    await caught.but(lambda m: m["params"].update(name="refund")).is_refused(403)
    await caught.but(without=("authorization",)).is_refused()
    response = await caught.send()
    assert (response.status_code, rig.ran) == (200, ["1 for alice"])
    await caught.is_refused()


async def test_statements_of_two_calls_are_refused(rig: Rig) -> None:
    """Each is unused and fits the request: same tool, same arguments."""
    first, second = await rig.catch(), await rig.catch()
    statements = {k: v for k, v in second.meta.items() if k.startswith(META)}
    await first.but(lambda m: m["params"]["_meta"].update(statements)).is_refused()


async def test_another_tools_statements_are_refused(rig: Rig) -> None:
    caught = await rig.catch("refund")
    header = {"mcp_name": "pay"} if "mcp-name" in caught.headers else {}
    await caught.but(lambda m: m["params"].update(name="pay"), **header).is_refused(403)


async def test_another_servers_statements_are_refused(rig: Rig, open_rig: Any) -> None:
    other = open_rig()
    caught = await other.catch()
    caught.rig = rig
    await caught.is_refused()


async def test_another_principals_token_is_refused(rig: Rig) -> None:
    alice, bob = await rig.catch(), await rig.catch(user="bob")
    await alice.but(authorization=bob.headers["authorization"]).is_refused()
    stolen = {name: bob.headers[name] for name in ("authorization", "dpop") if name in bob.headers}
    await alice.but(**stolen).is_refused()


async def test_a_bound_token_is_no_bearer_token(rig: Rig) -> None:
    caught = await rig.catch()
    token = caught.headers["authorization"].partition(" ")[2]
    await caught.but(authorization=f"Bearer {token}", without=("dpop",)).is_refused()
    await caught.but(without=("dpop",)).is_refused()


@pytest.mark.parametrize("metadata", [METADATA, None])
async def test_a_call_without_token_is_refused_where_one_is_needed(
    open_rig: Any, metadata: str | None
) -> None:
    rig = open_rig("unbound_body", metadata=metadata)
    caught = (await rig.catch()).but(without=STATEMENTS)
    async with rig.identity.on_behalf_of("user:alice", purpose=PURPOSE):
        remote = RemoteServer(rig.url, identity=rig.identity)
        async with remote.call("pay", {"amount": 1}) as call:
            signed: dict[str, Any] = {}
            remote.sign(call, signed, with_token=False)
            bare = caught.but(lambda m: m["params"]["_meta"].update(signed))
            if metadata is not None:
                await bare.is_refused()
                return
            assert (await bare.send()).status_code == 200
    assert rig.ran == ["1 for alice"]


async def test_expired_statements_are_refused(rig: Rig) -> None:
    caught = await rig.catch()
    rig.late = LATER
    refused = await caught.is_refused()
    assert refused.json()["error"]["message"] == "The credentials are not valid at this time"


async def test_a_revoked_session_is_refused(rig: Rig) -> None:
    caught = await rig.catch()
    rig.identity.revoke(rig.session, reason="test")
    refused = await caught.is_refused(403)
    assert refused.json()["error"]["message"] == "The authority to act was revoked"


async def test_scopes_that_are_missing_are_named(rig: Rig) -> None:
    refused = await (await rig.catch("close_account")).is_refused(403)
    assert 'error="insufficient_scope", scope="admin"' in refused.headers["www-authenticate"]


async def test_a_large_body_is_refused_before_it_is_read(rig: Rig) -> None:
    caught = await rig.catch()
    await caught.but(set_arguments({"amount": 1, "note": "x" * 40_000})).is_refused(413)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"arguments":', b'"arguments":{"amount":1000},"arguments":'),
        (b'"method":', b'"method":"tools/list","method":'),
        (b'"name":', b'"name":"refund","name":'),
        (b'"method":', b'"m\\u0065thod":"ping","method":'),
    ],
)
async def test_a_message_with_two_readings_is_refused(rig: Rig, old: bytes, new: bytes) -> None:
    caught = await rig.catch()
    body = json.dumps(caught.message, separators=(",", ":")).encode()
    twice = Caught(rig, caught.headers, body.replace(old, new, 1))
    assert twice.body != body
    await twice.is_refused(400, -32700)


@pytest.mark.parametrize("body", [b"", b"{", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"NaN"])
async def test_what_is_no_message_is_refused(rig: Rig, body: bytes) -> None:
    caught = await rig.catch()
    await Caught(rig, caught.headers, body).is_refused(400, -32700)


@pytest.mark.parametrize("body", [b"[]", b"1", b'"tools/call"', b"null"])
async def test_what_is_no_object_is_refused(rig: Rig, body: bytes) -> None:
    caught = await rig.catch()
    await Caught(rig, caught.headers, body).is_refused(400, -32600)


async def test_a_batch_is_refused(rig: Rig) -> None:
    caught = await rig.catch()
    batch = b"[" + caught.body + b"," + caught.body + b"]"
    await Caught(rig, caught.headers, batch).is_refused(400, -32600)


@pytest.mark.parametrize(
    "params",
    [None, [], {}, {"name": 1}, {"name": "pay", "arguments": []}, {"name": "pay", "arguments": 1}],
)
async def test_a_malformed_call_is_refused(rig: Rig, params: Any) -> None:
    caught = await rig.catch()
    await caught.but(lambda message: message.update(params=params)).is_refused(200, -32602)


@pytest.mark.parametrize(
    "method", ["resources/read", "prompts/get", "completion/complete", "tasks/result", "TOOLS/CALL"]
)
async def test_a_method_that_cannot_be_verified_is_refused(rig: Rig, method: str) -> None:
    caught = await rig.catch()
    await caught.but(lambda message: message.update(method=method)).is_refused(200, -32601)


async def test_a_tool_that_is_not_listed_is_refused(rig: Rig) -> None:
    caught = await rig.catch()
    await caught.but(lambda m: m["params"].update(name="_pay")).is_refused(200, -32602)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "post", "CALL"])
async def test_another_http_method_is_no_way_around(rig: Rig, method: str) -> None:
    caught = await rig.catch()
    headers = {"content-type": "application/json"}
    async with http.AsyncClient() as client:
        response = await client.request(method, rig.url, headers=headers, content=caught.body)
    assert response.status_code >= 400
    assert rig.ran == []


async def test_a_server_that_is_reached_without_the_middleware_runs_nothing(rig: Rig) -> None:
    """As by a second application of the same server."""
    caught = await rig.catch()
    rig.watched.app = rig.watched.app._app
    answer = (await caught.send()).json()
    assert answer["error"]["message"] == "Credentials are required"
    assert rig.ran == []


@pytest.mark.parametrize(
    ("old", "new"), [(b'"amount":1', b'"amount":9'), (b'"name":"pay"', b'"name":"refund"')]
)
async def test_a_call_that_is_changed_behind_the_middleware_does_not_run(
    rig: Rig, old: bytes, new: bytes
) -> None:
    """As by a component that reads the message otherwise."""
    caught = await rig.catch()
    verified, app = rig.watched.app, rig.watched.app._app

    async def change(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body = message["body"]
        assert old in body
        body = body.replace(old, new, 1)
        headers = [(n, v) for n, v in scope["headers"] if n not in (b"content-length", b"mcp-name")]
        named = (b"mcp-name", json.loads(body)["params"]["name"].encode())
        scope["headers"] = [*headers, (b"content-length", str(len(body)).encode()), named]

        async def again() -> Any:
            return {**message, "body": body}

        await app(scope, again, send)

    verified._app = change
    answer = (await caught.send()).json()
    assert answer["error"]["message"] == "The credentials were refused"
    assert rig.ran == []
