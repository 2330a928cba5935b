# SPDX-License-Identifier: Apache-2.0
"""Finds records in a SQLite ledger, as fast among a million as among ten thousand.

The ledger's own table has no index, so that a commit writes little. The index is in a second file beside it, which is filled in
the background, and rebuilt if it is missing or belongs to another ledger. A query reads the index, and then scans the records
that aren't in it yet.
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from agent_identity.errors import LedgerError
from agent_identity.provenance.records import Row
from agent_identity.provenance.sqlite.database import ledger_error, open_database
from agent_identity.storage.sqlite import Database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_STEP: Final = 1_024  # records indexed in one transaction
_TAIL: Final = 64  # records that a query may scan
_READER_SECONDS: Final = 2.0
_PAGE: Final = 1_000  # records read at a time
_PAIRS: Final = 200  # places in one query

_SCHEMA: Final = """
CREATE TABLE refs (
    ref TEXT NOT NULL, of_call INTEGER NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (ref, of_call, id)
) WITHOUT ROWID;
CREATE TABLE places (
    writer INTEGER NOT NULL, seq INTEGER NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (writer, seq, id)
) WITHOUT ROWID;
CREATE TABLE mark (id INTEGER NOT NULL, hash BLOB NOT NULL);
INSERT INTO mark VALUES (0, x'')
"""

_REFERENCES: Final = ("session", "call", "trace", "span", "ref", "alias")
_ONE_REFERENCE: Final = """
SELECT {0}, kind LIKE 'call.%', id FROM ledger.records WHERE id > :after AND id <= :last AND {0} IS NOT NULL
"""
_INTO_REFS: Final = "INSERT OR IGNORE INTO refs" + "UNION".join(
    map(_ONE_REFERENCE.format, _REFERENCES)
)
_INTO_PLACES: Final = """
INSERT OR IGNORE INTO places
SELECT writer, seq, id FROM ledger.records WHERE id > :after AND id <= :last
"""
# cast, since a manipulated file may have values of other types
_COLUMNS: Final = """
SELECT coalesce(w.name, ''), coalesce(CAST(r.seq AS INTEGER), 0),
       r.kind, r.session, r.call, r.trace, r.span, r.ref, r.alias,
       coalesce(CAST(r.body AS BLOB), x''), CAST(r.sealed AS BLOB), coalesce(CAST(r.hash AS BLOB), x'')
