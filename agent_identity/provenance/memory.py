# SPDX-License-Identifier: Apache-2.0
"""A ledger in memory. Its records are sealed and chained like those in a file, and end with the process.

It grows with every call and is never trimmed, since a trimmed ledger proves nothing. Use it in tests and short runs.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import orjson

from agent_identity.errors import LedgerError
from agent_identity.flow import Draft
from agent_identity.forks import StillLock
from agent_identity.keys.sealing import KEY_BYTES
from agent_identity.provenance.chain import Chain, find_broken, verify_rows
from agent_identity.provenance.pseudonyms import MemoryShelf, Subjects
from agent_identity.provenance.records import (
    SESSION_OPENED,
    Row,
    encode_record,
    read_record,
    strip_round,
    subject_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from agent_identity.provenance.chain import Check, FirstBad, LedgerReport, Seal
    from agent_identity.provenance.records import Record
    from agent_identity.values import Principal

_LEASE_SECONDS: Final = 30.0
_Text: TypeAlias = "str | None"
_Pending: TypeAlias = tuple[int, str, _Text, _Text, _Text, _Text, _Text, _Text, bytes, bytes | None]
"""Time, kind, pseudonym, session, call, trace, span, reference, body, and what is to be sealed."""


class MemoryLedger(StillLock):
    """The ledger of one process, without a file. A forked child has a copy of it, and a chain of its own.

    A draft is encoded at once, but sealed and chained only when the ledger is read: code that could change it until then could
    also change the chain.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        shelf = MemoryShelf(before_removal=self._chain_pending)
        self.subjects: Subjects = Subjects(shelf, os.urandom(KEY_BYTES))
        self._clock = clock
        self._pending: deque[_Pending] = deque()
        # the lock guards what follows
        self._chain = Chain()
        self._rows: list[Row] = []
        self._places: dict[str, list[int]] = {}
        self._starts: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._forked_from: dict[str, float] = {}
        self._closed = False

    @property
    def healthy(self) -> bool:
        return not self._closed

    def append(self, draft: Draft, /) -> None:
        if self._closed:
            self.probe()
        kind, public, secret, pseudonym, session, call, trace, span, ref = draft
        # copied, since the bytes from orjson keep a larger buffer
        body = b"%b" % encode_record(kind, public)
        sealed = None
        if secret is not None:
            sealed = b"%b" % encode_record(kind, secret)
            self.subjects.sealer(subject_of(draft))  # raises if the subject was erased
        at = int(self._clock() * 1_000_000)
        # atomic, so that no lock is needed; plain values, which the garbage collector doesn't track
        self._pending.append((at, kind, pseudonym, session, call, trace, span, ref, body, sealed))

    async def aappend(self, draft: Draft, /) -> None:
        self.append(draft)

    def probe(self) -> None:
        if self._closed:
            raise LedgerError("ledger_closed", "the ledger was closed")

    def pseudonym(self, principal: Principal, /) -> str:
        return self.subjects.pseudonym(principal)

    def find(self, ref: str, /) -> list[Record]:
        return self._read(self._rows_of(ref) or self._rows_of(strip_round(ref)))

    def frame(self, ref: str, /) -> list[Record]:
        return self._read(row for row in self._rows_of(ref) if not row.kind.startswith("call."))

    def session_records(self, session_id: str, /) -> list[Record]:
        return self._read(row for row in self._rows_of(session_id) if row.session == session_id)

    def sessions(self) -> Iterator[Record]:
        rows = (row for row in reversed(self._all_rows()) if row.kind == SESSION_OPENED)
        unseal = self.subjects.make_unseal()
        return (read_record(row, unseal) for row in rows)

    def references(self, beginning: str, /, *, limit: int) -> list[str]:
        self._chain_pending()
        return sorted(ref for ref in tuple(self._places) if ref.startswith(beginning))[:limit]

    def records(self) -> Iterator[Record]:
        unseal = self.subjects.make_unseal()
        return (read_record(row, unseal) for row in self._all_rows())

    def is_live(self, writer: str, /) -> bool:
        if writer == self._chain.writer:
            return not self._closed
        return self._clock() < self._forked_from.get(writer, 0.0)

    def first_broken(self, records: Sequence[Record], /) -> FirstBad | None:
        self._chain_pending()
        return find_broken(records, self._row_at, self._ends.get)

    def verify(self, check: Check | None = None, /) -> LedgerReport:
        return verify_rows(self._all_rows(), self.subjects.make_unseal(), check)

    def close(self) -> None:
        self._closed = True

    def before_fork(self) -> None:
        """Chain the pending drafts under this process's name, and keep the lock."""
        self._chain_pending()
        super().before_fork()

    def after_fork_in_child(self) -> None:
        """Continue as a new writer. Drafts that are still pending belong to the parent."""
        super().after_fork_in_child()
        self._pending.clear()
        self._forked_from[self._chain.writer] = self._clock() + _LEASE_SECONDS
        self._chain = Chain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _chain_pending(self) -> None:
        """Seal and chain the drafts that are pending now. Other threads may append more in the meantime."""
        with self.lock:
            for _ in range(len(self._pending)):
                at, kind, pseudonym, session, call, trace, span, ref, body, sealed = (
                    self._pending.popleft()
                )
                public = orjson.loads(body)
                secret = None if sealed is None else orjson.loads(sealed)
                draft = Draft(kind, public, secret, pseudonym, session, call, trace, span, ref)
                row = self._chain.next(draft, at, self._seal_for(draft))
                self._starts.setdefault(row.writer, len(self._rows))
                for ref in {ref for ref in row.references if ref is not None}:
                    self._places.setdefault(ref, []).append(len(self._rows))
                self._rows.append(row)
                self._ends[row.writer] = row.seq
                self._chain.advance(row)

    def _seal_for(self, draft: Draft) -> Seal | None:
        if draft.sealed is None:
            return None
        try:
            return self.subjects.sealer(subject_of(draft)).seal
        except LedgerError:  # erased in the meantime
            return None

    def _all_rows(self) -> tuple[Row, ...]:
        self._chain_pending()
        return tuple(self._rows)

    def _rows_of(self, ref: str) -> list[Row]:
        self._chain_pending()
        return [self._rows[place] for place in tuple(self._places.get(ref, ()))]

    def _row_at(self, place: tuple[str, int]) -> Row | None:
        writer, seq = place
        start = self._starts.get(writer, len(self._rows))
        rows = self._rows[start + seq - 1 : start + seq]
        return rows[0] if rows and rows[0].writer == writer else None

    def _read(self, rows: Iterable[Row]) -> list[Record]:
        unseal = self.subjects.make_unseal()
        return [read_record(row, unseal) for row in rows]
