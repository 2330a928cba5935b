# SPDX-License-Identifier: Apache-2.0
"""Large numbers: mixed calls against a checking server, alarms at any moment, forks among busy threads, revocations.

`AGENT_IDENTITY_SOAK` says how many: `full` (nox -s soak), `tenth` (CI), else a hundredth.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import random
import signal
import ssl
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest

from agent_identity import (
    AgentIdentity,
    AgentIdentityError,
    NoSessionError,
    RevokedError,
    current_credential,
    tool,
)
from agent_identity.verify import Verifier

SHARE = {"full": 1, "tenth": 10}.get(os.environ.get("AGENT_IDENTITY_SOAK", ""), 100)
CALLS, ALARMS, FORKS, ROUNDS = 100_000 // SHARE, 1_000 // SHARE, 2_000 // SHARE, 1_000 // SHARE

BILLING = ""
"""The checking server's URL; a tool's resource is fixed when it is decorated, so `tools` makes them for each."""


class CheckingServer:
    """A service on loopback that verifies each request, and compares its principal with the path."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.crossings: list[str] = []
        self.verifier: Verifier | None = None
        checking = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                expected = self.path.rpartition("/")[2]
                assert checking.verifier is not None
                try:
                    call = checking.verifier.verify_request(
                        "GET",
                        f"{checking.url}{self.path}",
                        dict(self.headers.items()),
                        scopes=["read"],
                    )
                    who, status = call.principal.sub, 200
                except AgentIdentityError as error:
                    who, status = error.code, 403
                checking.seen["verified" if status == 200 else who] += 1
                if status == 200 and who != expected:
                    checking.crossings.append(f"{who} for {expected}")
                body = who.encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[CheckingServer]:
    checking = CheckingServer()
    yield checking
    checking.close()


@pytest.fixture
def identity(tmp_path: Path, server: CheckingServer) -> Iterator[AgentIdentity]:
    with AgentIdentity.embedded("bot", state_dir=tmp_path) as made:
        server.verifier = made.verifier(audience=server.url)
        yield made


@contextlib.contextmanager
def tools(url: str) -> Iterator[tuple[Callable[[str], str], Callable[[str], Any]]]:
    trusted = ssl.create_default_context()  # making one takes longer than a call
    clients = {os.getpid(): httpx.Client(trust_env=False, timeout=60)}

    @tool(resource=url, scopes=["read"])
    def who(expected: str) -> str:
        client = clients.get(os.getpid())  # a child's sockets would be its parent's
        if client is None:
            client = httpx.Client(verify=trusted, trust_env=False, timeout=60)
            clients[os.getpid()] = client
        return client.get(f"{url}/{expected}", auth=current_credential()).text

    @tool(resource=url, scopes=["read"])
    async def awho(expected: str) -> str:
        async with httpx.AsyncClient(verify=trusted, trust_env=False, timeout=60) as asking:
            return (await asking.get(f"{url}/{expected}", auth=current_credential())).text

    try:
        yield who, awho
    finally:
        for client in clients.values():
            client.close()


class Tally:
    """What calls came to: served, refused by a typed error, or wrong."""

    def __init__(self) -> None:
        self.served = 0
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []

    @property
    def total(self) -> int:
        return self.served + sum(self.refused.values()) + len(self.wrong)

    def count(self, expected: str, work: Callable[[], str]) -> str:
        try:
            got = work()
        except AgentIdentityError as error:
            self.refused[error.code] += 1
            return error.code
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")
            return ""
        return self._note(expected, got)

    async def count_async(self, expected: str, work: Callable[[], Any]) -> str:
        try:
            got = await work()
        except AgentIdentityError as error:
            self.refused[error.code] += 1
            return error.code
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")
            return ""
        return self._note(expected, got)

    def _note(self, expected: str, got: str) -> str:
        if got == expected:
            self.served += 1
        else:
            self.wrong.append(f"{got} for {expected}")
        return got


@pytest.mark.system
def test_mixed_calls_never_cross(identity: AgentIdentity, server: CheckingServer) -> None:
    """Threads, tasks, generators and async generators that take turns, streams in copied contexts, bound functions, forks."""
    tally = Tally()
    with tools(server.url) as (who, awho):
        mix(identity, tally, who, awho)
    print(f"\n{tally.total} calls, {tally.served} served, refused: {dict(tally.refused)}")  # noqa: T201 - the figures of a soak
    assert (tally.wrong, server.crossings) == ([], [])
    assert set(tally.refused) <= {"session_suspended"}
    assert tally.served > tally.total // 2
    assert set(server.seen) == {"verified"}


