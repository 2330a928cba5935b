# SPDX-License-Identifier: Apache-2.0
"""Both drivers, against the same flows and the same hostile worlds (rules F1 to F5 of `flow.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agent_identity.errors import TransportError
from agent_identity.flow import (
    Append,
    Ask,
    Done,
    Draft,
    HttpRequest,
    HttpResponse,
    advance,
    append,
    arun,
    http,
    run,
)
from agent_identity.testing import play

REQUEST = HttpRequest("GET", "https://a.example/")
Driver = Callable[[Any, Callable[[Ask], Any]], Any]


def sync_driver(flow: Any, world: Callable[[Ask], Any]) -> Any:
    return run(flow, world)


def async_driver(flow: Any, world: Callable[[Ask], Any]) -> Any:
    async def aworld(ask: Ask) -> Any:
        await asyncio.sleep(0)
        return world(ask)

    return asyncio.run(arun(flow, aworld))


@pytest.fixture(params=[sync_driver, async_driver], ids=["run", "arun"])
def drive(request: pytest.FixtureRequest) -> Driver:
    return request.param


def two_requests():
    first = yield from http(REQUEST)
    second = yield from http(HttpRequest("POST", "https://a.example/", body=first.body))
    return first.status, second.status


def test_a_flow_is_asked_answered_and_done(drive: Driver) -> None:
    answers = iter([HttpResponse(200, body=b"x"), HttpResponse(201)])
    assert drive(two_requests(), lambda ask: next(answers)) == (200, 201)


def test_flows_compose_and_hand_back_typed_values(drive: Driver) -> None:
    def outer():
        found = yield from two_requests()
        return [*found]

    assert drive(outer(), lambda ask: HttpResponse(204)) == [204, 204]


@pytest.mark.parametrize("forged", [StopIteration("forged"), StopAsyncIteration("forged")])
def test_a_transport_that_raises_StopIteration_forges_no_result(drive: Driver, forged) -> None:
    """The obvious driver returns `forged` as the flow's value."""

    def world(ask: Ask) -> HttpResponse:
        raise forged

    with pytest.raises((StopIteration, StopAsyncIteration, RuntimeError)):
        drive(two_requests(), world)


def test_an_error_of_the_library_is_thrown_into_the_flow_which_may_fall_back(drive: Driver) -> None:
    def falls_back():
        try:
            yield from http(REQUEST)
        except TransportError as error:
            return f"without: {error.code}"

    def world(ask: Ask) -> HttpResponse:
        raise TransportError("exchange_failed", "down")

    assert drive(falls_back(), world) == "without: exchange_failed"


def test_any_other_exception_ends_the_flow_and_passes_through(drive: Driver) -> None:
    closed = []

    def flow():
        try:
            yield from http(REQUEST)
        finally:
            closed.append(True)

    def world(ask: Ask) -> HttpResponse:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(flow(), world)
    assert closed == [True]


async def test_a_flow_is_closed_when_the_task_that_drives_it_is_cancelled() -> None:
    closed = asyncio.Event()

    def flow():
        try:
            yield from http(REQUEST)
        finally:
            closed.set()

    async def world(ask: Ask) -> HttpResponse:
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(arun(flow(), world))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()


def test_a_flow_is_used_once() -> None:
    flow = two_requests()
    play(flow, HttpResponse(200), HttpResponse(200))
    assert advance(flow, None) == Done(None)  # nothing is left of it, least of all its value


def test_a_record_is_an_ask_like_any_other(drive: Driver) -> None:
    draft = Draft("kind", {})
    asked: list[Ask] = []
    assert drive(append(draft), asked.append) is None
    assert asked == [Append(draft)]


def test_requests_and_answers_show_neither_headers_nor_bodies() -> None:
    request = HttpRequest("POST", "https://a.example/", {"Authorization": "canary"}, b"canary")
    assert "canary" not in f"{request!r} {HttpResponse(200, {'x': 'canary'}, b'canary')!r}"


def test_play_says_when_a_flow_asks_for_more_or_less_than_expected() -> None:
    with pytest.raises(AssertionError, match="no answer left"):
        play(two_requests(), HttpResponse(200))
    with pytest.raises(AssertionError, match="unused"):
        play(two_requests(), *[HttpResponse(200)] * 3)
