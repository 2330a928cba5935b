# SPDX-License-Identifier: Apache-2.0
"""What the authority remembers between requests and restarts: its clients, and what was revoked.

One SQLite database, `authority.db` (0600, WAL), or the same tables in memory. Each write is one `BEGIN IMMEDIATE`
transaction. A store that can't answer is an outage, and an outage is a refusal.

A clock that is wrong for a while, and set back then, ends nothing for good: the newest of what has ended is kept.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from agent_identity.authority.clients import dump_client, load_client
from agent_identity.errors import ConfigurationError, DeniedError, VerificationError
from agent_identity.storage.sqlite import Database, connect, file_identity, transaction, use_wal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from agent_identity.authority.clients import ClientRecord

EVERYTHING: Final = "*"
_KEPT: Final = 1000
"""Clients, revocations and sources of tokens, of each, that are kept although they have ended."""

_AWAY: Final = "the authority's store is away"
_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS clients (
        client_id TEXT PRIMARY KEY, expires_at INTEGER NOT NULL, record BLOB NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS clients_by_end ON clients (expires_at)",
    # `ends` is when nothing that `ref` names can be valid any more (NULL: never), `lifted_at` when it was reinstated.
    """CREATE TABLE IF NOT EXISTS revocations (
        ref TEXT PRIMARY KEY, revoked_at INTEGER NOT NULL, lifted_at INTEGER, ends INTEGER) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS revocations_by_end ON revocations (ends)",
    # What a token was issued from, and is revoked with: the grants of its chain, by their references, one a line.
    """CREATE TABLE IF NOT EXISTS sources (
        jti TEXT PRIMARY KEY, refs TEXT NOT NULL, ends INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS sources_by_end ON sources (ends)",
    "CREATE TABLE IF NOT EXISTS lists (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL)",
)


class Store:
    """Clients and revocations. Safe between threads and after a fork; a file is safe between processes too."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._database = Database(lambda: _connect(path), _failure, in_memory=path is None)
        with self._database.lock:
            self._database.connection()
        self._file = None if path is None else file_identity(str(path))

    def add_client(self, client: ClientRecord) -> None:
        """Enter a client, or replace its record; those whose lease has run out go, but for the newest."""
        with self._database.lock, self._database.writing(_AWAY) as db:
            db.execute(
                """DELETE FROM clients WHERE client_id IN (
                SELECT client_id FROM clients WHERE expires_at <= ? ORDER BY expires_at DESC LIMIT -1 OFFSET ?)""",
                (client.issued_at, _KEPT),
            )
            db.execute(
                "INSERT OR REPLACE INTO clients VALUES (?, ?, ?)",
                (client.client_id, client.expires_at, dump_client(client)),
            )

    def client(self, client_id: str, now: float) -> ClientRecord | None:
        """A client whose lease runs."""
        with self._database.lock, self._database.reading(_AWAY) as db:
            row = db.execute(
                "SELECT record FROM clients WHERE client_id = ? AND expires_at > ?",
                (client_id, now),
            ).fetchone()
        if row is None:
            return None
        try:
            return load_client(row[0])
        except VerificationError:
            raise DeniedError("store_damaged", "a client's record can't be read") from None

    def revoke(self, ref: str, now: int, ends: int | None = None) -> None:
        """End what `ref` names, as far as it was issued until now, for good.

        `ends` is when all of it has expired anyway, where that is known.
        """
        with self._database.lock, self._database.writing(_AWAY) as db:
            db.execute(
                """DELETE FROM revocations WHERE ref IN (
                SELECT ref FROM revocations WHERE ends <= ? ORDER BY ends DESC LIMIT -1 OFFSET ?)""",
                (now, _KEPT),
            )
            # Each by the later time: neither a clock that was set back nor a shorter memory takes anything back.
            db.execute(
                """INSERT INTO revocations VALUES (?1, ?2, NULL, ?3) ON CONFLICT (ref) DO UPDATE SET
                revoked_at = max(revoked_at, ?2), lifted_at = NULL, ends = max(ends, ?3)""",
                (ref, now, ends),
            )

    def reinstate(self, ref: str, now: int) -> None:
        """Let what is issued from the next second on begin; what was issued before stays ended.

        Raises:
            ConfigurationError: `not_revoked`.
        """
        with self._database.lock, self._database.writing(_AWAY) as db:
            done = db.execute(
                "UPDATE revocations SET lifted_at = max(?, revoked_at) WHERE ref = ? AND lifted_at IS NULL",
                (now, ref),
            )
        if not done.rowcount:
            raise ConfigurationError(
                "not_revoked",
                "nothing of that name is revoked here",
                remedy="write the reference as it was revoked; a session, an agent and * are each lifted alone",
            )

    def add_sources(self, jti: str, refs: Collection[str], now: int, ends: int) -> None:
        """Remember until `ends` what a token was issued from."""
        with self._database.lock, self._database.writing(_AWAY) as db:
            db.execute(
                """DELETE FROM sources WHERE jti IN (
                SELECT jti FROM sources WHERE ends <= ? ORDER BY ends DESC LIMIT -1 OFFSET ?)""",
                (now, _KEPT),
            )
            db.execute("INSERT INTO sources VALUES (?, ?, ?)", (jti, "\n".join(refs), ends))

    def sources(self, jti: str) -> list[str]:
        """What a token was issued from, as it may be revoked; nothing for one that has no chain."""
        with self._database.lock, self._database.reading(_AWAY) as db:
            row = db.execute("SELECT refs FROM sources WHERE jti = ?", (jti,)).fetchone()
        return [] if row is None else row[0].split("\n")

    def revoked(self, refs: Collection[str]) -> dict[str, int | None]:
        """Which of `refs`, and of `*`, were revoked, and when each was reinstated; None for never."""
        names = (EVERYTHING, *refs)
        marks = ", ".join("?" * len(names))
        with self._database.lock, self._database.reading(_AWAY) as db:
            rows: list[tuple[str, int | None]] = db.execute(
                f"SELECT ref, lifted_at FROM revocations WHERE ref IN ({marks})",  # noqa: S608 - question marks only
                names,
            ).fetchall()
        return dict(rows)

    def is_revoked(self, refs: Collection[str], issued_at: float) -> bool:
        """Whether anything that these name, issued at that Unix time, was revoked. `*` is always among them."""
        return ended(self.revoked(refs), refs, issued_at)

    def revocations(self, now: float) -> list[tuple[str, int | None]]:
        """All that may still matter: what was revoked, and when that was lifted."""
        with self._database.lock, self._database.reading(_AWAY) as db:
            rows: list[tuple[str, int | None]] = db.execute(
                "SELECT ref, lifted_at FROM revocations WHERE ends IS NULL OR ends > ?", (now,)
            ).fetchall()
        return rows

    def next_seq(self, at_least: int) -> int:
        """A number larger than any before, for the next list of revocations."""
        with self._database.lock, self._database.writing(_AWAY) as db:
            db.execute(
                "INSERT INTO lists VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET seq = max(seq + 1, ?1)",
                (at_least,),
            )
            row: tuple[int] = db.execute("SELECT seq FROM lists").fetchone()
        return row[0]

    @property
    def place(self) -> object:
        """What stores of the same file have in common; one in memory has nothing in common with others."""
        return id(self) if self._path is None else str(self._path.absolute())

    @property
    def is_shared(self) -> bool:
        """Whether other processes may write to it."""
        return self._path is not None

    def version(self) -> tuple[int, int]:
        """A value that changes when another connection has written.

        Raises:
            DeniedError: `store_unavailable`, it can't be read, or its file was deleted, moved or replaced.
        """
        if self._path is not None and file_identity(str(self._path)) != self._file:
            raise DeniedError("store_unavailable", f"{self._path} is another file than was opened")
        with self._database.lock, self._database.reading(_AWAY) as db:
            (version,) = db.execute("PRAGMA data_version").fetchone()
            return self._database.opened, int(version)  # each connection counts anew

    def close(self) -> None:
        self._database.close()


