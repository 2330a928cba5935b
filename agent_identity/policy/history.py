# SPDX-License-Identifier: Apache-2.0
"""The history of one transaction: what was permitted in a root session, its sub-agents and accepted sessions.

A permitted call is added right after the decision. No lock is held while policy decides: `enter` returns False if another call
was added in the meantime, and then policy decides again.
"""

from __future__ import annotations

import threading
import weakref
from typing import Final, NamedTuple

from agent_identity.forks import StillLock, hold_still

__all__ = ["History", "Past", "begin_history", "join_history"]


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


class _SplitAtFork:
    """Marks every history as incomplete in both processes after a fork, since each continues it on its own."""

    def before_fork(self) -> None: ...

    def after_fork_in_parent(self) -> None:
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        for reference in list(_histories.values()):
            history = reference()
            if history is not None:
                history.renew_lock()
                history.mark_foreign()


_split: Final = _SplitAtFork()
hold_still(_split)
_still: Final = StillLock()
_histories: Final[dict[str, weakref.ReferenceType[History]]] = {}
_purge_at: Final = [64]
"""The number of histories at which those of closed sessions are removed."""


def begin_history(txn: str) -> History:
    """Make the history of a transaction that begins in this process."""
    with _still.lock:
        history = History()
        _register(txn, history)
    return history


def join_history(txn: str, jti: str) -> History:
    """Return the history of a transaction whose grant `jti` was handed over to this process.

    A transaction that began in this process keeps its one history, whichever identity accepts the grant.
    """
    with _still.lock:
        reference = _histories.get(txn)
        history = None if reference is None else reference()
        if history is None:
            history = History()
            history.mark_foreign()
            _register(txn, history)
    history.accept(jti)
    return history


def _register(txn: str, history: History) -> None:
    if len(_histories) >= _purge_at[0]:
        for other, reference in list(_histories.items()):
            if reference() is None:
                del _histories[other]
        _purge_at[0] = max(64, 2 * len(_histories))
    _histories[txn] = weakref.ref(history)
