# SPDX-License-Identifier: Apache-2.0
"""The history of one transaction: what was permitted in a root session, its sub-agents and accepted sessions.

A permitted call is added right after the decision. No lock is held while policy decides: `enter` returns False if another call
was added in the meantime, and then policy decides again.
"""

from __future__ import annotations

import threading
import weakref
from typing import Final, NamedTuple

from agent_identity.forks import StillLock


class Past(NamedTuple):
    """One moment of a history; immutable, so a decision can't see it change.

    `whole` is False where part of the transaction lies in another process.
    """

    version: int
    calls: int
    labels: frozenset[str]
    tools: frozenset[str]
    resources: frozenset[str]
    whole: bool = True


class History:
    """The history of one transaction."""

    __slots__ = ("__weakref__", "_handed_over", "_is_foreign", "_lock", "past")

    def __init__(self) -> None:
        self.past: Past = Past(0, 0, frozenset(), frozenset(), frozenset())
        self._is_foreign = False
        self._handed_over: set[str] = set()
        self._lock = threading.Lock()

    def renew_lock(self) -> None:
        """Replace the lock in a forked child: a thread of the parent may hold the old one."""
        self._lock = threading.Lock()

    def enter(self, seen: Past, tool: str, resource: str, labels: frozenset[str]) -> bool:
        """Add a permitted call. Returns False if the history has changed since `seen`; then policy must decide again."""
        with self._lock:
            past = self.past
            if past is not seen:
                return False
            self.past = Past(
                past.version + 1,
                past.calls + 1,
                past.labels if labels <= past.labels else past.labels | labels,
                past.tools if tool in past.tools else past.tools | {tool},
                past.resources if resource in past.resources else past.resources | {resource},
                past.whole,
            )
            return True

    def mark_foreign(self) -> None:
        """Note that part of the history is in another process."""
        with self._lock:
            self._is_foreign = True
            self._update_whole()

    def note_handover(self, jti: str) -> None:
        """Note that work was handed over by this grant. Its calls are unknown here unless this process accepts it."""
        with self._lock:
            self._handed_over.add(jti)
            self._update_whole()

    def accept(self, jti: str) -> None:
        """Note that the work handed over by this grant continues in this process."""
        with self._lock:
            self._handed_over.discard(jti)
            self._update_whole()

    def _update_whole(self) -> None:
        whole = not self._is_foreign and not self._handed_over
        self.past = self.past._replace(version=self.past.version + 1, whole=whole)

    def add_resource(self, resource: str) -> None:
        """Note that a credential for `resource` was permitted outside any tool. It isn't counted as a call."""
        with self._lock:
            past = self.past
            if resource not in past.resources:
                self.past = past._replace(
                    version=past.version + 1, resources=past.resources | {resource}
                )


class _Histories(StillLock):
    """The histories of this process by transaction. After a fork each process continues them without the other's calls."""

    def __init__(self) -> None:
        super().__init__()
        self.by_txn: dict[str, weakref.ReferenceType[History]] = {}
        self._purge_at = 64

    def add(self, txn: str, history: History) -> None:
        """Add a history, and from time to time remove those of closed sessions. The caller holds the lock."""
        if len(self.by_txn) >= self._purge_at:
            for other, reference in list(self.by_txn.items()):
                if reference() is None:
                    del self.by_txn[other]
            self._purge_at = max(64, 2 * len(self.by_txn))
        self.by_txn[txn] = weakref.ref(history)

    def after_fork_in_parent(self) -> None:
        super().after_fork_in_parent()
        self._mark_foreign()

    def after_fork_in_child(self) -> None:
        super().after_fork_in_child()
        self._mark_foreign()

    def _mark_foreign(self) -> None:
        for reference in list(self.by_txn.values()):
            history = reference()
            if history is not None:
                history.renew_lock()
                history.mark_foreign()


_histories: Final = _Histories()


def begin_history(txn: str) -> History:
    """Make the history of a transaction that begins in this process."""
    with _histories.lock:
        history = History()
        _histories.add(txn, history)
    return history


def join_history(txn: str, jti: str) -> History:
    """Return the history of a transaction whose grant `jti` was handed over to this process.

    A transaction that began in this process keeps its one history, whichever identity accepts the grant.
    """
    with _histories.lock:
        reference = _histories.by_txn.get(txn)
        history = None if reference is None else reference()
        if history is None:
            history = History()
            history.mark_foreign()
            _histories.add(txn, history)
    history.accept(jti)
    return history