"""
_ROWS: Final = f"{_COLUMNS} FROM main.records r LEFT JOIN main.writers w ON w.id = r.writer"
_PAGE_END: Final = (
    "SELECT max(id) FROM (SELECT id FROM main.records WHERE id > ? ORDER BY id LIMIT ?)"
)
_PAGE_ROWS: Final = f"{_ROWS} WHERE r.id > ? AND r.id <= ? ORDER BY r.id"
_BY_REF: Final = f"""
{_ROWS} WHERE r.id IN (
    SELECT id FROM found.refs WHERE ref = :ref AND of_call IN ({{calls}})
    UNION
    SELECT id FROM main.records
    WHERE id > :mark AND :ref IN (session, call, trace, span, ref, alias) AND (kind LIKE 'call.%') IN ({{calls}})
) ORDER BY r.id
"""  # noqa: S608 - constants only
_BY_PLACE: Final = f"""
WITH wanted(name, seq) AS (VALUES {{pairs}}),
     place(writer, seq) AS (SELECT w.id, wanted.seq FROM wanted JOIN main.writers w ON w.name = wanted.name)
{_ROWS} WHERE r.id IN (
    SELECT p.id FROM place JOIN found.places p ON p.writer = place.writer AND p.seq = place.seq
    UNION
    SELECT id FROM main.records WHERE id > ? AND (writer, seq) IN (SELECT writer, seq FROM place)
)
"""  # noqa: S608 - constants only


_REFERENCES_FROM: Final = """
SELECT DISTINCT ref FROM found.refs WHERE ref >= :beginning AND ref < :end ORDER BY ref LIMIT :limit
"""
_REFERENCES_OF_TAIL: Final = "UNION".join(
    f" SELECT {name} FROM main.records WHERE id > :mark AND {name} >= :beginning AND {name} < :end "  # noqa: S608 - constants only
    for name in _REFERENCES
)
_LATEST: Final = f"{_COLUMNS}, r.id FROM main.records r LEFT JOIN main.writers w ON w.id = r.writer"


class Lookup:
    """The reading side of one ledger file, and the index beside it."""

    def __init__(self, path: Path, connect: Callable[[], sqlite3.Connection]) -> None:
        self._path = path
        self._unreadable = f"{path} can't be read"
        index = path.with_name(f"{path.stem}-index.db")

        def connect_index() -> sqlite3.Connection:
            database = open_database(index, schema=_SCHEMA, version=1, durability="process")
            # read-only, so that a transaction on the index never takes the ledger's own write lock
            database.execute("ATTACH ? AS ledger", (f"{path.absolute().as_uri()}?mode=ro",))
            return database

        def connect_reader() -> sqlite3.Connection:
            database = connect()
            database.execute("ATTACH ? AS found", (f"{index.absolute().as_uri()}?mode=rw",))
            database.execute("PRAGMA main.cache_size = -8192")
            database.execute("PRAGMA found.cache_size = -8192")
            database.execute("PRAGMA query_only = ON")
            return database

        self.index: Database = Database(connect_index, ledger_error)
        self.reader: Database = Database(
            connect_reader, partial(ledger_error, otherwise="ledger_unreadable")
        )
        self.mover: Database = Database(
            connect, ledger_error
        )  # of its own, since it waits for the disk
        for database in (self.index, self.reader):
            with database.lock, database.reading(self._unreadable):
                """Open them, so that a damaged file is reported at the start."""

    def by_ref(self, ref: str, *, calls: bool = True, indexed: bool = True) -> list[Row]:
        """Rows with a reference; `calls=False` leaves out those about calls, `indexed=False` scans all rows."""
        query = _BY_REF.format(calls="0, 1" if calls else "0")
        self._shorten_tail()
        with self.reader.lock, self.reader.reading(self._unreadable) as database:
            mark = _mark(database) if indexed else 0
            rows = database.execute(query, {"ref": ref, "mark": mark}).fetchall()
        return [row for row in map(Row._make, rows) if ref in row.references]

    def by_place(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Row]:
        """The existing rows with these writers and numbers."""
        wanted = list(places)
        rows: dict[tuple[str, int], Row] = {}
        self._shorten_tail()
        with self.reader.lock, self.reader.reading(self._unreadable) as database:
            mark = _mark(database)
            for start in range(0, len(wanted), _PAIRS):
                pairs = wanted[start : start + _PAIRS]
                query = _BY_PLACE.format(pairs=", ".join(["(?, ?)"] * len(pairs)))
                values = [value for pair in pairs for value in pair]
                for columns in database.execute(query, (*values, mark)):
                    row = Row._make(columns)
                    rows[row.writer, row.seq] = row
        return rows

    def last_places(self, writers: Iterable[str]) -> dict[str, int]:
        """The highest number of some writers."""
        query = """
            SELECT max(coalesce((SELECT max(seq) FROM found.places WHERE writer = w.id), 0),
                       coalesce((SELECT max(seq) FROM main.records WHERE id > ? AND writer = w.id), 0))
            FROM main.writers w WHERE name = ?
        """
        lasts: dict[str, int] = {}
        with self.reader.lock, self.reader.reading(self._unreadable) as database:
            mark = _mark(database)
            for writer in writers:
                for (last,) in database.execute(query, (mark, writer)):
                    lasts[writer] = last
        return lasts

    def all_rows(self) -> Iterator[Row]:
        """Every row, in the order of commits, including those that are appended in the meantime."""
        after = 0
        failure: LedgerError | None = None
        while failure is None:
            page: list[Row] = []
            try:
                with self.reader.lock, self.reader.reading(self._unreadable) as database:
                    (last,) = database.execute(_PAGE_END, (after, _PAGE)).fetchone()
                    for columns in database.execute(_PAGE_ROWS, (after, last)):
                        page.append(Row._make(columns))  # noqa: PERF401 - what precedes damage is kept
                    after = last
            except LedgerError as error:
                failure = error
            if not page:
                break
            yield from page
        if failure is not None:
            raise failure

    def references(self, beginning: str, limit: int) -> list[str]:
        """References with a prefix, in alphabetical order, at most `limit`."""
        self._shorten_tail()
        with self.reader.lock, self.reader.reading(self._unreadable) as database:
            parameters: dict[str, str | int] = {
                "beginning": beginning,
                "end": f"{beginning}\U0010ffff",
                "limit": limit,
            }
            parameters["mark"] = _mark(database)
            rows = database.execute(_REFERENCES_FROM, parameters).fetchall()
            rows += database.execute(_REFERENCES_OF_TAIL, parameters)
        return sorted({str(ref) for (ref,) in rows})[:limit]

    def latest(self, kind: str) -> Iterator[Row]:
        """The rows of a kind, newest first."""
        query = f"{_LATEST} WHERE r.kind = ? AND r.id < ? ORDER BY r.id DESC LIMIT ?"
        before = 2**63 - 1
        while True:
            with self.reader.lock, self.reader.reading(self._unreadable) as database:
                page = database.execute(query, (kind, before, _PAGE)).fetchall()
            if not page:
                return
            for *columns, _ in page:
                yield Row._make(columns)
            before = page[-1][-1]

    def lease_of(self, writer: str) -> float:
        """The end of a writer's lease, in Unix seconds; 0 for a closed or unknown writer."""
        with self.reader.lock, self.reader.reading(self._unreadable) as database:
            query = "SELECT lease_until FROM main.writers WHERE name = ?"
            row = database.execute(query, (writer,)).fetchone()
        return 0.0 if row is None else float(row[0])

    def catch_up(self, *, for_seconds: float = 60.0) -> None:
        """Index the records that aren't in the index yet.

        Raises:
            LedgerError: the index can't be written. Queries are then slower, but still correct.
        """
        end = time.monotonic() + for_seconds
        while self._index_step() and time.monotonic() < end:
            pass

    def checkpoint(self) -> int:
        """Move committed pages from the -wal file into the ledger. Return the length of that file in pages."""
        with self.mover.lock, self.mover.reading(self._unreadable) as database:
            _, pages, _ = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return int(pages)

    def close(self) -> None:
        self.reader.close()
        self.mover.close()
        self.index.close()

    def _shorten_tail(self) -> None:
        """If many records aren't indexed yet, index them first, for at most `_READER_SECONDS`."""
        with self.reader.lock, self.reader.reading(self._unreadable) as database:
            (newest,) = database.execute("SELECT max(id) FROM main.records").fetchone()
            behind = (newest or 0) - _mark(database)
        if behind > _TAIL:
            with contextlib.suppress(LedgerError):
                self.catch_up(for_seconds=_READER_SECONDS)

    def _index_step(self) -> bool:
        """Index up to `_STEP` records. Return False if there are no more."""
        with (
            self.index.lock,
            self.index.writing(f"the index of {self._path} can't be written") as database,
        ):
            query = """
                SELECT mark.id, mark.id = 0 OR mark.hash IS r.hash FROM mark LEFT JOIN ledger.records r ON r.id = mark.id
            """
            after, belongs = database.execute(query).fetchone()
            if not belongs:  # the ledger was replaced, for instance by a backup
                database.execute("DELETE FROM refs")
                database.execute("DELETE FROM places")
                database.execute("UPDATE mark SET id = 0, hash = x''")
                return True
            query = "SELECT count(*), max(id) FROM (SELECT id FROM ledger.records WHERE id > ? ORDER BY id LIMIT ?)"
            taken, last = database.execute(query, (after, _STEP)).fetchone()
            if taken:
                span = {"after": after, "last": last}
                database.execute(_INTO_REFS, span)
                database.execute(_INTO_PLACES, span)
                query = "UPDATE mark SET (id, hash) = (SELECT id, hash FROM ledger.records WHERE id = :last)"
                database.execute(query, span)
            return bool(taken == _STEP)


def _mark(database: sqlite3.Connection) -> int:
    """The last record in the index, or 0 when the index belongs to another ledger."""
    query = """
        SELECT mark.id FROM found.mark JOIN main.records r ON r.id = mark.id AND r.hash = mark.hash
    """
    row = database.execute(query).fetchone()
    return 0 if row is None else int(row[0])