def mix(  # noqa: PLR0915 - one kind of call after the other
    identity: AgentIdentity, tally: Tally, who: Callable[[str], str], awho: Callable[[str], Any]
) -> None:
    serial = iter(range(10**9))

    def session(user: str) -> Any:
        return identity.on_behalf_of(f"user:{user}", purpose="soak")

    def plain() -> None:
        user = f"p{next(serial)}"
        with session(user) as opened:
            for _ in range(3):
                tally.count(user, lambda: who(user))
            with opened.delegate("helper"):
                tally.count(user, lambda: who(user))

    def job(user: str) -> Generator[None]:
        with session(user):
            for _ in range(3):
                tally.count(user, lambda: who(user))
                yield

    def in_turn() -> None:
        reader = f"r{next(serial)}"
        jobs = [job(f"g{next(serial)}") for _ in range(3)]
        with session(reader) if random.random() < 0.5 else contextlib.nullcontext() as opened:
            for _ in zip(*jobs, strict=True):
                if opened is not None:
                    tally.count(reader, lambda: who(reader))
                else:
                    with pytest.raises(NoSessionError):
                        who("nobody")

    def streamed() -> None:
        """As a sync generator in a StreamingResponse: each step in a thread, in a copy of the context."""
        reader = job(f"s{next(serial)}")
        with ThreadPoolExecutor(1) as pool:
            done = False
            while not done:
                step = contextvars.copy_context().run
                done = pool.submit(step, next, reader, True).result(60) is True

    def threaded() -> None:
        user = f"t{next(serial)}"
        with session(user) as opened, ThreadPoolExecutor(3) as pool:
            bound = opened.bind(lambda: tally.count(user, lambda: who(user)))
            for each in [pool.submit(bound) for _ in range(3)]:
                each.result(60)

    async def ajob(user: str) -> AsyncGenerator[None]:
        async with session(user):
            for _ in range(3):
                await tally.count_async(user, lambda: awho(user))
                await asyncio.create_task(tally.count_async(user, lambda: awho(user)))
                yield

    async def ain_turn() -> None:
        first, second = ajob(f"a{next(serial)}"), ajob(f"a{next(serial)}")
        for _ in range(3):
            await anext(first)
            await anext(second)
        await first.aclose()
        await second.aclose()

    async def astream() -> None:
        async for _ in ajob(f"x{next(serial)}"):
            pass

    async def loop_of_tasks() -> None:
        await asyncio.gather(*(random.choice((ain_turn, astream))() for _ in range(4)))

    def forked() -> None:
        user = f"f{next(serial)}"
        with session(user):
            tally.count(user, lambda: who(user))
            outcome = in_child(lambda: tally.count(user, lambda: who(user)) == user)
            if outcome != 0:
                tally.wrong.append(f"a forked child ended with {outcome}")

    kinds = [plain, in_turn, streamed, threaded, lambda: asyncio.run(loop_of_tasks())]

    def worker() -> None:
        while tally.total < CALLS and not tally.wrong:
            random.choice(kinds)()

    workers = [threading.Thread(target=worker) for _ in range(4)]
    for each in workers:
        each.start()
    told = 0
    while any(each.is_alive() for each in workers):
        forked()
        time.sleep(0.2)
        if tally.total - told >= 5_000:
            told = tally.total
            print(f"{told} of {CALLS} calls", flush=True)  # noqa: T201 - progress
    for each in workers:
        each.join()


def in_child(work: Callable[[], bool], seconds: int = 60) -> int:
    """Run `work` in a forked child; 0 when it answers True. A child that hangs is killed by its own alarm."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            code = 0 if work() else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_among_busy_threads_never_hangs_and_never_fails(tmp_path: Path) -> None:
    """The child calls a tool, opens a session, and opens an identity of its own."""
    stop = threading.Event()

    @tool(resource="https://billing.example", scopes=["read"])
    def read() -> None:
        current_credential()

    failed: list[object] = []
    with AgentIdentity.embedded("bot", state_dir=tmp_path) as identity:

        def busy(number: int) -> None:
            while not stop.is_set():
                try:
                    with identity.on_behalf_of(f"user:u{number}", purpose="soak"):
                        for _ in range(3):
                            read()
                except BaseException as error:
                    failed.append(error)
                    return

        def child() -> bool:
            with identity.on_behalf_of("user:child", purpose="soak"):
                read()
            with (
                AgentIdentity.embedded("other", state_dir=tmp_path / "other") as own,
                own.on_behalf_of("user:own", purpose="soak"),
            ):
                read()
            return True

        threads = [threading.Thread(target=busy, args=(number,)) for number in range(3)]
        for each in threads:
            each.start()
        try:
            ended: Counter[int] = Counter()
            for number in range(1, FORKS + 1):
                ended[in_child(child)] += 1
                if number % 250 == 0:
                    print(f"{number} of {FORKS} forks", flush=True)  # noqa: T201 - progress
        finally:
            stop.set()
            for each in threads:
                each.join(60)
    print(f"\n{FORKS} forks: {dict(ended)}")  # noqa: T201 - the figures of a soak
    assert failed == []
    assert ended == {0: FORKS}


def is_in_call(frame: FrameType | None) -> bool:
    """Whether a wrapped call is on the stack of the running task."""
    while frame is not None and frame.f_code.co_filename != asyncio.events.__file__:
        if frame.f_globals.get("__name__") == "agent_identity.decorators":
            return True
        frame = frame.f_back
    return False


class SoftTimeLimitError(Exception):
    """What a task queue's alarm raises."""


