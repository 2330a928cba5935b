# SPDX-License-Identifier: Apache-2.0
"""The writing side of a SQLite ledger: one connection, one chain, one lease for each process.

W1  `append` returns after the commit. A committed record survives a killed process. With durability "power" it is also flushed
    to the disk, with one flush for all waiting records.
W2  The chain in memory is valid from a successful commit until the next one begins. After an interrupted commit, the next append
    reads the end of the chain from the file.
W3  A process writes under a name of its own and holds a lease on it. When the lease has ended, its calls without an outcome
    read `unknown`.

tests/drivers/test_ledger.py and tests/adversarial/test_ledger.py have the tests of these rules.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import deque
from typing import TYPE_CHECKING, Final

from agent_identity.errors import LedgerError
from agent_identity.forks import acquire
from agent_identity.provenance.chain import GENESIS, Chain
from agent_identity.provenance.records import (
    CREDENTIAL_REVOKED,
    GRANT_MADE,
    OUTCOMES,
    SESSION_CLOSED,
)
from agent_identity.provenance.sqlite.database import ledger_error
from agent_identity.storage.sqlite import (
    BUSY_SECONDS,
    Database,
    begin,
    file_identity,
    is_busy,
    retry_while_busy,
    roll_back,
    transaction,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from agent_identity.flow import Draft
    from agent_identity.provenance.chain import Seal

_NOT_CHECKED: Final = {*OUTCOMES, GRANT_MADE, SESSION_CLOSED, CREDENTIAL_REVOKED}
"""Kinds of records after which nothing begins before the next record. If the file has moved, refusing that one is enough."""

LEASE_SECONDS: Final = 30.0
_RENEW_BELOW: Final = 20.0
_UPKEEP_EVERY: Final = 512  # records

RECORDS_SCHEMA: Final = """
CREATE TABLE writers (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, lease_until REAL NOT NULL
);
CREATE TABLE records (
    id INTEGER PRIMARY KEY, writer INTEGER NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL,
    session TEXT, call TEXT, trace TEXT, span TEXT, ref TEXT, alias TEXT,
    body BLOB NOT NULL, sealed BLOB, hash BLOB NOT NULL
)
"""
_INSERT: Final = """
INSERT INTO records (writer, seq, kind, session, call, trace, span, ref, alias, body, sealed, hash)
VALUES ({}, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
"""The placeholder is the writer's number, which is the same for all of its records."""


_PLACE_SECONDS: Final = 0.05
"""How long a replaced ledger file may go unnoticed. A deleted or moved one is noticed at the next intent."""


class Waiting:
    """A draft that waits for its commit."""

    __slots__ = ("done", "draft", "error", "seal")

    def __init__(self, draft: Draft, seal: Seal | None) -> None:
        self.draft: Draft = draft
        self.seal: Seal | None = seal
        self.done: bool = False
        self.error: LedgerError | None = None


class Writer:
    """Appends to one ledger file. It calls `due` when upkeep is needed."""

    def __init__(
        self,
        path: Path,
        connect: Callable[[], sqlite3.Connection],
        *,
        clock: Callable[[], float],
        due: Callable[[], None],
    ) -> None:
        self.healthy: bool = True
        self._database = Database(connect, ledger_error)
        self._clock = clock
        self._due = due
        self._failed = f"{path} can't be written"
        self._place = str(path.absolute())
        self._process = 0
        self._chain = Chain()
        self._number: int | None = None
        self._statement = ""
        self._first_id = 0
        self._lease_until = 0.0
        self._is_end_known = False
        self._waiting: deque[Waiting] = deque()
        self._closed = False
        with self._database.lock, self._database.reading(self._failed) as connection:
            self._connection = connection
            self._execute = connection.execute
            self._file = file_identity(self._place)
            self._place_checked_at = float("-inf")

    def append(self, draft: Draft, seal: Seal | None) -> None:
        """Commit a draft, waiting for other writers.

        Raises:
            LedgerError: it is not on record.
        """
        lock = self._database.lock
        if lock.locked():
            self._wait_for(lock)
        with lock:
            self._commit(draft, seal, patient=True)

    def try_append(self, draft: Draft, seal: Seal | None) -> bool:
        """Commit a draft at once. Return False, without committing, if that would have to wait.

        Raises:
            LedgerError: it is not on record, and waiting wouldn't help.
        """
        if self._waiting:
            return False  # waiting drafts come first
        lock = self._database.lock
        outcome: list[bool] = []
        try:
            acquire(lock, outcome, 0.0)
            return outcome[0] and self._is_ready() and self._commit(draft, seal, patient=False)
        finally:
            if outcome and outcome[0]:
                lock.release()

    def enqueue(self, draft: Draft, seal: Seal | None) -> Waiting:
        """Add a draft to the end of the queue; `commit_enqueued` commits it. Records keep the order of these calls."""
        if self._process != os.getpid():
            self._waiting = deque()  # the inherited queue is the parent's
        own = Waiting(draft, seal)
        self._waiting.append(own)
        return own

    def commit_enqueued(self, own: Waiting) -> None:
        """Commit a draft together with all waiting ones: the thread that gets the lock commits for the others.

        Raises:
            LedgerError: it is not on record.
        """
        with self._database.lock:  # held for a bounded time, by the thread that commits
            if not own.done:
                self._commit_waiting(own)
        # the error is shared by all waiting threads, so each raises one of its own
        if (error := own.error) is not None:
            raise LedgerError(error.code, str(error), remedy=error.remedy) from error

    def settle(self) -> None:
        """Commit what is in the queue, since the callers that enqueued it may have been cancelled."""
        lock = self._database.lock
        if self._process == os.getpid() and (self._waiting or lock.locked()):
            with lock:
                if self._waiting:
                    self._commit_waiting(None)

    def probe(self) -> None:
        """Write the lease.

        Raises:
            LedgerError: the file can't be written at this time.
        """
        self.healthy = False
        with self._database.lock, self._database.reading(self._failed) as connection:
            self._prepare(connection)
        self._set_lease(self._clock() + LEASE_SECONDS)
        self.healthy = True

    def renew(self) -> None:
        """Renew the lease for `LEASE_SECONDS`, if this process has one and a third of it is over."""
        now = self._clock()
        if self._lease_until - now < _RENEW_BELOW:
            self._set_lease(now + LEASE_SECONDS)

    def checkpoint(self) -> None:
        """Move the rest of the -wal file while nothing is appended, so that the file starts over."""
        with self._database.lock, self._database.reading(self._failed) as database:
            database.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def is_own(self, writer: str) -> bool:
        """Whether this process writes under that name, and isn't closed."""
        return writer == self._chain.writer and self._process == os.getpid() and not self._closed

    def close(self) -> None:
        """End the lease, so that calls without an outcome read `unknown` at once, and close."""
        with contextlib.suppress(LedgerError):
            self._set_lease(0.0)
        self._closed = True
        self._database.close()

    def _is_ready(self) -> bool:
        """Whether a commit can begin without opening the file, registering, or reading the end of the chain first."""
        return self._is_end_known and self._connection is self._database.current

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Prepare the connection, the writer's name and the chain for a commit; the caller must hold the lock."""
        if self._process != os.getpid():
            self._forget()
        roll_back(connection)
        self._check_place()
        if self._number is None:
            self._register(connection)
        elif not self._is_end_known:
            self._find_end(connection)
        self._connection = connection
        self._execute = connection.cursor().execute
        self._is_end_known = True
        self._due()

    def _forget(self) -> None:
        """Become a new writer, in a new process and in a forked child."""
        self._process = os.getpid()
        self._chain = Chain()
        self._number = None
        self._is_end_known = False
        self._waiting = deque()

    def _register(self, connection: sqlite3.Connection) -> None:
        with transaction(connection):
            query = "SELECT coalesce(max(id), 0) FROM records"
            (self._first_id,) = connection.execute(query).fetchone()
            query = "INSERT INTO writers (name, lease_until) VALUES (?, ?)"
            lease_until = self._clock() + LEASE_SECONDS
            number = connection.execute(query, (self._chain.writer, lease_until)).lastrowid
        self._statement = _INSERT.format(number)
        self._number, self._lease_until = number, lease_until

    def _find_end(self, connection: sqlite3.Connection) -> None:
        query = "SELECT seq, hash FROM records WHERE id > ? AND writer = ? ORDER BY id DESC LIMIT 1"
        row = connection.execute(query, (self._first_id, self._number)).fetchone()
        self._chain.seq, self._chain.head = (0, GENESIS) if row is None else row

    def _commit(self, draft: Draft, seal: Seal | None, *, patient: bool) -> bool:
        """Commit one draft; the caller holds the lock. False if that would have to wait and isn't `patient`."""
        try:
            if not (self._is_end_known and self._connection is self._database.current):
                self._prepare(self._database.connection())
            now = self._clock()
            row = self._chain.next(draft, int(now * 1_000_000), seal)
            if draft.kind not in _NOT_CHECKED and (
                not os.access(self._place, os.F_OK)
                or not 0 <= now - self._place_checked_at < _PLACE_SECONDS
            ):
                self._check_place()
            values = row[1:]
            self._is_end_known = False
            try:
                self._execute(
                    self._statement, values
                )  # a statement by itself is a write transaction
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                if not patient:
                    self._is_end_known = True
                    return False
                retry_while_busy(lambda: self._execute(self._statement, values))
        except sqlite3.Error as error:
            raise self._abandon(error) from error
        except BaseException:
            self._undo()
            raise
        self._chain.advance(row)
        self._is_end_known = True
        self.healthy = True
        if row.seq % _UPKEEP_EVERY == 0:
            self._due()
        return True

    def _commit_waiting(self, own: Waiting | None) -> None:
        """Commit all waiting drafts in one transaction, including `own`. The caller holds the lock."""
        batch: list[Waiting] = []
        while self._waiting:
            batch.append(self._waiting.popleft())
        if (
            own is not None and own not in batch
        ):  # an interrupted thread had taken it out of the queue
            batch.append(own)
        failure: LedgerError | None = None
        has_begun, is_decided = False, True
        before = self._chain.seq
        try:
            if not self._is_ready():
                self._prepare(self._database.connection())
            self._is_end_known = False
            begin(self._connection)
            has_begun = True
            self._check_place()
            for waiting in batch:
                self._insert(waiting)
            self._execute("COMMIT")
            self._is_end_known = True
            self.healthy = True
        except sqlite3.Error as error:
            failure = self._abandon(error)
        except LedgerError as error:
            self._undo()
            failure = error
        except BaseException:
            # If nothing was committed, the other threads commit their own records.
            is_decided = has_begun and not self._connection.in_transaction
            self._undo()
            raise
        finally:
            for waiting in batch if is_decided else ():
                waiting.error = failure or waiting.error
                waiting.done = True
        if before // _UPKEEP_EVERY != self._chain.seq // _UPKEEP_EVERY:
            self._due()

    def _insert(self, waiting: Waiting) -> None:
        """Write one draft of a batch. If it can't be written as JSON, only this one fails."""
        try:
            row = self._chain.next(waiting.draft, int(self._clock() * 1_000_000), waiting.seal)
        except LedgerError as error:
            waiting.error = error
            return
        self._execute(self._statement, row[1:])
        self._chain.advance(row)

    def _check_place(self) -> None:
        """Check that the open file is the one that the path names.

        Raises:
            LedgerError: `ledger_moved`.
        """
        identity = file_identity(self._place)
        if identity is None or identity != self._file:
            self.healthy = False
            raise LedgerError(
                "ledger_moved",
                f"{self._place} was deleted, moved or replaced while this process writes to it",
                remedy="put the file back, or restart the process to begin a new one",
            )
        self._place_checked_at = self._clock()

    def _abandon(self, error: sqlite3.Error) -> LedgerError:
        """Undo a failed commit, and return its error."""
        self.healthy = False
        self._undo()
        return ledger_error(error, self._failed)

    def _undo(self) -> None:
        """Roll back the transaction. If that fails, drop the connection."""
        try:
            if self._database.current is not None:
                roll_back(self._database.current)
        except sqlite3.Error:
            self._database.drop()

    def _wait_for(self, lock: threading.Lock) -> None:
        """Wait until another thread has written, for at most `BUSY_SECONDS`.

        Raises:
            LedgerError: `ledger_busy`.
        """
        outcome: list[bool] = []
        try:
            acquire(lock, outcome, BUSY_SECONDS)
        finally:
            if outcome and outcome[0]:
                lock.release()
        if not outcome[0]:
            self.healthy = False
            raise LedgerError(
                "ledger_busy", f"{self._failed} (another thread writes for {BUSY_SECONDS} s)"
            )

    def _set_lease(self, until: float) -> None:
        if self._number is None or self._process != os.getpid():
            return
        with self._database.lock, self._database.writing(self._failed) as connection:
            connection.execute(
                "UPDATE writers SET lease_until = ? WHERE id = ?", (until, self._number)
            )
        self._lease_until = until
