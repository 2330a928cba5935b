# SPDX-License-Identifier: Apache-2.0
"""A ledger in memory: the same records, hashed and sealed alike, gone with the process that made them.

It grows with every call and is never trimmed, since a trimmed ledger proves nothing. Use it in tests and short runs.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final, Self

from agent_identity.errors import LedgerError
from agent_identity.provenance.chain import broken_among, verify_rows
from agent_identity.provenance.records import Chain, Row, read_record, without_round
from agent_identity.provenance.subjects import MemoryShelf, Subjects
from agent_identity.sealing import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from agent_identity.flow import Draft
    from agent_identity.provenance.chain import Check, FirstBad, LedgerReport
    from agent_identity.provenance.records import Record
    from agent_identity.values import Principal

__all__ = ["MemoryLedger"]

_LEASE_SECONDS: Final = 30.0


class MemoryLedger:
    """The ledger of one process, without a file. A forked child has a copy of it, and a chain of its own.

    An entry is taken in its encoded form, and sealed and chained when somebody first looks: whoever could change it in
    between could change the chain as well.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.subjects = Subjects(MemoryShelf(before_removal=self._settle), os.urandom(KEY_BYTES))
        self.healthy = True
        self._clock = clock
        self._taken: deque[tuple[Any, ...]] = deque()
        self._lock = threading.Lock()  # guards what follows
        self._chain = Chain()
        self._rows: list[Row] = []
        self._places: dict[str, list[int]] = {}
        self._forked_from: dict[str, float] = {}
        self._closed = False
        _ledgers.add(self)

    def append(self, draft: Draft, /) -> None:
        if self._closed:
            self.probe()
        kind, pseudonym, session, call, trace, span, ref, public, sealed = draft
        try:
            encoded = dumps(public)
            secret = None if sealed is None else dumps(sealed)
        except TypeError as error:
            raise malformed(kind) from error
        at = int(self._clock() * 1_000_000)
        # only values that the garbage collector needn't follow, and one atomic step, so that no lock is needed
        self._taken.append((at, kind, pseudonym, session, call, trace, span, ref, encoded, secret))

    async def aappend(self, draft: Draft, /) -> None:
        self.append(draft)

    def probe(self) -> None:
        if self._closed:
            raise LedgerError("ledger_closed", "the ledger was closed")

    def pseudonym(self, principal: Principal, /) -> str:
        return self.subjects.pseudonym(principal)

    def find(self, ref: str, /) -> list[Record]:
        return self._read(self._rows_of(ref) or self._rows_of(without_round(ref)))

    def frame(self, ref: str, /) -> list[Record]:
        return self._read(row for row in self._rows_of(ref) if not row.kind.startswith("call."))

    def session_records(self, session_id: str, /) -> list[Record]:
        return self._read(row for row in self._rows_of(session_id) if row.session == session_id)

    def records(self) -> Iterator[Record]:
        yield from self._read(tuple(self._rows))

    def is_live(self, writer: str, /) -> bool:
        if writer == self._chain.writer:
            return not self._closed
        return self._clock() < self._forked_from.get(writer, 0.0)

    def first_broken(self, records: Sequence[Record], /) -> FirstBad | None:
        rows = {(row.writer, row.seq): row for row in tuple(self._rows)}
        return broken_among(records, rows.get)

    def verify(self, check: Check | None = None, /) -> LedgerReport:
        return verify_rows(tuple(self._rows), self.subjects.reading(), check)

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()

    def _rows_of(self, ref: str) -> list[Row]:
        with self._lock:
            for place in range(self._placed, len(self._rows)):
                for found in {found for found in self._rows[place].references if found is not None}:
                    self._places.setdefault(found, []).append(place)
            self._placed = len(self._rows)
            return [self._rows[place] for place in self._places.get(ref, ())]

    def _read(self, rows: Iterable[Row]) -> list[Record]:
        unseal = self.subjects.reading()
        return [read_record(row, unseal) for row in rows]

    def _in_child(self) -> None:
        self._lock = threading.Lock()
        self._forked_from[self._chain.writer] = self._clock() + _LEASE_SECONDS
        self._chain = Chain()
        self._places, self._placed = {}, 0


_ledgers: weakref.WeakSet[MemoryLedger] = weakref.WeakSet()


def _in_child() -> None:
    for ledger in list(_ledgers):
        ledger._in_child()  # noqa: SLF001 - the hook of this very class


os.register_at_fork(after_in_child=_in_child)
