# SPDX-License-Identifier: Apache-2.0
"""Extends and verifies the hash chain of each writer.

A chain doesn't show that its end was cut off or that an older file was put back; a checkpoint that is kept elsewhere does.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

import orjson

from agent_identity import canonical
from agent_identity.errors import LedgerError
from agent_identity.provenance.records import (
    ALIASES,
    Row,
    alias_of,
    encode_record,
    read_record,
    seal_context,
    subject_of,
)
from agent_identity.values import new_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent_identity.flow import Draft
    from agent_identity.provenance.records import Record, Unseal
    from agent_identity.values import JSON

Seal: TypeAlias = Callable[[bytes, bytes], bytes]

GENESIS: Final = bytes(32)
"""The hash before a writer's first entry."""

_CHANGED: Final = "its bytes or its place in the chain were changed"
_MISSING: Final = "it is missing"


class Chain:
    """One writer's chain. `next` makes an entry, `advance` appends it once it is committed."""

    __slots__ = ("head", "seq", "writer")

    def __init__(self, writer: str | None = None) -> None:
        self.writer: str = writer or new_id("wrt_")
        self.seq: int = 0
        self.head: bytes = GENESIS

    def next(self, draft: Draft, at: int, seal: Seal | None) -> Row:
        """Make an entry of `draft` at `at` (Unix microseconds), without changing the chain.

        `seal` encrypts for the draft's subject; None if the draft has nothing to encrypt.

        Raises:
            LedgerError: the draft has no canonical form.
        """
        kind, public, secret, pseudonym, session, call, trace, span, ref = draft
        seq = self.seq + 1
        sealed: bytes | None = None
        digest: str | None = None
        if secret is not None and seal is not None:
            context = seal_context(subject_of(draft), self.writer, seq)
            sealed = seal(encode_record(kind, secret), context)
            digest = canonical.digest(sealed)
        body = encode_record(
            kind,
            {
                "at": at,
                "call": call,
                "kind": kind,
                "pseudonym": pseudonym,
                "public": public,
                "ref": ref,
                "sealed": digest,
                "seq": seq,
                "session": session,
                "span": span,
                "trace": trace,
                "writer": self.writer,
            },
        )
        alias = alias_of(kind, public) if kind in ALIASES else None
        own = sha256(self.head + body).digest()  # `hash_link`, without the cost of a call
        return Row(
            self.writer, seq, kind, session, call, trace, span, ref, alias, body, sealed, own
        )

    def advance(self, row: Row) -> None:
        """Make a committed entry the end of the chain."""
        self.seq, self.head = row.seq, row.hash


def hash_link(previous: bytes, body: bytes) -> bytes:
    """The hash of an entry that follows the one with the hash `previous`."""
    return sha256(previous + body).digest()


class FirstBad(NamedTuple):
    """The first record, in the order of commits, that doesn't match its chain."""

    writer: str
    seq: int
    reason: str


class LedgerReport(NamedTuple):
    """The result of a verification: the numbers of records and writers, and the first bad record if there is one."""

    ok: bool
    records: int
    writers: int
    first_bad: FirstBad | None
    checkpoint: dict[str, JSON] | None = None

    def to_dict(self) -> dict[str, JSON]:
        """The report as `agent-identity ledger verify --json` prints it."""
        bad = self.first_bad
        return {
            "ok": self.ok,
            "records": self.records,
            "writers": self.writers,
            "checkpoint": self.checkpoint,
            "first_bad": None if bad is None else bad._asdict(),
        }


class Check(Protocol):
    """Verifies the signatures in a record. Returns what is wrong with them, or None."""

    def __call__(self, record: Record, /) -> str | None: ...


def verify_rows(rows: Iterable[Row], unseal: Unseal, check: Check | None) -> LedgerReport:
    """Recompute all chains, given every row in the order of commits.

    Raises:
        LedgerError: the first row can't be read.
    """
    ends: dict[str, tuple[int, bytes]] = {}
    count = 0
    bad: FirstBad | None = None
    last: Row | None = None
    try:
        for row in rows:
            count += 1
            last = row
            writer, seq = row.writer, row.seq
            end, head = ends.get(writer, (0, GENESIS))
            ends[writer] = (seq, row.hash)
            if bad is None:
                bad = _find_fault(row, end, head)
                if bad is None and check is not None:
                    reason = check(read_record(row, unseal))
                    bad = None if reason is None else FirstBad(writer, seq, reason)
    except LedgerError as error:
        if last is None:
            raise
        bad = bad or FirstBad(last.writer, last.seq + 1, f"the file is damaged here: {error}")
    return LedgerReport(ok=bad is None, records=count, writers=len(ends), first_bad=bad)


def find_broken(
    records: Sequence[Record],
    row_at: Callable[[tuple[str, int]], Row | None],
    last_of: Callable[[str], int | None],
) -> FirstBad | None:
    """Find the first of some records that is wrong itself, or has a wrong link to a neighbour.

    `row_at` returns a row by writer and number, `last_of` the highest number of a writer.
    """
    for record in records:
        row = record.row
        writer, seq = record.writer, record.seq
        head = GENESIS
        if seq > 1:
            before = row_at((writer, seq - 1))
            if before is None:
                return FirstBad(writer, seq - 1, _MISSING)
            head = before.hash
        bad = _find_fault(row, seq - 1, head)
        if bad is not None:
            return bad
        after = row_at((writer, seq + 1))
        if after is None:
            if (last_of(writer) or 0) > seq:
                return FirstBad(writer, seq + 1, _MISSING)
        elif hash_link(row.hash, after.body) != after.hash:
            return FirstBad(writer, seq + 1, _CHANGED)
    return None


def _find_fault(row: Row, end: int, head: bytes) -> FirstBad | None:
    """The fault of a row that must follow the one with number `end` and hash `head`; None if it has none."""
    if hash_link(head, row.body) != row.hash:
        return _placement_fault(row, end)
    reason = _compare_with_body(row, end + 1)
    return None if reason is None else FirstBad(row.writer, end + 1, reason)


def _placement_fault(row: Row, end: int) -> FirstBad:
    if row.seq > end + 1:
        return FirstBad(row.writer, end + 1, _MISSING)
    if 0 < row.seq <= end:
        return FirstBad(row.writer, row.seq, "it is repeated, or out of order")
    return FirstBad(row.writer, end + 1, _CHANGED)


def _compare_with_body(row: Row, seq: int) -> str | None:
    try:
        entry = orjson.loads(row.body)
        digest = entry["sealed"]
        columns = (
            entry["writer"],
            entry["seq"],
            entry["kind"],
            entry["session"],
            entry["call"],
            entry["trace"],
            entry["span"],
            entry["ref"],
            alias_of(entry["kind"], entry["public"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return "it isn't a record of agent_identity"
    if columns != row[:9] or row.seq != seq:
        return "a column that repeats its body was changed"
    if row.sealed is not None and digest != canonical.digest(row.sealed):
        return "its sealed part was changed"
    return None
