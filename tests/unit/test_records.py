# SPDX-License-Identifier: Apache-2.0
"""What an entry's bytes are, how entries are chained, and how they read back."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import orjson
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from agent_identity.errors import LedgerError
from agent_identity.flow import Draft
from agent_identity.keys.sealing import Sealer
from agent_identity.provenance import records
from agent_identity.provenance.chain import GENESIS, Chain, verify_rows
from agent_identity.provenance.records import (
    CALL_INTENDED,
    CREDENTIAL_ACQUIRED,
    GRANT_MADE,
    SESSION_OPENED,
    encode_record,
    read_record,
    strip_round,
)

KEY = Sealer(bytes(32))
ASCII_KEYS = st.text(st.characters(max_codepoint=0x7E, min_codepoint=0x20), max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
BODIES = st.dictionaries(
    ASCII_KEYS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ASCII_KEYS, inner, max_size=4),
        max_leaves=12,
    ),
    max_size=6,
)


def draft(kind: str = CALL_INTENDED, *, sealed: dict | None = None, **public: object) -> Draft:
    return Draft(
        kind,
        public,
        sealed,
        pseudonym="psn_1",
        session_id="ses_1",
        call_id="call_1",
        trace_id="t" * 32,
        span_id="s" * 16,
        ref="tool-1",
    )


def unseal(pseudonym: str, sealed: bytes, context: bytes) -> bytes:
    return KEY.unseal(sealed, context)


def rows_of(*drafts: Draft) -> list:
    chain, rows = Chain("wrt_a"), []
    for number, one in enumerate(drafts):
        rows.append(chain.next(one, 1_700_000_000_000_000 + number, KEY.seal))
        chain.advance(rows[-1])
    return rows


@given(BODIES)
def test_the_encoding_is_rfc_8785_byte_for_byte(body: dict) -> None:
    """RFC 8785, held against an implementation that isn't ours."""
    assert encode_record(CALL_INTENDED, body) == rfc8785.dumps(body)


@given(BODIES)
def test_a_body_reads_back_as_it_was_written(body: dict) -> None:
    (row,) = rows_of(draft(CREDENTIAL_ACQUIRED)._replace(public=body))
    assert read_record(row, unseal).body == body


@pytest.mark.parametrize("value", [2**53, -(2**53), object(), {1, 2}, {1: "x"}, "\ud800", b"x"])
def test_what_has_no_canonical_form_is_refused_before_anything_is_written(value: object) -> None:
    chain = Chain()
    with pytest.raises(LedgerError) as caught:
        chain.next(draft(value=value), 0, None)
    assert caught.value.code == "record_malformed"
    assert (chain.seq, chain.head) == (0, GENESIS)


def test_the_hash_is_over_the_hash_before_and_the_body() -> None:
    first, second = rows_of(draft(), draft())
    assert first.hash == hashlib.sha256(bytes(32) + first.body).digest()
    assert second.hash == hashlib.sha256(first.hash + second.body).digest()


def test_the_body_holds_all_that_the_entry_is_found_by_and_nothing_sealed() -> None:
    (row,) = rows_of(draft(tool="pay", sealed={"assertion": "eyJ.canary.x"}))
    body = orjson.loads(row.body)
    assert body == {
        "at": 1_700_000_000_000_000,
        "writer": "wrt_a",
        "seq": 1,
        "kind": "call.intended",
        "session": "ses_1",
        "call": "call_1",
        "trace": "t" * 32,
        "span": "s" * 16,
        "ref": "tool-1",
        "pseudonym": "psn_1",
        "public": {"tool": "pay"},
        "sealed": body["sealed"],
    }
    assert b"canary" not in row.body
    assert b"canary" not in row.sealed


def test_the_chain_holds_without_the_ciphertext() -> None:
    first, second = rows_of(draft(sealed={"assertion": "a"}), draft())
    without = first._replace(sealed=None)
    assert verify_rows([without, second], unseal, None).ok
    assert read_record(without, unseal).erased


def test_a_sealed_part_opens_in_its_own_place_alone() -> None:
    first, second = rows_of(draft(sealed={"assertion": "a"}), draft(sealed={"assertion": "b"}))
    assert read_record(first, unseal).sealed == {"assertion": "a"}
    moved = read_record(second._replace(sealed=first.sealed), unseal)
    assert (moved.sealed, moved.erased) == (None, False)


def test_a_sealed_part_without_a_subject_is_refused() -> None:
    with pytest.raises(LedgerError) as caught:
        Chain().next(draft(sealed={"a": 1})._replace(pseudonym=None), 0, KEY.seal)
    assert caught.value.code == "record_malformed"


def test_an_entry_reads_back_with_its_time_in_utc() -> None:
    (row,) = rows_of(draft(tool="pay"))
    record = read_record(row, unseal)
    assert record.at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert (record.kind, record.call_id, record.session_id) == (CALL_INTENDED, "call_1", "ses_1")
    assert (record.writer, record.seq, record.body) == ("wrt_a", 1, {"tool": "pay"})


def test_as_json_an_intent_shows_its_assertion_and_rfc_3339_times() -> None:
    (row,) = rows_of(draft(tool="pay", sealed={"assertion": "eyJ.a.b", "approval": None}))
    entry = read_record(row, unseal).to_dict()
    assert entry["assertion"] == "eyJ.a.b"
    assert entry["at"] == "2023-11-14T22:13:20Z"
    assert (entry["tool"], entry["call_id"], entry["trace_id"]) == ("pay", "call_1", "t" * 32)


