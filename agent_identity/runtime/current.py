# SPDX-License-Identifier: Apache-2.0
"""Which session is current, and which call of it is running.

C1  A context variable says it. Context variables follow into tasks and `asyncio.to_thread`, not into executors and threads
    (`session.bind` carries them).
C2  A session that was entered inside a generator is current while that generator runs, and only then. A context variable can't
    say that, so the stack decides first: the nearest generator on it that entered a session. The stack is read only while such
    a session is open.
C3  Tasks and threads have the context variable alone. They act as the session that it names while the generator that entered
    the session runs. They are refused (`session_suspended`) where it waits at a `yield`, and where another session was open in the
    same context, another generator's or the reader's, because then nothing says under which of them the task was started.
C4  The code that entered a session falls back to the session around it. Only the same thread and task may do that.

tests/unit/test_current.py has a test for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
import weakref
from contextvars import ContextVar
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeAlias, TypeVar

from agent_identity.errors import ConfigurationError, NoSessionError
from agent_identity.runtime.frames import is_task_end, owning_generator, progress

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import FrameType

    from agent_identity.delegation.assertion import CallFacts
    from agent_identity.http.credential import Credential
    from agent_identity.runtime.state import SessionState
    from agent_identity.tools import Tool

__all__ = [
    "Current",
    "Entered",
    "RunningCall",
    "activate",
    "activated",
    "bind",
    "current",
    "deactivate",
    "enter",
    "leave",
    "open_session",
    "running_call",
]


class RunningCall(Protocol):
    """A call whose tool runs, as the modules below the pipeline see it."""

    @property
    def tool(self) -> Tool: ...

    @property
    def call_id(self) -> str: ...

    @property
    def facts(self) -> CallFacts:
        """What every assertion of this call says."""
        ...

    @property
    def numbers(self) -> Iterator[int]:
        """Counts the HTTP requests of this call, from 1."""
        ...

    @property
    def is_running(self) -> bool: ...

    def check_running(self) -> None:
        """Raises `DeniedError` when it has ended."""
        ...

    def credential(self) -> Credential: ...

    def asserted(self, *, with_token: bool) -> tuple[str, list[str]]:
        """Its assertion as a whole, and the grants of its chain; with the token's hash where the token goes along."""
        ...


class Current:
    """A session that is current, and the call of it that is running.

    The session is held weakly: when the block or task that entered it is gone without leaving it, so is the session, and a
    pool's next job finds none instead of a stranger's. `tool_call_id` is the model's id of the call that is about to be made.
    `below` was current before, and `entries` is the list of a generator that this is in.
    """

    __slots__ = ("below", "call", "entries", "session", "tool_call_id")

    def __init__(
        self,
        session: weakref.ReferenceType[SessionState],
        call: RunningCall | None,
        tool_call_id: str | None = None,
    ) -> None:
        self.session: weakref.ReferenceType[SessionState] = session
        self.call: RunningCall | None = call
        self.tool_call_id: str | None = tool_call_id
        self.below: Current | None = None
        self.entries: list[Current] | None = None


class Entered(Current):
    """A session whose block was entered here.

    `generator` is the frame of the generator that entered it, None outside of generators and after the block was left. `is_mixed` says that another generator's session was open in this context at that time, and suspended.
    """

    __slots__ = ("generator", "is_mixed", "place")

    def __init__(
        self,
        session: weakref.ReferenceType[SessionState],
        generator: FrameType | None,
        below: Current | None,
    ) -> None:
        super().__init__(session, None)
        self.generator: FrameType | None = (
            generator  # what is current inside of it is found by its frame
        )
        self.below = below
        self.is_mixed: bool = False
        self.place: _Place = _find_place()

    @property
    def is_left(self) -> bool:
        """Whether its block was left, or nobody holds the session any more."""
        session = self.session()
        return session is None or session.life.is_left


_CURRENT: Final[ContextVar[Current | None]] = ContextVar("agent_identity_current", default=None)
_by_generator: Final[dict[int, list[Current]]] = {}
"""What is current in each generator that entered a session which is still open, by the `id` of its frame; innermost last."""
_SWEPT: Final = [64]
"""How many generators there may be before those that were abandoned are looked for."""


# -- what is current -------------------------------------------------------------------------------------------------


def current() -> Current | None:
    """What is current in the running code, None where no session was entered.

    Raises:
        NoSessionError: `session_suspended`, nothing says which session applies.
    """
    named = _CURRENT.get()
    if not _by_generator:
        if named is None:
            return None
        session = named.session()
        if session is not None and not session.life.is_left:
            return named
    return _resolve(named)


