# SPDX-License-Identifier: Apache-2.0
"""How a revocation reaches a running agent.

R1  In this process it takes effect at once: it ends all sessions that it names, and a call checks as its last step whether its
    session has ended. A call reads no store and no file for that.
R2  It is stored in the state directory. Other processes that share the directory read it every quarter of a second, in a thread.
R3  A new session is added to the list of running sessions before it is checked for revocations, and a revocation is noted before
    that list is read. So no session slips through between the two.
R4  A store that can't be read counts as a revocation: if it wasn't read for ten seconds, no session opens and no call starts.

tests/unit/test_revocation.py and tests/system/test_revocation.py have a test for each.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    DeniedError,
    LedgerError,
    RevokedError,
)
from agent_identity.flow import Draft
from agent_identity.forks import Registry, start_over_in_child
from agent_identity.lifecycle.reference import EVERYTHING, FORMS, Reference, read_reference
from agent_identity.provenance.records import REINSTATED, REVOKED
from agent_identity.provenance.sqlite.upkeep import Upkeep
from agent_identity.values import Principal, check_phrase

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from agent_identity.provenance.ledger import Ledger
    from agent_identity.values import JSON

LOOK_SECONDS: Final = 0.25
"""Seconds between two reads of the store for revocations of other processes."""
STALE_SECONDS: Final = 10.0
"""The maximum age of the last read, in seconds."""

_log: Final = logging.getLogger("agent_identity")


class RevocationStore(Protocol):
    """A store of revocations, such as the authority's. Times are whole Unix seconds."""

    @property
    def place(self) -> object:
        """The identity of the store: stores with the same place hold the same revocations."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether other processes may write to it."""
        ...

    def version(self) -> object:
        """A value that changes when another process has written."""
        ...

    def revoke(self, ref: str, now: int, ends: int | None = None) -> None: ...

    def reinstate(self, ref: str, now: int) -> None:
        """Raise `ConfigurationError` `not_revoked` if it wasn't revoked."""
        ...

    def revocations(self, now: float) -> list[tuple[str, int | None]]:
        """References, each with the time when it was reinstated; None if it wasn't."""
        ...


class Revocable(Protocol):
    """A session that revocations can end."""

    @property
    def id(self) -> str: ...

    @property
    def issued_at(self) -> float:
        """The Unix time at which the tokens and grants of the session were issued."""
        ...

    def names(self) -> frozenset[str]:
        """The references that revoke it: principal, agent, session and transaction ids, and the `jti` of its grants."""
        ...

    def end_revoked(self, reference: Reference, /) -> bool:
        """End it now. Returns False if it had already ended."""
        ...

    def close_revoked(self, reason: str) -> None:
        """Revoke its tokens at their issuers, and record its end."""
        ...


class Revocation(NamedTuple):
    """The answer to `revoke` and `reinstate`.

    `is_new` says that this ledger has no record of the principal or agent; `sessions` counts those that were ended in this process.
    """

    ref: str
    kind: str
    is_revoked: bool
    reason: str | None
    by: str
    at: float
    is_new: bool
    sessions: int = 0

    def __str__(self) -> str:
        verb = "revoked" if self.is_revoked else "reinstated"
        new = " (new here: no record names it)" if self.is_new else ""
        ended = f", {self.sessions} running sessions ended here" if self.sessions else ""
        return f"{self.ref} is {verb}{new}{ended}"

    def to_dict(self) -> dict[str, JSON]:
        """As `agent-identity revoke --json` prints it."""
        return {
            "ref": self.ref,
            "kind": self.kind,
            "revoked": self.is_revoked,
            "reason": self.reason,
            "by": self.by,
            "new": self.is_new,
            "sessions": self.sessions,
        }


_here: Final[Registry[Revocations]] = Registry()


