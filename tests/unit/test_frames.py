# SPDX-License-Identifier: Apache-2.0
"""What frames say about generators, by which sessions find the code that they belong to."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Awaitable, Generator
from types import FrameType
from typing import Any

from agent_identity.runtime.frames import is_task_end, owning_generator, progress


def here() -> FrameType:
    return sys._getframe(1)


class Seen:
    """What a generator saw of itself while it ran."""

    frame: FrameType
    owner: FrameType | None = None
    ran: str = ""

    def look(self, frame: FrameType) -> None:
        self.frame = frame
        self.owner = owning_generator(frame)
        self.ran = progress(frame)


def test_a_generator_runs_while_its_body_does_and_is_suspended_at_its_yields() -> None:
    seen = Seen()

    def numbers() -> Generator[int]:
        seen.look(here())
        yield 1
        yield from iter([2])
        return

    reader = numbers()
    next(reader)
    assert seen.ran == "running"
    assert seen.owner is seen.frame
    assert progress(seen.frame) == "suspended"
    next(reader)
    assert progress(seen.frame) == "suspended"
    assert list(reader) == []
    assert progress(seen.frame) == "suspended"


async def test_an_async_generator_awaits_or_is_suspended() -> None:
    seen, gate = Seen(), asyncio.Event()

    async def numbers() -> AsyncGenerator[int]:
        seen.look(here())
        yield 1
        await gate.wait()
        yield 2

    reader = numbers()
    await anext(reader)
    assert (seen.ran, progress(seen.frame)) == ("running", "suspended")
    step: asyncio.Task[Any] = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    assert progress(seen.frame) == "awaiting"
    gate.set()
    await step
    assert progress(seen.frame) == "suspended"
    await reader.aclose()
    assert progress(seen.frame) == "suspended"


async def test_the_owner_is_found_through_coroutines_that_a_generator_awaits() -> None:
    inner, outer = Seen(), Seen()

    class Wrapped:
        """An awaitable that is written as a generator."""

        def __await__(self) -> Generator[Any, None, None]:
            return (yield from work().__await__())

    async def work() -> None:
        inner.look(here())

    async def numbers() -> AsyncGenerator[int]:
        outer.look(here())
        await work()
        assert inner.owner is outer.frame
        await asyncio.wait_for(work(), 5)
        assert inner.owner in (None, outer.frame)  # from 3.12 on in this very task
        yield 1

    assert [item async for item in numbers()] == [1]
    await asyncio.create_task(work())
    assert inner.owner is None

    async def direct(awaitable: Awaitable[None]) -> None:
        await awaitable

    await direct(Wrapped())
    assert inner.owner is None or inner.owner.f_code.co_name == "__await__"


async def test_a_task_has_no_owner_although_a_generator_runs_below_its_loop() -> None:
    inner = Seen()

    async def work() -> None:
        inner.look(here())
        assert is_task_end(here())

    def numbers() -> Generator[int]:
        asyncio.run(work())
        yield 1

    assert await asyncio.to_thread(lambda: list(numbers())) == [1]
    assert inner.owner is None


def test_a_coroutine_that_is_driven_by_hand_owns_what_it_opens() -> None:
    inner = Seen()

    async def work() -> None:
        inner.look(here())

    with contextlib.suppress(StopIteration):
        work().send(None)
    assert inner.owner is inner.frame


def test_a_context_manager_lends_to_the_code_around_it() -> None:
    inner, outer = Seen(), Seen()

    @contextlib.contextmanager
    def manager() -> Generator[None]:
        inner.look(here())
        yield

    def numbers() -> Generator[int]:
        outer.look(here())
        with contextlib.ExitStack() as stack:
            stack.enter_context(manager())
            yield 1

    with manager():
        assert inner.owner is None
    assert list(numbers()) == [1]
    assert inner.owner is outer.frame


async def test_an_async_context_manager_lends_too() -> None:
    inner = Seen()

    @contextlib.asynccontextmanager
    async def manager() -> AsyncGenerator[None]:
        inner.look(here())
        yield

    async with manager():
        assert inner.owner is None


def test_a_context_manager_that_delegates_with_yield_from_lends_too() -> None:
    inner, outer = Seen(), Seen()

    def made() -> Generator[None]:
        inner.look(here())
        yield

    @contextlib.contextmanager
    def manager() -> Generator[None]:
        yield from made()

    def numbers() -> Generator[int]:
        outer.look(here())
        with manager():
            yield 1

    with manager():
        assert inner.owner is None
    assert list(numbers()) == [1]
    assert inner.owner is outer.frame
