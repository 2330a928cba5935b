# SPDX-License-Identifier: Apache-2.0
"""Tells an interrupt from a failure, where foreign exceptions become the library's own.

Ctrl-C isn't an `Exception`, but what a task queue's alarm raises (a soft time limit) is one. It can come up inside any code that
runs in the main thread, so a seam that wraps what a plug-in or a transport raises asks here first, and lets it pass.
"""

from __future__ import annotations

import functools
import signal
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["is_interrupt"]


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception came out of a signal handler, or isn't an `Exception` at all.

    An exception that another thread injects (`PyThreadState_SetAsyncExc`) can't be told from a failure.
    """
    if not isinstance(error, Exception):
        return True
    handlers = _handlers()
    if not handlers:
        return False
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _handlers() -> set[CodeType]:
    """The code of every signal handler that is installed and written in Python."""
    found: set[CodeType] = set()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler):
            code = _code_of(handler)
            if code is not None:
                found.add(code)
    return found


def _code_of(handler: object) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    if isinstance(handler, MethodType):
        handler = handler.__func__
    if not isinstance(handler, FunctionType):
        handler = vars(type(handler)).get("__call__")
    return handler.__code__ if isinstance(handler, FunctionType) else None
