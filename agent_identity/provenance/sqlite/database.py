# SPDX-License-Identifier: Apache-2.0
"""The ledger's databases: how they are opened, and the `LedgerError` for what SQLite says."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from agent_identity.errors import ConfigurationError, LedgerError
from agent_identity.storage.sqlite import (
    ClosedError,
    ForkedError,
    connect,
    primary_code,
    transaction,
    use_wal,
)

if TYPE_CHECKING:
    from pathlib import Path

_CODES: Final = {
    sqlite3.SQLITE_BUSY: "ledger_busy",
    sqlite3.SQLITE_LOCKED: "ledger_busy",
    sqlite3.SQLITE_CORRUPT: "ledger_unreadable",
    sqlite3.SQLITE_NOTADB: "ledger_unreadable",
}
_REMEDIES: Final = {
    "ledger_busy": "find out which process holds the file",
    "ledger_unreadable": "run `agent-identity ledger verify`; restore the file from a backup",
    "ledger_unwritable": "see to space, permissions and the health of the disk",
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
    database: sqlite3.Connection | None = None
    try:
        database = connect(path)
        if _read_version(database) == 0:
            _create(database, schema, version, page_size)
        if (found := _read_version(database)) != version:
            raise ConfigurationError(
                "ledger_schema",
                f"{path} has schema {found}, this version of agent_identity reads {version}",
                remedy="use the version that wrote it, or another file",
            )
        database.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
        database.execute("PRAGMA trusted_schema = OFF")
        if not waits:
            database.execute("PRAGMA busy_timeout = 0")
    except BaseException as error:
        if database is not None:
            database.close()
        if isinstance(error, sqlite3.Error):
            raise ledger_error(error, f"{path} can't be opened") from error
        raise
    return database


def _read_version(database: sqlite3.Connection) -> int:
    """The schema number; -1 for tables without one, which aren't ours."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return -1 if version == 0 and tables else int(version)


def _create(database: sqlite3.Connection, schema: str, version: int, page_size: int) -> None:
    database.execute(f"PRAGMA page_size = {page_size}")
    use_wal(database)
    with transaction(database):
        if _read_version(database) == 0:  # another process may have been first
            for statement in schema.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {version}")


def ledger_error(
    error: sqlite3.Error, what: str, otherwise: str = "ledger_unwritable"
) -> LedgerError:
    """A `LedgerError` for what SQLite says; what is neither busy nor damaged has the code `otherwise`."""
    if isinstance(error, ClosedError):
        return LedgerError("ledger_closed", "the ledger was closed")
    if isinstance(error, ForkedError):
        return LedgerError("ledger_forked", what, remedy="open the ledger after the fork")
    code = _CODES.get(primary_code(error), otherwise)
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return LedgerError(code, f"{what} ({name})", remedy=_REMEDIES[code])
