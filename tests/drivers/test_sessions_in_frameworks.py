# SPDX-License-Identifier: Apache-2.0
"""Sessions where frameworks drive generators: FastAPI's dependencies and streams, Litestar's dependencies, pytest's fixtures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient as FastApiClient
from litestar import Litestar, get
from litestar.di import Provide
from litestar.testing import TestClient as LitestarClient
from starlette.responses import StreamingResponse

from agent_identity import AgentIdentity, NoSessionError, Session, current_session, tool


@tool()
def who() -> str:
    return current_session().principal.sub


@tool()
async def awho() -> str:
    return current_session().principal.sub


def asked() -> str:
    try:
        return who()
    except NoSessionError as error:
        return f"{error.code}: {error.remedy}"


@pytest.fixture
def client(bot: AgentIdentity) -> Iterator[FastApiClient]:
    app = FastAPI()

    async def acting(user: str) -> AsyncIterator[Session]:
        async with bot.on_behalf_of(f"user:{user}", purpose="p") as session:
            yield session

    def acting_in_a_thread(user: str) -> Iterator[Session]:
        with bot.on_behalf_of(f"user:{user}", purpose="p") as session:
            yield session

    def steps(user: str) -> Iterator[str]:
        with bot.on_behalf_of(f"user:{user}", purpose="p"):
            for _ in range(3):
                yield f"{asked()} "

    async def asteps(user: str) -> AsyncIterator[str]:
        async with bot.on_behalf_of(f"user:{user}", purpose="p"):
            for _ in range(3):
                yield f"{await awho()} "

    @app.get("/async-dependency/sync")
    def sync_endpoint(session: Session = Depends(acting)) -> str:  # noqa: B008, FAST002 - the dependency is a local function
        return asked()

    @app.get("/async-dependency/async")
    async def async_endpoint(session: Session = Depends(acting)) -> str:  # noqa: B008, FAST002 - the dependency is a local function
        return await awho()

    @app.get("/sync-dependency")
    def after_sync(session: Session = Depends(acting_in_a_thread)) -> list[str]:  # noqa: B008, FAST002 - the dependency is a local function
        return [asked(), session.bind(asked)()]

    @app.get("/stream")
    def stream(user: str) -> StreamingResponse:
        return StreamingResponse(steps(user))

    @app.get("/astream")
    def astream(user: str) -> StreamingResponse:
        return StreamingResponse(asteps(user))

    with FastApiClient(app) as made:
        yield made


@pytest.mark.parametrize("endpoint", ["sync", "async"])
def test_an_async_dependency_lends_its_session_to_the_endpoint(
    client: FastApiClient, endpoint: str
) -> None:
    for user in ("alice", "bob"):
        answer = client.get(f"/async-dependency/{endpoint}", params={"user": user})
        assert answer.json() == user


@pytest.mark.parametrize("path", ["/stream", "/astream"])
def test_a_stream_that_enters_a_session_acts_as_it_in_every_step(
    client: FastApiClient, path: str
) -> None:
    for user in ("alice", "bob"):
        assert client.get(path, params={"user": user}).text.split() == [user] * 3


def test_a_sync_dependency_gets_an_error_that_names_the_remedy(client: FastApiClient) -> None:
    """It runs in a thread with a context of its own, which carries nothing to the endpoint."""
    refused, bound = client.get("/sync-dependency", params={"user": "alice"}).json()
    assert refused.startswith("no_session: ")
    assert "async def" in refused
    assert "session.bind" in refused
    assert bound == "alice"


@pytest.mark.filterwarnings("ignore:.*Inferred dependency field:DeprecationWarning")
def test_a_litestar_dependency_lends_its_session(bot: AgentIdentity) -> None:
    async def acting() -> AsyncIterator[Session]:
        async with bot.on_behalf_of("user:alice", purpose="p") as session:
            yield session

    @get("/", dependencies={"session": Provide(acting)})
    async def endpoint(session: Any) -> str:
        return await awho()

    with LitestarClient(Litestar([endpoint], logging_config=None)) as client:
        assert client.get("/").text == "alice"


@pytest.fixture
def entered(bot: AgentIdentity) -> Iterator[Session]:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        yield session


@pytest_asyncio.fixture
async def aentered(bot: AgentIdentity) -> AsyncIterator[Session]:
    async with bot.on_behalf_of("user:alice", purpose="p") as session:
        yield session


@pytest.mark.usefixtures("entered")
def test_a_fixture_lends_its_session_to_the_test() -> None:
    assert who() == "alice"


@pytest.mark.usefixtures("aentered")
async def test_an_async_fixture_lends_its_session_to_the_test() -> None:
    assert await awho() == "alice"
