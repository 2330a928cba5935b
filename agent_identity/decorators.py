# SPDX-License-Identifier: Apache-2.0
"""`tool`: translates a function call into a `Call`, and stays out of the way otherwise.

What is decorated stays what it was: sync, async, generator or async generator, with its signature and its typing. Decorating
reads the signature and nothing else: no key, client, file or network.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from agent_identity.current import CURRENT, current_session
from agent_identity.described import Tool
from agent_identity.errors import AgentIdentityError, ConfigurationError
from agent_identity.pipeline import Call
from agent_identity.signature import Binder
from agent_identity.values import scope_set

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable


__all__ = ["tool", "tool_of", "wrap"]

P = ParamSpec("P")
R = TypeVar("R")


def tool(
    *,
    resource: str | None = None,
    scopes: Iterable[str] | None = None,
    name: str | None = None,
    labels: Iterable[str] = (),
    opaque: Iterable[str] = (),
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function a tool: each call of it is permitted, credentialed, asserted and recorded, or doesn't happen.

    `resource` is the URI that it reaches (None = nothing outside this process), `scopes` what it needs there (None = what the
    resource is configured with), `labels` what it does (`"reads:finance"`), `opaque` arguments that have no canonical form.

    The decorated function raises:
        NoSessionError: it was called outside every session.
        DeniedError: policy, or the session's limits, refused it. It did not run.
        CredentialError: its credential could not be had. It did not run.
        LedgerError: its intent could not be recorded. It did not run.
    """
    if isinstance(labels, str) or isinstance(opaque, str):
        raise ConfigurationError("tool_malformed", "labels and opaque are lists, not one string")
    wanted = None if scopes is None else scope_set(scopes)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if not inspect.isfunction(function) and not inspect.ismethod(function):
            raise ConfigurationError(
                "tool_malformed",
                "a tool is a function or a method",
                remedy="write @classmethod or @staticmethod above @tool, not below it",
            )
        described = Tool(
            name or function.__name__,
            resource=resource,
            scopes=wanted,
            labels=labels,
            opaque=opaque,
        )
        return wrap(function, described)

    return decorate


def wrap(function: Callable[P, R], described: Tool) -> Callable[P, R]:
    """Make a function the tool that `described` says it is; what `tool` does, for adapters."""
    wrapped: Callable[P, R] = _wrap(function, described, Binder(function))
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
    session = current_session()
    current = CURRENT.get()
    pending = None if current is None else current.tool_call_id
    return Call(session, described, binder.bind(args, kwargs), pending)


def _plain(function: Any, described: Tool, binder: Binder) -> Any:
    @functools.wraps(function)
    def called(*args: object, **kwargs: object) -> object:
        with _begin(described, binder, args, kwargs) as call:
            given, named = binder.unbind(call.arguments)
            return function(*binder.owner(args), *given, **named)

    return called


def _coroutine(function: Any, described: Tool, binder: Binder) -> Any:
    @functools.wraps(function)
    async def called(*args: object, **kwargs: object) -> object:
        async with _begin(described, binder, args, kwargs) as call:
            given, named = binder.unbind(call.arguments)
            return await function(*binder.owner(args), *given, **named)

    return called


def _generator(function: Any, described: Tool, binder: Binder) -> Any:
    @functools.wraps(function)
    def called(*args: object, **kwargs: object) -> Generator[Any, Any, Any]:
        call = _begin(described, binder, args, kwargs)
        call.enter()
        given, named = binder.unbind(call.arguments)
        body = function(*binder.owner(args), *given, **named)
        ended: BaseException | None = None
        try:
            return (yield from _stepped(call, body))
        except BaseException as error:
            ended = error
            raise
        finally:
            call.leave(ended)

    return called


def _stepped(call: Call, body: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """`yield from body`, with the call current only while the body runs, and refused once its session has ended."""
    send: Callable[[Any], Any] = body.send
    value: Any = None
    while True:
        call.resume()
        try:
            item = send(value)
        except StopIteration as stop:
            return stop.value
        finally:
            call.suspend()
        try:
            value, send = (yield item), body.send
            call.check_resumption()
        except GeneratorExit:
            _closed(call, body)
            raise
        except AgentIdentityError:
            _closed(call, body)
            raise
        except BaseException as error:  # noqa: BLE001 - what the consumer throws belongs to the body
            value, send = error, body.throw


def _closed(call: Call, body: Generator[Any, Any, Any]) -> None:
    call.resume()
    try:
        body.close()
    finally:
        call.suspend()


def _async_generator(function: Any, described: Tool, binder: Binder) -> Any:
    @functools.wraps(function)
    async def called(*args: object, **kwargs: object) -> AsyncGenerator[Any, Any]:
        call = _begin(described, binder, args, kwargs)
        await call.aenter()
        given, named = binder.unbind(call.arguments)
        body = function(*binder.owner(args), *given, **named)
        ended: BaseException | None = None
        send: Callable[[Any], Coroutine[Any, Any, Any]] = body.asend
        value: Any = None
        try:
            while True:
                call.resume()
                try:
                    item = await send(value)
                except StopAsyncIteration:
                    return
                finally:
                    call.suspend()
                try:
                    value, send = (yield item), body.asend
                    call.check_resumption()
                except (GeneratorExit, AgentIdentityError):
                    await body.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - what the consumer throws belongs to the body
                    value, send = error, body.athrow
        except BaseException as error:
            ended = error
            raise
        finally:
            await call.aleave(ended)

    return called
