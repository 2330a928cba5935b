# SPDX-License-Identifier: Apache-2.0
"""`agent-identity adapters`: which adapters are installed, for which framework, and what they were tested with.

The names come from the entry points; an adapter is loaded only to read its `TESTED`, which maps its framework's distribution to
versions. An adapter that can't be loaded is listed with its error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import TYPE_CHECKING, Final, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["describe_adapters"]

GROUP: Final = "agent_identity.adapters"
_LONGEST: Final = 200


class Framework(TypedDict):
    """A framework that an adapter is for; `version` is None where the framework isn't installed."""

    distribution: str
    version: str | None
    tested: list[str]


class Row(TypedDict):
    """What is known of one adapter."""

    name: str
    distribution: str | None
    version: str | None
    frameworks: list[Framework]
    error: str | None


def describe_adapters(*, as_json: bool) -> str:
    """The list of what is installed, as text or JSON."""
    entries = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    rows = [_row(entry) for entry in entries]
    if as_json:
        return json.dumps({"adapters": rows}, indent=2)
    return "\n".join(line for row in rows for line in _lines(row)) or "no adapter is installed"


def _row(entry: EntryPoint) -> Row:
    row: Row = {
        "name": entry.name,
        "distribution": entry.dist.name if entry.dist else None,
        "version": entry.dist.version if entry.dist else None,
        "frameworks": [],
        "error": None,
    }
    try:
        tested = getattr(entry.load(), "TESTED", {})
        row["frameworks"] = list(_frameworks(tested))
    except Exception as error:  # noqa: BLE001 - importing an adapter runs its code, which may raise anything
        text = f"{type(error).__name__}: {error}"
        row["error"] = "".join(filter(str.isprintable, text))[:_LONGEST]
    return row


def _frameworks(tested: Mapping[str, Iterable[str]]) -> Iterator[Framework]:
    if not isinstance(tested, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - it is an adapter's own value
        raise TypeError("TESTED isn't a mapping from distributions to versions")
    for distribution, versions in tested.items():
        if isinstance(versions, str):
            raise TypeError(f"TESTED[{distribution!r}] is a string instead of a tuple of versions")
        yield {
            "distribution": distribution,
            "version": _installed(distribution),
            "tested": list(map(str, versions)),
        }


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _lines(row: Row) -> Iterator[str]:
    yield f"{row['name']}: {row['distribution']} {row['version']}"
    if row["error"] is not None:
        yield f"  can't be loaded: {row['error']}"
    for framework in row["frameworks"]:
        installed = framework["version"] or "is not installed"
        yield f"  {framework['distribution']} {installed}; tested with {', '.join(framework['tested'])}"
