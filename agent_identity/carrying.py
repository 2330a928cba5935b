# SPDX-License-Identifier: Apache-2.0
"""Carries a session, and the call that is running, to where context variables don't follow: threads and executors."""

from __future__ import annotations

import contextvars
import functools
import inspect
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from agent_identity.runtime.current import Current, activated
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.session import Session

__all__ = ["bound"]

P = ParamSpec("P")
R = TypeVar("R")


def bound(session: Session, function: Callable[P, R]) -> Callable[P, R]:
    """The function, run in a copy of this context with `session` current; sync and async functions alike.

    Raises:
        ConfigurationError: a generator function, whose body runs wherever it is iterated.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            "bind_generator",
            "a generator's body runs where it is iterated, so it can't be bound",
            remedy="bind the function that iterates it",
        )
    running = session.running
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def acarried(*args: P.args, **kwargs: P.kwargs) -> object:
            with activated(Current(session.reference, running)):
                return await function(*args, **kwargs)

        acarried.__dict__["_session"] = session  # what is current holds it weakly
        return acarried  # type: ignore[return-value]  # R is the coroutine that `acarried` makes

    context = contextvars.copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with activated(Current(session.reference, running)):
            return function(*args, **kwargs)

    @functools.wraps(function)
    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        result = context.copy().run(run, *args, **kwargs)
        if isinstance(result, CoroutineType | GeneratorType | AsyncGeneratorType):
            if not isinstance(result, AsyncGeneratorType):
                result.close()
            raise ConfigurationError(
                "bind_generator",
                "what was bound returned a coroutine or generator, whose body runs wherever it is awaited",
                remedy="bind the async function itself, or a function that finishes the work",
            )
        return result

    carried.__dict__["_session"] = session  # what is current holds it weakly
    return carried
