# SPDX-License-Identifier: Apache-2.0
"""`read_assertion`: what it takes, the standard library's JSON reads as the very same claims.

The first byte says how the rest is read: as a whole token, or as header, NUL and claims.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import runner

with runner.instrumented():
    from agent_identity.delegation.assertion import ASSERTION_TYPE, Assertion, read_assertion
    from agent_identity.values import b64url

import world

TEXTS = ("iss", "sub", "txn", "aud", "jti", "grant_hash")
OPTIONAL = ("use", "htm", "htu", "htq", "content_digest", "ath")

APPROVAL = ("id", "by", "method", "digest")


def part(compact: str, place: int) -> Any:
    text = compact.split(".")[place]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def check(compact: str, read: Assertion) -> None:
    header, claims = part(compact, 0), part(compact, 1)
    assert header["typ"] == ASSERTION_TYPE
    assert header["jwk"] == read.jwk
    assert isinstance(read.jwk, dict)
    for name in TEXTS:
        assert getattr(read, name) == claims[name]
        assert isinstance(claims[name], str)
    for name in OPTIONAL:
        assert getattr(read, name) == claims.get(name)
        assert claims.get(name, "it") is not None
    for name in ("iat", "exp"):
        assert getattr(read, name) == claims[name]
        assert type(claims[name]) is int
        assert 0 <= claims[name] < 2**53
    call = claims["call"]
    assert (read.call_id, read.tool, read.args_hash) == (
        call["id"],
        call["tool"],
        call["args_hash"],
    )
    assert call["canon"] == "jcs"
    assert call["args_hash"].startswith("sha-256:")
    said = claims.get("approval")
    assert (said is None) is (read.approval is None)
    if said is not None:
        assert isinstance(said["evidence"], str)
        assert said["evidence"]
        assert {*said} <= {*APPROVAL, "at", "evidence", "proof", "acr"}
        assert all(getattr(read.approval, name) == said[name] != "" for name in (*APPROVAL, "at"))
        assert all(isinstance(said[name], str) for name in APPROVAL)
        assert type(said["at"]) is int
        assert (read.approval.proof, read.approval.acr) == (said.get("proof"), said.get("acr"))
    trace = claims.get("trace", {})
    assert (read.trace_id, read.span_id) == (trace.get("trace_id"), trace.get("span_id"))


def one(data: bytes) -> bool:
    if data[:1] == b"t":
        compact = data[1:].decode("utf-8", "surrogateescape")
    else:
        header, _, claims = data[1:].partition(b"\0")
        compact = f"{b64url(header)}.{b64url(claims)}.c2lnbmVk"
    check(compact, read_assertion(compact))
    return True


def seeds() -> list[bytes]:
    header = json.dumps(world.PUBLISHED["assertion_header"]).encode()
    claims = world.PUBLISHED["assertion_claims"]
    more = [{}, {"use": "record"}, {"ath": "a"}, {"trace": {"trace_id": "1", "span_id": "2"}}]
    approval = {
        "id": "apr_1",
        "by": "user:bob",
        "method": "console",
        "at": world.NOW,
        "digest": "d",
    }
    more.append({"approval": approval})  # refused: it doesn't say how it is known
    more += [
        {"approval": approval | {"evidence": "asserted", name: "x"}} for name in ("proof", "acr")
    ]
    texts = [f"t{compact}".encode() for compact in world.compacts()]
    return texts + [b"s" + header + b"\0" + json.dumps(claims | other).encode() for other in more]


if __name__ == "__main__":
    words = [
        *TEXTS,
        *OPTIONAL,
        "call",
        "approval",
        "canon",
        "trace",
        "evidence",
        "alg",
        "typ",
        "jwk",
        "kid",
    ]
    runner.fuzz("assertion", one, seeds(), [*(f'"{name}":' for name in words), ":null", ":true"])
