# SPDX-License-Identifier: Apache-2.0
"""`require` checks that a call may use a handler: as a dependency, a decorator or a guard, in any ASGI framework.

It reads only what `VerifyMiddleware` put into the request's scope, which a client can't set. It also stores a refusal there, so
that the middleware answers it, whatever the framework does with the exception.
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

CALL: Final = "agent_identity.call"
"""The key of a request's `VerifiedCall` in its scope; None on a public path."""

REFUSALS: Final = "agent_identity.refusals"
"""The key of a request's `Refusals` in its scope."""

_log: Final = logging.getLogger("agent_identity")

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Refusals(list[RefusedError]):
    """The refusals of `require` for one request."""


class Connection(Protocol):
    """A request or websocket of any ASGI framework."""

    @property
    def scope(self) -> Mapping[str, Any]: ...


class Required:
    """The result of `require`. Call it with a request, or with a function that handles requests."""

    def __init__(self, tool: str | None, scopes: Iterable[str]) -> None:
        self._tool = tool
        self._scopes = scope_set(scopes)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature that FastAPI reads: one parameter, the connection."""
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
    def __call__(self, connection: Any, handler: object = None) -> object:  # noqa: ARG002 - guards are called with it
        """Check a request (as FastAPI's dependency, as Litestar's guard), or wrap the function that handles one."""
        if isinstance(connection, FunctionType):
            return self._wrap(connection)
        if not _is_connection(connection):
            raise ConfigurationError(
                "endpoint_malformed",
                "require(…) was called with neither a request nor a function that handles requests",
                remedy="write it directly above the function, below the routing decorator",
            )
        return self._check(connection)

    def _wrap(self, endpoint: FunctionType) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(endpoint):

            @wraps(endpoint)
            async def acheck(*args: Any, **kwargs: Any) -> Any:
                self._check(_connection_in((*args, *kwargs.values())))
                return await endpoint(*args, **kwargs)

            return acheck

        @wraps(endpoint)
        def check(*args: Any, **kwargs: Any) -> Any:
            self._check(_connection_in((*args, *kwargs.values())))
            return endpoint(*args, **kwargs)

        return check

    def _check(self, connection: Connection) -> VerifiedCall:
        """Check and return the call of a request.

        Raises:
            RefusedError: it isn't allowed, or the request wasn't verified.
        """
        try:
            return self._check_call(connection.scope.get(CALL))
        except RefusedError as error:
            refusals = connection.scope.get(REFUSALS)
            if not isinstance(refusals, Refusals):
                raise _framework_error(connection, error) from None
            refusals.append(error)
            raise

    def _check_call(self, call: object) -> VerifiedCall:
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
    """Require these scopes, in the chain and in the token, and if `tool` is set, that asserted tool.

    FastAPI: `call: VerifiedCall = Depends(require(scopes=["pay"]))`. Litestar: `guards=[require(scopes=["pay"])]`. Elsewhere,
    decorate the function that handles the request, directly above it. Without `VerifyMiddleware` everything is refused.

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
        "a function decorated with require(…) was called without a request",
        remedy="add a parameter for the request to the function",
    )


def _framework_error(connection: Connection, error: RefusedError) -> Exception:
    """The refusal as the framework's own HTTP exception, for when there is no middleware to answer it."""
    _log.warning("require() refuses everything where VerifyMiddleware isn't installed")
    status, headers, _ = problem(error)
    for kind in type(connection).__mro__:
        framework = kind.__module__.partition(".")[0]
        if framework in ("starlette", "litestar"):
            exception: Exception = importlib.import_module(f"{framework}.exceptions").HTTPException(
                status_code=status,
                headers={"WWW-Authenticate": headers["WWW-Authenticate"]},
            )
            return exception
    return error