def open_session() -> tuple[SessionState, Current]:
    """The session of the running code, and what else is current with it.

    Raises:
        NoSessionError: there is none, it has ended, or nothing says which one applies.
    """
    named = _CURRENT.get()
    if named is not None and not _by_generator:  # most calls end here
        session = named.session()
        if session is not None and session.life.is_open:
            return session, named
    found = current()
    if found is None:
        raise NoSessionError(
            "no_session",
            "there is no session here",
            remedy=(
                "open one: `with identity.on_behalf_of(…, purpose=…):`; in a thread, use session.bind(fn); "
                "a dependency with `yield` that opens the session must be `async def`"
            ),
        )
    session = found.session()
    if session is None or not session.life.is_open:
        raise NoSessionError(
            "session_ended",
            "the session has ended",
            remedy="keep the work inside its `with` block, or open another session",
        )
    return session, found


def running_call(session: SessionState) -> RunningCall | None:
    """The call of a session that the running code is part of."""
    try:
        entry = current()
    except NoSessionError:
        return None
    if entry is None or entry.session() is not session:
        return None
    return entry.call


def _resolve(named: Current | None) -> Current | None:
    """Rules C2 to C4."""
    found = _find_on_stack(inspect.currentframe()) if _by_generator else None
    if found is not None:
        return found
    place = _find_place()
    if isinstance(named, Entered) and named.is_left and _is_same(named.place, place):
        around = _find_open_below(named)
        if around is None:
            return named
        named = around
        _CURRENT.set(named)  # so that tasks that are started here don't find what was left either
    is_suspended = False
    while isinstance(named, Entered) and named.generator is not None:
        if not _is_same(named.place, place):
            return _check_task(named, named.generator)
        if (
            progress(named.generator) == "running"
        ):  # below a driver, where the walk of the stack ends
            return named
        is_suspended = True
        named = _find_open_below(named.below)
    if named is None and is_suspended:
        raise _suspended_error()
    return named


def _check_task(entry: Entered, generator: FrameType) -> Entered:
    """Rule C3: what the context says in a task or thread."""
    if not entry.is_left and (entry.is_mixed or progress(generator) == "suspended"):
        raise _suspended_error()
    return entry


def _find_on_stack(frame: FrameType | None) -> Current | None:
    """What the nearest generator that entered a session has current, within the running task."""
    while frame is not None:
        entries = _by_generator.get(id(frame))
        if entries is not None:
            found = _find_open(entries, frame)
            if found is not None:
                return found
        if is_task_end(frame):
            return None
        frame = frame.f_back
    return None


def _find_open(entries: list[Current], frame: FrameType) -> Current | None:
    """The last entry that is still open; those that an interrupt left behind are removed."""
    first = entries[0] if entries else None
    if not isinstance(first, Entered) or (first.generator is not frame and not first.is_left):
        return None
    while entries:
        last = entries[-1]
        if isinstance(last, Entered):
            if not last.is_left:
                return last
        elif last.call is None or last.call.is_running:
            return last
        entries.pop()
    _by_generator.pop(id(frame), None)
    return None


def _suspended_error() -> NoSessionError:
    return NoSessionError(
        "session_suspended",
        "nothing says which session applies: the generator that entered one here waits at a `yield`, or several take turns",
        remedy="use session.bind(fn) for threads and tasks, or pass the session explicitly",
    )


# -- making something current ----------------------------------------------------------------------------------------


def activate(entry: Current) -> None:
    """Make something current for code that runs below the caller, until `deactivate`."""
    entry.below = _CURRENT.get()
    if _by_generator:
        entry.entries = _find_entries(inspect.currentframe())
        if entry.entries is not None:
            entry.entries.append(entry)
    _CURRENT.set(entry)


def deactivate(entry: Current) -> None:
    """Make current again what was, in this context. May be called for an entry that was never made current."""
    entries, entry.entries = entry.entries, None
    if entries is not None:
        _remove(entries, entry)
    # Resumed in one context and suspended in another (a task that dies with its loop): what is left behind there belongs to
    # a call that has ended.
    if _CURRENT.get() is entry:
        _CURRENT.set(entry.below)


@contextlib.contextmanager
def activated(entry: Current) -> Generator[None]:
    """`activate` for the length of a block."""
    try:
        activate(entry)
        yield
    finally:
        deactivate(entry)


def enter(session: weakref.ReferenceType[SessionState]) -> Entered:
    """Make a session current in the block that is being entered, whose frame is above the library's own."""
    before = _CURRENT.get()
    entry = Entered(session, owning_generator(inspect.currentframe()), _find_open_below(before))
    if entry.generator is not None:
        entry.is_mixed = _is_mixed(entry.below) or _is_around_others(entry)
        if len(_by_generator) >= _SWEPT[0]:
            _sweep()
        _by_generator.setdefault(id(entry.generator), []).append(entry)
    _CURRENT.set(entry)
    return entry


