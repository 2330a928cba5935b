# SPDX-License-Identifier: Apache-2.0
"""The file in, a `Configuration` or one error out.

    1. the file is found where somebody named it, never in the working directory by itself
    2. nobody else may have written it
    3. TOML, then shapes; what is misshapen is put aside, so that the rest is looked at too
    4. relative paths become absolute, what was left out is inferred
    5. everything is checked; all problems are one error, in the order of their lines

Values of the file never get into an error. Errors of the parsers carry them, so each is read where it is caught, and what
is raised is raised outside, where Python attaches nothing.
"""

from __future__ import annotations

import copy
import glob
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeGuard, TypeVar, get_args
from urllib.parse import quote, unquote

from pydantic import BaseModel, ValidationError

from agent_identity.config.checks import check, check_policy, unsupported
from agent_identity.config.environment import CONFIG, configuration_file
from agent_identity.config.inference import infer
from agent_identity.config.model import Configuration, Kind, ResourceTable, Table, VaultTable
from agent_identity.config.problems import (
    Fault,
    InvalidConfigurationError,
    Lines,
    Problem,
    key_text,
    nearest,
    telling,
)
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import date, time

    from pydantic_core import ErrorDetails

__all__ = ["Toml", "anchored", "read_configuration", "shaped"]

_LIMIT: Final = 1024 * 1024
_READING: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def read_configuration(
    path: str | Path | None = None, *, needs_policy: bool = True
) -> Configuration:
    """Read `agent-identity.toml`, with everything that it leaves out written out.

    Without a path it is the file that `AGENT_IDENTITY_CONFIG` names. `needs_policy=False` is for callers that bring a policy.

    Raises:
        InvalidConfigurationError: all that is wrong with it, in `.problems`.
        ConfigurationError: no file is named, or it can't be read or trusted.
    """
    file = _named(path)
    text = _decoded(_bytes_of(file))
    if text is None:
        raise _malformed(file, None, "isn't UTF-8")
    data = _parsed(text)
    if not isinstance(data, dict):
        raise _malformed(file, data, "isn't TOML from here on")
    configuration, faults = shaped(data)
    if configuration is not None:
        configuration = infer(anchored(configuration, file.absolute().parent))
        faults += check(configuration)
        faults += unsupported(configuration)
        faults += check_policy(configuration) if needs_policy else ()
    if configuration is None or faults:
        raise InvalidConfigurationError(str(file), _located(telling(faults), text))
    return configuration


def _located(faults: Iterable[Fault], text: str) -> list[Problem]:
    lines = Lines(text)
    problems = [
        Problem(fault.code, key_text(fault.path), lines.of(fault.path), fault.message, fault.remedy)
        for fault in faults
    ]
    return sorted(problems, key=lambda problem: problem.line or len(text) + 1)


# -- the file ---------------------------------------------------------------------------------------------------------


def _named(path: str | Path | None) -> Path:
    found = configuration_file() if path is None else Path(path)
    if found is None:
        raise ConfigurationError(
            "not_configured",
            f"no configuration is named, neither by the caller nor by {CONFIG}",
            remedy=f"set {CONFIG} to the path of agent-identity.toml",
        )
    return found


def _bytes_of(file: Path) -> bytes:
    try:
        descriptor = os.open(file, _READING)
        with os.fdopen(descriptor, "rb") as opened:
            _check_safe(file, os.fstat(opened.fileno()))
            data = opened.read(_LIMIT + 1)
    except FileNotFoundError as error:
        raise ConfigurationError(
            "config_missing", f"{file} isn't there", remedy=f"look at --config and {CONFIG}"
        ) from error
    except OSError as error:
        raise ConfigurationError("config_unreadable", f"{file} can't be read") from error
    if len(data) > _LIMIT:
        raise ConfigurationError("config_unreadable", f"{file} is larger than 1 MiB")
    return data


def _check_safe(file: Path, status: os.stat_result) -> None:
    """Whoever writes this file says where secrets go, so nobody else may (POSIX; elsewhere nothing shows it)."""
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError("config_unreadable", f"{file} is no file")
    if os.name != "posix":
        return
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise ConfigurationError(
            "config_unsafe",
            f"{file} may be written by its group or by everybody",
            remedy=f"chmod go-w {file}",
        )
    if status.st_uid not in {0, os.getuid()}:
        raise ConfigurationError(
            "config_unsafe",
            f"{file} belongs to another user",
            remedy="make a copy that belongs to this user or to root",
        )


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:  # it carries all the bytes
        return None


