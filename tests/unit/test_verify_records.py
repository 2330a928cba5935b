# SPDX-License-Identifier: Apache-2.0
"""Whether what the ledger holds is signed by whom it says, and says what was signed. Records are real, with one thing changed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from agent_identity import AgentIdentity, current_credential, tool
from agent_identity.delegation.grant import mint_root
from agent_identity.keys.signing import SigningKey
from agent_identity.provenance.records import CALL_INTENDED, GRANT_MADE, Record
from agent_identity.provenance.signatures import SignatureCheck
from agent_identity.values import b64url, unb64url

BILLING = "https://billing.example"
MAIL = "https://mail.example"
OTHER = SigningKey.generate()


@tool(resource=BILLING, scopes=["invoices:read"])
def read() -> None:
    current_credential()


@tool(resource=BILLING, scopes=["invoices:list"])
def listed() -> None:
    current_credential()


class Books:
    """A ledger with two calls of a sub-agent in it, and that agent's key."""

    def __init__(self, bot: AgentIdentity) -> None:
        with bot.on_behalf_of("user:alice", purpose="p") as session, session.delegate("sub") as sub:
            read()
            listed()
            self.key = sub._state.agent.key
            self.records = [*session.records(), *sub.records()]
        self._ledger = bot.ledger

    def of_kind(self, kind: str) -> list[Record]:
        return [record for record in self.records if record.kind == kind]

    def intent(self) -> Record:
        return self.of_kind(CALL_INTENDED)[0]

    def problem(self, record: Record) -> str | None:
        found = SignatureCheck(self._ledger)(record)
        return None if found is None else found.removeprefix("its signature is invalid: ")


@pytest.fixture
def books(bot: AgentIdentity) -> Books:
    return Books(bot)


def changed(record: Record, **body: Any) -> Record:
    return replace(record, body={**record.body, **body})


def asserting(
    intent: Record,
    key: SigningKey,
    claims: dict[str, Any],
    *,
    named: SigningKey | None = None,
    typ: str = "agent-assertion+jwt",
) -> Record:
    """The record with other claims in its assertion; None leaves one out, `named` is whose key the header carries."""
    assert intent.sealed is not None
    body = json.loads(unb64url(str(intent.sealed["assertion"]).split(".")[1])) | claims
    header = {"typ": typ, "alg": "ES256", "jwk": (named or key).public_jwk}
    text = json.dumps({name: value for name, value in body.items() if value is not None})
    compact = key.compact(b64url(json.dumps(header).encode()), text.encode())
    return replace(intent, sealed={"assertion": compact})


def test_each_record_agrees_with_what_was_signed(books: Books) -> None:
    assert len(books.of_kind(GRANT_MADE)) == 4
    assert len(books.of_kind(CALL_INTENDED)) == 2
    for record in books.records:
        assert books.problem(record) is None


def test_a_record_whose_subject_was_erased_holds_nothing_that_could_be_checked(
    books: Books,
) -> None:
    for record in books.records:
        assert books.problem(replace(record, sealed=None, erased=True)) is None


@pytest.mark.parametrize(
    ("change", "code"),
    [
        *(({name: "x"}, "grant_mismatch") for name in ("agent", "scope", "aud", "grant_hash")),
        *(({name: 7}, "grant_mismatch") for name in ("depth", "expires_at", "evidence")),
        ({"anchor": "https://other.example"}, "unknown_anchor"),
        ({"anchor_key": OTHER.public_jwk}, "unknown_key"),
        ({"anchor_key": None}, "key_missing"),
        ({"anchor": None}, "key_missing"),
    ],
)
def test_a_record_of_a_grant_says_what_the_grant_says(books: Books, change, code) -> None:
    for record in books.of_kind(GRANT_MADE):
        assert books.problem(changed(record, **change)) == code


def test_a_record_of_a_grant_holds_that_grant(books: Books) -> None:
    first, second = (r for r in books.of_kind(GRANT_MADE) if r.body["depth"] == 1)
    assert books.problem(replace(first, sealed=second.sealed)) == "grant_mismatch"
    assert books.problem(replace(first, ref=second.ref)) == "grant_mismatch"
    for sealed in ({}, {"chain": []}, {"chain": "x"}, {"chain": [1]}):
        assert books.problem(replace(first, sealed=sealed)) == "malformed_token"


