# SPDX-License-Identifier: Apache-2.0
"""Calls what a service plugs into its verifier (replay store, revocations, keys, clock) and checks the return values.

Only True and False are valid answers. A coroutine, None, a number or a mock is truthy or falsy by accident, so each of them,
like an exception, refuses the call. A time must be a finite number, since NaN compares as False with everything.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

from agent_identity.errors import DeniedError, VerificationError, is_interrupt
from agent_identity.verify.revocations import keys_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from agent_identity.keys.signing import JWK
    from agent_identity.values import JSON
    from agent_identity.verify.replay import Replay, ReplayKey
    from agent_identity.verify.revocations import RevocationCheck


def is_first_use(replay: Replay, key: ReplayKey, until: float) -> bool:
    """Remember a key. Return whether this was its first use.

    Raises:
        DeniedError: the store is full or unavailable, or its answer is neither True nor False.
    """
    answer = _call(lambda: replay.remember(key, until), _store_error)
    if answer is True or answer is False:
        return answer
    raise _store_error(f"answered with {_kind_of(answer)}, not with True or False")


def read_not_before(replay: Replay) -> float:
    """The store's `not_before`, in Unix seconds.

    Raises:
        DeniedError: it isn't a time.
    """
    answer = _call(lambda: replay.not_before, _store_error)
    if _is_time(answer):
        return answer
    raise _store_error(f"has {_kind_of(answer)} as its not_before, not Unix seconds")


def is_revoked(check: RevocationCheck, references: Collection[str], issued_at: float) -> bool:
    """Whether any of the references was revoked at or after `issued_at`.

    Raises:
        VerificationError: that isn't known, or the answer is neither True nor False.
    """
    answer = _call(lambda: check.is_revoked(references, issued_at), _revocations_error)
    if answer is True or answer is False:
        return answer
    raise _revocations_error(f"answered with {_kind_of(answer)}, not with True or False")


class _Keys(NamedTuple):
    keys: tuple[JWK, ...]


def keys_from(issuer: str, jwks: Callable[[], Mapping[str, JSON] | Sequence[JWK]]) -> Sequence[JWK]:
    """The keys that an anchor's function returns.

    Raises:
        VerificationError: `anchor_unavailable`, it returns no keys.
    """

    def read_keys() -> object:
        answer: object = jwks()
        if not isinstance(answer, Mapping | list | tuple):
            return answer
        keys = keys_in(answer)
        return _Keys(keys) if _are_objects(keys) else keys

    answer = _call(read_keys, lambda what: _keys_error(issuer, what))
    if isinstance(answer, _Keys):
        return answer.keys
    raise _keys_error(issuer, f"returned {_kind_of(answer)}")


def wrap_clock(clock: Callable[[], float]) -> Callable[[], float]:
    """Wrap a clock so that it returns a time or raises."""

    def now() -> float:
        answer = _call(clock, _clock_error)
        if _is_time(answer):
            return answer
        raise _clock_error(f"answered with {_kind_of(answer)}, not with Unix seconds")

    return now


def _call(
    function: Callable[[], object], failure: Callable[[str], DeniedError | VerificationError]
) -> object:
    """Call a plugged-in function, and convert its exceptions. Those of the library pass through unchanged."""
    try:
        return function()
    except (DeniedError, VerificationError):
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        raise failure(f"raised {type(error).__name__}") from error


def _are_objects(keys: Sequence[object]) -> bool:
    return all(isinstance(key, Mapping) for key in keys)


def _is_time(answer: object) -> TypeGuard[float]:
    return (
        isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer)
    )


def _kind_of(answer: object) -> str:
    """The type of an answer. A coroutine is closed, since it won't be awaited."""
    if inspect.iscoroutine(answer):
        answer.close()
        return "a coroutine (async functions aren't supported here)"
    return type(answer).__name__


def _store_error(what: str) -> DeniedError:
    return DeniedError(
        "replay_store_failed",
        f"the replay store {what}",
        remedy="let remember(key, until) be a plain function that returns True or False",
    )


def _revocations_error(what: str) -> VerificationError:
    return VerificationError(
        "revocations_failed",
        f"the source of revocations {what}",
        remedy="let is_revoked(references, issued_at) be a plain function that returns True or False",
    )


def _keys_error(issuer: str, what: str) -> VerificationError:
    return VerificationError(
        "anchor_unavailable",
        f"the function for the keys of {issuer} {what}",
        remedy="let jwks() return a JWK set or a list of keys",
    )


def _clock_error(what: str) -> VerificationError:
    return VerificationError(
        "clock_failed",
        f"the clock {what}",
        remedy="let clock() return Unix seconds, as time.time does",
    )
