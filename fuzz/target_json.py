# SPDX-License-Identifier: Apache-2.0
"""`jose.loads`: what it takes, two other parsers read as the same value, with no name twice."""

from __future__ import annotations

import json

import orjson
import runner

with runner.instrumented():
    from agent_identity import jose
    from agent_identity.canonical import encode

import world


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    assert len(dict(pairs)) == len(pairs), "a name twice"
    return dict(pairs)


def one(data: bytes) -> bool:
    value = jose.loads(data)
    # `repr` tells 1 from 1.0 and True, 0.0 from -0.0, and keeps the order of names
    assert repr(value) == repr(json.loads(data, object_pairs_hook=unique))
    assert repr(value) == repr(orjson.loads(data))
    assert repr(jose.loads(orjson.dumps(value))) == repr(value)
    encode(value)  # or an error of the library's own: a float may be too large an integer
    return True


def seeds() -> list[bytes]:
    odd = ['"\\ud83d\\ude00"', "[1e308,-0,-0.0,1E-7]", "9007199254740991", "[" * 32 + "]" * 32]
    return [*world.documents(), *(text.encode() for text in odd)]


if __name__ == "__main__":
    runner.fuzz("json", one, seeds(), ["\\ud800", "1e400", "NaN", "-0", '{"a":', "null", "\ufeff"])
