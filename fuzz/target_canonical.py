# SPDX-License-Identifier: Apache-2.0
"""`canonical`: what it emits, rfc8785 and a writer of our own emit; equal arguments, equal digest, and no others share one.

An input that begins with `j` is JSON text; any other one is a recipe for Python values of every kind.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import uuid
from base64 import urlsafe_b64encode
from typing import Any

import atheris
import pydantic
import rfc8785
import runner

with runner.instrumented():
    from agent_identity import jose
    from agent_identity.canonical import args_digest, copy_and_encode, digest, encode
    from agent_identity.errors import DeniedError

import world

LARGEST = 2**53 - 1


class Colour(enum.Enum):
    RED = "red"
    TWO = 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: object
    y: object


class Model(pydantic.BaseModel):
    a: Any
    b: Any


class UnfitError(Exception):
    """A value that has no canonical form."""


def written(value: object) -> str:
    """RFC 8785 by hand, for values that JSON holds."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{written(name)}:{written(value[name])}" for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, float):
        return number(value)
    return json.dumps(value, ensure_ascii=False)


def number(value: float) -> str:
    """ECMAScript's Number::toString, from the digits that Python's shortest form has."""
    if value == 0:
        return "0"
    sign, digits, exponent = decimal.Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)).rstrip("0")
    point = len(digits) + exponent  # where the decimal point stands, counted from the first digit
    if len(text) <= point <= 21:
        text += "0" * (point - len(text))
    elif 0 < point <= 21:
        text = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        text = "0." + "0" * -point + text
    else:
        fraction = f".{text[1:]}" if len(text) > 1 else ""
        text = f"{text[0]}{fraction}e{point - 1:+d}"
    return "-" * sign + text


def plain(value: object) -> Any:
    """The JSON value that stands for a Python value (DESIGN section 5, "Arguments")."""
    kind = type(value)
    if kind in (dict, list, tuple):
        return (
            {name: plain(item) for name, item in value.items()}
            if kind is dict
            else [plain(item) for item in value]
        )
    if kind in (set, frozenset):
        items = sorted(map(plain_of_set, value))
        if len({written(form) for *_, form in items}) < len(items):
            raise UnfitError
        return [form for *_, form in items]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Point):
        return {"x": plain(value.x), "y": plain(value.y)}
    if isinstance(value, Model):
        return {"a": plain(value.a), "b": plain(value.b)}
    return scalar(value)


def plain_of_set(item: object) -> tuple[int, float, str, Any]:
    form = plain(item)
    if type(item) in (int, float):
        return 0, item, "", form
    if isinstance(form, str):
        return 1, 0, form, form
    return 2, 0, written(form), form


def scalar(value: object) -> Any:
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID | pathlib.PurePath):
        return str(value)
    if isinstance(value, bytes):
        return urlsafe_b64encode(value).rstrip(b"=").decode()
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UnfitError from None
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UnfitError
        if value.is_integer() and LARGEST < abs(value) < 1e21:
            raise UnfitError
    if type(value) is int and abs(value) > LARGEST:
        raise UnfitError
    return value


