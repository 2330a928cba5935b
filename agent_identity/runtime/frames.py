# SPDX-License-Identifier: Apache-2.0
"""Finds out from Python's frames which generator runs a piece of code, and whether a generator runs or waits.

A context variable that is set inside a generator stays set for the code that iterates it. Frames don't have that problem: a
generator's frame is on the stack while its body runs, and on no stack while it waits.

Bytecode offsets distinguish an `await` from a `yield`. Tested on CPython 3.11 to 3.13; tests/unit/test_frames.py has a test for
each rule.
"""

from __future__ import annotations

import asyncio
import inspect
import opcode
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from types import CodeType, FrameType

Progress: TypeAlias = Literal["running", "awaiting", "suspended"]
"""`running` is on a stack, `awaiting` waits at an `await`, `suspended` waits at a `yield` or is finished."""

_GENERATOR: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_AWAITABLE: Final = (
    inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE
)
_LENDERS: Final = frozenset(
    {
        "contextlib",
        "_pytest.fixtures",
        "pytest_asyncio.plugin",
        "litestar._kwargs.dependencies",
        "litestar.utils.compat",
    }
)
"""Modules that run a generator as a context manager: a session that it opens belongs to the code around it."""
_ANYIO: Final = ("anyio._backends._asyncio", "_run_tests_and_fixtures")
"""A function that does the same; other functions of its module drive threads."""


def owning_generator(frame: FrameType | None) -> FrameType | None:
    """Find the generator whose body runs in `frame`: the nearest one on the stack that isn't run as a context manager.

    None if the search reaches the running task first, because a task has its own context. A coroutine that is driven without an
    event loop counts as a generator.
    """
    while frame is not None:
        back = frame.f_back
        flags = frame.f_code.co_flags
        if flags & _GENERATOR and not flags & inspect.CO_ITERABLE_COROUTINE:
            outermost = _find_outermost(frame)
            back = outermost.f_back
            if back is None or not _is_context_manager(back):
                return frame
        elif flags & _AWAITABLE and is_task_end(frame):
            return None if _is_task(frame) else frame
        frame = back
    return None


def _find_outermost(frame: FrameType) -> FrameType:
    """Find the outermost generator of the chain of `yield from` that ends in this one."""
    back = frame.f_back
    while (
        back is not None
        and back.f_code.co_flags & inspect.CO_GENERATOR
        and back.f_lasti in _offsets(back.f_code).awaiting
    ):
        frame, back = back, back.f_back
    return frame


def is_task_end(frame: FrameType) -> bool:
    """Whether `frame` is a coroutine or async generator that no other one awaits, so its caller on the stack is a driver."""
    if not frame.f_code.co_flags & _AWAITABLE:
        return False
    back = frame.f_back
    return back is None or back.f_lasti not in _offsets(back.f_code).awaiting


def progress(frame: FrameType) -> Progress:
    """Whether a generator or coroutine runs, waits at an `await`, or waits at a `yield`."""
    offsets = _offsets(frame.f_code)
    # This comes first, because the `f_back` of a finished generator may be out of date.
    if frame.f_lasti in offsets.idle:
        return "suspended"
    if frame.f_back is not None:
        return "running"
    return "awaiting" if frame.f_lasti in offsets.paused_at_await else "suspended"


def _is_context_manager(driver: FrameType) -> bool:
    name = driver.f_globals.get("__name__")
    return name in _LENDERS or (name, driver.f_code.co_name) == _ANYIO


def _is_task(frame: FrameType) -> bool:
    """Whether a coroutine's frame is the outermost one of the running asyncio task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False
    return task is not None and getattr(task.get_coro(), "cr_frame", None) is frame


class _Offsets(NamedTuple):
    """Places in the bytecode of one function, as values of `f_lasti`."""

    awaiting: frozenset[int]
    """While it awaits another coroutine or delegates to another generator, and that one runs."""
    paused_at_await: frozenset[int]
    idle: frozenset[int]
    """Waiting at a `yield`, or finished."""


_SEND: Final = opcode.opmap["SEND"]
_RESUME: Final = opcode.opmap["RESUME"]
_RETURNS: Final = frozenset(
    opcode.opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in opcode.opmap
)
_AFTER_AWAIT: Final = 3  # RESUME's argument, in its two lowest bits
_KEPT: Final = 4096
_offsets_by_id: Final[dict[int, tuple[CodeType, _Offsets]]] = {}


def _offsets(code: CodeType) -> _Offsets:
    cached = _offsets_by_id.get(id(code))
    if cached is not None and cached[0] is code:
        return cached[1]
    offsets = _scan(code.co_code)
    if len(_offsets_by_id) >= _KEPT:
        _offsets_by_id.clear()
    _offsets_by_id[id(code)] = (code, offsets)
    return offsets


def _scan(units: bytes) -> _Offsets:
    """Read bytecode, two bytes an instruction; `co_code` has zeros in its inline caches."""
    awaiting: set[int] = set()
    paused: set[int] = set()
    idle: set[int] = set()
    for at in range(0, len(units), 2):
        operation, argument = units[at], units[at + 1]
        if operation == _SEND:
            awaiting.update((at, at + 2))  # 3.12 leaves `f_lasti` at the cache behind SEND
        elif operation == _RESUME and argument & 3:
            # at the YIELD_VALUE before it, from 3.13 on at RESUME itself
            (paused if argument & 3 == _AFTER_AWAIT else idle).update((at - 2, at))
        elif operation in _RETURNS:
            idle.add(at)
    return _Offsets(frozenset(awaiting), frozenset(paused), frozenset(idle))
