# SPDX-License-Identifier: Apache-2.0
"""A random pseudonym and a key for each subject of records, stored apart from the ledger.

Everything in a record that names a person is encrypted under that person's key, and so is the person's name for a pseudonym.
Deleting the subject's row erases both, and every proof of the ledger stays valid.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

import orjson

from agent_identity.errors import ConfigurationError, LedgerError
from agent_identity.keys.private_files import make_once, make_private_file
from agent_identity.keys.sealing import KEY_BYTES, Sealer
from agent_identity.provenance.sqlite.database import ledger_error, open_database
from agent_identity.storage.sqlite import Database
from agent_identity.values import Principal, new_id

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

_V = TypeVar("_V")
_SEALERS: Final = 8_192  # 2.5 KB each, one for each subject with a live session


class Subject(NamedTuple):
    """A stored subject. `lookup` is a keyed digest of the principal; `key` and `principal` are encrypted."""

    pseudonym: str
    lookup: bytes
    key: bytes
    principal: bytes


class Shelf(Protocol):
    """A store of subjects."""

    def by_lookup(self, lookup: bytes, /) -> Subject | None: ...
    def by_pseudonym(self, pseudonym: str, /) -> Subject | None: ...
    def add(self, subject: Subject, /) -> Subject:
        """Add a subject, unless there is one with this lookup. Return the stored one."""
        ...

    def remove(self, pseudonym: str, /) -> bool: ...
    def close(self) -> None: ...


class Subjects:
    """The pseudonyms and keys of subjects.

    Keys are cached only for encryption. Reading always asks the shelf, so that an erasure by another process counts at once.
    """

    def __init__(self, shelf: Shelf, master: bytes) -> None:
        self._shelf = shelf
        # Keys live in closures and ciphers, which have no readable form.
        self._lookup: Callable[[Principal], bytes] = _lookup_function(master)
        self._wrap = Sealer(hmac.digest(master, b"wrap", "sha256"))
        self._sealers: dict[str, Sealer] = {}

    def pseudonym(self, principal: Principal) -> str:
        """The pseudonym of `principal`; a new one is made if there is none."""
        lookup = self._lookup(principal)
        subject = self._shelf.by_lookup(lookup)
        if subject is None:
            subject = self._shelf.add(self._make_subject(principal, lookup))
        return subject.pseudonym

    def find(self, principal: Principal) -> str | None:
        """The pseudonym of `principal`, None when it has none."""
        subject = self._shelf.by_lookup(self._lookup(principal))
        return None if subject is None else subject.pseudonym

    def principal(self, pseudonym: str) -> Principal | None:
        """The principal of a pseudonym; None once erased."""
        subject = self._shelf.by_pseudonym(pseudonym)
        if subject is None:
            return None
        sealer = Sealer(self._unwrap(subject))
        profile, iss, sub = orjson.loads(sealer.unseal(subject.principal, pseudonym.encode()))
        return Principal(sub, iss=iss, profile=profile)

    def sealer(self, pseudonym: str) -> Sealer:
        """The sealer of a subject.

        Raises:
            LedgerError: the subject was erased.
        """
        sealer = self._sealers.get(pseudonym)
        if sealer is None:
            subject = self._shelf.by_pseudonym(pseudonym)
            if subject is None:
                raise LedgerError(
                    "subject_erased", f"{pseudonym} was erased, so nothing can be recorded for it"
                )
            sealer = Sealer(self._unwrap(subject))
            _keep(self._sealers, pseudonym, sealer, _SEALERS)
        return sealer

    def make_unseal(self) -> Callable[[str, bytes, bytes], bytes | None]:
        """An `unseal` that reads each subject's key once. Use it for one query only."""
        known: dict[str, Sealer | None] = {}

        def unseal(pseudonym: str, sealed: bytes, context: bytes) -> bytes | None:
            if pseudonym not in known:
                subject = self._shelf.by_pseudonym(pseudonym)
                known[pseudonym] = None if subject is None else Sealer(self._unwrap(subject))
            sealer = known[pseudonym]
            return None if sealer is None else sealer.unseal(sealed, context)

        return unseal

    def erase(self, pseudonym: str) -> bool:
        """Delete a subject's key and name for good; False when there was none."""
        removed = self._shelf.remove(pseudonym)
        self._sealers.pop(pseudonym, None)
        return removed

    def close(self) -> None:
        """Forget the keys, and close the shelf."""
        self._sealers.clear()
        self._shelf.close()

    def _make_subject(self, principal: Principal, lookup: bytes) -> Subject:
        pseudonym, key = new_id("psn_"), os.urandom(KEY_BYTES)
        context = pseudonym.encode()
        return Subject(
            pseudonym=pseudonym,
            lookup=lookup,
            key=self._wrap.seal(key, context),
            principal=Sealer(key).seal(_encode(principal), context),
        )

    def _unwrap(self, subject: Subject) -> bytes:
        return self._wrap.unseal(subject.key, subject.pseudonym.encode())


