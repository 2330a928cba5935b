# SPDX-License-Identifier: Apache-2.0
"""The canonical form of values: RFC 8785 bytes, and the digest that policy sees, an approval signs and an assertion carries.

The pipeline calls `copy_and_encode`. It copies a call's arguments and encodes the copy in one traversal, so that the digest is
over what the tool receives. The forms are those of DESIGN section 5, "Arguments":

- str, bool, None, int and float are JSON's own; 1 and 1.0 are one number, and so are 0 and -0.0 (RFC 8785 §3.2.2.3);
- date, time and datetime are written as RFC 3339 does, without an offset where they have none;
- Decimal, UUID and paths are their `str`, bytes and bytearrays are base64url;
- an Enum member is its value, also where its class derives from str or int as well;
- dataclasses, pydantic models, OrderedDict and defaultdict are objects, tuples and named tuples are lists;
- sets are lists: numbers in their order, then text by code point, then the rest by its RFC 8785 bytes.

Nothing else has a form, and types are compared exactly, since a subclass can return other values each time it is read. A copy
has the type of the original; a defaultdict keeps its `default_factory`.
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
import types
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeAlias, TypeGuard, TypeVar

import orjson
import rfc8785

from agent_identity.errors import DeniedError
from agent_identity.values import b64url

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from agent_identity.values import JSON

__all__ = ["MAX_DEPTH", "MAX_INTEGER", "args_digest", "copy_and_encode", "digest", "encode"]

MAX_DEPTH: Final = 32
"""How many levels of objects and lists there may be."""

MAX_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON implementation reads alike (RFC 8259 §6)."""

_Pair: TypeAlias = tuple[object, object]
"""A copy that nothing else holds, and its canonical form. They are one object where possible."""


class _UndigestibleError(Exception):
    """A value has no canonical form. The text continues the name of the argument; `advice` says what to pass instead."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.advice = advice


def copy_and_encode(
    arguments: Mapping[str, object], opaque: frozenset[str], tool: str = ""
) -> tuple[dict[str, object], bytes]:
    """Copy a tool's arguments deeply, and return the copy and its RFC 8785 bytes for `digest`.

    Arguments named in `opaque` aren't copied; in the bytes they are `{"opaque": true}`. `tool` is the name in error messages.

    Raises:
        DeniedError: `undigestible_argument`, with the name of the argument that has no canonical form.
    """
    copied = dict(arguments)
    forms: dict[str, object] = {}
    for name, value in copied.items():
        if type(name) is not str:
            raise _denied_error(
                name, tool, _UndigestibleError("has a name that isn't a string", _NAMES)
            )
        if name in opaque:
            forms[name] = {"opaque": True}
        elif type(value) not in _ATOMS:
            try:
                copied[name], forms[name] = _pair(value, 2)
            except _UndigestibleError as reason:
                raise _denied_error(name, tool, reason) from None
    form = {**copied, **forms} if forms else copied
    try:
        return copied, _dump(form)
    except _UndigestibleError as reason:
        raise _denied_error(_find_culprit(form), tool, reason) from None


def args_digest(arguments: Mapping[str, object]) -> str:
    """The `sha-256:…` digest of a call's arguments, as an assertion's `call.args_hash` carries it.

    Raises:
        DeniedError: `undigestible_argument`, with the name of the argument that has no canonical form.
    """
    return digest(copy_and_encode(arguments, frozenset())[1])


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
        raise DeniedError(
            "undigestible_argument", f"a value {reason}", remedy=reason.advice
        ) from None


_AS_TEXT: Final = "pass it as a string"
_NAMES: Final = "make every name a plain string, `str(name)`"


def _denied_error(name: object, tool: str, reason: _UndigestibleError) -> DeniedError:
    # `ascii`, since a model can send a name with control characters or lone surrogates
    argument = f"argument {ascii(name)[:80]}"
    if tool:
        argument += f" of {ascii(tool)[1:-1][:80]}"
    return DeniedError(
        "undigestible_argument",
        f"{argument} {reason}",
        remedy=f"{reason.advice} or list it in `opaque`",
    )


def _find_culprit(form: dict[str, object]) -> str:
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
        raise _unwritable_error(form) from None


def _unwritable_error(form: Any) -> _UndigestibleError:
    """Why `orjson` can't write a form: it holds an integer that is too large, or text that UTF-8 can't hold."""
    if _holds_large_integer(form):
        return _UndigestibleError("holds an integer beyond ±(2^53 - 1)", "pass `str(x)`")
    return _UndigestibleError(
        "holds text with a lone surrogate",
        'pass text that UTF-8 can hold, `x.encode(errors="replace").decode()`,',
    )


def _holds_large_integer(form: JSON) -> bool:
    if isinstance(form, dict):
        return any(map(_holds_large_integer, form.values()))
    if isinstance(form, list):
        return any(map(_holds_large_integer, form))
    return isinstance(form, int) and abs(form) > MAX_INTEGER


def _pair(value: object, depth: int) -> _Pair:
    """A value's copy and form. `depth` counts the objects and lists around it, and the value if it is one."""
    kind = type(value)
    if kind in _ATOMS:
        return value, value
    if scalar := _SCALARS.get(kind):
        return value, scalar(value)
    if kind is bytearray and isinstance(value, bytearray):
        return _bytearray(value)
    if depth > MAX_DEPTH:
        raise _UndigestibleError(f"is nested deeper than {MAX_DEPTH}, or in a cycle", _AS_TEXT)
    if container := _CONTAINERS.get(kind):
        return container(value, depth)
    return _copy_declared(value, depth)