def leave(entry: Entered) -> None:
    """The block was left, in whichever context."""
    generator, entry.generator = entry.generator, None
    if generator is not None:
        entries = _by_generator.get(id(generator), [])
        _remove(entries, entry)
        if not entries:
            _by_generator.pop(id(generator), None)
    top = _CURRENT.get()
    while top is not None and top.call is not None and not top.call.is_running:
        top = top.below  # an interrupt kept that call from being deactivated
    if top is entry:
        _CURRENT.set(_find_open_below(entry.below))


def _find_entries(frame: FrameType | None) -> list[Current] | None:
    while frame is not None:
        entries = _by_generator.get(id(frame))
        if entries is not None and _find_open(entries, frame) is not None:
            return entries
        if is_task_end(frame):
            return None
        frame = frame.f_back
    return None


def _remove(entries: list[Current], entry: Current) -> None:
    for index in range(len(entries) - 1, -1, -1):
        if entries[index] is entry:
            del entries[index]
            return


def _find_open_below(entry: Current | None) -> Current | None:
    """The first entry whose block was not left. Those that were are unlinked, so that no chain grows."""
    while isinstance(entry, Entered) and entry.is_left:
        entry = entry.below
    level = entry
    while isinstance(level, Entered):
        while isinstance(level.below, Entered) and level.below.is_left:
            level.below = level.below.below
        level = level.below
    return entry


def _is_mixed(below: Current | None) -> bool:
    """Whether a generator that entered a session in this context waits, while another enters one."""
    while isinstance(below, Entered):
        if below.generator is not None and progress(below.generator) != "running":
            return True
        below = below.below
    return False


def _is_around_others(entry: Entered) -> bool:
    """Whether the reader of the generator has a session of another transaction, under which it may start tasks itself."""
    session = entry.session()
    below = entry.below
    around = None if below is None else below.session()
    return around is not None and session is not None and around.txn != session.txn


def _sweep() -> None:
    """Forget generators that were abandoned without leaving their block."""
    for key, entries in list(_by_generator.items()):
        if all(isinstance(entry, Entered) and entry.is_left for entry in entries):
            _by_generator.pop(key, None)
    _SWEPT[0] = max(64, 2 * len(_by_generator))


# -- where code runs -------------------------------------------------------------------------------------------------

_Place: TypeAlias = "tuple[object, weakref.ReferenceType[asyncio.Task[object]] | None]"


class _Thread(threading.local):
    """One object for each thread: the `ident` of a thread is used again when the thread is gone."""

    def __init__(self) -> None:
        self.mark: object = object()


_thread: Final = _Thread()


def _find_place() -> _Place:
    """The running thread and asyncio task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return _thread.mark, None if task is None else weakref.ref(task)


def _is_same(one: _Place, other: _Place) -> bool:
    if one[0] is not other[0]:
        return False
    if one[1] is None or other[1] is None:
        return one[1] is other[1]
    return one[1]() is other[1]()


P = ParamSpec("P")
R = TypeVar("R")


def bind(session: SessionState, function: Callable[P, R]) -> Callable[P, R]:
    """The function, run in a copy of this context with `session` current; sync and async functions alike.

    Raises:
        ConfigurationError: a generator function, whose body runs wherever it is iterated.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            "bind_generator",
            "a generator's body runs where it is iterated, so it can't be bind",
            remedy="bind the function that iterates it",
        )
    running = running_call(session)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awrapper(*args: P.args, **kwargs: P.kwargs) -> object:
            with activated(Current(session.reference, running)):
                return await function(*args, **kwargs)

        awrapper.__dict__["_session"] = session  # what is current holds it weakly
        return awrapper  # type: ignore[return-value]  # R is the coroutine that `awrapper` makes

    context = contextvars.copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with activated(Current(session.reference, running)):
            return function(*args, **kwargs)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        result = context.copy().run(run, *args, **kwargs)
        if isinstance(result, CoroutineType | GeneratorType | AsyncGeneratorType):
            if not isinstance(result, AsyncGeneratorType):
                result.close()
            raise ConfigurationError(
                "bind_generator",
                "what was bind returned a coroutine or generator, whose body runs wherever it is awaited",
                remedy="bind the async function itself, or a function that finishes the work",
            )
        return result

    wrapper.__dict__["_session"] = session  # what is current holds it weakly
    return wrapper
