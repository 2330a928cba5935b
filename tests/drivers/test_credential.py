# SPDX-License-Identifier: Apache-2.0
"""A credential in the hands of httpx, against a service on loopback that verifies what it gets."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import urllib3

from agent_identity import (
    ConfigurationError,
    DeniedError,
    VerificationError,
    current_credential,
    current_session,
    tool,
)


def test_every_request_of_a_call_is_signed_anew_and_verifies(bot, service) -> None:
    @tool(resource=service.url, scopes=["read"])
    def works() -> list[int]:
        with httpx.Client(auth=current_credential()) as client:
            return [
                client.get(service.url).status_code,
                client.get(f"{service.url}/items", params={"q": "a b&c", "x": "ü"}).status_code,
                client.post(f"{service.url}/items", json={"a": 1}).status_code,
                client.post(f"{service.url}/items?x=1#frag", content=b"raw").status_code,
            ]

    with bot.on_behalf_of("user:alice", purpose="p"):
        assert works() == [200] * 4
    assert len({call.call.id for call in service.calls}) == 1
    assert len({head["Agent-Assertion"] for head in service.heads}) == 4
    assert len({head["DPoP"] for head in service.heads}) == 4
    assert {call.call.tool for call in service.calls} == {"works"}


async def test_async_clients_sign_alike(bot, service) -> None:
    @tool(resource=service.url, scopes=["read"])
    async def works() -> list[int]:
        async with httpx.AsyncClient(auth=current_credential()) as client:
            answers = await asyncio.gather(*(client.get(f"{service.url}/{n}") for n in range(5)))
        return [answer.status_code for answer in answers]

    async with bot.on_behalf_of("user:alice", purpose="p"):
        assert await works() == [200] * 5


def test_a_services_nonce_is_met_once_and_kept_for_the_next_request(bot, service) -> None:
    """RFC 9449 §9: the retry has a new proof, and a new assertion."""

    @tool(resource=service.url, scopes=["read"])
    def ask() -> int:
        return httpx.get(service.url, auth=current_credential()).status_code

    with bot.on_behalf_of("user:alice", purpose="p"):
        service.nonces.append("n-1")
        assert ask() == 200
        assert len(service.heads) == 2
        assert service.heads[0]["DPoP"] != service.heads[1]["DPoP"]
        assert service.heads[0]["Agent-Assertion"] != service.heads[1]["Agent-Assertion"]
        assert ask() == 200
        assert len(service.heads) == 3
        service.nonces.append("n-2")
        assert ask() == 200
        assert len(service.heads) == 5


def test_a_service_that_never_is_content_with_a_nonce_is_asked_twice(bot, service) -> None:
    @tool(resource=service.url, scopes=["read"])
    def ask() -> int:
        return httpx.get(service.url, auth=current_credential()).status_code

    service.answer = lambda *args: (
        401,
        {"www-authenticate": 'DPoP error="use_dpop_nonce"', "dpop-nonce": f"n{len(service.heads)}"},
    )
    with bot.on_behalf_of("user:alice", purpose="p"):
        assert ask() == 401
    assert len(service.heads) == 2


def test_a_nonce_and_then_an_expired_token_are_both_met(bot, service) -> None:
    """A request is sent at most three times: as it is, with the server's nonce, with a new credential."""

    @tool(resource=service.url, scopes=["read"])
    def ask() -> int:
        return httpx.get(service.url, auth=current_credential()).status_code

    verifies = service.answer
    expired = [(401, {"www-authenticate": 'DPoP error="invalid_token"'})]
    service.nonces.append("n-1")

    def answer(method, path, headers, body):
        status, found = verifies(method, path, headers, body)
        return expired.pop() if status == 200 and expired else (status, found)

    service.answer = answer
    with bot.on_behalf_of("user:alice", purpose="p"):
        assert ask() == 200
    assert len(service.heads) == 3
    assert len({head["Authorization"] for head in service.heads}) == 2


