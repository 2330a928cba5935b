# SPDX-License-Identifier: Apache-2.0
"""Which session is current, and which call of it is running.

C1  A context variable holds the current session. Tasks and `asyncio.to_thread` inherit it, executors and threads don't
    (`session.bind` carries it there).
C2  A session that was entered inside a generator is current only while that generator runs. A context variable can't express
    that, so the stack is read first: the nearest generator on it that entered a session decides. The stack is read only while
    such a session is open.
C3  Tasks and threads have only the context variable. They act as its session while the generator that entered the session runs.
    They are refused (`session_suspended`) while it waits at a `yield`. They are also refused if another session was open in the
    same context, because the task may have been started under either of them.
C4  Code that leaves a session returns to the session around it, in the same thread and task only.

tests/unit/test_current.py has a test for each rule.
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
    from agent_identity.runtime.reach import Reach
    from agent_identity.runtime.state import SessionState
    from agent_identity.tools import Tool


class RunningCall(Protocol):
    """A call whose tool runs, as the modules below the pipeline see it."""

    @property
    def tool(self) -> Tool: ...

    @property
    def call_id(self) -> str: ...

    @property
    def facts(self) -> CallFacts:
        """The members that all assertions of this call have in common."""
        ...

    @property
    def numbers(self) -> Iterator[int]:
        """Counts the HTTP requests of this call, from 1."""
        ...

    @property
    def is_running(self) -> bool: ...

    def check_running(self) -> None:
        """Raise `DeniedError` if the call has ended."""
        ...

    def credential(self) -> Credential: ...

    def renewed(self, reached: Reach) -> None:
        """Use another credential, because the resource refused the first one."""
        ...

    def sign_assertion(self, *, with_token: bool) -> tuple[str, list[str]]:
        """Sign an assertion of the whole call, and return it with the grants of its chain; `with_token` adds the token's hash."""
        ...


class Attempt:
    """One attempt at a tool call of a model. `continues` is the call that was interrupted before, `call_id` the one that is made."""

    __slots__ = ("call_id", "continues")

    def __init__(self, continues: str | None = None) -> None:
        self.continues: str | None = continues
        self.call_id: str | None = None


class Current:
    """A session that is current, and its running call.

    The reference to the session is weak. If a task dies without leaving its session, the session is collected, and the next job
    in the same pool finds no session. `tool_call_id` is the model's id of the next call, and `attempt` is for that call too.
    `below` is the entry that was current before, and `entries` is the generator's list that contains this entry.
    """

    __slots__ = ("attempt", "below", "call", "entries", "session", "tool_call_id")

    def __init__(
        self,
        session: weakref.ReferenceType[SessionState],
        call: RunningCall | None,
        tool_call_id: str | None = None,
        attempt: Attempt | None = None,
    ) -> None:
        self.session: weakref.ReferenceType[SessionState] = session
        self.call: RunningCall | None = call
        self.tool_call_id: str | None = tool_call_id
        self.attempt: Attempt | None = attempt
        self.below: Current | None = None
        self.entries: list[Current] | None = None


class Entered(Current):
    """A session whose `with` block was entered.

    `generator` is the frame of the generator that entered it, None outside generators and after the block was left. `is_mixed` is
    True if another generator had a session open in this context at that time.
    """

    __slots__ = ("generator", "is_mixed", "place")

    def __init__(
        self,
        session: weakref.ReferenceType[SessionState],
        generator: FrameType | None,
        below: Current | None,
    ) -> None:
        super().__init__(session, None)
        self.generator: FrameType | None = generator
        self.below = below
        self.is_mixed: bool = False
        self.place: _Place = _find_place()

    @property
    def is_left(self) -> bool:
        """Whether its block was left, or the session was collected."""
        session = self.session()
        return session is None or session.life.is_left


_CURRENT: Final[ContextVar[Current | None]] = ContextVar("agent_identity_current", default=None)
_by_generator: Final[dict[int, list[Current]]] = {}
"""The entries of each generator that has a session open, by the `id` of its frame; innermost last."""
_SWEPT: Final = [64]
"""The number of generators at which `_sweep` removes the abandoned ones."""


