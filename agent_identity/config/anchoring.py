# SPDX-License-Identifier: Apache-2.0
"""Relative paths of a configuration, made absolute: they are below the folder of its file, whoever reads it from where."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeGuard, TypeVar
from urllib.parse import quote, unquote

from agent_identity.config.model import Kind, ResourceTable, Table, VaultTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["anchored"]

T = TypeVar("T", bound=Table)
_Value: TypeAlias = "Table | tuple[str, ...] | dict[str, _Value] | str | float | None"

_TOKEN_FILES: Final = frozenset({"file", "kubernetes"})
"""Providers whose `path` is one; `gitlab` has a variable's name there."""


def anchored(table: T, base: Path) -> T:
    """The same with every path in it, and in the tables below, made absolute."""
    update: dict[str, object] = {}
    for name, field in type(table).model_fields.items():
        value: _Value = getattr(table, name)
        meant = _below(value, base)
        for kind in field.metadata:
            if isinstance(kind, Kind) and kind in _WAYS:
                meant = _each(_WAYS[kind], value, base)
        if meant != value:
            update[name] = meant
    if _has_token_file(table):
        update["path"] = _path(table.path or "", base)
    return table.model_copy(update=update)


def _has_token_file(table: Table) -> TypeGuard[ResourceTable | VaultTable]:
    return (
        isinstance(table, ResourceTable | VaultTable)
        and table.path is not None
        and table.provider in _TOKEN_FILES
    )


def _below(value: _Value, base: Path) -> _Value:
    if isinstance(value, Table):
        return anchored(value, base)
    if isinstance(value, dict):
        return {key: _below(item, base) for key, item in value.items()}
    return value


def _each(way: Callable[[str, Path], str], value: _Value, base: Path) -> _Value:
    if isinstance(value, str):
        return way(value, base)
    if isinstance(value, tuple):
        return tuple(way(item, base) for item in value)
    return value


def _path(text: str, base: Path) -> str:
    return str(base / text)


def _pattern(text: str, base: Path) -> str:
    return str(Path(glob.escape(str(base))) / text)


def _file_reference(text: str, base: Path) -> str:
    scheme, _, path = text.partition(":")
    return f"file:{base / path}" if scheme == "file" and path else text


def _ledger(text: str, base: Path) -> str:
    """`sqlite:///` and a path, percent-encoded; three slashes are relative, a fourth begins an absolute path."""
    scheme, slashes, path = text.partition(":///")
    if scheme != "sqlite" or not slashes or not path.strip("/"):
        return text
    return f"sqlite:///{quote(str(base / unquote(path)))}"


_WAYS: Final[Mapping[Kind, Callable[[str, Path], str]]] = {
    Kind.REFERENCE: _file_reference,
    Kind.KEYS: _file_reference,
    Kind.PATTERN: _pattern,
    Kind.PATH: _path,
    Kind.LEDGER: _ledger,
}