def test_a_flow_that_is_driven_by_hand_signs_again_for_a_nonce(bot) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        request = httpx.Request("GET", "https://billing.example/a")
        flow = session.credential("https://billing.example").sync_auth_flow(request)
        first = next(flow).headers["DPoP"]
        wants = {"www-authenticate": 'DPoP error="use_dpop_nonce"', "dpop-nonce": "n-1"}
        assert flow.send(httpx.Response(401, headers=wants)).headers["DPoP"] != first
        with pytest.raises(StopIteration):
            flow.send(httpx.Response(200))
    assert "trace" not in request.extensions


def test_plain_headers_serve_any_other_client(bot, service) -> None:
    @tool(resource=service.url, scopes=["read"])
    def ask() -> bool:
        credential = current_credential()
        body = json.dumps({"a": 1}).encode()
        headers = credential.headers("POST", service.url, body)
        answer = httpx.post(service.url, content=body, headers=headers)
        again = credential.observe(answer.status_code, answer.headers)
        return answer.status_code == 200 and not again

    with bot.on_behalf_of("user:alice", purpose="p"):
        assert ask()


def by_http_client(method: str, url: str, headers: dict[str, str], body: bytes) -> int:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    connection.request(method, target, body or None, headers)
    status = connection.getresponse().status
    connection.close()
    return status


def by_urllib3(method: str, url: str, headers: dict[str, str], body: bytes) -> int:
    with urllib3.PoolManager() as pool:
        return pool.request(method, url, body=body or None, headers=headers, timeout=5).status


@pytest.mark.parametrize("send", [by_http_client, by_urllib3])
@pytest.mark.parametrize("body", [b"", b'{"a": 1}'], ids=["without a body", "with a body"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "POST", "PUT", "PATCH"])
def test_plain_headers_of_every_method_verify_with_and_without_a_body(
    bot, service, send, method, body
) -> None:
    url = f"{service.url}/items?q=a%20b"

    @tool(resource=service.url, scopes=["read"])
    def asks() -> int:
        credential = current_credential()
        signed = credential.headers(method, url, body) if body else credential.headers(method, url)
        return send(method, url, signed, body)

    with bot.on_behalf_of("user:alice", purpose="p"):
        assert asks() == 200
    assert len(service.calls) == 1


def test_a_request_without_a_body_verifies_without_one_being_named(bot) -> None:
    url = "https://billing.example/items"

    @tool(resource="https://billing.example", scopes=["read"])
    def signed() -> dict[str, str]:
        return current_credential().headers("GET", url)

    with bot.on_behalf_of("user:alice", purpose="p"):
        headers = signed()
        verifier = bot.verifier(audience="https://billing.example")
        assert verifier.verify_request("GET", url, headers, scopes=["read"]).call.tool == "signed"
        with pytest.raises(VerificationError) as caught:
            verifier.verify_request("GET", url, headers, None, scopes=["read"])
    assert caught.value.code == "body_unbound"


@pytest.mark.parametrize(
    "path",
    [
        *("/apix", "/api/../admin", "/api/%2e%2e/x", "/api%2fx", "/API", "/", ""),
        *("/api/..%2fadmin", "/api/%5c..", "/api/."),
    ],
)
def test_E16_a_request_beside_the_resource_is_neither_signed_nor_sent(bot, service, path) -> None:
    @tool(resource=service.url, scopes=["read"])
    def strays() -> None:
        credential = current_credential()
        with pytest.raises(DeniedError) as caught:
            credential.headers("GET", service.origin + path)
        assert caught.value.code == "foreign_url"

    with bot.on_behalf_of("user:alice", purpose="p"):
        strays()
    assert service.heads == []


