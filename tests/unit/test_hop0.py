# SPDX-License-Identifier: Apache-2.0
"""Hop 0, played by hand: a grant for anything but what was asked for is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import pytest

from agent_identity.credentials.agent import Agent
from agent_identity.credentials.oauth.client import Client, PrivateKeyJwt
from agent_identity.credentials.oauth.metadata import Endpoints
from agent_identity.credentials.oauth.token_types import JWT
from agent_identity.credentials.root_grants import GRANT, IssuedGrants, RootWanted
from agent_identity.credentials.source import SubjectToken
from agent_identity.delegation.grant import Grant, mint_child, mint_root
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Ask, HttpResponse, pure
from agent_identity.keys.signing import SigningKey, public_signing_jwk
from agent_identity.testing import KnownIssuer, assert_no_leak, play
from agent_identity.values import Principal, Secret

NOW = 1_795_518_000
BILLING = "https://billing.example"
AGENT = Agent("urn:agent-identity:agent:invoice-bot")
ANCHOR = SigningKey.generate()
ENDPOINTS = Endpoints(
    "https://idp.example", "https://idp.example/token", None, None, None, None, NOW, NOW + 300
)
JSON_TYPE = {"content-type": "application/json"}
JWKS = "https://idp.example/jwks"


def minted(key: SigningKey = ANCHOR, **changes: Any) -> Grant:
    parts: dict[str, Any] = {
        "iss": "https://idp.example",
        "principal_sub": "alice",
        "sub_iss": "https://idp.example",
        "sub_profile": "user",
        "agent": AGENT.uri,
        "jkt": AGENT.key.thumbprint,
        "aud": [BILLING],
        "scopes": ["invoices:read"],
        "purpose": "close the books",
        "task": None,
        "txn": "ses_1",
        "now": NOW,
        "expires_at": NOW + 900,
        "max_depth": 3,
        "evidence": "issuer",
    }
    return mint_root(key, changes.pop("kid", ANCHOR.thumbprint), **(parts | changes))


class Subject:
    def token(self, issuer: Any, types: Any, /) -> Any:
        return pure(SubjectToken(Secret("the-subject-token"), JWT))


def ask(compact: str, asks: list[Ask] | None = None, *, looks: int = 1, **changes: Any) -> Grant:
    evidence = changes.pop("evidence", "issuer")
    members: dict[str, Any] = {
        "access_token": compact,
        "issued_token_type": GRANT,
        "token_type": "N_A",
        "expires_in": 900,
        "scope": "invoices:read",
    } | changes
    document = {name: value for name, value in members.items() if value is not None}
    answer = HttpResponse(200, JSON_TYPE, json.dumps(document).encode())
    keys = {"keys": [public_signing_jwk(ANCHOR)]}
    published = HttpResponse(200, JSON_TYPE, json.dumps(keys).encode())
    client = Client("client-1", PrivateKeyJwt(SigningKey.generate()))
    wanted = RootWanted(
        principal=Principal("alice"),
        subject=Subject(),
        agent=AGENT.uri,
        resources=frozenset({BILLING}),
        scopes=frozenset({"invoices:read"}),
        purpose="close the books",
        task="the first task",
        txn="ses_1",
        max_depth=3,
        lifetime=900,
        evidence=evidence,
        proof_key=AGENT.proof_key,
    )
    issuer = KnownIssuer(replace(ENDPOINTS, jwks=JWKS), client, clock=lambda: NOW)
    flow = IssuedGrants(issuer).grant(wanted)
    return play(flow, answer, *[published] * looks, asks=asks)


def test_the_grant_that_was_asked_for_is_taken_as_it_came() -> None:
    grant = minted()
    asks: list[Any] = []
    assert ask(grant.compact, asks).compact == grant.compact
    form = {name: values[0] for name, values in parse_qs(asks[0].body.decode()).items()}
    assert form["requested_token_type"] == GRANT
    assert (form["purpose"], form["task"], form["max_depth"]) == (
        *("close the books", "the first task", "3"),
    )


CHILD = mint_child(
    AGENT.key,
    minted(),
    agent="urn:agent-identity:agent:sub",
    jkt=AGENT.key.thumbprint,
    aud=[BILLING],
    scopes=["invoices:read"],
    task=None,
    now=NOW,
    expires_at=NOW + 60,
)


@pytest.mark.parametrize(
    "grant",
    [
        minted(jkt=SigningKey.generate().thumbprint),
        minted(txn="ses_2"),
        minted(scopes=["invoices:read", "invoices:pay"]),
        minted(aud=["https://mail.example"]),
        minted(purpose="something else"),
        minted(principal_sub="bob"),
        minted(sub_profile="service"),
        minted(agent="urn:agent-identity:agent:other"),
        minted(expires_at=NOW + 900 + 61),
        minted(sub_iss="https://other.example"),
        minted(iss="https://mallory.example"),
        minted(aud=[BILLING, "https://mail.example"]),
        minted(max_depth=4),
    ],
    ids=[
        *("another key", "another session", "wider", "elsewhere", "another purpose"),
        *("another principal", "another kind", "another agent", "longer"),
        *("of another issuer", "by another anchor", "further", "deeper"),
    ],
)
def test_a_grant_for_something_else_is_refused(grant: Grant) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        ask(grant.compact)
    assert caught.value.code == "grant_mismatch"


def test_a_grant_that_claims_more_evidence_than_there_is_is_refused() -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        ask(minted().compact, evidence="agent")
    assert caught.value.code == "grant_mismatch"
    assert ask(minted(evidence="agent").compact).evidence == "agent"


def test_a_grant_may_be_narrower() -> None:
    assert ask(minted(max_depth=1, scopes=[]).compact, scope=None).max_depth == 1


FORGER = SigningKey.generate()


@pytest.mark.parametrize(
    ("compact", "looks", "code"),
    [
        (minted(FORGER).compact, 1, "malformed_grant"),
        (minted().compact[:-8] + "AAAAAAAA", 1, "malformed_grant"),
        (minted(FORGER, kid=FORGER.thumbprint).compact, 2, "unknown_key"),
        (CHILD.compact, 2, "unknown_key"),
    ],
    ids=["another's", "changed", "of a key of nobody", "no root"],
)
def test_a_grant_that_the_anchor_did_not_sign_is_refused(
    compact: str, looks: int, code: str
) -> None:
    """An unknown key is looked for once more: the anchor may have a new one."""
    with pytest.raises(CredentialRejectedError) as caught:
        ask(compact, looks=looks)
    assert caught.value.code == code
    assert_no_leak([compact], caught.value)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"issued_token_type": "urn:ietf:params:oauth:token-type:jwt"}, "wrong_token_type"),
        ({"token_type": "DPoP"}, "wrong_token_type"),
        ({"scope": "invoices:read invoices:pay"}, "scope_widened"),
    ],
)
def test_an_answer_that_calls_it_something_else_is_refused(change: Any, code: str) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        ask(minted().compact, looks=0, **change)
    assert caught.value.code == code
