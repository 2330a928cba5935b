# SPDX-License-Identifier: Apache-2.0
"""SQLite files that only their owner can read, and connections that survive a fork.

S1  A file is 0600 whatever the umask; SQLite gives its -wal and -shm the same mode.
S2  Every write transaction starts with `BEGIN IMMEDIATE`.
S3  No lock is taken while another is held, so that `fork` can wait for all of them.
S4  No connection to a file crosses a fork: SQLite keeps its file locks by process, and a child that inherited them would
    believe that it holds locks that it doesn't. All are closed before the fork, and opened again on both sides at the next use.

The ledger and the authority's store both use it. Each gives SQLite's errors codes of its own.
tests/drivers/test_ledger.py and tests/adversarial/test_ledger.py hold the tests of these rules.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from agent_identity.forks import StillLock
from agent_identity.keys.private_files import make_private_file

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

BUSY_SECONDS: Final = 5.0
"""Seconds that a write waits for another process that holds the file."""


class ClosedError(sqlite3.ProgrammingError):
    """The database was closed for good."""


class ForkedError(sqlite3.ProgrammingError):
    """This process is a fork that couldn't be prepared, so it has no connection."""


def connect(path: Path | None) -> sqlite3.Connection:
    """Open a file, made private when it is new, or a database in memory.

    Raises:
        ConfigurationError: the file is a link, belongs to another user, or can't be made.
    """
    if path is not None:
        make_private_file(path)
    return sqlite3.connect(
        ":memory:" if path is None else path.absolute(),
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_SECONDS,
        uri=path is not None,
    )


def use_wal(database: sqlite3.Connection) -> None:
    """Switch to a write-ahead log. SQLite's own wait leaves that out: it fails at once when two do it together."""
    retry_while_busy(lambda: database.execute("PRAGMA journal_mode = WAL"))


def begin(database: sqlite3.Connection) -> None:
    """Begin a write transaction, waiting up to `BUSY_SECONDS` for other writers, also where SQLite's own wait is off."""
    retry_while_busy(lambda: database.execute("BEGIN IMMEDIATE"))


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Generator[None]:
    """One write transaction: committed at the end, rolled back on any exception."""
    try:
        begin(database)
        yield
        database.execute("COMMIT")
    except GeneratorExit:
        raise  # an interrupt left this behind: the open transaction may be another thread's by now
    except BaseException:
        roll_back(database)
        raise


def roll_back(database: sqlite3.Connection) -> None:
    """Roll back an open transaction, if there is one."""
    if database.in_transaction:
        database.execute("ROLLBACK")


def retry_while_busy(step: Callable[[], object]) -> None:
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
    return primary_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code without the extension; 0 where there is none."""
    return int(getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def file_identity(path: str) -> tuple[int, int] | None:
    """Which file a path names, None for none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - on the path of commits
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Database(StillLock):
    """One connection and its lock: opened on first use, closed before a fork, opened again after it.

    Use it as `with database.lock, database.reading(…) as connection:`. `failure` makes the error to raise of SQLite's error and
    of what failed. A database `in_memory` stays open around a fork, and the child has a copy.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        failure: Callable[[sqlite3.Error, str], Exception],
        *,
        in_memory: bool = False,
    ) -> None:
        super().__init__()
        self._connect = connect
        self._failure = failure
        self._in_memory = in_memory
        self.current: sqlite3.Connection | None = None
        self.opened: int = 0
        self._closed = False
        self._crossed_fork = False

    def connection(self) -> sqlite3.Connection:
        """The connection; the caller must hold the lock. An error if it was closed, or this process is an unprepared fork."""
        if self.current is None:
            if self._closed:
                raise self._failure(ClosedError(), "the database was closed")
            if self._crossed_fork:
                what = "the process was forked while a write was stuck"
                raise self._failure(ForkedError(), what)
            self.current = self._connect()
            self.opened += 1
        return self.current

    @contextlib.contextmanager
    def reading(self, what: str) -> Generator[sqlite3.Connection]:
        """The connection; the caller holds the lock. `what` says for the error what failed."""
        try:
            connection = self.connection()
            roll_back(connection)  # an interrupt may have left a transaction open
            yield connection
        except sqlite3.Error as error:
            raise self._failure(error, what) from error

    @contextlib.contextmanager
    def writing(self, what: str) -> Generator[sqlite3.Connection]:
        """`reading`, inside one write transaction: committed at the end, rolled back on any exception."""
        with self.reading(what) as connection, transaction(connection):
            yield connection

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
        """Close the connection: nothing refers to this object any more, so no thread holds the lock."""
        self.drop()

    def before_fork(self) -> None:
        """Close the connection, and keep the lock; the next use opens another one."""
        super().before_fork()
        if self.is_at_rest and not self._in_memory:
            self.drop()

    def after_fork_in_child(self) -> None:
        """Start over with a free lock; a connection to a file that came along is neither used nor closed."""
        super().after_fork_in_child()
        if self.current is not None and not self._in_memory:
            _inherited.append(self.current)
            self.current = None
            self._crossed_fork = True


_inherited: list[sqlite3.Connection] = []
