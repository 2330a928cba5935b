# SPDX-License-Identifier: Apache-2.0
"""`tool` translates a function call into a `Call`, and does nothing else.

A decorated function stays sync, async, a generator or an async generator, with the same signature and types. Decorating only
reads the signature: it touches no key, client, file or network.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, overload

from agent_identity.errors import AgentIdentityError, ConfigurationError
from agent_identity.pipeline import Call
from agent_identity.runtime.current import open_session, parent_call_id
from agent_identity.tools import Binder, Tool, check_function

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping

    from agent_identity.runtime.current import Current
    from agent_identity.runtime.state import SessionState

__all__ = ["begin", "mark", "tool", "tool_of", "wrap"]

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
    """Make a function a tool: each call of it is permitted, gets a credential, is asserted and recorded, or doesn't happen.

    `resource` is the URI that it reaches (None = nothing outside this process), `scopes` what it needs there (None = the
    resource's configured scopes), `labels` what it does (`"reads:finance"`), `opaque` the arguments without a canonical form.
    `@tool` alone is `@tool()`.

    The function gets a deep copy of its arguments, of the same types. `opaque` arguments are passed on as they are.

    Raises:
        ConfigurationError: the decorated object is not a function, or an argument can't be used.

    The decorated function raises:
        TypeError: it can't be called with these arguments. It did not run.
        NoSessionError: it was called outside every session.
        DeniedError: policy, or the session's limits, refused it. It did not run.
        CredentialError: no credential could be obtained. It did not run.
        LedgerError: its intent could not be recorded. It did not run.
    """
    definition = Tool(
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
                remedy="decorate it once; for a second tool, write a function that calls the first",
            )
        binder = Binder(function)
        binder.check_parameters(definition.opaque)
        named = definition if name is not None else definition.with_name(function.__name__)
        return _wrap(function, named, binder)

    if not functions:
        return decorate
    if len(functions) == 1:
        return decorate(functions[0])
    raise ConfigurationError(
        "tool_malformed",
        f"tool got {len(functions)} positional arguments, and takes one function",
        remedy="write tool(resource=…, scopes=…)",
    )


def wrap(function: Callable[P, R], definition: Tool) -> Callable[P, R]:
    """Make a function the tool that `definition` describes. It does what `tool` does, for adapters."""
    return _wrap(function, definition, Binder(function))


def mark(function: Callable[P, R], definition: Tool) -> Callable[P, R]:
    """Mark a function whose calls are guarded as this tool where they leave the process, for adapters of remote tools."""
    function.__dict__["__agent_identity_tool__"] = definition
    return function


def tool_of(function: object) -> Tool | None:
    """The `Tool` of a decorated function, None for any other. Adapters don't wrap a decorated function again."""
    definition = getattr(function, "__agent_identity_tool__", None)
    return definition if isinstance(definition, Tool) else None


def _wrap(function: Callable[P, R], definition: Tool, binder: Binder) -> Callable[P, R]:
    wrap_kind = _wrap_plain
    if inspect.isasyncgenfunction(function):
        wrap_kind = _wrap_async_generator
    elif inspect.iscoroutinefunction(function):
        wrap_kind = _wrap_coroutine
    elif inspect.isgeneratorfunction(function):
        wrap_kind = _wrap_generator
    return mark(wrap_kind(function, definition, binder), definition)


def begin(definition: Tool, arguments: Mapping[str, object]) -> Call:
    """Make a call of the current session, for adapters of remote tools.

    Raises:
        NoSessionError: there is no current session.
    """
    return _make_call(*open_session(), definition, arguments)


def _begin(definition: Tool, binder: Binder, args: Any, kwargs: Any) -> Call:
    session, current = open_session()
    return _make_call(session, current, definition, binder.bind(args, kwargs))


def _make_call(
    session: SessionState, current: Current, definition: Tool, arguments: Mapping[str, object]
) -> Call:
    attempt = current.attempt
    call = Call(
        session,
        definition,
        arguments,
        current.tool_call_id,
        parent_id=parent_call_id(session, current),
        continues=None if attempt is None else attempt.continues,
    )
    if attempt is not None:
        attempt.call_id = call.call_id
    return call


_LATER: Final = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)


