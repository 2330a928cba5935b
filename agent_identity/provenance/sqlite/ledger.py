# SPDX-License-Identifier: Apache-2.0
"""The embedded ledger: one SQLite file, to which several processes may write, and the files beside it.

ledger.db         every record once, append-only                 ledger-index.db   an index, rebuilt when needed
subjects.db       the subjects' keys, in the state directory     subjects.key      the key of subjects.db
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final, Self

from agent_identity.errors import ConfigurationError, LedgerError
from agent_identity.keys.private_files import make_private_directory
from agent_identity.provenance.chain import find_broken, verify_rows
from agent_identity.provenance.pseudonyms import SqliteShelf, Subjects, master_key
from agent_identity.provenance.records import (
    SESSION_OPENED,
    read_record,
    strip_round,
    subject_of,
)
from agent_identity.provenance.sqlite.database import open_database
from agent_identity.provenance.sqlite.lookup import Lookup
from agent_identity.provenance.sqlite.upkeep import Upkeep
from agent_identity.provenance.sqlite.writer import RECORDS_SCHEMA, Writer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from agent_identity.flow import Draft
    from agent_identity.provenance.chain import Check, FirstBad, LedgerReport, Seal
    from agent_identity.provenance.records import Record, Row
    from agent_identity.values import Principal

_VERSION: Final = 1
_PAGE_BYTES: Final = (
    2_048  # a commit writes whole pages; measured: the fewest bytes and calls for a record
)
_LONG_WAL: Final = 16_384  # pages
_UPKEEP_SECONDS: Final = 10.0
_CHECKPOINT_EVERY: Final = 4  # rounds of upkeep, when they follow one another closely
_log = logging.getLogger("agent_identity.provenance")


class SqliteLedger:
    """A ledger in a file that only its owner can read. Open it with `open_ledger`."""

    def __init__(
        self,
        path: Path,
        *,
        state_dir: Path,
        clock: Callable[[], float] = time.time,
        durability: str = "process",
    ) -> None:
        def connect(*, waits: bool) -> sqlite3.Connection:
            return open_database(
                path,
                schema=RECORDS_SCHEMA,
                version=_VERSION,
                durability=durability,
                page_size=_PAGE_BYTES,
                waits=waits,
            )

        def connect_writer() -> sqlite3.Connection:
            connection = connect(waits=False)
            connection.execute(
                "PRAGMA wal_autocheckpoint = 0"
            )  # upkeep does that, beside the calls
            return connection

        make_private_directory(state_dir)
        _check_folder(path.absolute().parent)
        self._clock = clock
        self._grouped = durability == "power"
        self._rounds_since_checkpoint, self._checkpoint_at = 0, time.monotonic()
        self._upkeep = Upkeep(self._do_upkeep, every=_UPKEEP_SECONDS)
        self._writer = Writer(path, connect_writer, clock=clock, due=self._upkeep.wake)
        self._lookup = Lookup(path, lambda: connect(waits=True))
        shelf = SqliteShelf(state_dir / "subjects.db", durability=durability)
        self.subjects: Subjects = Subjects(shelf, master_key(state_dir / "subjects.key"))

    @property
    def healthy(self) -> bool:
        return self._writer.healthy

    def append(self, draft: Draft, /) -> None:
        seal = self._seal_for(draft)
        if self._grouped:
            self._writer.commit_enqueued(self._writer.enqueue(draft, seal))
        else:
            self._writer.append(draft, seal)

    async def aappend(self, draft: Draft, /) -> None:
        # A commit to the page cache takes microseconds. One that must wait, for other writers or for the disk, runs in a thread.
        seal = self._seal_for(draft)
        if self._grouped or not self._writer.try_append(draft, seal):
            # Enqueued before anything is awaited, so that a cancelled call's outcome comes after its intent. Shielded, so that
            # no record is lost if the caller is cancelled while the thread pool is busy.
            waiting = self._writer.enqueue(draft, seal)
            await asyncio.shield(asyncio.to_thread(self._writer.commit_enqueued, waiting))

    def probe(self) -> None:
        self._writer.probe()

    def pseudonym(self, principal: Principal, /) -> str:
        return self.subjects.pseudonym(principal)

    def find(self, ref: str, /) -> list[Record]:
        self._writer.settle()
        rows = (
            self._lookup.by_ref(ref)
            or self._lookup.by_ref(strip_round(ref))
            or self._lookup.by_ref(strip_round(ref), indexed=False)  # the index may be damaged
        )
        return self._read(rows)

    def frame(self, ref: str, /) -> list[Record]:
        return self._read(self._lookup.by_ref(ref, calls=False))

    def session_records(self, session_id: str, /) -> list[Record]:
        self._writer.settle()
        rows = self._lookup.by_ref(session_id)
        return self._read(row for row in rows if row.session == session_id)

    def sessions(self) -> Iterator[Record]:
        unseal = self.subjects.make_unseal()
        for row in self._lookup.latest(SESSION_OPENED):
            yield read_record(row, unseal)

    def references(self, beginning: str, /, *, limit: int) -> list[str]:
        return self._lookup.references(beginning, limit)

    def records(self) -> Iterator[Record]:
        unseal = self.subjects.make_unseal()
        for row in self._lookup.all_rows():
            yield read_record(row, unseal)

    def is_live(self, writer: str, /) -> bool:
        return self._writer.is_own(writer) or self._clock() < self._lookup.lease_of(writer)

    def first_broken(self, records: Sequence[Record], /) -> FirstBad | None:
        own = {(record.writer, record.seq): record.row for record in records}
        beside = {(writer, seq + step) for writer, seq in own for step in (-1, 1)} - own.keys()
        rows = self._lookup.by_place(beside) | own
        lasts = self._lookup.last_places({record.writer for record in records})
        return find_broken(records, rows.get, lasts.get)

    def verify(self, check: Check | None = None, /) -> LedgerReport:
        return verify_rows(self._lookup.all_rows(), self.subjects.make_unseal(), check)

    def close(self) -> None:
        self._upkeep.stop()
        with contextlib.suppress(LedgerError):
            self._lookup.catch_up(for_seconds=_CLOSING_SECONDS)
        self._lookup.close()
        self._writer.close()  # last, since SQLite cleans up when the last connection is closed
        self.subjects.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _seal_for(self, draft: Draft) -> Seal | None:
        return None if draft.sealed is None else self.subjects.sealer(subject_of(draft)).seal

    def _read(self, rows: Iterable[Row]) -> list[Record]:
        unseal = self.subjects.make_unseal()
        return [read_record(row, unseal) for row in rows]

    def _do_upkeep(self) -> None:
        """Do the upkeep. A part that fails is repeated soon, and doesn't stop the others."""
        for work in (self._writer.renew, self._lookup.catch_up, self._checkpoint):
            try:
                work()
            except LedgerError as error:
                _log.debug("upkeep of the ledger: %s", error)

    def _checkpoint(self) -> None:
        """Move the -wal file into the ledger, but not often: it waits for the disk, which can delay appends."""
        self._rounds_since_checkpoint += 1
        now = time.monotonic()
        if (
            self._rounds_since_checkpoint < _CHECKPOINT_EVERY
            and now - self._checkpoint_at < _UPKEEP_SECONDS / 2
        ):
            return
        self._rounds_since_checkpoint, self._checkpoint_at = 0, now
        if self._lookup.checkpoint() > _LONG_WAL:
            self._writer.checkpoint()


_CLOSING_SECONDS: Final = 2.0


def _check_folder(folder: Path) -> None:
    """Make a ledger's folder with mode 0700, or check that other users can't write to the existing one."""
    if not folder.exists():
        make_private_directory(folder)
    elif folder.stat().st_mode & 0o022:
        raise ConfigurationError(
            "state_not_private",
            f"other users can write to {folder}",
            remedy="put the ledger into a folder of its own",
        )
