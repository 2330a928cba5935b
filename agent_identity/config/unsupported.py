# SPDX-License-Identifier: Apache-2.0
"""What the file may say and this version can't do yet. It is refused by name: a rule that is read and not kept protects nobody.

One row a key. What a later version can do loses its row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.config.model import SharedTable
from agent_identity.config.problems import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_identity.config.model import Configuration

__all__ = ["unsupported"]

EACH: Final = "*"
"""In a path: whatever tables stand there."""


class _Row(NamedTuple):
    path: tuple[str, ...]
    is_refused: Callable[[object], bool]
    remedy: str
    why: str = "this version can't do that yet"


def _is_elsewhere(url: object) -> bool:
    return url != "memory:"


def _is_other_than_usual(seconds: object) -> bool:
    return seconds != SharedTable().max_staleness


def _is_in_vault(reference: object) -> bool:
    return str(reference).startswith("vault:")


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
    _Row(("shared", "max_staleness"), _is_other_than_usual, "leave shared.max_staleness out"),
    _Row(("signals",), bool, "leave [signals] out"),
    _Row(("session", "budget"), bool, "leave [session.budget] out"),
    _Row(
        ("ledger", "url"),
        _is_postgresql,
        "keep the ledger in sqlite:",
    ),
    _Row(
        ("agent", "key"),
        _is_in_vault,
        "leave agent.key out, or name it by file:, env: or keyring:; what a vault can hold is agent.signer",
        "the agent's key signs every call and every proof, so it has to be in memory",
    ),
    _Row(
        ("issuers", EACH, "evidence"),
        bool,
        "leave evidence out; a service says in its TrustAnchor what an anchor's word is worth",
    ),
)


def unsupported(configuration: Configuration) -> Iterator[Fault]:
    """What is asked for and can't be done."""
    for row in _ROWS:
        for path, value in _values(configuration, row.path):
            if row.is_refused(value):
                yield Fault("not_supported", path, row.why, row.remedy)


def _values(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    if not path:
        yield (), value
        return
    name, rest = path[0], path[1:]
    names = _names_below(value) if name == EACH else {name: getattr(value, name, None)}
    for key, below in names.items():
        for where, last in _values(below, rest):
            yield (key, *where), last


def _names_below(tables: object) -> dict[str, object]:
    return {str(key): table for key, table in tables.items()} if isinstance(tables, dict) else {}  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
