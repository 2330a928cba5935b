# SPDX-License-Identifier: Apache-2.0
"""One spelling for every value: RFC 8785 bytes, and the digest that policy sees, an approval signs and an assertion carries.

`bound` is what the pipeline calls. It copies a call's arguments and encodes the canonical form of that very copy, in one
traversal, so that what is digested is what the tool receives. The forms are those of DESIGN section 5, "Arguments":

- str, bool, None, int and float are JSON's own; 1 and 1.0 are one number, and so are 0 and -0.0 (RFC 8785 §3.2.2.3);
- date, time and datetime are written as RFC 3339 does, without an offset where they have none;
- Decimal, UUID and paths are their `str`, bytes are base64url, an Enum member is its value;
- dataclasses and pydantic models are objects of their fields, tuples are lists;
- sets are lists: numbers in their order, then text by code point, then the rest by its RFC 8785 bytes.

Nothing else has a form, and types are compared exactly: a subclass could answer differently each time it is read.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import hashlib
import math
import pathlib
import re
import sys
import uuid
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson
import rfc8785

from agent_identity.errors import DeniedError
from agent_identity.values import b64url

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from pydantic import BaseModel

    from agent_identity.values import JSON

__all__ = ["MAX_DEPTH", "MAX_INTEGER", "args_digest", "bound", "digest", "encode"]

MAX_DEPTH: Final = 32
"""How deep objects and lists may nest, the outermost counted."""

MAX_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON implementation reads alike (RFC 8259 §6)."""

_Pair: TypeAlias = tuple[object, object]
"""A copy that nobody else holds, and its canonical form. Where both can be one object, they are."""


class _UndigestibleError(Exception):
    """A value has no canonical form. The text goes on from the name of the argument."""


def bound(
    arguments: Mapping[str, object], opaque: frozenset[str]
) -> tuple[dict[str, object], bytes]:
    """The arguments that the tool is to get, deeply copied, and their RFC 8785 bytes for `digest`.

    Arguments named in `opaque` are passed through uncopied and stand in the bytes as `{"opaque": true}`.

    Raises:
        DeniedError: `undigestible_argument`, naming the argument that has no canonical form.
    """
    copied = dict(arguments)
    forms: dict[str, object] = {}
    for name, value in copied.items():
        if type(name) is not str:
            raise _denied(name, "has a name that is no string")
        if name in opaque:
            forms[name] = {"opaque": True}
        elif type(value) not in _ATOMS:
            try:
                copied[name], forms[name] = _pair(value, 2)
            except _UndigestibleError as reason:
                raise _denied(name, str(reason)) from None
    form = {**copied, **forms} if forms else copied
    try:
        return copied, _dump(form)
    except _UndigestibleError as reason:
        raise _denied(_culprit(form), str(reason)) from None


def args_digest(arguments: Mapping[str, object]) -> str:
    """The `sha-256:…` digest of a call's arguments, as an assertion's `call.args_hash` carries it.

    Raises:
        DeniedError: `undigestible_argument`, naming the argument that has no canonical form.
    """
    return digest(bound(arguments, frozenset())[1])


def digest(data: bytes) -> str:
    """`sha-256:` and the base64url SHA-256 of canonical bytes."""
    return "sha-256:" + b64url(hashlib.sha256(data).digest())


def encode(value: JSON) -> bytes:
    """The RFC 8785 bytes of a JSON value.

    Raises:
        DeniedError: `undigestible_argument`, for a number, text or depth that has no canonical form.
    """
    try:
        return _dump(_pair(value, 1)[1])
    except _UndigestibleError as reason:
        raise DeniedError("undigestible_argument", f"a value {reason}", remedy=_REMEDY) from None


_REMEDY: Final = "pass it as a string or list it in `opaque`"


def _denied(name: object, reason: str) -> DeniedError:
    # `ascii`: a name can come from a model, with control characters or lone surrogates in it
    return DeniedError(
        "undigestible_argument", f"argument {ascii(name)[:80]} {reason}", remedy=_REMEDY
    )


def _culprit(form: dict[str, object]) -> str:
    for name, value in form.items():
        try:
            _dump({name: value})
        except _UndigestibleError:
            return name
    return ""


_EXPONENT_FROM: Final = 1e21  # where RFC 8785 stops writing floats as integers
_SORTED: Final = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
_ASTRAL: Final = re.compile(rb"[\xf0-\xf4]")


def _dump(form: object) -> bytes:
    try:
        data = orjson.dumps(form, option=_SORTED)
        # orjson sorts names by code point, RFC 8785 by UTF-16 code unit: they differ only beyond U+FFFF.
        if data.isascii() or _ASTRAL.search(data) is None:
            return data
        return rfc8785.dumps(orjson.loads(data))
    except orjson.JSONEncodeError:
        raise _UndigestibleError(
            "holds an integer beyond ±(2^53 - 1) or text with a lone surrogate"
        ) from None


def _pair(value: object, depth: int) -> _Pair:
    """A value's copy and form; `depth` counts the objects and lists around it, and itself where it is one."""
    kind = type(value)
    if kind in _ATOMS:
        return value, value
    if scalar := _SCALARS.get(kind):
        return value, scalar(value)
    if depth > MAX_DEPTH:
        raise _UndigestibleError(f"is nested deeper than {MAX_DEPTH}, or in a cycle")
    if container := _CONTAINERS.get(kind):
        return container(value, depth)
    return _declared(value, depth)