def current() -> Current | None:
    """The current entry of the running code, None if no session was entered.

    Raises:
        NoSessionError: `session_suspended`, the session is ambiguous.
    """
    entry = _CURRENT.get()
    if not _by_generator:
        if entry is None:
            return None
        session = entry.session()
        if session is not None and not session.life.is_left:
            return entry
    return _resolve(entry)


def open_session() -> tuple[SessionState, Current]:
    """The current session of the running code, and its entry.

    Raises:
        NoSessionError: there is no session, it has ended, or it is ambiguous.
    """
    entry = _CURRENT.get()
    if entry is not None and not _by_generator:  # most calls end here
        session = entry.session()
        if session is not None and session.life.is_open:
            return session, entry
    entry = current()
    if entry is None:
        raise NoSessionError(
            "no_session",
            "there is no current session",
            remedy=(
                "open one: `with identity.on_behalf_of(…, purpose=…):`; in a thread, use session.bind(fn); "
                "a dependency with `yield` that opens the session must be `async def`"
            ),
        )
    session = entry.session()
    if session is None or not session.life.is_open:
        raise NoSessionError(
            "session_ended",
            "the session has ended",
            remedy="keep the work inside its `with` block, or open another session",
        )
    return session, entry


def running_call(session: SessionState) -> RunningCall | None:
    """The running call of a session, None outside a tool or under another session."""
    try:
        entry = current()
    except NoSessionError:
        return None
    if entry is None or entry.session() is not session:
        return None
    return entry.call


def parent_call_id(session: SessionState, entry: Current | None) -> str | None:
    """The id of the call in whose tool a call of `session` begins, under `entry`; None outside of all tools.

    A tool that calls tools, or that runs a sub-agent in a delegated session, is the parent. A call of another transaction isn't.
    """
    while entry is not None:
        call = entry.call
        if call is not None and call.is_running:
            around = entry.session()
            is_same = around is not None and around.txn == session.txn
            return call.call_id if is_same else None
        entry = entry.below
    return None


def current_parent_id(session: SessionState) -> str | None:
    """`parent_call_id` of the running code."""
    try:
        return parent_call_id(session, current())
    except NoSessionError:
        return None


def _resolve(entry: Current | None) -> Current | None:
    """Apply rules C2 to C4 to the entry of the context variable."""
    entries = _find_on_stack(inspect.currentframe()) if _by_generator else None
    if entries is not None:
        return entries[-1]
    place = _find_place()
    if isinstance(entry, Entered) and entry.is_left and _is_same(entry.place, place):
        around = _find_open_below(entry)
        if around is None:
            return entry
        entry = around
        _CURRENT.set(entry)  # tasks that are started here inherit the open session too
    is_suspended = False
    while isinstance(entry, Entered) and entry.generator is not None:
        if not _is_same(entry.place, place):
            return _check_task(entry, entry.generator)
        # The generator may run below a driver, where the search of the stack ends.
        if progress(entry.generator) == "running":
            return entry
        is_suspended = True
        entry = _find_open_below(entry.below)
    if entry is None and is_suspended:
        raise _suspended_error()
    return entry


def _check_task(entry: Entered, generator: FrameType) -> Entered:
    """Apply rule C3 to the entry that a task or thread inherited."""
    if not entry.is_left and (entry.is_mixed or progress(generator) == "suspended"):
        raise _suspended_error()
    return entry


def _find_on_stack(frame: FrameType | None) -> list[Current] | None:
    """Find the entries of the nearest generator with an open session, within the running task; the last one is current."""
    while frame is not None:
        entries = _by_generator.get(id(frame))
        if entries is not None and _has_open(entries, frame):
            return entries
        if is_task_end(frame):
            return None
        frame = frame.f_back
    return None


def _has_open(entries: list[Current], frame: FrameType) -> bool:
    """Whether one of the entries is still open; those that an interrupt has left behind it are removed."""
    first = entries[0] if entries else None
    if not isinstance(first, Entered) or (first.generator is not frame and not first.is_left):
        return False
    while entries:
        last = entries[-1]
        if isinstance(last, Entered):
            if not last.is_left:
                return True
        elif last.call is None or last.call.is_running:
            return True
        entries.pop()
    _by_generator.pop(id(frame), None)
    return False