class Recipe:
    """Values as an input says."""

    def __init__(self, data: bytes) -> None:
        self._said = atheris.FuzzedDataProvider(data)

    def upto(self, most: int) -> int:
        return self._said.ConsumeIntInRange(0, most)

    def text(self) -> str:
        return self._said.ConsumeUnicode(self.upto(6))

    def value(self, depth: int = 0) -> object:
        kind = self.upto(17 if depth < 5 else 11)
        made = self._atom if kind < 6 else self._scalar if kind < 12 else self._container
        return made(kind, depth)

    def _atom(self, kind: int, _: int) -> object:
        if kind == 0:
            return self.text()
        if kind == 1:
            return (None, True, False, 0, 1, -1, LARGEST, -LARGEST, 2**53, "1", "")[self.upto(10)]
        if kind == 2:
            return self._said.ConsumeInt(8)
        if kind == 3:
            return self._said.ConsumeFloat()
        if kind == 4:
            return float(self._said.ConsumeIntInRange(-LARGEST - 9, LARGEST + 9))
        return self._said.ConsumeIntInRange(-999, 999) * 10.0 ** self._said.ConsumeIntInRange(
            -30, 30
        )

    def _scalar(self, kind: int, _: int) -> object:
        if kind == 6:
            return self._said.ConsumeBytes(self.upto(9))
        if kind == 7:
            return dt.date.fromordinal(1 + self.upto(3_000_000))
        if kind == 8:
            zone = (None, dt.UTC, dt.timezone(dt.timedelta(minutes=90)))[self.upto(2)]
            moment = dt.datetime(2026, 1, 1, tzinfo=zone)
            return moment + dt.timedelta(microseconds=self.upto(10**12))
        if kind == 9:
            return decimal.Decimal(self._said.ConsumeInt(8)).scaleb(self.upto(20) - 10)
        if kind == 10:
            return uuid.UUID(int=self.upto(2**32))
        return (Colour.RED, Colour.TWO, pathlib.PurePosixPath("/a"), dt.time(1, 2))[self.upto(3)]

    def _container(self, kind: int, depth: int) -> object:
        items = [self.value(depth + 1) for _ in range(self.upto(4))]
        if kind == 12:
            return {self.text(): item for item in items}
        if kind == 13:
            return items
        if kind == 14:
            return tuple(items)
        if kind == 15:
            hashable = [item for item in items if not isinstance(item, dict | list | set | Model)]
            try:
                return (set, frozenset)[self.upto(1)](hashable)
            except TypeError:  # a tuple with a list in it
                return frozenset()
        if kind == 16:
            return Point([*items, None][0], self.text())
        return Model(a=items, b=self.text())


def form_of(arguments: dict[str, object]) -> bytes | None:
    """The canonical bytes by another way, None where there are none."""
    try:
        form = plain(arguments)
        text = written(form).encode()
    except (UnfitError, UnicodeEncodeError):
        return None
    assert rfc8785.dumps(form) == text
    return text


def check(arguments: dict[str, object]) -> bytes | None:
    expected = form_of(arguments)
    try:
        copied, data = copy_and_encode(arguments, frozenset())
    except DeniedError:
        assert expected is None
        return None
    assert data == expected
    assert args_digest(arguments) == digest(data) == args_digest(copied)
    assert repr(copied) == repr(arguments) or "{" in repr(copied)  # a set may come in another order
    assert args_digest(reversed_names(arguments)) == digest(data)
    assert args_digest(jose.loads_object(data)) == digest(data)
    assert not containers(copied) & containers(arguments)
    return data


def reversed_names(value: Any) -> Any:
    if type(value) is dict:
        return {name: reversed_names(value[name]) for name in reversed(value)}
    if type(value) in (list, tuple):
        return type(value)(map(reversed_names, value))
    return value


def containers(value: object) -> set[int]:
    if isinstance(value, dict):
        return {id(value)}.union(*map(containers, value.values()))
    if isinstance(value, list):
        return {id(value)}.union(*map(containers, value))
    if isinstance(value, Model):
        return {id(value)} | containers(value.a)
    return {id(value)} if isinstance(value, set) else set()


def one(data: bytes) -> bool:
    if data[:1] == b"j":
        value = jose.loads(data[1:])
        form = encode(value)
        assert form == written(plain(value)).encode() == rfc8785.dumps(value)
        assert encode(jose.loads(form)) == form
        return True
    recipe = Recipe(data)
    left, right = ({recipe.text(): recipe.value() for _ in range(3)} for _ in range(2))
    first, second = check(left), check(right)
    if first is None or second is None:
        return False
    assert (first == second) is (args_digest(left) == args_digest(right))
    return True


def seeds() -> list[bytes]:
    texts = [b"j" + document for document in world.documents()]
    texts += [
        b"j[1e21,1e20,1e-7,0.000001,-0.0,5e-324]",
        b'j{"\xef\xac\xb3":1,"\xf0\x9f\x98\x80":2}',
    ]
    # integers are taken from the end, text and bytes from the beginning
    texts += [bytes([1, *b"abcdef", 7, *([3] * 8), kind, 3]) * 6 for kind in range(18)]
    return texts


if __name__ == "__main__":
    runner.fuzz("canonical", one, seeds(), ["1e21", "e-7", "\U0001f600", "\ufb33", "\ud7ff"])
