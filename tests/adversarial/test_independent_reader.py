# SPDX-License-Identifier: Apache-2.0
"""What reached a real service is read by somebody else: with joserfc and rfc8785, from the page that describes the wire form.

The reader shares no line with the library, so that both can't be wrong in the same way. What it finds has to be what span
and ledger say of the same call.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import httpx
import pytest
import rfc8785
from joserfc import jws
from joserfc.jwk import JWKRegistry

from agent_identity import AgentIdentity, current_credential, tool
from agent_identity.provenance.records import CALL_COMPLETED, CALL_INTENDED

# -- the reader: nothing of the library below, only what DESIGN section 5 says --------------------------------------------


class Signed(NamedTuple):
    header: dict[str, Any]
    claims: dict[str, Any]
    jkt: str


class ReadCall(NamedTuple):
    issuer: str
    principal: str
    agents: list[str]
    resource: str
    tool: str
    scopes: list[str]
    purpose: str
    txn: str
    call_id: str
    trace: dict[str, str]


def b64url_sha256(data: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def part(compact: str, index: int) -> Any:
    text = compact.split(".")[index]
    return json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def checked(compact: str, jwk: dict[str, Any], typ: str) -> Signed:
    key = JWKRegistry.import_key({n: v for n, v in jwk.items() if n in {"kty", "crv", "x", "y"}})
    found = jws.deserialize_compact(compact, key, algorithms=["ES256"])
    header = found.headers()
    assert header["typ"] == typ
    return Signed(header, json.loads(found.payload), key.thumbprint())


def by_kid(compact: str, jwks: dict[str, Any], typ: str) -> Signed:
    (jwk,) = [key for key in jwks["keys"] if key["kid"] == part(compact, 0)["kid"]]
    return checked(compact, jwk, typ)


def by_own_key(compact: str, jkt: str, typ: str) -> Signed:
    """The key in the header counts because the grant above names its thumbprint."""
    found = checked(compact, part(compact, 0)["jwk"], typ)
    assert found.jkt == jkt
    return found


def read_chain(members: list[str], jwks: dict[str, Any]) -> list[dict[str, Any]]:
    """The claims of each hop, root first."""
    hops = [by_kid(members[-1], jwks, "agent-grant+jwt").claims]
    root = hops[0]
    assert "par_hash" not in root
    assert "act" not in root["act"]
    assert (root["del_depth"], root["evidence"], root["act"]["iss"]) == (0, "issuer", root["iss"])
    assert root["act"]["instance"] == root["cnf"]["jkt"]
    for above, compact in zip(reversed(members), members[-2::-1], strict=False):
        parent = hops[-1]
        child = by_own_key(compact, parent["cnf"]["jkt"], "agent-grant+jwt").claims
        assert child["iss"] == child["act"]["iss"] == parent["act"]["sub"]
        assert child["par_hash"] == b64url_sha256(above.rpartition(".")[0].encode())
        assert child["act"]["act"] == parent["act"]
        assert child["act"]["instance"] == child["cnf"]["jkt"]
        assert child["del_depth"] == parent["del_depth"] + 1 <= parent["del_max_depth"]
        for constant in ("sub", "sub_iss", "sub_profile", "purpose", "txn"):
            assert child[constant] == parent[constant]
        assert {*child.get("scope", "").split()} <= {*parent.get("scope", "").split()}
        assert {*child["aud"]} <= {*parent["aud"]}
        assert child["exp"] <= parent["exp"]
        assert child["del_max_depth"] <= parent["del_max_depth"]
        hops.append(child)
    return hops


def read_call(
    method: str,
    url: str,
    headers: list[tuple[str, str]],
    body: bytes,
    jwks: dict[str, Any],
    arguments: dict[str, Any],
) -> ReadCall:
    """Prove from the request alone who asked, through whom, for what; fails with AssertionError or a JOSE error."""
    names = [name.lower() for name, _ in headers]
    for name in ("agent-assertion", "agent-delegation", "authorization", "dpop"):
        assert names.count(name) == 1
    sent = {name.lower(): value for name, value in headers}
    members = sent["agent-delegation"].split(", ")
    hops = read_chain(members, jwks)
    leaf = hops[-1]
    key = leaf["cnf"]["jkt"]
    path, _, query = url.partition("?")

    said = by_own_key(sent["agent-assertion"], key, "agent-assertion+jwt").claims
    assert (said["iss"], said["sub"], said["txn"]) == (leaf["act"]["sub"], leaf["sub"], leaf["txn"])
    assert said["grant_hash"] == b64url_sha256(members[0].encode())
    assert said["aud"] in leaf["aud"]
    assert said["exp"] - said["iat"] <= 60
    assert (said["htm"], said["htu"]) == (method, path)
    assert said.get("htq") == (b64url_sha256(query.encode()) if query else None)
    assert said["content_digest"] == b64url_sha256(body)
    call = said["call"]
    assert said["jti"].rpartition(".")[0] == call["id"]
    assert call["args_hash"] == "sha-256:" + b64url_sha256(rfc8785.dumps(arguments))
    assert "use" not in said

    scheme, _, token = sent["authorization"].partition(" ")
    assert scheme == "DPoP"
    ath = b64url_sha256(token.encode())
    assert said["ath"] == ath
    proof = by_own_key(sent["dpop"], key, "dpop+jwt").claims
    assert (proof["htm"], proof["htu"], proof["ath"]) == (method, path, ath)

    held = by_kid(token, jwks, "at+jwt").claims
    assert held["cnf"]["jkt"] == key
    assert (held["iss"], held["sub"], held["txn"]) == (hops[0]["iss"], leaf["sub"], leaf["txn"])
    assert held["aud"] == said["aud"]
    assert held["act"] == leaf["act"]
    assert {*held["scope"].split()} <= {*leaf["scope"].split()}
    return ReadCall(
        issuer=hops[0]["iss"],
        principal=leaf["sub"],
        agents=[hop["act"]["sub"] for hop in hops],
        resource=said["aud"],
        tool=call["tool"],
        scopes=held["scope"].split(),
        purpose=leaf["purpose"],
        txn=leaf["txn"],
        call_id=call["id"],
        trace=said["trace"],
    )


# -- a service that only writes down what it gets ------------------------------------------------------------------------


class Received(NamedTuple):
    method: str
    url: str
    headers: list[tuple[str, str]]
    body: bytes


class Service:
    """An HTTP server on loopback that knows nothing of the library."""

    def __init__(self) -> None:
        received: list[Received] = []

        class Handler(BaseHTTPRequestHandler):
            def _take(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                url = f"http://{self.headers['host']}{self.path}"
                received.append(Received(self.command, url, self.headers.items(), body))
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            do_GET = do_POST = _take

            def log_message(self, *args: Any) -> None:
                pass

        self.received = received
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    yield running
    running.close()


@pytest.fixture
def tools(service: Service) -> dict[str, Any]:
    @tool(resource=service.url, scopes=["invoices:read"])
    def list_invoices(customer: str, limit: int = 10, paid: bool | None = None) -> str:
        query = {"customer": customer, "limit": limit}
        return httpx.get(f"{service.url}/v1/invoices", params=query, auth=current_credential()).text

    @tool(resource=service.url, scopes=["journal:write"])
    async def book(entry: dict[str, Any], note: str) -> str:
        async with httpx.AsyncClient(auth=current_credential()) as client:
            return (await client.post(f"{service.url}/v1/journal", json=entry)).text

    return {"list_invoices": list_invoices, "book": book}


ENTRY = {"total": 1680.5, "customer": "Größe & Söhne", "lines": [1, {"z": None, "a": True}]}


def attributes_of(finished: Any, call_id: str) -> dict[str, Any]:
    (one,) = [span for span in finished if span.attributes.get("agent_identity.call.id") == call_id]
    context = {"trace_id": f"{one.context.trace_id:032x}", "span_id": f"{one.context.span_id:016x}"}
    return {**one.attributes, **context}


# -- the tests -----------------------------------------------------------------------------------------------------------


def test_a_stranger_proves_from_the_request_alone_who_asked_and_finds_the_same_call_everywhere(
    bot: AgentIdentity, service: Service, tools: dict[str, Any], spans: Any
) -> None:
    with bot.on_behalf_of("user:alice", purpose="close the October books") as session:
        assert tools["list_invoices"]("ACME & Co") == "ok"
    (request,) = service.received
    arguments = {"customer": "ACME & Co", "limit": 10, "paid": None}
    call = read_call(*request, bot.authority.jwks(), arguments)
    assert call.issuer == bot.authority.issuer
    assert call.principal == "alice"
    assert call.agents == ["urn:agent-identity:agent:invoice-bot"]
    assert (call.resource, call.tool) == (service.url, "list_invoices")
    assert (call.scopes, call.purpose) == (["invoices:read"], "close the October books")

    span = attributes_of(spans(), call.call_id)
    assert (span["gen_ai.tool.name"], span["agent_identity.txn"]) == ("list_invoices", call.txn)
    assert {"trace_id": span["trace_id"], "span_id": span["span_id"]} == call.trace

    kinds = [r.kind for r in session.records() if r.call_id == call.call_id]
    assert kinds == [CALL_INTENDED, CALL_COMPLETED]
    trace = bot.who_triggered(call.call_id)
    assert trace.verified
    assert trace.principal is not None
    assert (trace.principal.sub, trace.purpose) == (call.principal, call.purpose)
    (told,) = trace.calls
    assert (told["call_id"], told["tool"], told["resource"]) == (
        *(call.call_id, call.tool, call.resource),
    )


def test_a_stranger_reads_the_sub_agents_hop_and_binds_the_body(
    bot: AgentIdentity, service: Service, tools: dict[str, Any], spans: Any
) -> None:
    async def work() -> str:
        async with (
            bot.on_behalf_of("user:alice", purpose="close the October books") as session,
            session.delegate("archive-bot", scopes=["journal:write"], task="book it"),
        ):
            await tools["book"](ENTRY, note="2026-10")
            return session.id

    txn = asyncio.run(work())
    (request,) = service.received
    call = read_call(*request, bot.authority.jwks(), {"entry": ENTRY, "note": "2026-10"})
    assert call.agents == [
        "urn:agent-identity:agent:invoice-bot",
        "urn:agent-identity:agent:archive-bot",
    ]
    assert (call.txn, call.tool, call.scopes) == (txn, "book", ["journal:write"])
    assert json.loads(request.body) == ENTRY
    span = attributes_of(spans(), call.call_id)
    assert span["agent_identity.chain.depth"] == 1
    assert span["agent_identity.agent.id"] == call.agents[-1]
    trace = bot.who_triggered(call.call_id)
    assert [hop["agent"] for hop in trace.chain] == call.agents
    assert (trace.verified, trace.outcome) == (True, "completed")


def test_each_request_of_a_call_carries_an_assertion_of_its_own_and_the_same_call_id(
    bot: AgentIdentity, service: Service
) -> None:
    @tool(resource=service.url, scopes=["invoices:read"])
    def twice() -> None:
        with httpx.Client(auth=current_credential()) as client:
            client.get(f"{service.url}/1")
            client.get(f"{service.url}/2")

    with bot.on_behalf_of("user:alice", purpose="p"):
        twice()
    calls = [read_call(*request, bot.authority.jwks(), {}) for request in service.received]
    assert len({call.call_id for call in calls}) == 1
    jtis = {part(dict(r.headers)["Agent-Assertion"], 1)["jti"] for r in service.received}
    assert jtis == {f"{calls[0].call_id}.1", f"{calls[0].call_id}.2"}


def test_the_reader_notices_what_was_changed(
    bot: AgentIdentity, service: Service, tools: dict[str, Any]
) -> None:
    """Else it would prove nothing."""
    with bot.on_behalf_of("user:alice", purpose="p"):
        tools["list_invoices"]("ACME", paid=True)
    (good,) = service.received
    jwks = bot.authority.jwks()
    arguments = {"customer": "ACME", "limit": 10, "paid": True}
    assert read_call(*good, jwks, arguments)
    changed = [
        (good, jwks, arguments | {"paid": 1}),
        (good, jwks, arguments | {"customer": "Globex"}),
        (good._replace(method="POST"), jwks, arguments),
        (good._replace(url=good.url.replace("ACME", "Globex")), jwks, arguments),
        (good._replace(url=good.url.replace("invoices", "payments")), jwks, arguments),
        (good._replace(body=b"x"), jwks, arguments),
        (good._replace(headers=[*good.headers, good.headers[-1]]), jwks, arguments),
    ]
    for request, keys, said in changed:
        with pytest.raises(AssertionError):
            read_call(*request, keys, said)


def test_no_argument_and_no_token_is_readable_in_what_was_signed(
    bot: AgentIdentity, service: Service, tools: dict[str, Any]
) -> None:
    with bot.on_behalf_of("user:alice", purpose="p"):
        tools["list_invoices"]("a-customer-with-a-telling-name")
    headers = {name.lower(): value for name, value in service.received[0].headers}
    token = headers["authorization"].partition(" ")[2]
    signed = [headers["agent-assertion"], *headers["agent-delegation"].split(", "), token]
    for compact in (*signed, headers["dpop"]):
        text = json.dumps([part(compact, 0), part(compact, 1)])
        assert "telling-name" not in text
        assert token not in text


def test_the_reader_shares_nothing_with_the_library() -> None:
    ours = {name for name in sys.modules if name.partition(".")[0] == "agent_identity"}
    for function in (read_call, read_chain, by_own_key, by_kid, checked, part, b64url_sha256):
        used = (globals().get(name) for name in function.__code__.co_names)
        modules = {getattr(value, "__module__", None) for value in used}
        assert modules.isdisjoint(ours)
