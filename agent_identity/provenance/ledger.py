# SPDX-License-Identifier: Apache-2.0
"""The protocol of ledgers, and how to open one by its URL."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self
from urllib.parse import unquote

from agent_identity.errors import ConfigurationError
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.provenance.sqlite.ledger import SqliteLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agent_identity.flow import Draft
    from agent_identity.provenance.chain import Check, FirstBad, LedgerReport
    from agent_identity.provenance.pseudonyms import Subjects
    from agent_identity.provenance.records import Record
    from agent_identity.values import Principal


class Ledger(Protocol):
    """Append-only records in one hash chain for each writer, and the subjects that they are about.

    Safe to use from several threads, and on both sides of a fork.
    """

    @property
    def subjects(self) -> Subjects:
        """The pseudonyms and keys of the records' subjects; `subjects.erase` erases one."""
        ...

    @property
    def healthy(self) -> bool:
        """False after a failed write, until a later one succeeds."""
        ...

    def append(self, draft: Draft, /) -> None:
        """Commit a record before returning.

        Raises:
            LedgerError: it is not on record.
        """
        ...

    async def aappend(self, draft: Draft, /) -> None:
        """The async twin of `append`; it doesn't block the loop while other writers hold the ledger."""
        ...

    def probe(self) -> None:
        """Write something that isn't a record.

        Raises:
            LedgerError: the ledger can't be written at this time.
        """
        ...

    def pseudonym(self, principal: Principal, /) -> str:
        """The pseudonym of a principal; a new one is made if there is none."""
        ...

    def find(self, ref: str, /) -> list[Record]:
        """The records with a reference, in commit order; none if it is unknown.

        A reference is the id of a call, session, trace or span, the `jti` of a grant, token or assertion, a `txn`, or
        the model's id of a tool call.
        """
        ...

    def frame(self, ref: str, /) -> list[Record]:
        """The records of `find` that aren't about a call: sessions, grants, credentials."""
        ...

    def session_records(self, session_id: str, /) -> list[Record]:
        """The records of one session, in the order of commits."""
        ...

    def sessions(self) -> Iterator[Record]:
        """The records of opened sessions, newest first."""
        ...

    def references(self, beginning: str, /, *, limit: int) -> list[str]:
        """References with a prefix, in alphabetical order, at most `limit`."""
        ...

    def records(self) -> Iterator[Record]:
        """All records, in the order of commits."""
        ...

    def is_live(self, writer: str, /) -> bool:
        """Whether a writer may still report how its calls ended: not closed, and its lease has not expired."""
        ...

    def first_broken(self, records: Sequence[Record], /) -> FirstBad | None:
        """Recompute the hashes and links of some records. Return the first fault; None where there is none."""
        ...

    def verify(self, check: Check | None = None, /) -> LedgerReport:
        """Recompute every hash and link, and with a `check` every signature.

        Raises:
            LedgerError: the ledger can't be read at all.
        """
        ...

    def close(self) -> None:
        """End this writer's lease, and close files and connections."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_ledger(
    url: str,
    *,
    state_dir: Path,
    clock: Callable[[], float] = time.time,
    durability: str = "process",
    base: Path | None = None,
) -> Ledger:
    """Open the ledger of a URL: `memory:`, `sqlite:` (in `state_dir`), `sqlite:///relative`, `sqlite:////absolute`.

    Subjects are kept in `state_dir`, wherever the ledger lies. `durability` is "process" (what is committed survives a
    killed process) or "power". A relative path is relative to `base`, by default the working directory.

    Raises:
        ConfigurationError: an unknown URL or durability, a file that others could change, a schema of another version.
    """
    if durability not in _DURABILITIES:
        raise ConfigurationError(
            "ledger_durability", 'durability is "process" or "power"', remedy="name one of them"
        )
    if url == "memory:":
        return MemoryLedger(clock=clock)
    path = _sqlite_path(url, state_dir, base or Path())
    return SqliteLedger(path, state_dir=state_dir, clock=clock, durability=durability)


_DURABILITIES: Final = frozenset({"process", "power"})


def _sqlite_path(url: str, state_dir: Path, base: Path) -> Path:
    if url == "sqlite:":
        return state_dir / "ledger.db"
    scheme, slashes, rest = url.partition(":///")
    if scheme != "sqlite" or not slashes or not rest.strip("/"):
        raise ConfigurationError(
            "ledger_url",
            "a ledger's URL must be memory:, sqlite:, sqlite:///relative or sqlite:////absolute",
        )
    return base / unquote(rest)