def ended(revoked: Mapping[str, int | None], refs: Collection[str], issued_at: float) -> bool:
    """Whether an answer of `Store.revoked` ends what `refs` name and was issued at that Unix time."""
    return any(
        ref in revoked and ((lifted_at := revoked[ref]) is None or lifted_at >= issued_at)
        for ref in (EVERYTHING, *refs)
    )


def _connect(path: Path | None) -> sqlite3.Connection:
    """Open the database, and make its tables if it has none.

    Raises:
        sqlite3.Error: it can't be opened.
    """
    try:
        database = connect(path)
    except (ConfigurationError, OSError) as error:
        raise sqlite3.OperationalError(str(error)) from error
    try:
        use_wal(database)
        database.execute("PRAGMA synchronous = NORMAL")
        with transaction(database):
            for statement in _SCHEMA:
                database.execute(statement)
    except BaseException:
        database.close()
        raise
    return database


def _failure(_: sqlite3.Error, what: str) -> DeniedError:
    return DeniedError("store_unavailable", what)


def open_store(state_dir: Path | None) -> Store:
    """The store of a state directory, or one in memory.

    Raises:
        ConfigurationError: the database can't be opened, or is none.
    """
    path = None if state_dir is None else state_dir / "authority.db"
    try:
        return Store(path)
    except sqlite3.Error as error:
        raise ConfigurationError(
            "state_unusable",
            f"{path} can't be used as the authority's database",
            remedy="check its owner, and that the disk has room",
        ) from error