def _number(value: float) -> object:
    if not math.isfinite(value):
        raise _UndigestibleError("holds a NaN or an infinity", "pass None or a string")
    if not value.is_integer() or abs(value) >= _EXPONENT_FROM:
        return orjson.Fragment(rfc8785.dumps(value))
    if abs(value) > MAX_INTEGER:
        raise _UndigestibleError(
            "holds a float that would be an integer beyond ±(2^53 - 1)", "pass `str(x)`"
        )
    return int(value)


def _dict(
    value: dict[object, object], depth: int
) -> tuple[dict[object, object], dict[object, object]]:
    copied = value.copy()
    forms: dict[object, object] = {}
    for name, item in copied.items():
        if type(name) is not str:
            raise _UndigestibleError("holds an object with a name that isn't a string", _NAMES)
        if type(item) not in _ATOMS:
            copied[name], form = _pair(item, depth + 1)
            if form is not copied[name]:
                forms[name] = form
    return copied, {**copied, **forms} if forms else copied


def _dict_subclass(
    value: OrderedDict[object, object] | defaultdict[object, object], depth: int
) -> _Pair:
    copied = (
        value.copy()
    )  # read once: what another thread adds meanwhile is in neither copy nor form
    members, form = _dict(dict(copied), depth)
    copied.update(members)
    return copied, form


def _bytearray(value: bytearray) -> _Pair:
    copied = value.copy()
    return copied, b64url(bytes(copied))


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


def _tuple(value: tuple[object, ...], depth: int) -> tuple[tuple[object, ...], list[object]]:
    pairs = [_pair(item, depth + 1) for item in value]
    return tuple(copied for copied, _ in pairs), [form for _, form in pairs]


def _is_namedtuple(value: object) -> TypeGuard[tuple[object, ...]]:
    """Whether its class was made by `namedtuple` or `typing.NamedTuple`, and not derived from one or given other reading methods.

    The bases are compared first, so that `_fields` come from Python's own function.
    """
    kind = type(value)
    if type(kind) is not type or kind.__bases__ not in ((tuple,), (tuple, Generic)):
        return False
    own: Mapping[str, Any] = vars(kind)
    fields: tuple[str, ...] = own.get("_fields", ())
    return (
        type(fields) is tuple
        and own.get("__slots__") == ()
        and not _READING & own.keys()
        and all(type(own.get(name)) is _FIELD for name in fields)
    )


class _Sample(NamedTuple):
    field: int


_field: object = vars(_Sample)["field"]
_FIELD: Final = type(_field)
_READING: Final = {"__contains__", "__getattribute__", "__getitem__", "__iter__", "__len__"}


def _namedtuple(value: tuple[object, ...], depth: int) -> _Pair:
    kind: type[tuple[object, ...]] = type(value)
    items, form = _tuple(value, depth)
    return tuple.__new__(kind, items), form  # pyright: ignore[reportUnknownMemberType]


def _set(value: set[object] | frozenset[object], depth: int) -> _Pair:
    pairs = [_pair(item, depth + 1) for item in [*value]]
    forms = [form for _, form in sorted(pairs, key=_order)]
    if len({_dump(form) for form in forms}) < len(forms):
        raise _UndigestibleError("holds a set with two members of the same form", "pass `list(x)`")
    return type(value)(copied for copied, _ in pairs), forms


def _order(pair: _Pair) -> tuple[int, float, str, bytes]:
    value, form = pair
    if type(value) is int or type(value) is float:
        return 0, value, "", b""
    if isinstance(form, str):
        return 1, 0, form, b""
    return 2, 0, "", _dump(form)


