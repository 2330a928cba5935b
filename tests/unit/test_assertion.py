# SPDX-License-Identifier: Apache-2.0
"""How an assertion is read, before any key or grant is asked about it."""

from __future__ import annotations

import json

import pytest

from agent_identity.delegation.assertion import read_assertion
from agent_identity.errors import InvalidAssertionError
from agent_identity.values import b64url

HEADER = {"typ": "agent-assertion+jwt", "alg": "ES256", "jwk": {"kty": "EC"}}
CLAIMS = {
    "iss": "urn:agent-identity:agent:bot",
    "sub": "alice",
    "txn": "ses_1",
    "aud": "https://billing.example",
    "iat": 1,
    "exp": 61,
    "jti": "call_1.1",
    "grant_hash": "hash",
    "call": {"id": "call_1", "tool": "read", "args_hash": "sha-256:abc", "canon": "jcs"},
}
APPROVAL = {
    "id": "apr_1",
    "by": "user:bob",
    "method": "console",
    "at": 1,
    "digest": "sha-256:abc",
    "evidence": "key",
    "proof": "eyJ",
    "acr": "2",
}


def assertion(claims: object = CLAIMS, header: object = HEADER) -> str:
    return ".".join(b64url(json.dumps(part).encode()) for part in (header, claims)) + ".c2ln"


def code(compact: str) -> str:
    with pytest.raises(InvalidAssertionError) as refused:
        read_assertion(compact)
    return refused.value.code


def test_it_says_what_its_claims_say_and_shows_no_token() -> None:
    found = read_assertion(assertion(CLAIMS | {"approval": APPROVAL, "htm": "GET"}))
    assert (found.iss, found.jti, found.tool, found.htm) == (
        CLAIMS["iss"],
        "call_1.1",
        "read",
        "GET",
    )
    assert (found.htu, found.trace_id, found.jwk) == (None, None, {"kty": "EC"})
    assert found.compact not in repr(found)


@pytest.mark.parametrize("name", [*APPROVAL])
def test_an_approval_has_members_of_known_names(name: str) -> None:
    read_assertion(assertion(CLAIMS | {"approval": APPROVAL}))
    odd = {f"{name}_": APPROVAL[name]}
    assert code(assertion(CLAIMS | {"approval": APPROVAL | odd})) == "claim_unknown"


def test_whatever_is_wrong_with_it_is_an_invalid_assertion() -> None:
    assert code("a.b") == "malformed_token"
    assert code(assertion([])) == "json_not_object"
    assert code(f"{b64url(b'{}')}.{b64url(b'{')}.c2ln") == "claim_missing"
    head = assertion().partition(".")[0]
    assert code(f"{head}.{b64url(b'{')}.c2ln") == "json_malformed"


def test_A12_a_header_has_a_kilobyte_and_no_byte_more() -> None:
    room = 1024 - len(json.dumps(HEADER | {"jwk": {"kty": ""}}))
    read_assertion(assertion(header=HEADER | {"jwk": {"kty": "x" * room}}))
    larger = HEADER | {"jwk": {"kty": "x" * (room + 1)}}
    assert code(assertion(header=larger)) == "header_too_large"
