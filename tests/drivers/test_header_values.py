# SPDX-License-Identifier: Apache-2.0
"""What no header can carry is refused before a client chokes on it: that client's error would hold the token."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests

from agent_identity import ConfigurationError, current_credential, current_session, tool
from agent_identity.http import aiohttp_middleware, httpx2_auth, requests_auth
from agent_identity.testing import assert_no_leak

MALFORMED = {
    "a line break": {"X-Note": "one\r\nX-Injected: 1"},
    "a NUL": {"X-Note": "one\0two"},
    "space around it": {"X-Note": " one "},
    "a name with a space": {"X Note": "one"},
    "a length that is none": {"Content-Length": "many"},
    "an unknown coding": {"Transfer-Encoding": "gzip"},
}


def by_httpx(method: str, url: str, **how: Any) -> None:
    with httpx.Client(auth=current_credential()) as client:
        client.request(method, url, **how)


def by_session_http(method: str, url: str, **how: Any) -> None:
    with current_session().http() as client:
        client.request(method, url, **how)


def by_httpx2(method: str, url: str, **how: Any) -> None:
    with httpx2.Client(auth=httpx2_auth(current_credential())) as client:
        client.request(method, url, **how)


def by_requests(method: str, url: str, headers: dict[str, str] | None = None) -> None:
    """A header that is put onto a prepared request meets no check of requests' own."""
    auth = requests_auth(current_credential())
    with requests.Session() as client:
        prepared = client.prepare_request(requests.Request(method, url))
        prepared.headers.update(headers or {})
        prepared.prepare_auth(auth)
        client.send(prepared, timeout=5)


async def by_httpx_async(method: str, url: str, **how: Any) -> None:
    async with httpx.AsyncClient(auth=current_credential()) as client:
        await client.request(method, url, **how)


async def by_httpx2_async(method: str, url: str, **how: Any) -> None:
    async with httpx2.AsyncClient(auth=httpx2_auth(current_credential())) as client:
        await client.request(method, url, **how)


async def by_aiohttp(method: str, url: str, **how: Any) -> None:
    middlewares = [aiohttp_middleware(current_credential())]
    async with aiohttp.ClientSession(middlewares=middlewares) as client:
        async with client.request(method, url, **how):
            pass


SENDS = (
    *(by_httpx, by_session_http, by_httpx2, by_requests),
    *(by_httpx_async, by_httpx2_async, by_aiohttp),
)


def refused(bot: Any, service: Any, send: Any, *asked: Any, **how: Any) -> ConfigurationError:
    """The error of a tool that sends what can't be sent; no secret of the call is in it."""
    secrets: list[str] = []

    @tool(name="sends", resource=service.url, scopes=["read"])
    async def sends() -> None:
        credential = current_credential()
        secrets.extend([credential.reveal(), credential.headers("GET", service.url, b"")["DPoP"]])
        if asyncio.iscoroutinefunction(send):
            await send(*asked, **how)
        else:
            send(*asked, **how)

    async def in_loop() -> None:
        async with bot.on_behalf_of("user:alice", purpose="p"):
            await sends()

    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(in_loop())
    assert_no_leak(secrets, caught.value)
    assert service.heads == []
    return caught.value


@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("send", SENDS, ids=lambda send: send.__name__)
def test_a_malformed_header_of_the_tools_own_leaves_no_token_in_its_error(
    bot: Any, service: Any, send: Any, headers: dict[str, str]
) -> None:
    error = refused(bot, service, send, "GET", service.url, headers=headers)
    assert error.code == "request_malformed"
    assert not any(value in str(error) for value in headers.values())


@pytest.mark.parametrize("send", [by_httpx, by_httpx2, by_httpx_async, by_httpx2_async])
def test_a_malformed_method_leaves_no_token_in_its_error(bot: Any, service: Any, send: Any) -> None:
    assert refused(bot, service, send, "GET /", service.url).code == "request_malformed"


@pytest.mark.parametrize("send", [by_httpx, by_httpx2, by_httpx_async, by_httpx2_async])
def test_a_target_that_is_set_apart_from_its_url_is_not_signed(
    bot: Any, service: Any, send: Any
) -> None:
    how = {"extensions": {"target": b"http://evil.example/"}}
    assert refused(bot, service, send, "GET", service.url, **how).code == "request_malformed"


def test_plain_headers_are_given_for_a_method_alone(bot: Any, service: Any) -> None:
    @tool(resource=service.url, scopes=["read"])
    def asks() -> None:
        current_credential().headers("GET / HTTP/1.1\r\nX: ", service.url)

    with bot.on_behalf_of("user:alice", purpose="p"), pytest.raises(ConfigurationError) as caught:
        asks()
    assert caught.value.code == "request_malformed"


@pytest.mark.parametrize("send", SENDS, ids=lambda send: send.__name__)
def test_a_header_that_can_be_sent_is_sent(bot: Any, service: Any, send: Any) -> None:
    headers = {"X-Note": "two words;\tand a tab", "X-Empty": ""}

    @tool(name="sends", resource=service.url, scopes=["read"])
    async def sends() -> None:
        if asyncio.iscoroutinefunction(send):
            await send("GET", service.url, headers=headers)
        else:
            send("GET", service.url, headers=headers)

    async def in_loop() -> None:
        async with bot.on_behalf_of("user:alice", purpose="p"):
            await sends()

    asyncio.run(in_loop())
    assert service.heads[0]["X-Note"] == headers["X-Note"]
    assert len(service.calls) == 1
