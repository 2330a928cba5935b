# SPDX-License-Identifier: Apache-2.0
"""Read a configuration file: return a `Configuration`, or raise one error.

    1. find the file that the caller or the environment names, never one in the working directory by itself
    2. refuse a file that another user could have written
    3. parse TOML, then check types; malformed values are set aside so that the rest is checked too
    4. make relative paths absolute, and infer missing values
    5. check everything; one error holds all problems in the order of their lines

No error contains a value of the file. The parsers' errors do, so they are read where they are caught, and our errors are raised
outside of the `except` block, where Python attaches no context.
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

from agent_identity.config.checks import check, check_policy, check_supported
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
    without_consequences,
)
from agent_identity.config.references import READING, WRITABLE_BY_OTHERS, decode_text
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import date, time

    from pydantic_core import ErrorDetails

_LIMIT: Final = 1024 * 1024


def read_configuration(
    path: str | Path | None = None, *, needs_policy: bool = True
) -> Configuration:
    """Read `agent-identity.toml`, and fill in everything that is inferred.

    Without a path, the file is the one that `AGENT_IDENTITY_CONFIG` names. `needs_policy=False` is for callers that pass a policy.

    Raises:
        InvalidConfigurationError: the file is wrong; all problems are in `.problems`.
        ConfigurationError: no file is named, or it can't be read or trusted.
    """
    file = _find_file(path)
    text = decode_text(_read_bytes(file))
    if text is None:
        raise _not_toml(file, None, "isn't UTF-8")
    data = _parse(text)
    if not isinstance(data, dict):
        raise _not_toml(file, data, "isn't TOML from here on")
    configuration, faults = build_tables(data)
    if configuration is not None:
        configuration = infer(with_absolute_paths(configuration, file.absolute().parent))
        faults += check(configuration)
        faults += check_supported(configuration)
        faults += check_policy(configuration) if needs_policy else ()
    if configuration is None or faults:
        raise InvalidConfigurationError(str(file), _problems(without_consequences(faults), text))
    return configuration


def _problems(faults: Iterable[Fault], text: str) -> list[Problem]:
    lines = Lines(text)
    problems = [
        Problem(fault.code, key_text(fault.path), lines.of(fault.path), fault.message, fault.remedy)
        for fault in faults
    ]
    return sorted(problems, key=lambda problem: problem.line or len(text) + 1)


def _find_file(path: str | Path | None) -> Path:
    file = configuration_file() if path is None else Path(path)
    if file is None:
        raise ConfigurationError(
            "not_configured",
            f"neither the caller nor {CONFIG} names a configuration",
            remedy=f"set {CONFIG} to the path of agent-identity.toml",
        )
    return file


def _read_bytes(file: Path) -> bytes:
    try:
        descriptor = os.open(file, READING)
        with os.fdopen(descriptor, "rb") as opened:
            _check_safe(file, os.fstat(opened.fileno()))
            data = opened.read(_LIMIT + 1)
    except FileNotFoundError as error:
        raise ConfigurationError(
            "config_missing", f"{file} doesn't exist", remedy=f"check --config and {CONFIG}"
        ) from error
    except OSError as error:
        raise ConfigurationError("config_unreadable", f"{file} can't be read") from error
    if len(data) > _LIMIT:
        raise ConfigurationError("config_unreadable", f"{file} is larger than 1 MiB")
    return data


def _check_safe(file: Path, status: os.stat_result) -> None:
    """Refuse a file that another user can write: it decides where secrets go. Only POSIX shows who can."""
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError("config_unreadable", f"{file} is not a regular file")
    if os.name != "posix":
        return
    if status.st_mode & WRITABLE_BY_OTHERS:
        raise ConfigurationError(
            "config_unsafe",
            f"its group or all users can write {file}",
            remedy=f"chmod go-w {file}",
        )
    if status.st_uid not in {0, os.getuid()}:
        raise ConfigurationError(
            "config_unsafe",
            f"{file} belongs to another user",
            remedy="create a copy that belongs to this user or to root",
        )


_AT_LINE: Final = re.compile(r"\(at line ([0-9]+), column [0-9]+\)\Z")


def _parse(text: str) -> Toml | int | None:
    """The tables of a text, or the line of the first error (None if it isn't known)."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Huge numbers and deeply nested lists raise other errors than TOMLDecodeError.
        at = _AT_LINE.search(str(error))
    if at is not None:
        return int(at[1])
    return text.count("\n") + 1


def _not_toml(file: Path, line: int | None, what: str) -> InvalidConfigurationError:
    remedy = "check the quotes and brackets there"
    return InvalidConfigurationError(
        str(file), [Problem("config_malformed", "", line, what, remedy)]
    )


Value: TypeAlias = "str | float | date | time | list[Value] | dict[str, Value]"
Toml: TypeAlias = "dict[str, Value]"

_ROUNDS: Final = 4
"""Malformed values first, then keys that are missing because of them; more rounds find nothing new."""

_STANDS_IN: Final = "https://stand-in.invalid"


def build_tables(data: Toml) -> tuple[Configuration | None, list[Fault]]:
    """The tables as models, without malformed values, and their faults; None if the rest can't be used."""
    rest = copy.deepcopy(data)
    faults: dict[tuple[str, ...], Fault] = {}
    for _ in range(_ROUNDS):
        outcome = _validate(rest)
        if isinstance(outcome, Configuration):
            return outcome, list(faults.values())
        for detail in outcome:
            fault = _fault(detail, data)
            faults.setdefault(fault.path, fault)
            _put_aside(rest, fault.path, stands_in=detail["type"] == "missing")
    return None, list(faults.values())


def _validate(data: Toml) -> Configuration | list[ErrorDetails]:
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
            "see docs/reference/configuration.md for all keys",
            None if meant is None else (*table, meant),
        )
    if detail["type"] == "missing":
        return Fault("value_missing", path, "missing", f"give {path[-1]}")
    return Fault("value_malformed", path, _expectation(detail))