def _wrap_plain(function: Any, definition: Tool, binder: Binder) -> Any:
    @functools.wraps(function)
    def call_tool(*args: object, **kwargs: object) -> object:
        call = _begin(definition, binder, args, kwargs)
        try:  # not `with`: an interrupt at the first instruction of `__exit__` would lose the outcome
            call.enter()
            positional, keywords = binder.unbind(call.arguments)
            owner = binder.owner(args)
            try:
                call.resume()
                result = function(*owner, *positional, **keywords)
                if isinstance(result, _LATER):
                    raise _hidden_body_error(function, result)
            finally:
                call.suspend()
            call.leave(None)
        except BaseException as error:
            call.leave(error)
            raise
        return result

    return call_tool


def _hidden_body_error(function: Any, result: Any) -> ConfigurationError:
    """The error for a plain function that returns a coroutine or generator: the body of that would run outside the call."""
    if not isinstance(result, types.AsyncGeneratorType):
        result.close()
    return ConfigurationError(
        "hidden_body",
        f"{function.__name__} returned a coroutine or generator, whose body would run outside the call",
        remedy="decorate the async or generator function itself, below any other decorator",
    )


def _wrap_coroutine(function: Any, definition: Tool, binder: Binder) -> Any:
    @functools.wraps(function)
    async def call_tool(*args: object, **kwargs: object) -> object:
        call = _begin(definition, binder, args, kwargs)
        try:
            await call.aenter()
            positional, keywords = binder.unbind(call.arguments)
            owner = binder.owner(args)
            try:
                call.resume()
                result = await function(*owner, *positional, **keywords)
            finally:
                call.suspend()
            await call.aleave(None)
        except BaseException as error:
            await call.aleave(error)
            raise
        return result

    return call_tool


def _wrap_generator(function: Any, definition: Tool, binder: Binder) -> Any:
    @functools.wraps(function)
    def call_tool(*args: object, **kwargs: object) -> Generator[Any, Any, Any]:
        call = _begin(definition, binder, args, kwargs)
        try:
            call.enter()
            positional, keywords = binder.unbind(call.arguments)
            body = function(*binder.owner(args), *positional, **keywords)
            result = yield from _step_through(call, body)
            call.leave(None)
        except BaseException as error:
            call.leave(error)
            raise
        return result

    return call_tool


def _step_through(call: Call, body: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
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
            _close_body(call, body)
            raise
        except BaseException as error:  # noqa: BLE001 - what the consumer throws belongs to the body
            step, value = body.throw, error
        try:
            call.check_resumption()
        except AgentIdentityError:
            _close_body(call, body)
            raise


def _close_body(call: Call, body: Generator[Any, Any, Any]) -> None:
    try:
        call.resume()
        body.close()
    finally:
        call.suspend()


def _wrap_async_generator(function: Any, definition: Tool, binder: Binder) -> Any:
    @functools.wraps(function)
    async def call_tool(*args: object, **kwargs: object) -> AsyncGenerator[Any, Any]:
        call = _begin(definition, binder, args, kwargs)
        try:
            await call.aenter()
            positional, keywords = binder.unbind(call.arguments)
            body = function(*binder.owner(args), *positional, **keywords)
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
                    await _aclose_body(call, body)
                    raise
                except BaseException as error:  # noqa: BLE001 - what the consumer throws belongs to the body
                    step, value = body.athrow, error
                try:
                    call.check_resumption()
                except AgentIdentityError:
                    await _aclose_body(call, body)
                    raise
            await call.aleave(None)
        except BaseException as error:
            await call.aleave(error)
            raise

    return call_tool


async def _aclose_body(call: Call, body: AsyncGenerator[Any, Any]) -> None:
    try:
        call.resume()
        await body.aclose()
    finally:
        call.suspend()
