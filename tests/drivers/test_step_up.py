# SPDX-License-Identifier: Apache-2.0
"""A resource that wants more scopes, or a fresher sign-in: within what somebody allowed, on record, and never beyond."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests

from agent_identity import AgentIdentity, DeniedError, current_credential, tool
from agent_identity.errors import LedgerError
from agent_identity.http import aiohttp_middleware, httpx2_auth, requests_auth
from agent_identity.provenance.memory import MemoryLedger


def by_httpx(url: str) -> int:
    return httpx.get(url, auth=current_credential()).status_code


def by_httpx2(url: str) -> int:
    return httpx2.get(url, auth=httpx2_auth(current_credential())).status_code


def by_requests(url: str) -> int:
    return requests.get(url, auth=requests_auth(current_credential()), timeout=5).status_code


async def by_httpx_async(url: str) -> int:
    async with httpx.AsyncClient(auth=current_credential()) as client:
        return (await client.get(url)).status_code


async def by_aiohttp(url: str) -> int:
    middlewares = [aiohttp_middleware(current_credential())]
    async with aiohttp.ClientSession(middlewares=middlewares) as client:
        async with client.get(url) as answer:
            return answer.status


SENDS = (by_httpx, by_httpx2, by_requests, by_httpx_async, by_aiohttp)


def in_a_call(send: Any, identity: AgentIdentity, url: str, **limits: Any) -> Any:
    """What one call of a tool with the scope `read` gives, its session and its records."""

    @tool(name="sends", resource=url, scopes=["read"])
    def sends() -> int:
        return send(url)

    @tool(name="sends", resource=url, scopes=["read"])
    async def asends() -> int:
        return await send(url)

    async def in_loop() -> Any:
        async with identity.on_behalf_of("user:alice", purpose="p", **limits) as session:
            try:
                found: Any = await asends()
            except DeniedError as error:
                found = error
            return found, session, session.records()

    if asyncio.iscoroutinefunction(send):
        return asyncio.run(in_loop())
    with identity.on_behalf_of("user:alice", purpose="p", **limits) as session:
        try:
            found: Any = sends()
        except DeniedError as error:
            found = error
        return found, session, session.records()


def wanting(service: Any, scope: str) -> None:
    """Let a service want more than `read` until it is shown a chain with the scope `write`."""
    verifies = service.answer

    def answer(method: str, path: str, headers: Any, body: bytes) -> Any:
        status, found = verifies(method, path, headers, body)
        if status == 200 and "write" not in service.calls[-1].scopes:
            challenge = f'DPoP error="insufficient_scope", scope="{scope}"'
            return 403, {"www-authenticate": challenge}
        return status, found

    service.answer = answer


@pytest.mark.parametrize("send", SENDS, ids=lambda send: send.__name__)
def test_E14_a_server_widens_no_call_beyond_its_tool_where_nobody_allows_more(
    bot: AgentIdentity, service: Any, send: Any
) -> None:
    wanting(service, "write admin")
    error, session, records = in_a_call(send, bot, service.url)
    assert isinstance(error, DeniedError)
    assert (error.code, error.call_id is not None) == ("scope_not_granted", True)
    assert len(service.heads) == 1
    acquired = [record.body["scope"] for record in records if record.kind == "credential.acquired"]
    assert acquired == [["read"]]
    (call,) = bot.who_triggered(session).calls
    (refused,) = call.credential["refused"]
    assert (refused["code"], refused["place"]) == ("scope_not_granted", service.url)
    assert call.credential["step_ups"] == []
    assert call.call_id == error.call_id


@pytest.mark.parametrize("send", SENDS, ids=lambda send: send.__name__)
def test_a_step_up_within_the_sessions_limits_is_made_once_and_shown_by_the_trace(
    bot: AgentIdentity, service: Any, send: Any
) -> None:
    wanting(service, "write")
    found, session, records = in_a_call(send, bot, service.url, scopes=["read", "write"])
    assert found == 200
    assert len(service.heads) == 2
    (record,) = [record for record in records if record.kind == "credential.stepped_up"]
    trace = bot.who_triggered(session)
    (call,) = trace.calls
    assert record.call_id == call.call_id
    assert record.body["scope"] == ["read", "write"]
    assert call.credential["scopes"] == ["read"]
    assert [step["scopes"] for step in call.credential["step_ups"]] == [["read", "write"]]
    assert call.credential["refused"] == []
    assert trace.verified
    assert "stepped up to read write" in str(trace)
    assert bot.who_triggered(call.call_id).to_dict()["calls"] == trace.to_dict()["calls"]


def test_a_step_up_beyond_the_sessions_limits_is_refused(bot: AgentIdentity, service: Any) -> None:
    wanting(service, "write admin")
    error, _, _ = in_a_call(by_httpx, bot, service.url, scopes=["read", "write"])
    assert isinstance(error, DeniedError)
    assert error.code == "scope_not_granted"
    assert len(service.heads) == 1


def test_a_credential_outside_a_tool_is_capped_by_the_scopes_that_it_was_asked_with(
    bot: AgentIdentity, service: Any
) -> None:
    challenge = {"www-authenticate": 'DPoP error="insufficient_scope", scope="write"'}
    service.answer = lambda *asked: (403, challenge)
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(DeniedError) as caught:
            httpx.get(service.url, auth=session.credential(service.url, ["read"]))
        refused = [each for each in session.records() if each.kind == "credential.refused"]
    assert caught.value.code == "scope_not_granted"
    assert [(each.call_id, each.body["code"]) for each in refused] == [(None, "scope_not_granted")]


@pytest.mark.parametrize("scope", ["wr\u00efte", "", " ", "a\\\\b"])
def test_a_challenge_that_names_no_scopes_changes_nothing(
    bot: AgentIdentity, service: Any, scope: str
) -> None:
    wanting(service, scope)
    found, _, records = in_a_call(by_requests, bot, service.url)
    assert found == 403
    assert not [record for record in records if record.kind == "credential.refused"]


def test_a_fresher_sign_in_is_on_record_too(bot: AgentIdentity, service: Any) -> None:
    """RFC 9470; this resource doesn't say how fresh."""
    challenge = {"www-authenticate": 'DPoP error="insufficient_user_authentication"'}
    answers = [(401, challenge)]
    verifies = service.answer
    service.answer = lambda *asked: answers.pop() if answers else verifies(*asked)
    found, session, _ = in_a_call(by_httpx, bot, service.url)
    assert found == 200
    (call,) = bot.who_triggered(session).calls
    assert [step["scopes"] for step in call.credential["step_ups"]] == [["read"]]


