# SPDX-License-Identifier: Apache-2.0
"""SQLite files that only their owner can read, and connections that survive a fork.

S1  A file has mode 0600 whatever the umask, and its -wal and -shm files inherit that.
S2  Every write transaction starts with `BEGIN IMMEDIATE`.
S3  No lock is acquired while another one is held, so that `fork` can wait for all of them.
S4  No connection crosses a fork: SQLite's file locks belong to a process, and the child would believe that it holds the
    parent's. All connections are closed before the fork, and opened again on both sides at the next use.

tests/drivers/test_ledger.py and tests/adversarial/test_ledger.py have the tests of these rules.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from agent_identity.errors import ConfigurationError, LedgerError
from agent_identity.forks import StillLock
from agent_identity.keys.private_files import make_private_file

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

__all__ = [
    "BUSY_SECONDS",
    "Database",
    "begin",
    "is_busy",
    "open_database",
    "retry_while_busy",
    "roll_back",
    "storage_error",
]

BUSY_SECONDS: Final = 5.0
"""How many seconds a write waits for another process that holds the file."""

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
    """Open a database in WAL mode. If it is new, make the file and the tables.

    With `waits`, a busy file is retried for `BUSY_SECONDS`; otherwise it is an error at once.

    Raises:
        ConfigurationError: its schema has another version, or it belongs to another program.
        LedgerError: it can't be read or made.
    """
    make_private_file(path)
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
        if _read_version(database) == 0:
            _create(database, schema, version, page_size)
        if (existing := _read_version(database)) != version:
            raise ConfigurationError(
                "ledger_schema",
                f"{path} has schema {existing}, this version of agent_identity reads {version}",
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


def _read_version(database: sqlite3.Connection) -> int:
    """The schema version; -1 if there are tables without one, which belong to another program."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return -1 if version == 0 and tables else int(version)


def _create(database: sqlite3.Connection, schema: str, version: int, page_size: int) -> None:
    database.execute(f"PRAGMA page_size = {page_size}")
    # SQLite's own wait doesn't cover the switch to WAL, which fails at once if two processes do it together
    retry_while_busy(lambda: database.execute("PRAGMA journal_mode = WAL"))
    database.execute("BEGIN IMMEDIATE")
    try:
        if _read_version(database) == 0:  # another process may have been first
            for statement in schema.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {version}")
        database.execute("COMMIT")
    except BaseException:
        roll_back(database)
        raise


def begin(database: sqlite3.Connection) -> None:
    """Begin a write transaction. Wait up to `BUSY_SECONDS` for other writers, since SQLite's own wait is off."""
    retry_while_busy(lambda: database.execute("BEGIN IMMEDIATE"))


def roll_back(database: sqlite3.Connection) -> None:
    """Roll back an open transaction, if there is one."""
    if database.in_transaction:
        database.execute("ROLLBACK")


def retry_while_busy(step: Callable[[], object]) -> None:
    """Run a step that begins to write, and repeat it for up to `BUSY_SECONDS` while the file is busy."""
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
    """Whether another process holds the file, so that a retry may help."""
    return _primary_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _primary_code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def storage_error(
    error: sqlite3.Error, what: str, otherwise: str = "ledger_unwritable"
) -> LedgerError:
    """Convert an error of SQLite. If the file is neither busy nor damaged, the code is `otherwise`."""
    code = _CODES.get(_primary_code(error), otherwise)
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    remedies = {
        "ledger_busy": "find out which process holds the file",
        "ledger_unreadable": "run `agent-identity ledger verify`; restore the file from a backup",
        "ledger_unwritable": "check the space, the permissions and the health of the disk",
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
            LedgerError: it was closed, or this process was forked during a write.
        """
        if self.current is None:
            if self._closed:
                raise LedgerError("ledger_closed", "the ledger was closed")
            if self._crossed_fork:
                raise LedgerError(
                    "ledger_forked",
                    "the process was forked while the ledger was being written",
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
        """`reading` inside a write transaction, which is committed at the end and rolled back on any exception."""
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
        """Close the connection. Nothing can hold the lock any more."""
        self.drop()

    def before_fork(self) -> None:
        """Close the connection, and keep the lock. The next use opens another connection."""
        super().before_fork()
        if self.is_at_rest:
            self.drop()

    def after_fork_in_child(self) -> None:
        """Start over with a free lock. An inherited connection is neither used nor closed."""
        super().after_fork_in_child()
        if self.current is not None:
            _inherited.append(self.current)
            self.current = None
            self._crossed_fork = True


_inherited: list[sqlite3.Connection] = []
