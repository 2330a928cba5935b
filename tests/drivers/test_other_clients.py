# SPDX-License-Identifier: Apache-2.0
"""The same credential in other clients' hands: each request signed anew, nonces met, no other place reached."""

from __future__ import annotations

import copy
import json
import pickle

import aiohttp
import httpx2
import pytest
import requests

from agent_identity import DeniedError, current_credential, tool
from agent_identity.http import aiohttp_middleware, httpx2_auth, requests_auth
from agent_identity.jose import loads_object, unverified
from agent_identity.testing import assert_no_leak


def by_httpx2(method: str, url: str, **how: object) -> int:
    with httpx2.Client(auth=httpx2_auth(current_credential()), follow_redirects=True) as client:
        return client.request(method, url, **how).status_code


async def by_httpx2_async(method: str, url: str, **how: object) -> int:
    auth = httpx2_auth(current_credential())
    async with httpx2.AsyncClient(auth=auth, follow_redirects=True) as client:
        return (await client.request(method, url, **how)).status_code


def by_requests(method: str, url: str, **how: object) -> int:
    auth = requests_auth(current_credential())
    with requests.Session() as client:
        return client.request(method, url, auth=auth, **how).status_code


async def by_aiohttp(method: str, url: str, **how: object) -> int:
    middlewares = [aiohttp_middleware(current_credential())]
    async with aiohttp.ClientSession(middlewares=middlewares) as client:
        async with client.request(method, url, **how) as response:
            return response.status


ASYNC = (by_httpx2_async, by_aiohttp)
SYNC = (by_httpx2, by_requests)


def sending(service, send):
    @tool(resource=service.url, scopes=["read"])
    async def sends(method: str, url: str, body: dict | None = None) -> int:
        how = {} if body is None else {"json": body}
        return await send(method, url, **how) if send in ASYNC else send(method, url, **how)

    return sends


@pytest.fixture(params=[*SYNC, *ASYNC], ids=lambda send: send.__name__)
def sends(request, service):
    return sending(service, request.param)


async def test_each_request_is_signed_anew_and_verifies_with_its_body(bot, service, sends) -> None:
    async with bot.on_behalf_of("user:alice", purpose="p"):
        assert await sends("GET", service.url) == 200
        assert await sends("GET", f"{service.url}/items?q=a%20b&x=1") == 200
        assert await sends("POST", f"{service.url}/items", {"a": 1}) == 200
    assert len({head["DPoP"] for head in service.heads}) == 3
    assert len({head["Agent-Assertion"] for head in service.heads}) == 3


async def test_a_services_nonce_is_met_once(bot, service, sends) -> None:
    service.nonces.append("n-1")
    async with bot.on_behalf_of("user:alice", purpose="p"):
        assert await sends("POST", service.url, {"a": 1}) == 200
        assert len(service.heads) == 2
        assert await sends("GET", service.url) == 200
    assert len(service.heads) == 3


async def test_a_service_that_is_never_content_is_asked_twice(bot, service, sends) -> None:
    service.answer = lambda *args: (
        401,
        {"www-authenticate": 'DPoP error="use_dpop_nonce"', "dpop-nonce": f"n{len(service.heads)}"},
    )
    async with bot.on_behalf_of("user:alice", purpose="p"):
        assert await sends("GET", service.url) == 401
    assert len(service.heads) == 2


async def test_C14_a_token_that_the_service_calls_expired_is_had_anew_once(
    bot, service, sends
) -> None:
    """One refresh on 401, then stop."""
    tokens = []

    def refuses(method, path, headers, body):
        tokens.append(headers["authorization"])
        return 401, {"www-authenticate": 'DPoP error="invalid_token"'}

    service.answer = refuses
    async with bot.on_behalf_of("user:alice", purpose="p"):
        assert await sends("GET", service.url) == 401
        assert len(tokens) == len(set(tokens)) == 2
        assert await sends("POST", service.url, {"a": 1}) == 401
    assert len(tokens) == 3  # it may have had an effect, so it isn't sent twice


async def test_another_place_gets_nothing(bot, service, sends) -> None:
    async with bot.on_behalf_of("user:alice", purpose="p"):
        with pytest.raises(DeniedError) as caught:
            await sends("GET", service.origin + "/admin")
    assert caught.value.code == "foreign_url"
    assert service.heads == []


async def test_I06_another_places_answer_has_no_say_in_what_is_signed(
    bot, service, other, sends
) -> None:
    service.redirect = f"{other.origin}/api"
    other.answer = lambda *args: (
        401,
        {"www-authenticate": 'DPoP error="invalid_token"', "dpop-nonce": "evil-nonce"},
    )
    async with bot.on_behalf_of("user:alice", purpose="p"):
        with pytest.raises(DeniedError):
            await sends("GET", service.url)
        service.redirect = None
        await sends("GET", service.url)
    assert other.heads == []
    assert nonce_in(service.heads[-1]["DPoP"]) is None


def nonce_in(proof: str) -> object:
    return loads_object(unverified(proof).payload).get("nonce")


async def test_a_streamed_body_is_sent_once_whatever_the_server_wants(bot, service) -> None:
    """It is gone after the first time; sent again it would be an empty request that the server takes."""
    service.nonces.append("n-1")

    @tool(resource=service.url, scopes=["read"])
    async def sends() -> list[int]:
        auth = requests_auth(current_credential())
        data = iter([b"pay 100"])
        answer = requests.post(service.url, data=data, auth=auth, timeout=5)  # noqa: ASYNC210 - the server has a thread of its own
        found = [answer.status_code]

        async def body():
            yield b"pay 100"

        middlewares = [aiohttp_middleware(current_credential())]
        async with aiohttp.ClientSession(middlewares=middlewares) as client:
            service.nonces.append("n-2")
            async with client.post(service.url, data=body()) as response:
                found.append(response.status)
        return found

    async with bot.on_behalf_of("user:alice", purpose="p"):
        assert await sends() == [401, 401]
    assert len(service.heads) == 2


async def test_a_challenge_that_comes_second_is_read_too(bot, service) -> None:
    tokens = []

    def refuses(method, path, headers, body):
        tokens.append(headers["authorization"])
        return 401, {
            "www-authenticate": 'Basic realm="x"',
            "WWW-Authenticate": 'DPoP error="invalid_token"',
        }

    service.answer = refuses
    for send in (by_requests, by_aiohttp, by_httpx2):
        async with bot.on_behalf_of("user:alice", purpose="p"):
            assert await sending(service, send)("GET", service.url) == 401
    assert len(tokens) == 6


@pytest.mark.parametrize(
    "way", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps], ids=lambda way: way.__qualname__
)
def test_C21_a_credential_is_neither_pickled_copied_nor_serialised(bot, service, way) -> None:
    @tool(resource=service.url, scopes=["read"])
    def tries() -> None:
        credential = current_credential()
        for thing in (credential, httpx2_auth(credential), [credential], {"a": credential}):
            if way is copy.copy and thing is not credential:
                continue
            with pytest.raises(TypeError) as caught:
                way(thing)
            assert_no_leak([credential.reveal()], caught.value)

    with bot.on_behalf_of("user:alice", purpose="p"):
        tries()


def test_they_show_no_secret(bot, service) -> None:
    @tool(resource=service.url, scopes=["read"])
    def shown() -> str:
        credential = current_credential()
        auths = (httpx2_auth(credential), requests_auth(credential))
        texts = [repr(auth) + str(vars(auth)) for auth in auths]
        assert credential.reveal() not in "".join(texts)
        return "".join(texts)

    with bot.on_behalf_of("user:alice", purpose="p"):
        assert "Credential for" in shown()
