# SPDX-License-Identifier: Apache-2.0
"""SQLite files that only their owner can read, and connections that survive a fork.

S1  A file is 0600 whatever the umask; its -wal and -shm take that over from it.
S2  Every write transaction starts with `BEGIN IMMEDIATE`.
S3  No lock is taken while another is held, so that `fork` can wait for all of them.
S4  No connection crosses a fork: SQLite keeps its file locks by process, and a child that inherited them would believe
    that it holds what it doesn't. All are closed before the fork, and opened again on both sides at the next use.

tests/drivers/test_ledger.py and tests/adversarial/test_ledger.py hold the tests of these rules.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from agent_identity.errors import ConfigurationError, LedgerError
from agent_identity.forks import StillLock
from agent_identity.keys.private_files import private_file

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

__all__ = [
    "BUSY_SECONDS",
    "Database",
    "begin",
    "is_busy",
    "open_database",
    "patiently",
    "roll_back",
    "storage_error",
]

BUSY_SECONDS: Final = 5.0
"""Seconds that a write waits for another process that holds the file."""

_log = logging.getLogger("agent_identity.provenance")
_CODES: Final = {
    sqlite3.SQLITE_BUSY: "ledger_busy",
    sqlite3.SQLITE_LOCKED: "ledger_busy",
    sqlite3.SQLITE_CORRUPT: "ledger_unreadable",
    sqlite3.SQLITE_NOTADB: "ledger_unreadable",
}


def open_database(
    path: Path,
    *,
    schema: str,
    version: int,
    durability: str,
    page_size: int = 4096,
    waits: bool = True,
) -> sqlite3.Connection:
    """Open a database of ours in WAL mode, making file and tables when it is new.

    One that `waits` gives others `BUSY_SECONDS` to finish; else a busy file is an error at once.

    Raises:
        ConfigurationError: its schema is newer or older than this code, or it is another program's.
        LedgerError: it can't be read or made.
    """
    private_file(path)
    try:
        database = sqlite3.connect(
            path.absolute(),
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_SECONDS,
            uri=True,
        )
    except sqlite3.Error as error:
        raise storage_error(error, f"{path} can't be opened") from error
    try:
        if _found_version(database) == 0:
            _create(database, schema, version, page_size)
        if (found := _found_version(database)) != version:
            raise ConfigurationError(
                "ledger_schema",
                f"{path} has schema {found}, this version of agent_identity reads {version}",
                remedy="use the version that wrote it, or another file",
            )
        database.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
        database.execute("PRAGMA trusted_schema = OFF")
        if not waits:
            database.execute("PRAGMA busy_timeout = 0")
    except sqlite3.Error as error:
        database.close()
        raise storage_error(error, f"{path} can't be opened") from error
    except ConfigurationError:
        database.close()
        raise
    return database


def _found_version(database: sqlite3.Connection) -> int:
    """The schema number; -1 for tables without one, which aren't ours."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return -1 if version == 0 and tables else int(version)


def _create(database: sqlite3.Connection, schema: str, version: int, page_size: int) -> None:
    database.execute(f"PRAGMA page_size = {page_size}")
    # SQLite's own wait leaves out the switch to WAL, which fails at once when two do it together
    patiently(lambda: database.execute("PRAGMA journal_mode = WAL"))
    database.execute("BEGIN IMMEDIATE")
    try:
        if _found_version(database) == 0:  # another process may have been first
            for statement in schema.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {version}")
        database.execute("COMMIT")
    except BaseException:
        roll_back(database)
        raise


def begin(database: sqlite3.Connection) -> None:
    """Begin a write transaction, waiting up to `BUSY_SECONDS` for other writers; SQLite's own wait is off."""
    patiently(lambda: database.execute("BEGIN IMMEDIATE"))


def roll_back(database: sqlite3.Connection) -> None:
    """Roll back an open transaction, if there is one."""
    if database.in_transaction:
        database.execute("ROLLBACK")


def patiently(step: Callable[[], object]) -> None:
    """Take a step that begins to write, waiting up to `BUSY_SECONDS` for others."""
    deadline = time.monotonic() + BUSY_SECONDS
    pause = 0.0002
    while True:
        try:
            step()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        else:
            return


def is_busy(error: sqlite3.Error) -> bool:
    """Another process holds the file; a retry may help."""
    return _primary_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _primary_code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def storage_error(
    error: sqlite3.Error, what: str, otherwise: str = "ledger_unwritable"
) -> LedgerError:
    """A `LedgerError` for what SQLite says; what is neither busy nor damaged has the code `otherwise`."""
    code = _CODES.get(_primary_code(error), otherwise)
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    remedies = {
        "ledger_busy": "find out which process holds the file",
        "ledger_unreadable": "run `agent-identity ledger verify`; restore the file from a backup",
        "ledger_unwritable": "see to space, permissions and the health of the disk",
    }
    return LedgerError(code, f"{what} ({name})", remedy=remedies[code])


class Database(StillLock):
    """One connection and its lock: opened on first use, closed before a fork, opened again after it.

    Use it as `with database.lock, database.reading(…) as connection:`.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], *, otherwise: str = "ledger_unwritable"
    ) -> None:
        super().__init__()
        self._otherwise = otherwise
        self._connect = connect
        self.current: sqlite3.Connection | None = None
        self._closed = False
        self._crossed_fork = False

    def connection(self) -> sqlite3.Connection:
        """The connection; the caller must hold the lock.

        Raises:
            LedgerError: it was closed, or this process is a fork that couldn't be prepared.
        """
        if self.current is None:
            if self._closed:
                raise LedgerError("ledger_closed", "the ledger was closed")
            if self._crossed_fork:
                raise LedgerError(
                    "ledger_forked",
                    "the process was forked while a write was stuck",
                    remedy="open the ledger after the fork",
                )
            self.current = self._connect()
        return self.current

    @contextlib.contextmanager
    def reading(self, what: str) -> Generator[sqlite3.Connection]:
        """The connection; the caller holds the lock. SQLite's errors become `LedgerError`s that begin with `what`."""
        try:
            connection = self.connection()
            roll_back(connection)  # an interrupt may have left a transaction open
            yield connection
        except sqlite3.Error as error:
            raise storage_error(error, what, self._otherwise) from error

    @contextlib.contextmanager
    def writing(self, what: str) -> Generator[sqlite3.Connection]:
        """`reading`, inside one write transaction: committed at the end, rolled back on any exception."""
        with self.reading(what) as connection:
            try:
                begin(connection)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                roll_back(connection)
                raise

    def close(self) -> None:
        """Close for good."""
        with self.lock:
            self._closed = True
            self.drop()

    def drop(self) -> None:
        """Close the connection; the next use opens another."""
        connection, self.current = self.current, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        """Close what was dropped; nobody is left who could hold the lock."""
        self.drop()

    def before_fork(self) -> None:
        """Close the connection, and keep the lock; the next use opens another one."""
        super().before_fork()
        if self.is_at_rest:
            self.drop()

    def after_fork_in_child(self) -> None:
        """Start over with a free lock; a connection that came along is neither used nor closed."""
        super().after_fork_in_child()
        if self.current is not None:
            _inherited.append(self.current)
            self.current = None
            self._crossed_fork = True


_inherited: list[sqlite3.Connection] = []
