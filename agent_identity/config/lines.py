# SPDX-License-Identifier: Apache-2.0
"""On which line a key of a TOML text stands, for the messages alone.

The standard library's parser keeps no places. This walks over a text that it has already accepted: it finds where each
header and key ends and where each value ends, and leaves what a key's spelling means to that parser.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Lines"]

_Nested: TypeAlias = "int | dict[str, _Nested]"

_NAME: Final = r"""(?:"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_KEY: Final = rf"{_NAME}(?:[ \t]*\.[ \t]*{_NAME})*"
_BLANK: Final = re.compile(r"(?:[ \t\r\n]+|\#[^\n]*)*")
_HEADER: Final = re.compile(rf"\[\[?[ \t]*({_KEY})[ \t]*\]\]?")
_PAIR: Final = re.compile(rf"({_KEY})[ \t]*=")
_PIECE: Final = re.compile(
    r'"""(?:\\.|[^"\\]|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"""|[^"'\#\[\]{}\n]+|.|\n""",
    re.DOTALL,
)
_DEPTHS: Final = {"[": 1, "{": 1, "]": -1, "}": -1}


class Lines:
    """The lines of a text's keys. A key that can't be found has its table's line; None is a text without either."""

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str, ...], int] = {}
        for path, at in _keys(text):
            line = text.count("\n", 0, at) + 1
            for length in range(1, len(path) + 1):
                self._lines.setdefault(path[:length], line)

    def of(self, path: Sequence[str]) -> int | None:
        for length in range(len(path), 0, -1):
            if (line := self._lines.get(tuple(path[:length]))) is not None:
                return line
        return None


def _keys(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every header and key with its offset."""
    table: tuple[str, ...] = ()
    at = _after_blank(text, 0)
    while at < len(text):
        if header := _HEADER.match(text, at):
            table = _path(header[1])
            yield table, at
            at = header.end()
        elif pair := _PAIR.match(text, at):
            yield table + _path(pair[1]), at
            at = _after_value(text, pair.end())
        else:
            return
        at = _after_blank(text, at)


def _after_blank(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return at if found is None else found.end()


def _after_value(text: str, at: int) -> int:
    depth = 0
    for piece in _PIECE.finditer(text, at):
        if piece[0] == "\n" and not depth:
            return piece.start()
        depth += _DEPTHS.get(piece[0], 0)
    return len(text)


def _path(key: str) -> tuple[str, ...]:
    found: _Nested = tomllib.loads(f"{key} = 0")
    path: list[str] = []
    while isinstance(found, dict):
        name, found = next(iter(found.items()))
        path.append(name)
    return tuple(path)
