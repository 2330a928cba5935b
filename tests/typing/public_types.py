# SPDX-License-Identifier: Apache-2.0
"""The public signatures as a test subject: read by mypy and pyright, never run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import assert_type

import httpx

from agent_identity import (
    AgentIdentity,
    Credential,
    Decision,
    Principal,
    Session,
    Trace,
    current_credential,
    current_session,
    tool,
)
from agent_identity.policy import Request
from agent_identity.verify import AssertedCall, VerifiedCall, Verifier

BILLING = "https://billing.example"


# -- what is decorated keeps its type ----------------------------------------------------------------------------------


@tool(resource=BILLING, scopes=["invoices:read"], labels={"reads:finance"})
def plain(customer: str, limit: int = 10) -> list[str]:
    return [customer] * limit


@tool()
async def coroutine(customer: str, *, limit: int) -> dict[str, int]:
    return {customer: limit}


@tool()
def generator(start: int) -> Generator[int, str, bytes]:
    sent = yield start
    return sent.encode()


@tool()
def iterator() -> Iterator[int]:
    yield 1


@tool()
async def async_generator(start: int) -> AsyncGenerator[int, str]:
    sent = yield start
    yield len(sent)


@tool()
async def async_iterator() -> AsyncIterator[str]:
    yield ""


@tool(name="spread", opaque=["rest"])
def variadic(*args: int, **rest: str) -> None: ...


@tool
def bare(customer: str, limit: int = 10) -> list[str]:
    return [customer] * limit


@tool
async def abare(customer: str, *, limit: int) -> dict[str, int]:
    return {customer: limit}


@tool
def bare_generator(start: int) -> Generator[int, str, bytes]:
    sent = yield start
    return sent.encode()


class Books:
    @tool
    def bare(self, customer: str) -> int:
        return len(customer)

    @staticmethod
    @tool
    def bare_static(customer: str) -> bytes:
        return customer.encode()

    @tool()
    def method(self, customer: str) -> int:
        return len(customer)

    @classmethod
    @tool()
    def of_class(cls, customer: str) -> str:
        return customer

    @staticmethod
    @tool()
    def static(customer: str) -> bytes:
        return customer.encode()

    @tool()
    async def amethod(self) -> float:
        return 0.5


def calls(books: Books) -> None:
    assert_type(plain("ACME"), list[str])
    assert_type(plain("ACME", limit=3), list[str])
    assert_type(asyncio.run(coroutine("ACME", limit=3)), dict[str, int])
    assert_type(generator(1), Generator[int, str, bytes])
    assert_type(iterator(), Iterator[int])
    assert_type(async_generator(1), AsyncGenerator[int, str])
    assert_type(async_iterator(), AsyncIterator[str])
    assert_type(variadic(1, 2, a="x"), None)
    assert_type(bare("ACME", limit=3), list[str])
    assert_type(asyncio.run(abare("ACME", limit=3)), dict[str, int])
    assert_type(bare_generator(1), Generator[int, str, bytes])
    assert_type(books.bare("ACME"), int)
    assert_type(Books.bare_static("ACME"), bytes)
    assert_type(books.method("ACME"), int)
    assert_type(Books.of_class("ACME"), str)
    assert_type(Books.static("ACME"), bytes)
    assert_type(asyncio.run(books.amethod()), float)
    handed_on: Callable[[str], int] = books.method
    assert_type(handed_on("ACME"), int)


async def awaited(books: Books) -> None:
    assert_type(await coroutine("ACME", limit=3), dict[str, int])
    assert_type(await books.amethod(), float)
    async for item in async_generator(1):
        assert_type(item, int)
    async for text in async_iterator():
        assert_type(text, str)


def mistakes() -> None:
    """Each line is an error, and an ignore that nobody needs is one too."""
    plain(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain("ACME", limits=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bare(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bare("ACME", limits=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    coroutine("ACME")  # type: ignore[call-arg, unused-coroutine]  # pyright: ignore[reportCallIssue, reportUnusedCoroutine]
    tool(BILLING)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


# -- identities and sessions -------------------------------------------------------------------------------------------


def policy(request: Request) -> Decision:
    return Decision.permit(policy_id=request.resource.id)


def yes(request: Request) -> bool:
    return bool(request.context)


def sync(identity: AgentIdentity) -> None:
    assert_type(AgentIdentity.embedded("bot", policy=policy), AgentIdentity)
    assert_type(AgentIdentity.embedded("bot", policy=yes, ledger="memory:"), AgentIdentity)
    with identity as entered:
        assert_type(entered, AgentIdentity)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        assert_type(session, Session)
        with session.delegate("archive-bot", scopes=["invoices:read"], expires_in=60) as child:
            assert_type(child, Session)
        assert_type(session.principal, Principal)
        assert_type(session.chain, tuple[str, ...])
        assert_type(session.call_id, str | None)
        assert_type(session.credential(BILLING), Credential)
        assert_type(session.bind(plain)("ACME"), list[str])
        assert_type(current_session(), Session)
        assert_type(current_credential(), Credential)
        with session.http(BILLING) as client:
            assert_type(client, httpx.Client)
    with identity.autonomous(trigger="cron:nightly", purpose="p") as unattended:
        assert_type(unattended, Session)
    identity.on_behalf_of(Principal("alice"), purpose="p")
    trace = identity.who_triggered(session)
    assert_type(trace, Trace)
    assert_type(trace.principal, Principal | None)
    assert_type(identity.who_triggered("call_1").verified, bool)


async def asynchronous(identity: AgentIdentity) -> None:
    async with identity as entered:
        assert_type(entered, AgentIdentity)
    async with identity.on_behalf_of("user:alice", purpose="p") as session:
        assert_type(session, Session)
        async with session.delegate("archive-bot") as child:
            assert_type(child, Session)
        assert_type(await session.acredential(BILLING), Credential)
        async with session.ahttp(BILLING) as client:
            assert_type(client, httpx.AsyncClient)
        await session.arevoke("done")
    assert_type(await identity.awho_triggered(session), Trace)


def credentials(credential: Credential) -> None:
    assert_type(credential.headers("GET", BILLING), dict[str, str])
    assert_type(credential.reveal(), str)
    assert_type(credential.scopes, frozenset[str])
    assert_type(credential.expires_at, float)
    httpx.get(BILLING, auth=credential)


async def handed_over(identity: AgentIdentity, verifier: Verifier, key: dict[str, str]) -> None:
    session = identity.on_behalf_of(
        "user:alice", purpose="p", authorization_details=[{"type": "x"}]
    )
    child = await session.adelegate("beta", key=key, resources=[BILLING], scopes=["read"])
    assert_type(child, Session)
    headers: dict[str, str] = {}
    child.inject(headers)
    call = verifier.verify_request("GET", BILLING, headers, b"", scopes=())
    assert_type(call, VerifiedCall)
    assert_type(call.call, AssertedCall | None)
    assert_type(call.principal, Principal)
    assert_type(identity.accept(call), Session)
    assert_type(await verifier.averify_call("a", ["g"], tool="t", args={}, scopes=()), VerifiedCall)
