# SPDX-License-Identifier: Apache-2.0
"""One line of `agent-identity doctor`: what was looked at, how it is, and what to do where it isn't well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from agent_identity.errors import AgentIdentityError

__all__ = ["FAILED", "OK", "WARNING", "Finding", "failed_by", "lasting"]

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"

_DAY: Final = 86_400.0
_SOON: Final = 14.0


class Finding(NamedTuple):
    """`check` is what was looked at."""

    check: str
    status: Literal["ok", "warning", "failed"]
    message: str
    remedy: str | None = None


def failed_by(check: str, error: AgentIdentityError) -> Finding:
    """An error of the library as a finding; its message holds no secret."""
    return Finding(check, FAILED, f"{error} ({error.code})", error.remedy)


def lasting(check: str, what: str, ends: float, now: float) -> Finding:
    """How long a certificate lasts; `ends` and `now` are Unix seconds."""
    left = (ends - now) / _DAY
    if left <= 0:
        return Finding(check, FAILED, f"{what} has expired", "put a new one there")
    message = (
        f"{what}, {left:.0f} days left" if left >= 1 else f"{what}, {left * 24:.0f} hours left"
    )
    if left < _SOON:
        return Finding(check, WARNING, message, "see that it is renewed in time")
    return Finding(check, OK, message)