def _expectation(detail: ErrorDetails) -> str:
    """What a value must be, in our words: pydantic's may contain the value."""
    context = detail.get("ctx", {})
    match detail["type"]:
        case "literal_error":
            names = re.findall(r"'([^']*)'", str(context["expected"]))
            return f"must be one of {', '.join(names)}"
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


def _path(location: Iterable[int | str], data: Toml) -> tuple[str, ...]:
    """The keys of a location; pydantic also adds list indexes, and names of types."""
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
    models: list[type[BaseModel]] = [Configuration]
    for step in path:
        fields = models[0].model_fields if models else {}
        if step in fields:
            models = list(_models(fields[step].annotation))
    return list(models[0].model_fields) if models else []


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


T = TypeVar("T", bound=Table)
_Value: TypeAlias = "Table | tuple[str, ...] | dict[str, _Value] | str | float | None"

_TOKEN_FILES: Final = frozenset({"file", "kubernetes"})
"""Providers whose `path` is a file; that of `gitlab` is the name of a variable."""


def with_absolute_paths(table: T, base: Path) -> T:
    """The table with all paths in it, and in the tables below it, made absolute."""
    update: dict[str, object] = {}
    for name, field in type(table).model_fields.items():
        value: _Value = getattr(table, name)
        absolute = _below(value, base)
        for kind in field.metadata:
            if isinstance(kind, Kind) and kind in _RESOLVERS:
                absolute = _each(_RESOLVERS[kind], value, base)
        if absolute != value:
            update[name] = absolute
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
        return with_absolute_paths(value, base)
    if isinstance(value, dict):
        return {key: _below(item, base) for key, item in value.items()}
    return value


def _each(resolve: Callable[[str, Path], str], value: _Value, base: Path) -> _Value:
    if isinstance(value, str):
        return resolve(value, base)
    if isinstance(value, tuple):
        return tuple(resolve(item, base) for item in value)
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


_RESOLVERS: Final[Mapping[Kind, Callable[[str, Path], str]]] = {
    Kind.REFERENCE: _file_reference,
    Kind.KEYS: _file_reference,
    Kind.PATTERN: _pattern,
    Kind.PATH: _file_in,
    Kind.LEDGER: _ledger,
}