@pytest.mark.system
@pytest.mark.filterwarnings(  # an interrupted scan of a folder, or coroutine, is closed by the collector
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("ledger", ["memory:", "sqlite:"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_an_alarm_at_any_moment_leaves_the_identity_working(
    tmp_path: Path, ledger: str, *, is_async: bool
) -> None:
    def expired(signum: int, frame: FrameType | None) -> None:
        # asyncio swallows what is raised in its own callbacks, and may never end then: only calls are interrupted there
        if is_async and not is_in_call(frame):
            signal.setitimer(signal.ITIMER_REAL, 0.0002)
            return
        # the collector's own calls (a weak set's, an old event loop's) swallow what is raised in them: again, then
        signal.setitimer(signal.ITIMER_REAL, 1)
        raise SoftTimeLimitError

    @tool(resource="https://billing.example", scopes=["read"])
    def read() -> None:
        current_credential()

    @tool(resource="https://billing.example", scopes=["read"])
    async def aread() -> None:
        current_credential()

    def work(user: str) -> None:
        with identity.on_behalf_of(f"user:{user}", purpose="soak"):
            while True:
                asyncio.run(aread()) if is_async else read()

    def works_on() -> None:
        with identity.on_behalf_of("user:after", purpose="soak"):
            asyncio.run(aread()) if is_async else read()

    before = signal.signal(signal.SIGALRM, expired)
    passed: Counter[str] = Counter()
    try:
        with AgentIdentity.embedded("bot", state_dir=tmp_path, ledger=ledger) as identity:
            for number in range(max(10, ALARMS // 4)):
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.03))
                    work(f"u{number}")
                except SoftTimeLimitError:
                    passed["alarm"] += 1
                except AgentIdentityError as error:
                    passed[error.code] += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                works_on()
            assert identity.ledger.verify().ok
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.collect()  # what interrupts left behind warns here, not in another test
    print(f"\nalarms: {dict(passed)}")  # noqa: T201 - the figures of a soak
    assert set(passed) == {"alarm"}


@pytest.mark.system
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_nothing_starts_after_a_revocation_was_acknowledged(tmp_path: Path, depth: int) -> None:
    """Rounds at three depths; the clock is moved on, because what is reinstated begins in the next second."""
    now = [time.time()]
    acknowledged = threading.Event()
    late: list[bool] = []

    @tool(resource="https://billing.example", scopes=["read"])
    def read() -> None:
        late.append(acknowledged.is_set())

    with AgentIdentity.embedded("bot", state_dir=tmp_path, clock=lambda: now[0]) as identity:

        def agent(ready: threading.Barrier) -> None:
            with contextlib.ExitStack() as stack:
                session = stack.enter_context(identity.on_behalf_of("user:alice", purpose="p"))
                for number in range(depth):
                    session = stack.enter_context(session.delegate(f"helper-{number}"))
                read()
                ready.wait(60)
                with contextlib.suppress(RevokedError):
                    while True:
                        read()

        for number in range(1, ROUNDS + 1):
            if number % 250 == 0:
                print(f"{number} of {ROUNDS} rounds", flush=True)  # noqa: T201 - progress
            acknowledged.clear()
            ready = threading.Barrier(3)
            agents = [threading.Thread(target=agent, args=(ready,)) for _ in range(2)]
            for each in agents:
                each.start()
            ready.wait(60)
            time.sleep(random.uniform(0, 0.003))
            identity.revoke("user:alice", reason="stop")
            acknowledged.set()
            for each in agents:
                each.join(60)
            assert not any(late)
            late.clear()
            identity.reinstate("user:alice")
            now[0] += 1