_AT_LINE: Final = re.compile(r"\(at line ([0-9]+), column [0-9]+\)\Z")


def _parsed(text: str) -> Toml | int | None:
    """The tables of a text, or the line from which on it can't be read (None where that isn't known)."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Numbers beyond all bounds and lists beyond all depth are no TOMLDecodeError.
        at = _AT_LINE.search(str(error))
    if at is not None:
        return int(at[1])
    return text.count("\n") + 1


def _malformed(file: Path, line: int | None, what: str) -> InvalidConfigurationError:
    remedy = "mind the quotes and brackets there"
    return InvalidConfigurationError(
        str(file), [Problem("config_malformed", "", line, what, remedy)]
    )


Value: TypeAlias = "str | float | date | time | list[Value] | dict[str, Value]"
Toml: TypeAlias = "dict[str, Value]"

_ROUNDS: Final = 4
"""Misshapen first, then what is missing because of that; more is no progress."""

_STANDS_IN: Final = "https://stand-in.invalid"


def shaped(data: Toml) -> tuple[Configuration | None, list[Fault]]:
    """The tables as models. What is misshapen is left out of them and listed; None if nothing can be made of the rest."""
    rest = copy.deepcopy(data)
    faults: dict[tuple[str, ...], Fault] = {}
    for _ in range(_ROUNDS):
        outcome = _validated(rest)
        if isinstance(outcome, Configuration):
            return outcome, list(faults.values())
        for detail in outcome:
            fault = _fault(detail, data)
            faults.setdefault(fault.path, fault)
            _put_aside(rest, fault.path, stands_in=detail["type"] == "missing")
    return None, list(faults.values())


def _validated(data: Toml) -> Configuration | list[ErrorDetails]:
    try:
        return Configuration.model_validate(data)
    except ValidationError as error:
        return error.errors(include_url=False, include_input=False)


def _fault(detail: ErrorDetails, data: Toml) -> Fault:
    path = _path(detail["loc"], data)
    if detail["type"] == "extra_forbidden":
        table = path[:-1]
        meant = nearest(path[-1], _keys_at(table))
        return Fault(
            "unknown_key",
            path,
            "unknown key" + (f", did you mean {meant}?" if meant else ""),
            "look the key up in docs/reference/configuration.md",
            None if meant is None else (*table, meant),
        )
    if detail["type"] == "missing":
        return Fault("value_missing", path, "missing", f"give {path[-1]}")
    return Fault("value_malformed", path, _expected(detail))


def _expected(detail: ErrorDetails) -> str:
    """What a value must be, in words of ours: pydantic's may quote."""
    context = detail.get("ctx", {})
    match detail["type"]:
        case "literal_error":
            return f"must be one of {_alternatives(str(context['expected']))}"
        case "greater_than":
            return f"must be more than {context['gt']}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case kind:
            return f"must be {_TYPES.get(kind, 'something else')}"


_TYPES: Final = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "invalid-json-value": "text, a number, true or false, or lists and tables of those",
    "model_type": "a table",
    "string_type": "text",
    "tuple_type": "a list",
}


def _alternatives(expected: str) -> str:
    return ", ".join(re.findall(r"'([^']*)'", expected))


def _path(location: Iterable[int | str], data: Toml) -> tuple[str, ...]:
    """The keys of a location; pydantic adds places in lists, and kinds of values below a value."""
    path: list[str] = []
    at: Value | None = data
    for step in location:
        if isinstance(at, dict) and isinstance(step, str):
            path.append(step)
            at = at.get(step)
        else:
            break
    return tuple(path)


def _put_aside(data: Toml, path: tuple[str, ...], *, stands_in: bool) -> None:
    at: Value | None = data
    for step in path[:-1]:
        at = at.get(step) if isinstance(at, dict) else None
    if not isinstance(at, dict):
        return
    if stands_in:
        at[path[-1]] = _STANDS_IN
    else:
        at.pop(path[-1], None)


def _keys_at(path: Iterable[str]) -> list[str]:
    """The keys that a table may have."""
    found: list[type[BaseModel]] = [Configuration]
    for step in path:
        fields = found[0].model_fields if found else {}
        if step in fields:
            found = list(_models(fields[step].annotation))
    return list(found[0].model_fields) if found else []


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


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
        update["path"] = _file_in(table.path or "", base)
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


def _file_in(text: str, base: Path) -> str:
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
    Kind.PATH: _file_in,
    Kind.LEDGER: _ledger,
}
