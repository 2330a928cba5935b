# SPDX-License-Identifier: Apache-2.0
"""What a handler asks of the call that reached it: `require` is a dependency, a decorator and a guard, of no one framework.

It looks only at what `VerifyMiddleware` left in the request's scope, where nobody who sends a request can put anything. A
refusal is written down there too, so that the middleware answers it whatever a framework makes of the exception.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from types import FunctionType
from typing import Any, Final, Protocol, TypeGuard, TypeVar, overload

from agent_identity.errors import ConfigurationError
from agent_identity.values import scope_set
from agent_identity.verify.problems import RefusedError, problem
from agent_identity.verify.result import VerifiedCall

__all__ = ["CALL", "REFUSALS", "Connection", "Refusals", "Required", "require", "verified_call"]

CALL: Final = "agent_identity.call"
"""Where in a request's scope its `VerifiedCall` is; None on a public path."""

REFUSALS: Final = "agent_identity.refusals"
"""Where the middleware finds what was refused behind it."""

_log: Final = logging.getLogger("agent_identity")

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Refusals(list[RefusedError]):
    """What was refused behind one middleware, for one request."""


class Connection(Protocol):
    """A request or websocket of any ASGI framework."""

    @property
    def scope(self) -> Mapping[str, Any]: ...


class Required:
    """What `require` gives; call it with a request, or with the function that handles one."""

    def __init__(self, tool: str | None, scopes: Iterable[str]) -> None:
        self._tool = tool
        self._scopes = scope_set(scopes)

    @property
    def __signature__(self) -> inspect.Signature:
        """What FastAPI reads: one parameter, the connection."""
        try:
            kind = importlib.import_module("starlette.requests").HTTPConnection
        except ImportError:
            raise AttributeError("__signature__") from None
        keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Signature([inspect.Parameter("connection", keyword, annotation=kind)])

    @overload
    def __call__(self, connection: Endpoint) -> Endpoint: ...
    @overload
    def __call__(self, connection: Connection) -> VerifiedCall: ...
    @overload
    def __call__(self, connection: Connection, handler: object) -> None: ...
    def __call__(self, connection: Any, handler: object = None) -> object:  # noqa: ARG002 - a guard is given it
        """Check a request (as FastAPI's dependency, as Litestar's guard), or wrap the function that handles one."""
        if isinstance(connection, FunctionType):
            return self._wrapped(connection)
        if not _is_connection(connection):
            raise ConfigurationError(
                "endpoint_malformed",
                "require takes a function that handles requests, or a request",
                remedy="write it directly above the function, below the decorator that routes to it",
            )
        return self._checked(connection)

    def _wrapped(self, endpoint: FunctionType) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(endpoint):

            @wraps(endpoint)
            async def acheck(*args: Any, **kwargs: Any) -> Any:
                self._checked(_connection_in((*args, *kwargs.values())))
                return await endpoint(*args, **kwargs)

            return acheck

        @wraps(endpoint)
        def check(*args: Any, **kwargs: Any) -> Any:
            self._checked(_connection_in((*args, *kwargs.values())))
            return endpoint(*args, **kwargs)

        return check

    def _checked(self, connection: Connection) -> VerifiedCall:
        """The call of a request, held to what is needed here.

        Raises:
            RefusedError: it isn't allowed, or nothing was verified.
        """
        try:
            return self._allowed(connection.scope.get(CALL))
        except RefusedError as error:
            refusals = connection.scope.get(REFUSALS)
            if not isinstance(refusals, Refusals):
                raise _unguarded(connection, error) from None
            refusals.append(error)
            raise

    def _allowed(self, call: object) -> VerifiedCall:
        if not isinstance(call, VerifiedCall):
            raise RefusedError("chain_missing", "the request was not verified")
        if self._tool is not None and (call.call is None or call.call.tool != self._tool):
            raise RefusedError("tool_mismatch", "the call is of another tool, or of none")
        if not self._scopes <= call.scopes:
            error = RefusedError("insufficient_scope", "chain or token lack the scopes needed here")
            error.scopes = self._scopes
            raise error
        return call


def require(tool: str | None = None, scopes: Iterable[str] = ()) -> Required:
    """What a handler needs: these scopes in chain and token both, and the asserted tool where one is named.

    FastAPI: `call: VerifiedCall = Depends(require(scopes=["pay"]))`. Litestar: `guards=[require(scopes=["pay"])]`. Elsewhere it
    decorates the function that handles the request, directly above it. Without `VerifyMiddleware` everything is refused.

    Raises:
        ConfigurationError: the scopes are malformed.
    """
    return Required(tool, scopes)


def verified_call(connection: Connection | Mapping[str, Any]) -> VerifiedCall:
    """The `VerifiedCall` of a request, or of its scope.

    Raises:
        RefusedError: there is none, as on a public path; the middleware answers it.
    """
    return _ANY(_Scoped(connection) if isinstance(connection, Mapping) else connection)


_ANY: Final = Required(None, ())


class _Scoped:
    """A bare scope, as a connection."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self.scope = scope


def _is_connection(candidate: Any) -> TypeGuard[Connection]:
    scope = getattr(candidate, "scope", None)
    return isinstance(scope, Mapping) and "type" in scope and "path" in scope


def _connection_in(arguments: Iterable[Any]) -> Connection:
    for argument in arguments:
        if _is_connection(argument):
            return argument
    raise ConfigurationError(
        "endpoint_malformed",
        "a function that require decorates is given no request",
        remedy="give it a parameter for the request",
    )


def _unguarded(connection: Connection, error: RefusedError) -> Exception:
    """The refusal where no middleware would answer it: in the framework's own words, which know a status and headers."""
    _log.warning("require() refuses everything where VerifyMiddleware isn't installed")
    status, headers, _ = problem(error)
    for kind in type(connection).__mro__:
        framework = kind.__module__.partition(".")[0]
        if framework in ("starlette", "litestar"):
            made: Exception = importlib.import_module(f"{framework}.exceptions").HTTPException(
                status_code=status,
                headers={"WWW-Authenticate": headers["WWW-Authenticate"]},
            )
            return made
    return error