def _suspended_error() -> NoSessionError:
    return NoSessionError(
        "session_suspended",
        "the current session is ambiguous: the generator that entered it waits at a `yield`, or several generators take turns",
        remedy="use session.bind(fn) for threads and tasks, or pass the session explicitly",
    )


def activate(entry: Current) -> None:
    """Make an entry current until `deactivate`."""
    entry.below = _CURRENT.get()
    if _by_generator:
        entry.entries = _find_on_stack(inspect.currentframe())
        if entry.entries is not None:
            entry.entries.append(entry)
    _CURRENT.set(entry)


def deactivate(entry: Current) -> None:
    """Restore the previous entry in this context. An entry that was never made current is ignored."""
    entries, entry.entries = entry.entries, None
    if entries is not None:
        _remove(entries, entry)
    # A generator may be resumed in one context and suspended in another (a task that dies with its loop). The entry that stays
    # in the first context belongs to a call that has ended.
    if _CURRENT.get() is entry:
        _CURRENT.set(entry.below)


@contextlib.contextmanager
def activated(entry: Current) -> Generator[None]:
    """Make an entry current for a `with` block."""
    try:
        activate(entry)
        yield
    finally:
        deactivate(entry)


def enter(session: weakref.ReferenceType[SessionState]) -> Entered:
    """Make a session current in the `with` block that is being entered."""
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
    """Restore the previous session after the block was left, possibly in another context."""
    generator, entry.generator = entry.generator, None
    if generator is not None:
        entries = _by_generator.get(id(generator), [])
        _remove(entries, entry)
        if not entries:
            _by_generator.pop(id(generator), None)
    top = _CURRENT.get()
    while top is not None and top.call is not None and not top.call.is_running:
        top = top.below  # an interrupt has kept this call from being deactivated
    if top is entry:
        _CURRENT.set(_find_open_below(entry.below))


def _remove(entries: list[Current], entry: Current) -> None:
    for index in range(len(entries) - 1, -1, -1):
        if entries[index] is entry:
            del entries[index]
            return


def _find_open_below(entry: Current | None) -> Current | None:
    """Find the first entry whose block wasn't left, and unlink the others, so that the chain doesn't grow."""
    while isinstance(entry, Entered) and entry.is_left:
        entry = entry.below
    level = entry
    while isinstance(level, Entered):
        while isinstance(level.below, Entered) and level.below.is_left:
            level.below = level.below.below
        level = level.below
    return entry


def _is_mixed(below: Current | None) -> bool:
    """Whether another generator with a session in this context is suspended."""
    while isinstance(below, Entered):
        if below.generator is not None and progress(below.generator) != "running":
            return True
        below = below.below
    return False


def _is_around_others(entry: Entered) -> bool:
    """Whether the code that iterates the generator has a session of another transaction, and may start tasks under it."""
    session = entry.session()
    below = entry.below
    around = None if below is None else below.session()
    return around is not None and session is not None and around.txn != session.txn


def _sweep() -> None:
    """Remove generators that were abandoned without leaving their block."""
    for key, entries in list(_by_generator.items()):
        if all(isinstance(entry, Entered) and entry.is_left for entry in entries):
            _by_generator.pop(key, None)
    _SWEPT[0] = max(64, 2 * len(_by_generator))


_Place: TypeAlias = "tuple[object, weakref.ReferenceType[asyncio.Task[object]] | None]"


class _Thread(threading.local):
    """One object for each thread, because Python reuses the `ident` of a finished thread."""

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
    """Wrap a sync or async function so that it runs in a copy of this context, with `session` current.

    Raises:
        ConfigurationError: `function` is a generator function, whose body would run where it is iterated.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            "bind_generator",
            "a generator function can't be bound, because its body runs where it is iterated",
            remedy="bind the function that iterates it",
        )
    running = running_call(session)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awrapper(*args: P.args, **kwargs: P.kwargs) -> object:
            with activated(Current(session.reference, running)):
                return await function(*args, **kwargs)

        # This keeps the session alive, because `Current` holds it weakly.
        awrapper.__dict__["_session"] = session
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
                "the bound function returned a coroutine or generator, whose body would run outside the session",
                remedy="bind the async function itself, or a function that finishes the work",
            )
        return result

    wrapper.__dict__["_session"] = session  # as above
    return wrapper
