# SPDX-License-Identifier: Apache-2.0
"""How an assertion is read, before any key or grant is asked about it."""

from __future__ import annotations

import json

import pytest

from agent_identity.delegation.assertion import CallFacts, Statement, read_assertion
from agent_identity.delegation.grant import mint_root
from agent_identity.errors import InvalidAssertionError
from agent_identity.keys.signing import SigningKey
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


def test_a_call_is_asserted_by_its_id_and_each_resend_by_a_name_of_its_own() -> None:
    anchor, key = SigningKey.generate(), SigningKey.generate()
    leaf = mint_root(
        anchor,
        "k1",
        iss="https://anchor.example",
        principal_sub="alice",
        sub_iss="https://anchor.example",
        sub_profile="user",
        agent="urn:agent-identity:agent:bot",
        jkt=key.thumbprint,
        aud=["https://billing.example"],
        scopes=[],
        purpose="try",
        task=None,
        txn="ses_1",
        now=1,
        expires_at=61,
        max_depth=0,
        evidence="issuer",
    )
    statement = Statement(key, leaf, "https://billing.example")
    facts = CallFacts("call_1", '"read"', "sha-256:abc", "0" * 32, "0" * 16)
    sent = [statement.for_call(facts, 1), *(statement.for_call(facts, 1, resend=n) for n in (0, 2))]
    assert [read_assertion(each).jti for each in sent] == ["call_1", "call_1", "call_1.r2"]


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