def test_as_json_an_expiry_is_a_time_and_nothing_else_that_was_sealed_shows() -> None:
    (row,) = rows_of(
        draft(SESSION_OPENED, expires_at=1_700_000_000, sealed={"sub": "alice", "trigger": None})
    )
    entry = read_record(row, unseal).to_dict()
    assert entry["expires_at"] == "2023-11-14T22:13:20Z"
    assert "alice" not in orjson.dumps(entry).decode()


def test_an_intent_whose_subject_is_gone_says_so() -> None:
    (row,) = rows_of(draft(sealed={"assertion": "eyJ.a.b"}))
    record = read_record(row, lambda *_: None)
    assert (record.erased, record.sealed) == (True, None)
    assert record.to_dict()["assertion"] is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"at": "x"}', b"\xff", b"null"])
def test_a_damaged_body_is_a_ledger_error(body: bytes) -> None:
    (row,) = rows_of(draft())
    with pytest.raises(LedgerError) as caught:
        read_record(row._replace(body=body), unseal)
    assert caught.value.code == "record_unreadable"


@pytest.mark.parametrize(
    ("ref", "plain"),
    [
        ("call_0a.1", "call_0a"),
        ("call_0a.12", "call_0a"),
        ("call_0a.r3", "call_0a"),
        ("call_0a", "call_0a"),
        ("call_0a.x3", "call_0a.x3"),
        ("grant_0a.1", "grant_0a.1"),
        ("call_a.b.1", "call_a.b.1"),
    ],
)
def test_the_jti_of_an_assertion_names_its_call(ref: str, plain: str) -> None:
    assert strip_round(ref) == plain


def test_sessions_are_found_by_transaction_and_grants_by_hash() -> None:
    opened, made, other = rows_of(
        draft(SESSION_OPENED, txn="ses_0"),
        draft(GRANT_MADE, grant_hash="h"),
        draft(txn="ses_0", grant_hash="h"),
    )
    assert (opened.alias, made.alias, other.alias) == ("ses_0", "h", None)


def test_the_kinds_are_those_that_readers_of_ledgers_know() -> None:
    kinds = {
        value for name, value in vars(records).items() if name.isupper() and type(value) is str
    }
    assert kinds == {
        *("session.opened", "session.closed", "grant.made", "credential.acquired"),
        *("credential.decided", "credential.refused", "credential.stepped_up"),
        *("credential.revoked", "agent.registered", "revocation.made", "revocation.lifted"),
        "tool.pinned",
        *("call.intended", "call.denied"),
        *("call.completed", "call.failed", "call.cancelled", "call.unknown"),
    }


def damaged(rows: list, place: int, how: str) -> list:
    row = rows[place]
    if how == "delete":
        return rows[:place] + rows[place + 1 :]
    if how == "insert":
        return [*rows[: place + 1], row, *rows[place + 1 :]]
    if how == "swap":
        return [*rows[:place], rows[place + 1], row, *rows[place + 2 :]]
    field, bit = how.split("-")
    value = bytearray(getattr(row, field))
    value[int(bit) % len(value)] ^= 1
    return [*rows[:place], row._replace(**{field: bytes(value)}), *rows[place + 1 :]]


FLIPS = st.builds("{}-{}".format, st.sampled_from(["body", "hash", "sealed"]), st.integers(0, 2000))


@given(st.integers(0, 6), FLIPS | st.sampled_from(["delete", "insert", "swap"]))
def test_any_edit_is_found_and_the_first_bad_record_named(place: int, how: str) -> None:
    """Ours: any single edit inside a chain of eight, named by its place."""
    rows = rows_of(*(draft(number=n, sealed={"assertion": "a"}) for n in range(8)))
    report = verify_rows(damaged(rows, place, how), unseal, None)
    assert not report.ok
    assert (report.first_bad.writer, report.first_bad.seq) == ("wrt_a", place + 1)


@pytest.mark.parametrize("column", ["kind", "session", "call", "trace", "span", "ref", "alias"])
def test_a_column_that_no_longer_repeats_its_body_is_found(column: str) -> None:
    first, second = rows_of(draft(), draft())
    report = verify_rows([first, second._replace(**{column: "other"})], unseal, None)
    assert report.first_bad.seq == 2
    assert "column" in report.first_bad.reason


def test_chains_of_several_writers_may_be_interleaved() -> None:
    one, other = Chain("wrt_1"), Chain("wrt_2")
    rows = []
    for chain in (one, other, other, one):
        rows.append(chain.next(draft(), 0, None))
        chain.advance(rows[-1])
    report = verify_rows(rows, unseal, None)
    assert report.to_dict() == {
        "ok": True,
        "records": 4,
        "writers": 2,
        "checkpoint": None,
        "first_bad": None,
    }


def test_a_check_of_signatures_names_the_record_that_it_refuses() -> None:
    rows = rows_of(draft(number=1), draft(number=2), draft(number=3))
    report = verify_rows(
        rows, unseal, lambda record: "its signature" if record.body["number"] == 2 else None
    )
    assert report.to_dict()["first_bad"] == {
        "writer": "wrt_a",
        "seq": 2,
        "reason": "its signature",
    }
