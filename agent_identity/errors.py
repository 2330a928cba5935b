# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, and what to do about it.

    AgentIdentityError                     .code (stable, also the span's error.type)  .remedy  .retryable
    ├─ ConfigurationError
    ├─ NoSessionError
    ├─ DeniedError                         the tool did not run; .policy_id
    │   ├─ ApprovalRequiredError           .pending
    │   └─ RevokedError
    ├─ CredentialError
    │   ├─ CredentialUnavailableError      retrying may help
    │   └─ CredentialRejectedError         it will not
    ├─ VerificationError                   .code says which rule
    │   ├─ InvalidSubjectError             the principal's token
    │   └─ InvalidAssertionError           a chain or an assertion
    ├─ LedgerError
    └─ TransportError                      the network

A message says what happened to whom and holds no secret. `.remedy` says what to do; a traceback shows it as a note. Programs
branch on the class and on `.code`, never on the text.
"""

from __future__ import annotations

import functools
import signal
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "AgentIdentityError",
    "ApprovalRequiredError",
    "ConfigurationError",
    "CredentialError",
    "CredentialRejectedError",
    "CredentialUnavailableError",
    "DeniedError",
    "InvalidAssertionError",
    "InvalidSubjectError",
    "LedgerError",
    "NoSessionError",
    "RevokedError",
    "TransportError",
    "VerificationError",
    "is_interrupt",
]


class AgentIdentityError(Exception):
    """The base of every error that the library raises on purpose.

    `code` is stable across releases, `remedy` says what to do, `retryable` whether the same call may succeed later,
    `call_id` which tool call it ended (None outside one).
    """

    retryable: ClassVar[bool] = False

    def __init__(self, code: str, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.remedy = remedy
        self.call_id: str | None = None
        if remedy is not None:
            self.add_note(f"what to do: {remedy}")

    def copy(self) -> Self:
        """A copy to raise elsewhere: callers can share one failure, but not its traceback and `call_id`."""
        copy = _rebuild(type(self), self.args, dict(self.__dict__))
        if hasattr(copy, "__notes__"):
            copy.__notes__ = [*copy.__notes__]
        if isinstance(self.__cause__, AgentIdentityError):
            copy.__cause__ = self.__cause__.copy()
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


E = TypeVar("E", bound=AgentIdentityError)


def _rebuild(kind: type[E], args: tuple[object, ...], state: dict[str, object]) -> E:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(AgentIdentityError):
    """The library was set up or called in a way that can't work."""


class NoSessionError(AgentIdentityError):
    """A tool was called outside every on-behalf-of session, so it did not run."""


class DeniedError(AgentIdentityError):
    """The call was refused before the tool ran. `policy_id` names the policy rule that refused it, if one did."""

    def __init__(
        self, code: str, message: str, *, remedy: str | None = None, policy_id: str | None = None
    ) -> None:
        super().__init__(code, message, remedy=remedy)
        self.policy_id = policy_id


class ApprovalRequiredError(DeniedError):
    """A person has to approve the call first. `pending` is the request for approval, None if nobody can be asked."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        remedy: str | None = None,
        policy_id: str | None = None,
        pending: object | None = None,
    ) -> None:
        super().__init__(code, message, remedy=remedy, policy_id=policy_id)
        self.pending = pending


class RevokedError(DeniedError):
    """The principal, a session, a grant or an agent above this call was revoked."""


class CredentialError(AgentIdentityError):
    """No credential for the resource could be obtained."""


class CredentialUnavailableError(CredentialError):
    """The issuer could not be reached or was busy. `retry_after` is its Retry-After in seconds, if it sent one."""

    retryable = True

    def __init__(
        self,
        code: str,
        message: str,
        *,
        remedy: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code, message, remedy=remedy)
        self.retry_after = retry_after


class CredentialRejectedError(CredentialError):
    """The issuer refused, or its answer can't be accepted. Asking again won't help."""


class VerificationError(AgentIdentityError):
    """Signed data failed a check; `code` says which rule. Use none of its claims."""


class InvalidSubjectError(VerificationError):
    """The principal's token failed a check, so no session opened."""


class InvalidAssertionError(VerificationError):
    """A delegation chain or a call's assertion failed a check."""


class LedgerError(AgentIdentityError):
    """A record could not be written or read. A tool whose intent is not on record did not run."""


class TransportError(AgentIdentityError):
    """The network failed, or the peer answered outside the limits (deadline, size, redirect, encoding)."""

    retryable = True


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception was raised by a signal handler, or isn't an `Exception` at all.

    An exception that another thread injects (`PyThreadState_SetAsyncExc`) looks like any failure.
    """
    if not isinstance(error, Exception):
        return True
    handlers = _handler_codes()
    if not handlers:
        return False
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _handler_codes() -> set[CodeType]:
    """The code of every installed signal handler that is written in Python."""
    codes = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()}
    return {code for code in codes if code is not None}


def _code_of(handler: object) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    if isinstance(handler, MethodType):
        handler = handler.__func__
    if not isinstance(handler, FunctionType):
        handler = vars(type(handler)).get("__call__")
    return handler.__code__ if isinstance(handler, FunctionType) else None
