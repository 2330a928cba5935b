# SPDX-License-Identifier: Apache-2.0
"""What the file may say and this version can't do yet. It is refused by name: a rule that is read and not kept protects nobody.

One row a key. What a later version can do loses its row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.config.problems import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_identity.config.model import Configuration

__all__ = ["unsupported"]


class _Row(NamedTuple):
    path: tuple[str, ...]
    is_refused: Callable[[object], bool]
    remedy: str


def _is_elsewhere(url: object) -> bool:
    return url != "memory:"


def _is_postgresql(url: object) -> bool:
    return str(url).startswith(("postgresql:", "postgres:"))


_ROWS: Final = (
    _Row(
        ("policy", "engine"),
        frozenset({"cedar", "authzen", "opa"}).__contains__,
        'say engine = "grants-only", or pass from_config(policy=…) a callable',
    ),
    _Row(("policy", "observe"), bool, "leave policy.observe out"),
    _Row(("approval",), bool, "pass from_config(approver=…) instead of [approval]"),
    _Row(("shared", "url"), _is_elsewhere, 'say url = "memory:"'),
    _Row(("signals",), bool, "leave [signals] out"),
    _Row(("session", "budget"), bool, "leave [session.budget] out"),
    _Row(
        ("ledger", "url"),
        _is_postgresql,
        "keep the ledger in sqlite:",
    ),
)


def unsupported(configuration: Configuration) -> Iterator[Fault]:
    """What is asked for and can't be done."""
    for row in _ROWS:
        value: object = configuration
        for name in row.path:
            value = getattr(value, name, None)
        if row.is_refused(value):
            yield Fault("not_supported", row.path, "this version can't do that yet", row.remedy)
