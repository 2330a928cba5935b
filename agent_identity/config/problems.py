# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a configuration: one problem for each line, with its place and its remedy, and no value of the file.

A check yields `Fault`s, which have the key only; `reading` adds the line. Messages show keys, since users must correct them, but
not a password in a resource's URI.
"""

from __future__ import annotations

import json
import re
import tomllib
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_USERINFO: Final = re.compile(r"//[^/]*@")
_QUERY: Final = re.compile(r"\?.*", re.DOTALL)
_LONGEST: Final = 200


class Fault(NamedTuple):
    """A problem at a key whose line isn't known yet. `meant` is the known key that a misspelt one may stand for."""

    code: str
    path: tuple[str, ...]
    message: str
    remedy: str | None = None
    meant: tuple[str, ...] | None = None


def missing(path: tuple[str, ...], remedy: str) -> Fault:
    """A key that something needs."""
    return Fault("value_missing", path, "missing", remedy)


def malformed(path: tuple[str, ...], message: str, remedy: str | None = None) -> Fault:
    """A value that can't be used; `message` says what it must be."""
    return Fault("value_malformed", path, message, remedy)


def conflict(path: tuple[str, ...], message: str, remedy: str) -> Fault:
    """A key that contradicts another one."""
    return Fault("value_conflict", path, message, remedy)


def unused(path: tuple[str, ...], why: str) -> Fault:
    """A key that nothing would read."""
    return Fault("key_unused", path, f"has no effect: {why}", f"remove {path[-1]}")


class Problem(NamedTuple):
    """A problem at a place in the file. `key` is dotted as in TOML; `line` counts from 1 and is None if it isn't known."""

    code: str
    key: str
    line: int | None
    message: str
    remedy: str | None = None


class InvalidConfigurationError(ConfigurationError):
    """All problems of one file; `code` is that of the first problem."""

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        remedies = dict.fromkeys(problem.remedy for problem in problems if problem.remedy)
        super().__init__(
            problems[0].code,
            "\n".join(_line(file, problem) for problem in problems),
            remedy="; ".join(remedies) or None,
        )
        self.problems: tuple[Problem, ...] = tuple(problems)


def _line(file: str, problem: Problem) -> str:
    place = file if problem.line is None else f"{file}:{problem.line}"
    what = f"{problem.key}: {problem.message}" if problem.key else problem.message
    return f"{place}: {what}"


def key_text(path: Iterable[str]) -> str:
    """A key as TOML spells it, safe for a terminal."""
    return ".".join(_part(part) for part in path)


def _part(part: str) -> str:
    if _BARE.fullmatch(part):
        return part if len(part) <= _LONGEST else f"{part[:_LONGEST]}…"
    shown = _QUERY.sub("?…", _USERINFO.sub("//…@", part))
    shown = "".join(letter if letter.isprintable() else "�" for letter in shown[:_LONGEST])
    return json.dumps(shown, ensure_ascii=False)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like this one."""
    return next(iter(get_close_matches(word, list(known), n=1)), None)


_DECIDING: Final = frozenset(
    {"source", "engine", "client_auth", "registration", "trust", "provider", "auth"}
)
"""Keys on whose value it depends which other keys a table needs and uses."""

_FOLLOWING: Final = frozenset({"value_missing", "value_conflict", "key_unused"})


def without_consequences(faults: Sequence[Fault]) -> list[Fault]:
    """The faults without those that follow from another one, for instance a missing key that is only misspelt."""
    unclear = {fault.path[:-1] for fault in faults if _makes_unclear(fault)}
    aside = [fault.path for fault in faults if fault.code in _PUT_ASIDE]
    first: dict[tuple[str, ...], Fault] = {}
    for fault in faults:
        follows = fault.code in _FOLLOWING and fault.path[:-1] in unclear
        if not follows and not any(_is_below(fault.path, path) for path in aside):
            first.setdefault(fault.path, fault)
    return list(first.values())


_PUT_ASIDE: Final = frozenset({"unknown_key", "value_malformed"})


def _is_below(path: tuple[str, ...], above: tuple[str, ...]) -> bool:
    return len(path) > len(above) and path[: len(above)] == above


def _makes_unclear(fault: Fault) -> bool:
    if fault.code == "unknown_key":
        return fault.meant is not None
    return fault.code == "value_malformed" and fault.path[-1] in _DECIDING


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
    """The lines of a text's keys. A key without a line of its own has its table's line."""

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
    blank = _BLANK.match(text, at)
    return at if blank is None else blank.end()


def _after_value(text: str, at: int) -> int:
    depth = 0
    for piece in _PIECE.finditer(text, at):
        if piece[0] == "\n" and not depth:
            return piece.start()
        depth += _DEPTHS.get(piece[0], 0)
    return len(text)


def _path(key: str) -> tuple[str, ...]:
    below: _Nested = tomllib.loads(f"{key} = 0")
    path: list[str] = []
    while isinstance(below, dict):
        name, below = next(iter(below.items()))
        path.append(name)
    return tuple(path)