def _lookup_function(master: bytes) -> Callable[[Principal], bytes]:
    key = hmac.digest(master, b"lookup", "sha256")
    return lambda principal: hmac.digest(key, _encode(principal), "sha256")


def _encode(principal: Principal) -> bytes:
    """The one encoding of a principal; its readable form isn't unique."""
    return orjson.dumps([principal.profile, principal.iss, principal.sub])


def _keep(cache: dict[str, _V], pseudonym: str, value: _V, size: int) -> None:
    """Cache a value. A full cache is cleared, which needs no lock."""
    if len(cache) >= size:
        cache.clear()
    cache[pseudonym] = value


class MemoryShelf:
    """Subjects in memory. `before_removal` is called before a subject's key is deleted."""

    def __init__(self, *, before_removal: Callable[[], None] | None = None) -> None:
        self._before_removal = before_removal
        self._by_lookup: dict[bytes, Subject] = {}
        self._by_pseudonym: dict[str, Subject] = {}

    def by_lookup(self, lookup: bytes, /) -> Subject | None:
        return self._by_lookup.get(lookup)

    def by_pseudonym(self, pseudonym: str, /) -> Subject | None:
        return self._by_pseudonym.get(pseudonym)

    def add(self, subject: Subject, /) -> Subject:
        kept = self._by_lookup.setdefault(
            subject.lookup, subject
        )  # atomic, so that no lock is needed
        self._by_pseudonym[kept.pseudonym] = kept
        return kept

    def remove(self, pseudonym: str, /) -> bool:
        if self._before_removal is not None:
            self._before_removal()
        subject = self._by_pseudonym.pop(pseudonym, None)
        return subject is not None and self._by_lookup.pop(subject.lookup, None) is not None

    def close(self) -> None:
        """Nothing to release."""


class SqliteShelf:
    """Subjects in a file of their own, which must not be in backups of the ledger."""

    def __init__(self, path: Path, *, durability: str) -> None:
        def connect() -> sqlite3.Connection:
            connection = open_database(path, schema=_SCHEMA, version=1, durability=durability)
            connection.execute("PRAGMA secure_delete = ON")  # an erased key leaves no bytes behind
            return connection

        self._database = Database(connect, ledger_error)
        with self._database.lock, self._database.reading(f"{path} can't be opened"):
            pass
        self._failed = f"{path} can't be used"

    def by_lookup(self, lookup: bytes, /) -> Subject | None:
        return self._select("SELECT * FROM subjects WHERE lookup = ?", lookup)

    def by_pseudonym(self, pseudonym: str, /) -> Subject | None:
        return self._select("SELECT * FROM subjects WHERE pseudonym = ?", pseudonym)

    def add(self, subject: Subject, /) -> Subject:
        with self._database.lock, self._database.writing(self._failed) as connection:
            connection.execute("INSERT OR IGNORE INTO subjects VALUES (?, ?, ?, ?)", subject)
        return self.by_lookup(subject.lookup) or subject

    def remove(self, pseudonym: str, /) -> bool:
        with self._database.lock, self._database.writing(self._failed) as connection:
            removed = connection.execute("DELETE FROM subjects WHERE pseudonym = ?", (pseudonym,))
            subject = removed.rowcount > 0
        with self._database.lock, self._database.reading(self._failed) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return subject

    def close(self) -> None:
        self._database.close()

    def _select(self, query: str, value: str | bytes) -> Subject | None:
        with self._database.lock, self._database.reading(self._failed) as connection:
            row = connection.execute(query, (value,)).fetchone()
        return None if row is None else Subject._make(row)


_SCHEMA: Final = """
CREATE TABLE subjects (
    pseudonym TEXT PRIMARY KEY, lookup BLOB NOT NULL UNIQUE, key BLOB NOT NULL, principal BLOB NOT NULL
) WITHOUT ROWID
"""


def master_key(path: Path) -> bytes:
    """Read the key of a store of subjects, or make it if there is none.

    Raises:
        ConfigurationError: it can't be read or made, or isn't a key.
    """
    try:
        make_once(path, lambda: os.urandom(KEY_BYTES))
        make_private_file(path)
        key = path.read_bytes()
    except OSError as error:
        raise ConfigurationError("state_unusable", f"{path} can't be read or made") from error
    if len(key) != KEY_BYTES:
        raise ConfigurationError("key_unusable", f"{path} doesn't hold a key of {KEY_BYTES} bytes")
    return key
