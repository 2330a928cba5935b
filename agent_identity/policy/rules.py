# SPDX-License-Identifier: Apache-2.0
"""Asks a policy for a decision. Only an explicit permit permits: absence, a truthy object or an error denies."""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, runtime_checkable

from agent_identity.errors import (
    AgentIdentityError,
    ApprovalRequiredError,
    ConfigurationError,
    DeniedError,
    is_interrupt,
)
from agent_identity.values import Decision

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.flow import Flow
    from agent_identity.policy.request import Request


@runtime_checkable
class Policy(Protocol):
    """The protocol of a policy that does I/O: `decide` is a flow."""

    def decide(self, request: Request, /) -> Flow[Decision]: ...


PolicyLike: TypeAlias = "Policy | Callable[[Request], Decision | bool]"


class GrantsOnly:
    """Permits everything that the grants allow."""

    def decide_now(self, request: Request, /) -> Decision:  # noqa: ARG002 - the protocol's
        return _PERMITTED

    def decide(self, request: Request, /) -> Flow[Decision]:
        return self.decide_now(request)
        yield  # makes this a flow


_PERMITTED = Decision.permit(policy_id="grants-only")


class CallablePolicy:
    """A plain callable as a policy: it returns a `Decision` or a bool; any other value denies."""

    def __init__(self, function: Callable[[Request], object]) -> None:
        self._function = function
        self._id: str = getattr(function, "__name__", type(function).__name__)

    def decide_now(self, request: Request, /) -> Decision:
        """Call the function in the thread of the tool call.

        Raises:
            DeniedError: it raised, or returned neither a `Decision` nor a bool.
        """
        try:
            answer = self._function(request)
        except AgentIdentityError:
            raise
        except Exception as error:
            if is_interrupt(error):
                raise
            raise DeniedError(
                "policy_failed",
                f"the policy function {self._id!r} raised {type(error).__name__}",
                remedy="fix the policy; the exception above this one says where",
                policy_id=self._id,
            ) from error
        if isinstance(answer, Decision):
            return answer
        if answer is True:
            return Decision.permit(policy_id=self._id)
        if answer is False:
            return Decision.deny("refused", policy_id=self._id)
        kind = type(answer).__qualname__
        if isinstance(answer, types.CoroutineType | types.GeneratorType):
            answer.close()  # it won't be awaited
        raise DeniedError(
            "policy_undecided",
            f"the policy function {self._id!r} returned a {kind}, neither a Decision nor a bool",
            remedy="return a Decision, True or False",
            policy_id=self._id,
        )

    def decide(self, request: Request, /) -> Flow[Decision]:
        return self.decide_now(request)
        yield  # makes this a flow


def as_policy(policy: PolicyLike | None) -> Policy:
    """Take a policy object, a callable, or None for `GrantsOnly`. An object that could never decide is refused at once.

    Raises:
        ConfigurationError: it is neither, it is a class or async, or it doesn't take the request.
    """
    if policy is None:
        return GrantsOnly()
    if isinstance(policy, type):
        raise _unusable_error(
            f"{policy.__qualname__} is a class", f"pass an object of it, {policy.__qualname__}(…)"
        )
    if isinstance(policy, Policy):
        if is_async(policy.decide):
            raise _unusable_error(
                f"{type(policy).__qualname__}.decide is async",
                "write it with `def`: a flow does its I/O by `yield from`, and returns a Decision",
            )
        return policy
    if not callable(policy):
        raise _unusable_error(
            f"a {type(policy).__qualname__} is not a policy",
            "pass a function that takes the request and returns a Decision or a bool",
        )
    if not answers_at_once(policy):
        raise _unusable_error(
            f"{_name(policy)} is async or a generator, so calling it returns no decision",
            "write it as a plain function, `def` with `return`; a policy that does I/O is an object whose `decide` is a flow",
        )
    if not takes_one_argument(policy):
        raise _unusable_error(
            f"{_name(policy)} can't be called with the request alone",
            "write it with one parameter, the request",
        )
    return CallablePolicy(policy)


def _unusable_error(why: str, remedy: str) -> ConfigurationError:
    return ConfigurationError("policy_unusable", f"policy=: {why}", remedy=remedy)


def _name(function: object) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def decide_now_of(policy: Policy) -> Callable[[Request], Decision] | None:
    """The `decide_now` of a policy that does no I/O; None if deciding is a flow."""
    # Exactly these classes: a subclass may decide differently.
    if type(policy) is GrantsOnly or type(policy) is CallablePolicy:
        return policy.decide_now
    return None


def ask_policy(policy: Policy, request: Request) -> Flow[Decision]:
    """Ask a policy, and return its permit. A policy that fails denies.

    Raises:
        DeniedError: the decision isn't a permit.
    """
    try:
        decision = yield from policy.decide(request)
    except AgentIdentityError:
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        raise DeniedError(
            "policy_failed", f"the policy raised {type(error).__name__} instead of deciding"
        ) from error
    return require_permit(decision)


def require_permit(decision: object) -> Decision:
    """Return a permit; raise the error of any other decision.

    Raises:
        DeniedError: policy denied the call, requires an approval, or returned no decision.
    """
    if not isinstance(decision, Decision):
        raise DeniedError(
            "policy_undecided",
            f"the policy returned a {type(decision).__qualname__}, not a Decision",
            remedy="return a Decision from `decide`",
        )
    if decision.verdict == "permit":
        return decision
    if decision.verdict == "approval":
        raise ApprovalRequiredError(
            "approval_required",
            f"the call needs an approval by the role {decision.role}, and no approver is set up",
            remedy="change the policy: this version can't ask for approvals",
            policy_id=decision.policy_id,
        )
    raise DeniedError(
        "policy_denied", f"policy refuses the call: {decision.reason}", policy_id=decision.policy_id
    )


def is_async(function: object) -> bool:
    """Whether calling it returns a coroutine or an async generator: `async def`, also behind `__call__` or a partial object."""
    return _is_any(function, inspect.iscoroutinefunction, inspect.isasyncgenfunction)


def answers_at_once(function: object) -> bool:
    """Whether calling it returns the answer itself, not a coroutine or generator."""
    return not is_async(function) and not _is_any(function, inspect.isgeneratorfunction)


def takes_one_argument(function: object) -> bool:
    """Whether it can be called with one argument, as far as its signature tells."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:
        return True  # a builtin without a signature
    return True


def _is_any(function: object, *tests: Callable[[object], bool]) -> bool:
    for _ in range(_DEEPEST):
        if isinstance(function, functools.partial):
            function = function.func
        elif any(test(function) for test in tests):
            return True
        elif inspect.isroutine(function):
            return False
        else:  # an object is called by its class
            function = inspect.getattr_static(type(function), "__call__", None)
    return False


_DEEPEST: Final = 32
"""How many nested partial objects and objects with `__call__` are unwrapped."""
