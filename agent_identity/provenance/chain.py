# SPDX-License-Identifier: Apache-2.0
"""One hash chain for each writer: how it grows, and whether what is kept is what it says.

A tail that was cut off, or a whole older file put back, doesn't show in a chain; it shows against a checkpoint kept
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

import orjson

from agent_identity.errors import LedgerError
from agent_identity.provenance.records import (
    ALIASES,
    Row,
    alias_of,
    encoded,
    read_record,
    seal_context,
    subject_of,
)
from agent_identity.values import b64url, new_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent_identity.flow import Draft
    from agent_identity.provenance.records import Record, Unseal
    from agent_identity.values import JSON

__all__ = [
    "GENESIS",
    "Chain",
    "Check",
    "FirstBad",
    "LedgerReport",
    "Seal",
    "broken_among",
    "link",
    "sealed_digest",
    "verify_rows",
]

Seal: TypeAlias = Callable[[bytes, bytes], bytes]

GENESIS: Final = bytes(32)
"""What stands in for the hash before a writer's first entry."""

_CHANGED: Final = "its bytes or its place in the chain were changed"
_MISSING: Final = "it is missing"


class Chain:
    """One writer's chain: makes the next entry, and moves on once that is committed."""

    __slots__ = ("head", "seq", "writer")

    def __init__(self, writer: str | None = None) -> None:
        self.writer: str = writer or new_id("wrt_")
        self.seq: int = 0
        self.head: bytes = GENESIS

    def next(self, draft: Draft, at: int, seal: Seal | None) -> Row:
        """The entry that `draft` becomes at `at` (Unix microseconds); the chain itself stays where it is.

        `seal` seals for the draft's subject; it is None where nothing is to be sealed.

        Raises:
            LedgerError: the draft has no canonical form.
        """
        kind, public, secret, pseudonym, session, call, trace, span, ref = draft
        seq = self.seq + 1
        sealed: bytes | None = None
        digest: str | None = None
        if secret is not None and seal is not None:
            context = seal_context(subject_of(draft), self.writer, seq)
            sealed = seal(encoded(kind, secret), context)
            digest = sealed_digest(sealed)
        body = encoded(
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
        own = sha256(self.head + body).digest()  # as `link` does, without its frame
        return Row(
            self.writer, seq, kind, session, call, trace, span, ref, alias, body, sealed, own
        )

    def advance(self, row: Row) -> None:
        """Take a committed entry as the new end."""
        self.seq, self.head = row.seq, row.hash


def link(previous: bytes, body: bytes) -> bytes:
    """The hash of an entry that follows the one with the hash `previous`."""
    return sha256(previous + body).digest()


def sealed_digest(sealed: bytes) -> str:
    """What the body says of its sealed part."""
    return "sha-256:" + b64url(sha256(sealed).digest())


class FirstBad(NamedTuple):
    """The first record, in the order of commits, that isn't what its chain says it must be."""

    writer: str
    seq: int
    reason: str


class LedgerReport(NamedTuple):
    """What a verification found: `records` read, `writers` whose chains they form, the first bad one if there is any."""

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
            "first_bad": None
            if bad is None
            else {"writer": bad.writer, "seq": bad.seq, "reason": bad.reason},
        }


class Check(Protocol):
    """Looks at the signatures in a record, and says what is wrong with them; None when nothing is."""

    def __call__(self, record: Record, /) -> str | None: ...


def verify_rows(rows: Iterable[Row], unseal: Unseal, check: Check | None) -> LedgerReport:
    """Recompute all chains, given every row in the order of commits.

    Raises:
        LedgerError: not even the first row can be read.
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
                bad = _fault(row, end, head)
                if bad is None and check is not None:
                    reason = check(read_record(row, unseal))
                    bad = None if reason is None else FirstBad(writer, seq, reason)
    except LedgerError as error:
        if last is None:
            raise
        bad = bad or FirstBad(last.writer, last.seq + 1, f"the file is damaged here: {error}")
    return LedgerReport(ok=bad is None, records=count, writers=len(ends), first_bad=bad)


def broken_among(
    records: Sequence[Record],
    row_at: Callable[[tuple[str, int]], Row | None],
    last_of: Callable[[str], int | None],
) -> FirstBad | None:
    """The first of some records that doesn't hold by itself, or whose link to a neighbour doesn't.

    `row_at` finds a row by writer and number, `last_of` the highest number of a writer.
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
        bad = _fault(row, seq - 1, head)
        if bad is not None:
            return bad
        after = row_at((writer, seq + 1))
        if after is None:
            if (last_of(writer) or 0) > seq:
                return FirstBad(writer, seq + 1, _MISSING)
        elif link(row.hash, after.body) != after.hash:
            return FirstBad(writer, seq + 1, _CHANGED)
    return None


def _fault(row: Row, end: int, head: bytes) -> FirstBad | None:
    """What is wrong with a row that should follow the one numbered `end` with the hash `head`."""
    if link(head, row.body) != row.hash:
        return _placement_fault(row, end)
    reason = _unlike_its_body(row, end + 1)
    return None if reason is None else FirstBad(row.writer, end + 1, reason)


def _placement_fault(row: Row, end: int) -> FirstBad:
    if row.seq > end + 1:
        return FirstBad(row.writer, end + 1, _MISSING)
    if 0 < row.seq <= end:
        return FirstBad(row.writer, row.seq, "it is there twice, or out of order")
    return FirstBad(row.writer, end + 1, _CHANGED)


def _unlike_its_body(row: Row, seq: int) -> str | None:
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
        return "it is no record of ours"
    if columns != row[:9] or row.seq != seq:
        return "a column that repeats its body was changed"
    if row.sealed is not None and digest != sealed_digest(row.sealed):
        return "its sealed part was changed"
    return None