def test_a_chain_on_record_is_checked_whole(books: Books) -> None:
    record = next(r for r in books.of_kind(GRANT_MADE) if r.body["depth"] == 1)
    assert record.sealed is not None
    leaf, root = record.sealed["chain"]
    other = [r for r in books.of_kind(GRANT_MADE) if r.body["depth"] == 0][-1]
    assert other.sealed is not None
    assert other.sealed["chain"] != [root]
    spliced = replace(record, sealed={"chain": [leaf, *other.sealed["chain"]]})
    assert books.problem(spliced) == "parent_mismatch"
    assert books.problem(replace(record, sealed={"chain": [leaf]})) == "depth_mismatch"


def test_a_chain_for_another_issuers_principal_is_taken_as_it_was_made(books: Books) -> None:
    """Whether its anchor may speak for that issuer is what a `TrustAnchor` says, and no ledger."""
    record = books.of_kind(GRANT_MADE)[0]
    now = int(record.at.timestamp())
    root = mint_root(
        OTHER,
        "k",
        iss="https://authority.example",
        principal_sub="alice",
        sub_iss="https://idp.example",
        sub_profile="user",
        agent="urn:agent-identity:agent:a",
        jkt=OTHER.thumbprint,
        aud=[BILLING],
        scopes=[],
        purpose="p",
        task=None,
        txn="ses_1",
        now=now,
        expires_at=now + 60,
        max_depth=0,
        evidence="issuer",
    )
    body = {"anchor": root.iss, "anchor_key": {**OTHER.public_jwk, "kid": "k"}}
    said = {"agent": root.agent, "depth": 0, "scope": [], "aud": sorted(root.aud)}
    said |= {"expires_at": root.exp, "grant_hash": root.hash(), "evidence": "issuer"}
    foreign = replace(record, ref=root.jti, body=body | said, sealed={"chain": [root.compact]})
    assert books.problem(foreign) is None


@pytest.mark.parametrize("name", ["tool", "resource", "agent", "txn", "depth", "grant_hash"])
def test_a_record_of_a_call_says_what_its_agent_signed(books: Books, name: str) -> None:
    assert books.problem(changed(books.intent(), **{name: "x"})) == "record_mismatch"


def test_a_record_of_a_call_holds_the_assertion_of_that_call(books: Books) -> None:
    first, second = books.of_kind(CALL_INTENDED)
    assert books.problem(replace(first, sealed=second.sealed)) == "record_mismatch"
    assert books.problem(replace(first, call_id=second.call_id)) == "record_mismatch"
    for sealed in ({}, {"assertion": None}, {"assertion": "x"}):
        assert books.problem(replace(first, sealed=sealed)) == "malformed_token"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"use": None}, "wrong_door"),
        ({"use": "send"}, "wrong_door"),
        ({"jti": "x"}, "wrong_door"),
        ({"iss": "x"}, "leaf_mismatch"),
        ({"sub": "bob"}, "leaf_mismatch"),
        ({"txn": "x"}, "leaf_mismatch"),
        ({"iat": 1}, "expired"),
        ({"iat": 2**52}, "expired"),
        ({"grant_hash": "x"}, "grant_unknown"),
    ],
)
def test_a_recorded_assertion_is_one_that_its_grant_allows(books: Books, claims, code) -> None:
    assert books.problem(asserting(books.intent(), books.key, claims)) == code


def test_a_recorded_assertion_is_of_the_time_of_its_grant_but_for_a_minute_between_clocks(
    books: Books,
) -> None:
    intent = books.intent()
    for grant in books.of_kind(GRANT_MADE):
        if grant.body["grant_hash"] == intent.body["grant_hash"]:
            assert grant.sealed is not None
            leaf = json.loads(unb64url(str(grant.sealed["chain"][0]).split(".")[1]))
    for iat in (leaf["iat"] - 60, leaf["exp"] + 59):
        assert books.problem(asserting(intent, books.key, {"iat": iat})) is None
    for iat in (leaf["iat"] - 61, leaf["exp"] + 60):
        assert books.problem(asserting(intent, books.key, {"iat": iat})) == "expired"


def test_a_recorded_assertion_names_a_resource_that_its_grant_reaches(books: Books) -> None:
    elsewhere = asserting(books.intent(), books.key, {"aud": MAIL})
    assert books.problem(changed(elsewhere, resource=MAIL)) == "audience_mismatch"


def test_a_recorded_assertion_is_signed_by_the_agent_of_its_grant(books: Books) -> None:
    assert books.problem(asserting(books.intent(), OTHER, {})) == "key_mismatch"
    assert books.problem(asserting(books.intent(), OTHER, {}, named=books.key)) == "bad_signature"
    assert books.problem(asserting(books.intent(), books.key, {}, typ="JWT")) == "wrong_typ"