def _copy_declared(value: object, depth: int) -> _Pair:
    """The copy and form of an object of a user's class: an Enum member, a named tuple, a dataclass, a pydantic model."""
    if _is(value, enum.Enum):
        return value, _pair(value.value, depth)[1]
    if _is_namedtuple(value):
        return _namedtuple(value, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value, [field.name for field in dataclasses.fields(value)], depth)
    if "pydantic" in sys.modules:
        from pydantic import BaseModel  # noqa: PLC0415 - if it isn't loaded yet, nothing is a model

        if _is(value, BaseModel):
            return _model(value, depth)
    raise _formless_error(value)


T = TypeVar("T")


def _is(value: object, kind: type[T]) -> TypeGuard[T]:
    """`isinstance`, without trusting an object's own `__class__`."""
    return issubclass(type(value), kind)


def _formless_error(value: object) -> _UndigestibleError:
    kind = type(value)
    base = next((each for each in _PLAIN if issubclass(kind, each)), None)
    if base is None:
        reason = "which has no canonical form"
    else:
        reason = f"a class derived from {base.__name__}, which can return other values each time it is read"
    return _UndigestibleError(f"holds a {kind.__qualname__}, {reason}", _advise(kind, base))


def _advise(kind: type, base: type | None) -> str:
    """What to pass instead of an object of a class without a form. `base` is the plain class that it derives from."""
    if kind is not memoryview and hasattr(kind, "tolist"):
        return "pass `x.tolist()`"  # scalars and arrays of NumPy, tensors, series, array.array
    if base is not None:
        return f"pass `{_PLAIN[base]}`"
    for other, instead in _INSTEAD:
        if issubclass(kind, other):
            return instead
    return _AS_TEXT


_PLAIN: Final[Mapping[type, str]] = {
    str: "str(x)",
    int: "int(x)",
    float: "float(x)",
    bytes: "bytes(x)",
    bytearray: "bytes(x)",
    dict: "dict(x)",
    list: "list(x)",
    tuple: "tuple(x)",
    set: "set(x)",
    frozenset: "frozenset(x)",
    dt.datetime: "x.isoformat()",
    dt.date: "x.isoformat()",
    dt.time: "x.isoformat()",
    decimal.Decimal: "str(x)",
    uuid.UUID: "str(x)",
    pathlib.PurePath: "str(x)",
}
"""The classes that have a form, and how to make an object of a derived class plain."""

_INSTEAD: Final[tuple[tuple[type, str], ...]] = (
    (dt.timedelta, "pass `x.total_seconds()`"),
    (memoryview, "pass `bytes(x)`"),
    (Mapping, "pass `dict(x)`"),
    (types.GeneratorType, "pass `list(x)`"),
    (Collection, "pass `list(x)`"),
)


def _dataclass(value: object, names: list[str], depth: int) -> _Pair:
    kind = type(value)
    try:
        values = {name: getattr(value, name) for name in names}
        copied = object.__new__(kind)
    except (
        AttributeError,
        TypeError,
    ):  # a field that was never set; a base with content, like dict
        raise _hidden_state_error(kind) from None
    if _has_hidden_state(value, names):
        raise _hidden_state_error(kind)
    form: dict[str, object] = {}
    for name, item in values.items():
        copy, form[name] = _pair(item, depth + 1)
        object.__setattr__(copied, name, copy)  # as a frozen dataclass sets its own
    return copied, form


def _model(value: BaseModel, depth: int) -> _Pair:
    kind = type(value)
    if value.__pydantic_private__ or _has_hidden_state(value, kind.model_fields):
        raise _hidden_state_error(kind)
    copied = value.model_copy()
    state = vars(copied)
    for cached in state.keys() - kind.model_fields.keys():
        del state[cached]
    form: dict[str, object] = {}
    for members in (state, copied.model_extra or {}):
        for name, item in members.items():
            members[name], form[name] = _pair(item, depth + 1)
    return copied, form


def _has_hidden_state(value: object, names: Collection[str]) -> bool:
    """Whether an object holds more than its fields. Values of a `cached_property` don't count; copies don't have them."""
    return any(
        name not in names and not isinstance(getattr(type(value), name, None), cached_property)
        for name in getattr(value, "__dict__", ())
    )


def _hidden_state_error(kind: type) -> _UndigestibleError:
    return _UndigestibleError(
        f"holds a {kind.__qualname__} with state besides its fields",
        "pass a dict of what the tool needs",
    )


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
    OrderedDict: _dict_subclass,
    defaultdict: _dict_subclass,
}