def test_E16_another_host_port_or_scheme_gets_nothing(bot, service) -> None:
    elsewhere = [
        service.url.replace("http:", "https:"),
        service.url.replace("127.0.0.1", "localhost"),
        "http://127.0.0.1:1/api",
        f"http://127.0.0.1@evil.example{service.url[16:]}",
        "https://evil.example/api",
    ]

    @tool(resource=service.url, scopes=["read"])
    def strays() -> None:
        for url in elsewhere:
            with pytest.raises(DeniedError):
                httpx.get(url, auth=current_credential())

    with bot.on_behalf_of("user:alice", purpose="p"):
        strays()
    assert service.heads == []


def test_a_client_of_the_session_signs_by_itself_and_never_leaves_its_resource(
    bot, service, other
) -> None:
    @tool(resource=service.url, scopes=["read"])
    def works() -> list[int]:
        with current_session().http() as client:
            first = client.get("items").status_code
            service.redirect = f"{other.url}/taken"
            with pytest.raises(DeniedError) as caught:
                client.get("items", follow_redirects=True)
            assert caught.value.code == "foreign_url"
            service.redirect = f"{service.origin}/admin"
            with pytest.raises(DeniedError):
                client.get("items", follow_redirects=True)
        return [first]

    with bot.on_behalf_of("user:alice", purpose="p") as session:
        assert works() == [200]
        assert service.calls[0].call.tool == "works"
        service.redirect = None
        with session.http(service.url) as client:
            # Outside a tool there is no call to assert, and this service wants one.
            assert client.get("items").headers["x-code"] == "assertion_missing"
        with pytest.raises(ConfigurationError):
            session.http()
    assert other.heads == []


async def test_an_async_client_of_the_session_does_the_same(bot, service) -> None:
    @tool(resource=service.url, scopes=["read"])
    async def works() -> list[int]:
        async with current_session().ahttp() as client:
            one = await client.get("items")
            two = await client.post("items", content=stream())
            return [one.status_code, two.status_code]

    async def stream():
        yield b"a" * 10
        yield b"b" * 10

    async with bot.on_behalf_of("user:alice", purpose="p"):
        assert await works() == [200, 200]  # a streamed body is read first, and bound


def test_a_body_that_is_streamed_past_the_credential_is_not_bound_and_a_service_refuses_it(
    bot, service
) -> None:
    @tool(resource=service.url, scopes=["read"])
    def streams() -> str:
        answer = httpx.post(service.url, content=iter([b"a", b"b"]), auth=current_credential())
        return answer.headers["x-code"]

    with bot.on_behalf_of("user:alice", purpose="p"):
        assert streams() == "body_unbound"


def test_a_client_of_the_session_refuses_a_body_too_large_to_bind(bot, service) -> None:
    @tool(resource=service.url, scopes=["read"])
    def large() -> None:
        with current_session().http() as client, pytest.raises(ConfigurationError):
            client.post("items", content=b"a" * (1024 * 1024 + 1))

    with bot.on_behalf_of("user:alice", purpose="p"):
        large()
    assert service.heads == []


def test_one_new_token_serves_all_who_held_the_one_that_was_refused(bot, service) -> None:
    """Whoever comes late finds the new one, and doesn't throw it away for another."""
    refused: list[str] = []
    shown: list[str] = []

    def answer(method, path, headers, body):
        shown.append(headers["authorization"])
        if headers["authorization"] in refused:
            return 401, {"www-authenticate": 'DPoP error="invalid_token"'}
        return 200, {}

    service.answer = answer
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        held = [session.credential(service.url, ["read"]) for _ in range(5)]
        refused.append(f"DPoP {held[0].reveal()}")
        assert [httpx.get(service.url, auth=each).status_code for each in held] == [200] * 5
    assert len(set(shown)) == 2


def test_a_generator_tool_goes_no_further_than_the_proof_of_its_principal(bot) -> None:
    @tool()
    def pages() -> Any:
        yield 1
        yield 2

    with bot.on_behalf_of("user:alice", purpose="p") as session:
        found = pages()
        assert next(found) == 1
        session._state.proof.set(bot._clock() - 1, None)
        with pytest.raises(DeniedError) as caught:
            next(found)
    assert caught.value.code == "principal_outdated"
