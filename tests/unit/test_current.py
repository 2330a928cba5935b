# SPDX-License-Identifier: Apache-2.0
"""Which session is current: in generators that take turns, in their readers, and in the tasks and threads that they start."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agent_identity import (
    AgentIdentity,
    NoSessionError,
    Session,
    current_credential,
    current_session,
    tool,
)
from agent_identity.runtime import current as currents

BILLING = "https://billing.example"


@tool(resource=BILLING, scopes=["invoices:read"])
def who() -> str:
    assert current_credential().resource == BILLING
    return current_session().principal.sub


@tool()
async def awho() -> str:
    await asyncio.sleep(0)
    return current_session().principal.sub


def asked(question: Callable[[], str] = who) -> str:
    """Who a tool acts for here, or the code of its refusal."""
    try:
        return question()
    except NoSessionError as error:
        return error.code


async def aasked(question: Callable[[], Any] = awho) -> str:
    try:
        return await question()
    except NoSessionError as error:
        return error.code


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    gc.collect()
    assert not currents._by_generator


Job = Callable[[str], Generator[str]]


@pytest.fixture
def job(bot: AgentIdentity) -> Job:
    def steps(user: str) -> Generator[str]:
        with bot.on_behalf_of(f"user:{user}", purpose="p"):
            for _ in range(3):
                yield asked()

    return steps


@pytest.fixture
def ajob(bot: AgentIdentity) -> Callable[[str], AsyncGenerator[str]]:
    async def steps(user: str) -> AsyncGenerator[str]:
        async with bot.on_behalf_of(f"user:{user}", purpose="p"):
            for _ in range(3):
                yield await aasked()

    return steps


# -- generators that take turns -------------------------------------------------------------------------------------------


def test_two_generators_that_are_read_in_turn_never_act_for_each_other(job: Job) -> None:
    assert list(zip(job("alice"), job("bob"), strict=True)) == [("alice", "bob")] * 3


async def test_two_async_generators_that_are_read_in_turn_never_act_for_each_other(
    ajob: Any,
) -> None:
    alice, bob = ajob("alice"), ajob("bob")
    assert [(await anext(alice), await anext(bob)) for _ in range(3)] == [("alice", "bob")] * 3
    assert [item async for item in alice] == [item async for item in bob] == []


def test_a_context_manager_helper_lends_its_session_to_the_generator_that_enters_it(
    bot: AgentIdentity,
) -> None:
    @contextlib.contextmanager
    def acting_for(user: str) -> Generator[Session]:
        with bot.on_behalf_of(f"user:{user}", purpose="p") as session:
            yield session

    def steps(user: str) -> Generator[str]:
        with acting_for(user):
            for _ in range(3):
                yield asked()

    assert list(zip(steps("alice"), steps("bob"), strict=True)) == [("alice", "bob")] * 3
    with acting_for("dave"):
        assert asked() == "dave"
    assert asked() == "no_session"


def test_a_stack_of_contexts_that_a_generator_opens_belongs_to_it(bot: AgentIdentity) -> None:
    def steps(user: str) -> Generator[str]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(bot.on_behalf_of(f"user:{user}", purpose="p"))
            for _ in range(3):
                yield asked()

    assert list(zip(steps("alice"), steps("bob"), strict=True)) == [("alice", "bob")] * 3


def test_a_delegate_inside_a_generator_is_left_to_the_generator(bot: AgentIdentity) -> None:
    def steps(user: str) -> Generator[tuple[str, int]]:
        with bot.on_behalf_of(f"user:{user}", purpose="p") as session:
            yield asked(), current_session().depth
            with session.delegate("helper"):
                yield asked(), current_session().depth
            yield asked(), current_session().depth

    turns = list(zip(steps("alice"), steps("bob"), strict=True))
    assert turns == [(("alice", depth), ("bob", depth)) for depth in (0, 1, 0)]


def test_a_generator_that_is_delegated_to_with_yield_from_acts_as_its_reader(
    bot: AgentIdentity,
) -> None:
    def inner() -> Generator[str]:
        for _ in range(3):
            yield asked()

    def steps(user: str) -> Generator[str]:
        with bot.on_behalf_of(f"user:{user}", purpose="p"):
            yield from inner()

    assert list(zip(steps("alice"), steps("bob"), strict=True)) == [("alice", "bob")] * 3


def test_nested_generators_each_act_as_themselves(bot: AgentIdentity, job: Job) -> None:
    def outer() -> Generator[tuple[str, str, str]]:
        with bot.on_behalf_of("user:olga", purpose="p"):
            for item in job("alice"):
                yield asked(), item, asked()

    assert list(outer()) == [("olga", "alice", "olga")] * 3


# -- their readers --------------------------------------------------------------------------------------------------------


def test_a_reader_with_a_session_acts_as_itself(bot: AgentIdentity, job: Job) -> None:
    with bot.on_behalf_of("user:dave", purpose="p"):
        carol = job("carol")
        assert [next(carol), asked(), next(carol), asked()] == ["carol", "dave", "carol", "dave"]
        carol.close()
        assert asked() == "dave"
    assert asked() == "no_session"


def test_a_reader_without_a_session_never_acts_as_the_generator(job: Job) -> None:
    carol = job("carol")
    assert [next(carol), asked(), next(carol), asked()] == [
        *("carol", "session_suspended", "carol", "session_suspended")
    ]
    carol.close()
    assert asked() == "no_session"


async def test_a_reader_of_async_generators_never_acts_as_them(
    bot: AgentIdentity, ajob: Any
) -> None:
    carol = ajob("carol")
    assert [await anext(carol), await aasked()] == ["carol", "session_suspended"]
    async with bot.on_behalf_of("user:dave", purpose="p"):
        assert [await anext(carol), await aasked()] == ["carol", "dave"]
    await carol.aclose()
    assert await aasked() == "no_session"


def test_a_reader_whose_session_ends_first_falls_back_to_the_one_around(
    bot: AgentIdentity, job: Job
) -> None:
    with bot.on_behalf_of("user:erin", purpose="p"):
        with bot.on_behalf_of("user:dave", purpose="p"):
            carol = job("carol")
            next(carol)
        assert [asked(), next(carol), asked()] == ["erin", "carol", "erin"]
        carol.close()
        assert asked() == "erin"


def test_a_tool_that_reads_such_a_generator_goes_on_with_its_own_call(
    bot: AgentIdentity, job: Job
) -> None:
    @tool(resource=BILLING)
    def reads() -> tuple[str, ...]:
        carol = job("carol")
        before = current_session().call_id
        seen = next(carol)
        assert current_session().call_id == before
        return seen, current_session().principal.sub

    with bot.on_behalf_of("user:dave", purpose="p"):
        assert reads() == ("carol", "dave")


def test_a_generator_that_is_abandoned_leaves_nothing_behind(job: Job) -> None:
    for user in ("alice", "bob", "carol"):
        next(job(user))
    gc.collect()
    assert asked() == "no_session"


def test_a_generator_tool_inside_such_a_generator_acts_as_its_call(bot: AgentIdentity) -> None:
    @tool()
    def pages() -> Generator[str]:
        for _ in range(3):
            yield current_session().principal.sub

    def steps(user: str) -> Generator[str]:
        with bot.on_behalf_of(f"user:{user}", purpose="p"):
            yield from pages()

    assert list(zip(steps("alice"), steps("bob"), strict=True)) == [("alice", "bob")] * 3


def test_a_generator_tool_that_another_generator_reads_keeps_its_own_session(
    bot: AgentIdentity,
) -> None:
    @tool()
    def pages() -> Generator[str]:
        for _ in range(3):
            yield current_session().principal.sub

    def steps(reader: Iterator[str]) -> Generator[tuple[str, str]]:
        with bot.on_behalf_of("user:bob", purpose="p"):
            for item in reader:
                yield item, asked()

    with bot.on_behalf_of("user:alice", purpose="p"):
        reader = pages()
        seen = [next(reader)]
        assert list(steps(reader)) == [("alice", "bob")] * 2
    assert seen == ["alice"]


# -- tasks and threads ----------------------------------------------------------------------------------------------------


def in_thread(question: Callable[[], str]) -> str:
    """As executors of frameworks do: in a thread, in a copy of the context."""
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(context.run, question).result(10)


async def test_tasks_of_one_async_generator_act_as_its_session(bot: AgentIdentity) -> None:
    """A stream in a web handler: each step starts tasks and waits for them."""

    async def steps(user: str) -> AsyncGenerator[tuple[str, str]]:
        async with bot.on_behalf_of(f"user:{user}", purpose="p"):
            for _ in range(3):
                yield await asyncio.create_task(aasked()), await asyncio.to_thread(asked)

    async def handler(user: str) -> list[tuple[str, str]]:
        return [item async for item in steps(user)]

    both = await asyncio.gather(handler("alice"), handler("bob"))
    assert both == [[("alice", "alice")] * 3, [("bob", "bob")] * 3]


def test_threads_of_one_generator_act_as_its_session(bot: AgentIdentity) -> None:
    def steps(user: str) -> Generator[str]:
        with bot.on_behalf_of(f"user:{user}", purpose="p"):
            for _ in range(3):
                yield in_thread(asked)

    assert list(steps("alice")) == ["alice"] * 3


def test_threads_of_generators_that_take_turns_never_act_for_another(bot: AgentIdentity) -> None:
    def steps(user: str) -> Generator[tuple[str, str]]:
        with bot.on_behalf_of(f"user:{user}", purpose="p") as session:
            for _ in range(3):
                yield in_thread(asked), in_thread(session.bind(asked))

    turns = list(zip(steps("alice"), steps("bob"), strict=True))
    for alice, bob in turns:
        assert alice[0] in {"alice", "session_suspended"}
        assert bob[0] in {"bob", "session_suspended"}
        assert (alice[1], bob[1]) == ("alice", "bob")
    assert turns[1][0][0] == "session_suspended"


async def test_tasks_of_async_generators_that_take_turns_never_act_for_another(
    bot: AgentIdentity,
) -> None:
    async def steps(user: str) -> AsyncGenerator[str]:
        async with bot.on_behalf_of(f"user:{user}", purpose="p"):
            for _ in range(3):
                yield await asyncio.create_task(aasked())

    alice, bob = steps("alice"), steps("bob")
    for _ in range(3):
        assert await anext(alice) in {"alice", "session_suspended"}
        assert await anext(bob) in {"bob", "session_suspended"}
    for _ in range(2):  # both at once, each waiting at an `await`
        alice, bob = steps("alice"), steps("bob")
        assert (await anext(alice)) in {"alice", "session_suspended"}
        await anext(bob)
        one, other = await asyncio.gather(anext(alice), anext(bob))
        assert one in {"alice", "session_suspended"}
        assert other in {"bob", "session_suspended"}
        await alice.aclose()
        await bob.aclose()


async def test_a_task_that_outlives_a_step_is_refused_while_its_generator_is_suspended(
    bot: AgentIdentity,
) -> None:
    started: list[asyncio.Task[str]] = []
    gate = asyncio.Event()

    async def late() -> str:
        await gate.wait()
        return await aasked()

    async def steps() -> AsyncGenerator[None]:
        async with bot.on_behalf_of("user:alice", purpose="p"):
            started.append(asyncio.create_task(late()))
            await asyncio.sleep(0)
            yield

    async with bot.on_behalf_of("user:dave", purpose="p"):
        reader = steps()
        await anext(reader)
        gate.set()
        assert await started[0] == "session_suspended"
        await reader.aclose()


async def test_a_loop_inside_a_generator_keeps_its_tasks_apart(bot: AgentIdentity) -> None:
    async def two() -> tuple[str, str]:
        async def dave() -> str:
            async with bot.on_behalf_of("user:dave", purpose="p"):
                await asyncio.sleep(0.01)
                return await aasked()

        other = asyncio.create_task(dave())
        await asyncio.sleep(0.005)
        return await aasked(), await other

    def steps() -> Generator[tuple[str, str]]:
        with bot.on_behalf_of("user:alice", purpose="p"):
            yield asyncio.run(two())

    assert await asyncio.to_thread(lambda: list(steps())) == [("alice", "dave")]


# -- generators that are read in other contexts, and lent sessions --------------------------------------------------------


def test_a_generator_whose_steps_run_in_copies_of_the_context_finds_its_session(job: Job) -> None:
    """As `StreamingResponse` reads a sync generator: each step in a worker thread, in another copy of the context."""
    carol = job("carol")
    assert [in_thread(lambda: next(carol)) for _ in range(3)] == ["carol"] * 3
    assert in_thread(lambda: next(carol, "done")) == "done"
    assert asked() == "no_session"


def test_a_bound_function_acts_as_its_session_inside_any_generator(
    bot: AgentIdentity, job: Job
) -> None:
    with bot.on_behalf_of("user:dave", purpose="p") as session:
        bound = session.bind(asked)

        def steps() -> Generator[tuple[str, str]]:
            with bot.on_behalf_of("user:carol", purpose="p"):
                yield bound(), asked()

        assert list(steps()) == [("dave", "carol")]


async def test_a_bound_function_gives_each_caller_its_own_session_back(bot: AgentIdentity) -> None:
    """Many callers may run one bound coroutine function at the same time."""

    async def job() -> str:
        await asyncio.sleep(0.001)
        return await aasked()

    async with bot.on_behalf_of("user:alice", purpose="p") as alice:
        bound = alice.bind(job)

        async def caller(user: str) -> tuple[str, str]:
            async with bot.on_behalf_of(f"user:{user}", purpose="p"):
                return await bound(), await aasked()

        users = [f"u{number}" for number in range(5)]
        assert await asyncio.gather(*map(caller, users)) == [("alice", user) for user in users]

        async def again(times: int) -> str:
            return await bound_again(times - 1) if times else await aasked()

        bound_again = alice.bind(again)
        async with bot.on_behalf_of("user:bob", purpose="p"):
            assert (await bound_again(3), await aasked()) == ("alice", "bob")


def test_a_bound_function_that_threads_share_leaves_each_generator_its_own(
    bot: AgentIdentity,
) -> None:
    gate, inside = threading.Event(), threading.Barrier(2)

    def waits() -> str:
        inside.wait(10)
        gate.wait(10)
        return asked()

    with bot.on_behalf_of("user:alice", purpose="p") as alice:
        bound = alice.bind(waits)

        def steps() -> Generator[tuple[str, str]]:
            with bot.on_behalf_of("user:bob", purpose="p"):
                yield bound(), asked()

        other = threading.Thread(target=bound)
        other.start()
        threading.Timer(0.05, gate.set).start()
        assert list(steps()) == [("alice", "bob")]
        other.join(10)


async def test_tasks_of_a_reader_with_a_session_never_act_as_the_stream_that_it_reads(
    bot: AgentIdentity,
) -> None:
    async def steps() -> AsyncGenerator[None]:
        async with bot.on_behalf_of("user:alice", purpose="p"):
            for _ in range(2):
                yield
                await asyncio.sleep(0.001)

    async with bot.on_behalf_of("user:dave", purpose="p"):
        started = [asyncio.create_task(aasked()) async for _ in steps()]
        assert set(await asyncio.gather(*started)) <= {"dave", "session_suspended", "session_ended"}
        assert await aasked() == "dave"
        assert await asyncio.create_task(aasked()) == "dave"


async def test_a_stream_that_was_abandoned_leaves_the_tasks_of_its_reader_alone(
    bot: AgentIdentity, ajob: Any
) -> None:
    async with bot.on_behalf_of("user:dave", purpose="p"):
        async for _ in ajob("carol"):
            break
        gc.collect()
        await asyncio.sleep(0.05)  # the loop closes it in a task of its own
        assert await aasked() == "dave"
        assert await asyncio.create_task(aasked()) == "dave"
        assert await asyncio.to_thread(asked) == "dave"


def test_a_session_that_was_left_says_so_where_it_is_still_current(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="p"):
        context = contextvars.copy_context()
    assert context.run(asked) == "session_ended"
    assert asked() == "no_session"


def test_the_remedy_names_what_a_sync_dependency_has_to_become() -> None:
    with pytest.raises(NoSessionError, match="async def") as refusal:
        who()
    assert "bind" in str(refusal.value.remedy)


def test_many_generators_in_many_threads_never_cross(bot: AgentIdentity, job: Job) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        users = [f"u{number}.{index}" for index in range(5)]
        turns = zip(*(job(user) for user in users), strict=True)
        wrong.extend(turn for turn in turns if list(turn) != users)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