class Revocations:
    """Revocations, and the running sessions of this identity that they end. Thread-safe, fork-safe.

    `has_sessions` is False if sessions are recorded elsewhere, as for an authority that serves agents on other machines.
    `wait_for_beginnings` waits until all calls that have already passed their last check have begun.
    """

    def __init__(
        self,
        store: RevocationStore,
        ledger: Ledger,
        *,
        has_sessions: bool = True,
        own_issuer: str | None = None,
        wait_for_beginnings: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._has_sessions = has_sessions
        self._own_issuer = own_issuer
        self._wait_for_beginnings = wait_for_beginnings
        self._purged = 64
        self._needs_watch = False
        self._store = store
        self._is_shared = store.is_shared
        self._ledger = ledger
        self._clock = clock
        self._monotonic = monotonic
        self._running: dict[str, weakref.ReferenceType[Revocable]] = {}
        self._revoked: dict[str, int | None] = {}
        self._version: object = None
        self._looked_at = monotonic()
        self._looking = threading.Lock()
        self._watch = Upkeep(self._look_quietly, every=LOOK_SECONDS)
        _here.add(self)
        start_over_in_child(self)
        self.look()

    def open(self, session: Revocable) -> None:
        """Register a session that opens.

        Raises:
            RevokedError: its principal, agent, parent or a grant is revoked.
            DeniedError: `revocations_stale`.
        """
        if len(self._running) >= self._purged:
            for session_id, reference in list(self._running.items()):
                if reference() is None:
                    self._running.pop(session_id, None)
            self._purged = max(64, 2 * len(self._running))
        self._running[session.id] = weakref.ref(session)
        if self._is_shared:
            self._watch.start()
        self.check_fresh()
        if self._revoked:
            self.check(session.names(), session.issued_at)

    def close(self, session_id: str) -> None:
        """Unregister a session that has ended."""
        self._running.pop(session_id, None)

    def check(self, names: Iterable[str], issued_at: float) -> None:
        """Check that none of the names is revoked for `issued_at` (Unix seconds).

        Raises:
            RevokedError: one of them is.
        """
        for name in (EVERYTHING, *names):
            if self._is_revoked(name, issued_at):
                raise revoked_error(read_reference(name))

    def check_fresh(self) -> None:
        """Check that the store was read recently. No I/O if it was.

        Raises:
            DeniedError: `revocations_stale`.
        """
        if not self._is_shared:
            return
        if self._needs_watch:  # in a forked child, which doesn't have the parent's thread
            self._needs_watch = False
            self._watch.start()
        elif self._monotonic() - self._looked_at < STALE_SECONDS:
            return
        try:
            self.look()
        except AgentIdentityError as error:
            raise DeniedError(
                "revocations_stale",
                f"revocations could not be read for more than {STALE_SECONDS:g} seconds",
                remedy="check the disk and the permissions of the state directory",
            ) from error

    def _is_revoked(self, name: str, issued_at: float) -> bool:
        if name not in self._revoked:
            return False
        lifted_at = self._revoked[name]
        return lifted_at is None or lifted_at >= int(issued_at)

    def revoke(self, ref: str, *, reason: str, by: str) -> Revocation:
        """Revoke a reference: end all sessions that it names. When this returns, no call of theirs starts in this process.

        `by` is the agent, or the operating system's user.

        Raises:
            ConfigurationError: `reference_malformed`; `reference_unknown`, a session or grant that the ledger doesn't know.
            DeniedError, LedgerError: it could not be stored or recorded, but took effect in this process.
        """
        check_phrase("reason", reason)
        reference = self._known(ref)
        now = self._clock()
        ended: list[Revocable] = []
        with self._looking:  # a `look` that has read the store already must not overwrite this
            for each in self._same_place():
                each._revoked[reference.text] = None  # noqa: SLF001 - one of its own
                ended += each._end(reference)  # noqa: SLF001 - see above
            self._store.revoke(reference.text, int(now))
        if ended:
            _close_later(ended, f"revoked: {reason}")
        is_new = self._record(REVOKED, reference, reason, by)
        for each in self._same_place():
            each._wait_for_beginnings()  # noqa: SLF001 - one of its own
        return Revocation(reference.text, reference.kind, True, reason, by, now, is_new, len(ended))

    def reinstate(self, ref: str, *, reason: str | None, by: str) -> Revocation:
        """Lift a revocation for tokens and grants issued from the next second on. Older ones stay revoked.

        Raises:
            ConfigurationError: `reference_malformed`; `not_revoked`.
        """
        if reason is not None:
            check_phrase("reason", reason)
        reference = self._read(ref)
        now = self._clock()
        with self._looking:
            self._store.reinstate(reference.text, int(now))
            for each in self._same_place():
                each._revoked[reference.text] = int(now)  # noqa: SLF001 - one of its own
        is_new = self._record(REINSTATED, reference, reason, by)
        return Revocation(reference.text, reference.kind, False, reason, by, now, is_new)

    def is_known(self, reference: Reference) -> bool:
        """Whether a session or grant is known here, so that a mistyped id is an error."""
        if any(reference.text in session.names() for session in self._sessions()):
            return True
        return bool(self._ledger.find(reference.text))

    def _known(self, ref: str) -> Reference:
        reference = self._read(ref)
        is_here = self._has_sessions and reference.kind in ("session", "grant", "token")
        if is_here and not self.is_known(reference):
            raise ConfigurationError(
                "reference_unknown",
                f"this ledger has no {reference.kind} {reference.text}",
                remedy=f"check the id; a reference is one of {FORMS}",
            )
        return reference

    def _read(self, ref: str) -> Reference:
        """Read a reference in the form that sessions use, where the authority's own principals have no issuer."""
        reference = read_reference(ref)
        principal = reference.principal
        if principal is None or self._own_issuer is None or principal.iss != self._own_issuer:
            return reference
        own = Principal(principal.sub, profile=principal.profile)
        return Reference(reference.kind, str(own))

    def _same_place(self) -> list[Revocations]:
        return [each for each in list(_here) if each._store.place == self._store.place]  # noqa: SLF001 - see above

    def _sessions(self) -> list[Revocable]:
        sessions = [reference() for reference in list(self._running.values())]
        return [session for session in sessions if session is not None]

    def _end(self, reference: Reference) -> list[Revocable]:
        """End the running sessions that a reference names, and return them."""
        names = {reference.text} | self._sessions_of_grant(reference)
        return [
            session
            for session in self._sessions()
            if (reference.kind == "everything" or not names.isdisjoint(session.names()))
            and self._is_revoked(reference.text, session.issued_at)
            and session.end_revoked(reference)
        ]

    def _sessions_of_grant(self, reference: Reference) -> set[str]:
        if reference.kind not in ("grant", "token"):
            return set()
        with contextlib.suppress(LedgerError):
            records = self._ledger.find(reference.text)
            return {each.session_id for each in records if each.session_id is not None}
        return set()

    def _record(self, kind: str, reference: Reference, reason: str | None, by: str) -> bool:
        """Record a revocation or its lifting. Return whether the principal or agent is new to this ledger."""
        principal = reference.principal
        is_new = self._is_new(reference)
        pseudonym = None if principal is None else self._ledger.pseudonym(principal)
        self._ledger.append(
            Draft(
                kind,
                {
                    "kind": reference.kind,
                    "ref": None if principal is not None else reference.text,
                    "reason": reason,
                    "by": by,
                },
                None if principal is None else {"ref": reference.text},
                pseudonym=pseudonym,
                session_id=reference.text if reference.kind == "session" else None,
                ref=reference.text if reference.kind in ("grant", "token") else None,
            )
        )
        return is_new

    def _is_new(self, reference: Reference) -> bool:
        principal = reference.principal
        if principal is not None:
            return self._ledger.subjects.find(principal) is None
        if reference.kind != "agent":
            return False
        if any(reference.text in session.names() for session in self._sessions()):
            return False
        return all(record.body.get("agent") != reference.text for record in self._ledger.records())

    def look(self) -> None:
        """Read the revocations of other processes from the store, and end the sessions that they name.

        Raises:
            DeniedError: the store can't be read.
        """
        with self._looking:
            version = self._store.version()
            if version != self._version:
                stored = dict(self._store.revocations(self._clock()))
                fresh = [
                    ref
                    for ref, lifted in stored.items()
                    if ref not in self._revoked or self._revoked[ref] != lifted
                ]
                self._revoked.update(stored)
                self._version = version
            else:
                fresh = []
            self._looked_at = self._monotonic()
        for ref in fresh:
            with contextlib.suppress(ConfigurationError):
                ended = self._end(read_reference(ref))
                if ended:
                    _close_later(ended, "revoked by another process")

    def _look_quietly(self) -> None:
        try:
            self.look()
        except AgentIdentityError as error:
            _log.warning("revocations could not be read (%s)", error.code)

    def stop(self) -> None:
        """Stop reading the store."""
        self._watch.stop()

    def start_over(self) -> None:
        """In a forked child: the next session that opens starts a watch of its own."""
        self._looking = threading.Lock()
        self._watch = Upkeep(self._look_quietly, every=LOOK_SECONDS)
        self._version = None
        self._needs_watch = True


def revoked_error(reference: Reference) -> RevokedError:
    """The error for a call or session that is refused because of a revocation."""
    if reference.kind == "everything":
        return RevokedError(
            "everything_revoked", "everything is revoked", remedy='ask an operator to reinstate "*"'
        )
    return RevokedError(
        _CODES[reference.kind],
        f"the {reference.kind} was revoked",
        remedy="ask an operator for `agent-identity reinstate`, then open a new session; the old one stays ended",
    )


_CODES: Final = {
    "principal": "principal_revoked",
    "session": "session_revoked",
    "grant": "grant_revoked",
    "agent": "agent_revoked",
    "client": "client_revoked",
    "token": "token_revoked",
}


def _close_later(ended: Collection[Revocable], reason: str) -> None:
    """Close sessions in a separate thread, since revoking their tokens waits for the issuers."""

    def close() -> None:
        for session in ended:
            try:
                session.close_revoked(reason)
            except AgentIdentityError as error:
                _log.warning("the end of %s could not be completed (%s)", session.id, error.code)

    threading.Thread(target=close, name="agent-identity-revocation", daemon=True).start()
