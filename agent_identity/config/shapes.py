# SPDX-License-Identifier: Apache-2.0
"""TOML's tables as models, and what is misshapen in them.

One misshapen key doesn't hide the rest: it is put aside, and what is left is looked at. pydantic's errors carry values and
may quote them, so only their kind and place are used, and the words are ours.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Final, TypeAlias, get_args

from pydantic import BaseModel, ValidationError

from agent_identity.config.model import Configuration
from agent_identity.config.problems import Fault, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import date, time

    from pydantic_core import ErrorDetails

__all__ = ["Toml", "shaped"]

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