def _number(value: float) -> object:
    if not math.isfinite(value):
        raise _UndigestibleError("holds a NaN or an infinity")
    if not value.is_integer() or abs(value) >= _EXPONENT_FROM:
        return orjson.Fragment(rfc8785.dumps(value))
    if abs(value) > MAX_INTEGER:
        raise _UndigestibleError("holds a float that would be an integer beyond ±(2^53 - 1)")
    return int(value)


def _dict(value: dict[object, object], depth: int) -> _Pair:
    copied = value.copy()
    forms: dict[object, object] = {}
    for name, item in copied.items():
        if type(name) is not str:
            raise _UndigestibleError("holds an object with a name that is no string")
        if type(item) not in _ATOMS:
            copied[name], form = _pair(item, depth + 1)
            if form is not copied[name]:
                forms[name] = form
    return copied, {**copied, **forms} if forms else copied


def _list(value: list[object], depth: int) -> _Pair:
    copied = value.copy()
    forms: dict[int, object] = {}
    for index, item in enumerate(copied):
        if type(item) not in _ATOMS:
            copied[index], form = _pair(item, depth + 1)
            if form is not copied[index]:
                forms[index] = form
    return copied, [
        forms.get(index, item) for index, item in enumerate(copied)
    ] if forms else copied


def _tuple(value: tuple[object, ...], depth: int) -> _Pair:
    pairs = [_pair(item, depth + 1) for item in value]
    return tuple(copied for copied, _ in pairs), [form for _, form in pairs]


def _set(value: set[object] | frozenset[object], depth: int) -> _Pair:
    pairs = [_pair(item, depth + 1) for item in [*value]]
    forms = [form for _, form in sorted(pairs, key=_order)]
    if len({_dump(form) for form in forms}) < len(forms):
        raise _UndigestibleError("holds a set with two members that are written alike")
    return type(value)(copied for copied, _ in pairs), forms


def _order(pair: _Pair) -> tuple[int, float, str, bytes]:
    value, form = pair
    if type(value) is int or type(value) is float:
        return 0, value, "", b""
    if isinstance(form, str):
        return 1, 0, form, b""
    return 2, 0, "", _dump(form)


def _declared(value: object, depth: int) -> _Pair:
    """What a class of the user's says of itself: an Enum member, a dataclass instance, a pydantic model."""
    if isinstance(value, enum.Enum):
        return value, _pair(value.value, depth)[1]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value, [field.name for field in dataclasses.fields(value)], depth)
    if "pydantic" in sys.modules:
        from pydantic import BaseModel  # noqa: PLC0415 - loaded already, or nothing is a model

        if isinstance(value, BaseModel):
            return _model(value, depth)
    raise _UndigestibleError(f"holds a {type(value).__qualname__}, which has no canonical form")


def _dataclass(value: object, names: list[str], depth: int) -> _Pair:
    kind = type(value)
    try:
        values = {name: getattr(value, name) for name in names}
        copied = object.__new__(kind)
    except (
        AttributeError,
        TypeError,
    ):  # a field that was never set; a base with content, like dict
        raise _more_than_fields(kind) from None
    if _hidden(value, names):
        raise _more_than_fields(kind)
    form: dict[str, object] = {}
    for name, item in values.items():
        copy, form[name] = _pair(item, depth + 1)
        object.__setattr__(copied, name, copy)  # as a frozen dataclass sets its own
    return copied, form


def _model(value: BaseModel, depth: int) -> _Pair:
    kind = type(value)
    if value.__pydantic_private__ or _hidden(value, kind.model_fields):
        raise _more_than_fields(kind)
    copied = value.model_copy()
    state = vars(copied)
    for cached in state.keys() - kind.model_fields.keys():
        del state[cached]
    form: dict[str, object] = {}
    for members in (state, copied.model_extra or {}):
        for name, item in members.items():
            members[name], form[name] = _pair(item, depth + 1)
    return copied, form


def _hidden(value: object, names: Collection[str]) -> bool:
    """Whether an object holds what its fields don't show. What a `cached_property` left behind is only dropped."""
    return any(
        name not in names and not isinstance(getattr(type(value), name, None), cached_property)
        for name in getattr(value, "__dict__", ())
    )


def _more_than_fields(kind: type) -> _UndigestibleError:
    return _UndigestibleError(f"holds a {kind.__qualname__} that isn't just its fields")


_ATOMS: Final = frozenset({str, int, bool, type(None)})
_SCALARS: Final[Mapping[type, Callable[[Any], object]]] = {
    float: _number,
    bytes: b64url,
    dt.date: dt.date.isoformat,
    dt.time: dt.time.isoformat,
    dt.datetime: dt.datetime.isoformat,
    decimal.Decimal: str,
    uuid.UUID: str,
    pathlib.PosixPath: str,
    pathlib.WindowsPath: str,
    pathlib.PurePosixPath: str,
    pathlib.PureWindowsPath: str,
}
_CONTAINERS: Final[Mapping[type, Callable[[Any, int], _Pair]]] = {
    dict: _dict,
    list: _list,
    tuple: _tuple,
    set: _set,
    frozenset: _set,
}