class Stuck(MemoryLedger):
    """Refuses one kind of record."""

    def append(self, draft: Any, /) -> None:
        if draft.kind == "credential.refused":
            raise LedgerError("ledger_busy", "somebody else writes")
        super().append(draft)


def test_a_step_up_whose_refusal_cannot_be_recorded_is_refused_all_the_same(
    make_identity: Any, service: Any
) -> None:
    bot = make_identity(ledger=Stuck())
    challenge = {"www-authenticate": 'DPoP error="insufficient_scope", scope="write"'}
    service.answer = lambda *asked: (403, challenge)
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(LedgerError):
            httpx.get(service.url, auth=session.credential(service.url, ["read"]))
    assert len(service.heads) == 1


# -- what a trace says of a call's credential ------------------------------------------------------------------------


def test_a_trace_names_each_calls_credential_and_its_refused_uses(
    bot: AgentIdentity, service: Any, other: Any
) -> None:
    @tool(resource=service.url, scopes=["read"])
    def asks() -> int:
        with pytest.raises(DeniedError):
            httpx.get(other.url, auth=current_credential())
        with pytest.raises(DeniedError):
            current_credential().headers("GET", "https://evil.example/collect?token=1")
        return httpx.get(service.url, auth=current_credential()).status_code

    @tool()
    def thinks() -> None:
        pass

    with bot.on_behalf_of("user:alice", purpose="p") as session:
        asks()
        thinks()
        records = session.records()
    trace = bot.who_triggered(session)
    asked, thought = trace.calls
    (acquired,) = [record for record in records if record.kind == "credential.acquired"]
    assert asked.credential["source"] == acquired.body["source"]
    assert asked.credential["issuer"] == bot.authority.issuer
    assert asked.credential["scopes"] == ["read"]
    assert asked.credential["expires_at"] == acquired.to_dict()["expires_at"]
    assert [(each["code"], each["place"]) for each in asked.credential["refused"]] == [
        ("foreign_url", other.origin),
        ("foreign_url", "https://evil.example"),
    ]
    assert thought.credential is None
    assert trace.verified
    assert asked.outcome == "completed"


async def test_a_refused_use_in_a_loop_keeps_the_loop_free(
    make_identity: Any, service: Any, other: Any
) -> None:
    """What a loop's own client refuses is appended by the ledger's async door."""
    doors: list[str] = []

    class Doors(MemoryLedger):
        def append(self, draft: Any, /) -> None:
            if draft.kind == "credential.refused" and not self.inside:
                doors.append("append")
            super().append(draft)

        async def aappend(self, draft: Any, /) -> None:
            if draft.kind == "credential.refused":
                doors.append("aappend")
            self.inside = True
            super().append(draft)
            self.inside = False

        inside = False

    bot = make_identity(ledger=Doors())

    @tool(resource=service.url, scopes=["read"])
    async def strays() -> None:
        credential = current_credential()
        for client in (
            httpx.AsyncClient(auth=credential),
            httpx2.AsyncClient(auth=httpx2_auth(credential)),
        ):
            async with client:
                with pytest.raises(DeniedError):
                    await client.get(other.url)
        async with aiohttp.ClientSession(middlewares=[aiohttp_middleware(credential)]) as client:
            with pytest.raises(DeniedError):
                await client.get(other.url)

    async with bot.on_behalf_of("user:alice", purpose="p"):
        await strays()
    assert doors == ["aappend"] * 3


async def test_plain_headers_that_are_refused_in_a_loop_wait_for_no_ledger_there(
    make_identity: Any,
) -> None:
    """The record is begun at once; where somebody else writes, the loop finishes it."""
    release, written = asyncio.Event(), asyncio.Event()

    class Busy(MemoryLedger):
        async def aappend(self, draft: Any, /) -> None:
            if draft.kind == "credential.refused":
                await release.wait()
                written.set()
            super().append(draft)

        def append(self, draft: Any, /) -> None:
            assert draft.kind != "credential.refused"
            super().append(draft)

    bot = make_identity(ledger=Busy())

    @tool(resource="https://billing.example", scopes=["read"])
    async def strays() -> None:
        with pytest.raises(DeniedError):
            current_credential().headers("GET", "https://evil.example/")

    async with bot.on_behalf_of("user:alice", purpose="p") as session:
        await strays()
        kinds = [record.kind for record in session.records()]
        assert "credential.refused" not in kinds
        release.set()
        await written.wait()
    (call,) = bot.who_triggered(session).calls
    assert [each["place"] for each in call.credential["refused"]] == ["https://evil.example"]
