# SPDX-License-Identifier: Apache-2.0
"""JSON with one reading, whatever the parser: what two parsers would read differently is refused.

Size is the caller's to bound; nesting and number literals are bounded here, on the bytes, before a parser sees them.
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

__all__ = ["read", "read_object"]


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
        # What orjson writes back byte for byte had no name twice, no second spelling and nothing that isn't JSON.
        if orjson.dumps(value) == data:
            return value
    return _strictly(data)


def read_object(data: bytes) -> dict[str, JSON]:
    """What `jose.loads_object` does."""
    value = read(data)
    if not isinstance(value, dict):
        raise VerificationError("json_not_object", "there is other JSON where an object belongs")
    return value


def _strictly(data: bytes) -> JSON:
    text = _text(data)
    _check_limits(data)
    # Errors of the decoder hold the whole text, so ours is raised outside of theirs.
    with suppress(ValueError):
        value: JSON = _decode(text)
        if b"\\u" in data:
            _refuse_lone_surrogates(value)
        return value
    raise VerificationError("json_malformed", "it isn't JSON")


def _text(data: bytes) -> str:
    if not data.startswith(codecs.BOM_UTF8) and b"\0" not in data:
        with suppress(UnicodeDecodeError):
            return data.decode("utf-8")
    raise VerificationError("json_not_utf8", "JSON comes in UTF-8 without a byte order mark or NUL")


def _check_limits(data: bytes) -> None:
    """Bound nesting and number literals before the parser runs; what stands in strings doesn't count."""
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
    # Raised here and not beside the other error, which may hold what was read.
    raise VerificationError("json_lone_surrogate", "JSON holds a lone surrogate")


def _unique(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise VerificationError("json_duplicate_name", "a JSON object has a name twice")
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
    raise VerificationError("json_number", "NaN and infinities are no JSON numbers")


_decode: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_constant
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
# It matches an unterminated string too, to the end: otherwise each quote in one would be tried as another beginning.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
