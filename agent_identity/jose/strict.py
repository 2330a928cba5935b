# SPDX-License-Identifier: Apache-2.0
"""Reads JSON strictly: what two parsers could read differently is refused.

The caller limits the size. Nesting and number literals are limited here, on the bytes, before they are parsed.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

import orjson

from agent_identity.canonical import MAX_DEPTH, MAX_INTEGER
from agent_identity.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.values import JSON


def read(data: bytes) -> JSON:
    """What `jose.loads` does."""
    if type(data) is not bytes:
        raise VerificationError("json_malformed", "JSON is read from bytes")
    scan = data.translate(_SCAN)
    if scan.count(b"[") <= MAX_DEPTH and _LONG_INTEGER not in scan:
        try:
            value: JSON = orjson.loads(data)
        except orjson.JSONDecodeError:
            value = None
        # If orjson writes back the same bytes, they had no repeated name, no second spelling and nothing that isn't JSON. Many
        # servers put a space after each colon and comma; if one of these spaces were in a string, orjson would write it.
        written = orjson.dumps(value)
        if written in (data, data.replace(b'": ', b'":').replace(b", ", b",")):
            return value
    return _read_strictly(data)


def read_object(data: bytes) -> dict[str, JSON]:
    """What `jose.loads_object` does."""
    value = read(data)
    if not isinstance(value, dict):
        raise VerificationError("json_not_object", "the JSON is not an object")
    return value


def _read_strictly(data: bytes) -> JSON:
    text = _decode_text(data)
    _check_limits(data)
    # The decoder's error holds the whole text, so ours isn't raised inside of it.
    with suppress(ValueError):
        value: JSON = _decode(text)
        if b"\\u" in data:
            _refuse_lone_surrogates(value)
        return value
    raise VerificationError("json_malformed", "the text isn't JSON")


def _decode_text(data: bytes) -> str:
    if not data.startswith(codecs.BOM_UTF8) and b"\0" not in data:
        with suppress(UnicodeDecodeError):
            return data.decode("utf-8")
    raise VerificationError(
        "json_not_utf8", "the JSON isn't UTF-8, or has a byte order mark or NUL"
    )


def _check_limits(data: bytes) -> None:
    """Limit nesting and number literals before the parser runs, outside of strings."""
    bare = _STRING.sub(b" ", data)
    if _LONG_LITERAL in bare.translate(_LITERALS):
        raise VerificationError("json_number", "a JSON number has too many characters")
    nest = bare.translate(_BRACKETS).replace(b" ", b"")
    for _ in range(MAX_DEPTH):
        nest = nest.replace(b"[]", b"")  # takes the innermost level away
    if b"[]" in nest or nest.count(b"[") > MAX_DEPTH:
        raise VerificationError("json_too_deep", f"JSON is nested deeper than {MAX_DEPTH}")


def _refuse_lone_surrogates(value: JSON) -> None:
    with suppress(orjson.JSONEncodeError):
        orjson.dumps(value)
        return
    # Raised outside of the other error, which may hold the text.
    raise VerificationError("json_lone_surrogate", "JSON holds a lone surrogate")


def _check_unique(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise VerificationError("json_duplicate_name", "a JSON object has a repeated name")
    return members


def _integer(literal: str) -> int:
    value = int(literal)
    if abs(value) > MAX_INTEGER:
        raise VerificationError("json_number", "a JSON integer is beyond ±(2^53 - 1)")
    return value


def _float(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise VerificationError("json_number", "a JSON number is beyond what a float can hold")
    return value


def _constant(_: str) -> NoReturn:
    raise VerificationError("json_number", "NaN and infinities are not JSON numbers")


_decode: Final = json.JSONDecoder(
    object_pairs_hook=_check_unique,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_constant,
).decode


def _table(classes: Mapping[str, str]) -> bytes:
    table = bytearray(b" " * 256)
    for mark, members in classes.items():
        for member in members:
            table[ord(member)] = ord(mark)
    return bytes(table)


_SCAN: Final = _table({"0": "0123456789", "[": "[{"})
_LITERALS: Final = _table({"0": "0123456789+-.eE"})
_BRACKETS: Final = _table({"[": "[{", "]": "]}"})
_LONG_INTEGER: Final = b"0" * 16  # shorter ones are in range
_LONG_LITERAL: Final = b"0" * 33
# It also matches an unterminated string, up to the end: otherwise each quote in it would be tried as a beginning.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
