# SPDX-License-Identifier: Apache-2.0
"""`tool`: translates a function call into a `Call`, and stays out of the way otherwise.

What is decorated stays what it was: sync, async, generator or async generator, with its signature and its typing. Decorating
reads the signature and nothing else: no key, client, file or network.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, overload

from agent_identity.errors import AgentIdentityError, ConfigurationError
from agent_identity.pipeline import Call
from agent_identity.runtime.current import open_session
from agent_identity.tools import Binder, Tool, check_function

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable


__all__ = ["tool", "tool_of", "wrap"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def tool(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def tool(
    *,
    resource: str | None = None,
    scopes: Iterable[str] | None = None,
    name: str | None = None,
    labels: Iterable[str] = (),
    opaque: Iterable[str] = (),
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def tool(
    *functions: Any,
    resource: str | None = None,
    scopes: Iterable[str] | None = None,
    name: str | None = None,
    labels: Iterable[str] = (),
    opaque: Iterable[str] = (),
) -> Any:
    """Make a function a tool: each call of it is permitted, credentialed, asserted and recorded, or doesn't happen.

    `resource` is the URI that it reaches (None = nothing outside this process), `scopes` what it needs there (None = what the
    resource is configured with), `labels` what it does (`"reads:finance"`), `opaque` arguments that have no canonical form.
    `@tool` alone is `@tool()`.

    The function gets a deep copy of its arguments, of the same types. `opaque`
    arguments are passed through as they are.

    Raises:
        ConfigurationError: what is decorated is no function, or an argument can't be used.

    The decorated function raises:
        TypeError: it can't be called with these arguments. It did not run.
        NoSessionError: it was called outside every session.
        DeniedError: policy, or the session's limits, refused it. It did not run.
        CredentialError: its credential could not be had. It did not run.
        LedgerError: its intent could not be recorded. It did not run.
    """
    described = Tool(
        "tool" if name is None else name,
        resource=resource,
        scopes=scopes,
        labels=labels,
        opaque=opaque,
    )

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        check_function(function)
        if tool_of(function) is not None:
            raise ConfigurationError(
                "tool_malformed",
                f"{function.__name__} is a tool already",
                remedy="decorate it once; a second tool is a second function that calls the first",
            )
        binder = Binder(function)
        binder.check_parameters(described.opaque)
        return _made(
            function, described if name is not None else described.named(function.__name__), binder
        )

    if not functions:
        return decorate
    if len(functions) == 1:
        return decorate(functions[0])
    raise ConfigurationError(
        "tool_malformed",
        "tool takes one function and nothing else without a keyword",
        remedy="write tool(resource=…, scopes=…)",
    )


def wrap(function: Callable[P, R], described: Tool) -> Callable[P, R]:
    """Make a function the tool that `described` says it is; what `tool` does, for adapters."""
    return _made(function, described, Binder(function))


def _made(function: Callable[P, R], described: Tool, binder: Binder) -> Callable[P, R]:
    wrapped: Callable[P, R] = _wrap(function, described, binder)
    wrapped.__dict__["__agent_identity_tool__"] = described
    return wrapped


def tool_of(function: object) -> Tool | None:
    """What a decorated function is as a tool, None for any other; adapters leave the former to itself."""
    found = getattr(function, "__agent_identity_tool__", None)
    return found if isinstance(found, Tool) else None


def _wrap(function: Any, described: Tool, binder: Binder) -> Any:
    if inspect.isasyncgenfunction(function):
        return _async_generator(function, described, binder)
    if inspect.iscoroutinefunction(function):
        return _coroutine(function, described, binder)
    if inspect.isgeneratorfunction(function):
        return _generator(function, described, binder)
    return _plain(function, described, binder)


def _begin(described: Tool, binder: Binder, args: Any, kwargs: Any) -> Call:
    session, found = open_session()
    return Call(session, described, binder.bind(args, kwargs), found.tool_call_id)


_LATER: Final = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)


def _plain(function: Any, described: Tool, binder: Binder) -> Any:
    @functools.wraps(function)
    def called(*args: object, **kwargs: object) -> object:
        call = _begin(described, binder, args, kwargs)
        try:  # not `with`: an interrupt at the first instruction of `__exit__` would lose the outcome
            call.enter()
            given, named = binder.unbind(call.arguments)
            owner = binder.owner(args)
            try:
                call.resume()
                result = function(*owner, *given, **named)
                if isinstance(result, _LATER):
                    raise _late_body(function, result)
            finally:
                call.suspend()
            call.leave(None)
        except BaseException as error:
            call.leave(error)
            raise
        return result

    return called


def _late_body(function: Any, result: Any) -> ConfigurationError:
    """A coroutine or generator that comes out of a plain function would run its body outside of the call."""
    if not isinstance(result, types.AsyncGeneratorType):
        result.close()
    return ConfigurationError(
        "hidden_body",
        f"{function.__name__} returned a coroutine or generator, whose body would run outside of its call",
        remedy="decorate the async or generator function itself, below any other decorator",
    )


def _coroutine(function: Any, described: Tool, binder: Binder) -> Any:
    @functools.wraps(function)
    async def called(*args: object, **kwargs: object) -> object:
        call = _begin(described, binder, args, kwargs)
        try:
            await call.aenter()
            given, named = binder.unbind(call.arguments)
            owner = binder.owner(args)
            try:
                call.resume()
                result = await function(*owner, *given, **named)
            finally:
                call.suspend()
            await call.aleave(None)
        except BaseException as error:
            await call.aleave(error)
            raise
        return result

    return called


def _generator(function: Any, described: Tool, binder: Binder) -> Any:
    @functools.wraps(function)
    def called(*args: object, **kwargs: object) -> Generator[Any, Any, Any]:
        call = _begin(described, binder, args, kwargs)
        try:
            call.enter()
            given, named = binder.unbind(call.arguments)
            body = function(*binder.owner(args), *given, **named)
            result = yield from _stepped(call, body)
            call.leave(None)
        except BaseException as error:
            call.leave(error)
            raise
        return result

    return called


def _stepped(call: Call, body: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """`yield from body`, with the call current only while the body runs, and refused once its session has ended."""
    step: Callable[[Any], Any] = body.send
    value: Any = None
    while True:
        try:
            call.resume()
            item = step(value)
        except StopIteration as stop:
            return stop.value
        finally:
            call.suspend()
        try:
            step, value = body.send, (yield item)
        except GeneratorExit:
            _closed(call, body)
            raise
        except BaseException as error:  # noqa: BLE001 - what the consumer throws belongs to the body
            step, value = body.throw, error
        try:
            call.check_resumption()
        except AgentIdentityError:
            _closed(call, body)
            raise


def _closed(call: Call, body: Generator[Any, Any, Any]) -> None:
    try:
        call.resume()
        body.close()
    finally:
        call.suspend()


def _async_generator(function: Any, described: Tool, binder: Binder) -> Any:
    @functools.wraps(function)
    async def called(*args: object, **kwargs: object) -> AsyncGenerator[Any, Any]:
        call = _begin(described, binder, args, kwargs)
        try:
            await call.aenter()
            given, named = binder.unbind(call.arguments)
            body = function(*binder.owner(args), *given, **named)
            step: Callable[[Any], Coroutine[Any, Any, Any]] = body.asend
            value: Any = None
            while True:
                try:
                    call.resume()
                    item = await step(value)
                except StopAsyncIteration:
                    break
                finally:
                    call.suspend()
                try:
                    step, value = body.asend, (yield item)
                except GeneratorExit:
                    await _aclosed(call, body)
                    raise
                except BaseException as error:  # noqa: BLE001 - what the consumer throws belongs to the body
                    step, value = body.athrow, error
                try:
                    call.check_resumption()
                except AgentIdentityError:
                    await _aclosed(call, body)
                    raise
            await call.aleave(None)
        except BaseException as error:
            await call.aleave(error)
            raise

    return called


async def _aclosed(call: Call, body: AsyncGenerator[Any, Any]) -> None:
    try:
        call.resume()
        await body.aclose()
    finally:
        call.suspend()
