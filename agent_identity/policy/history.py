# SPDX-License-Identifier: Apache-2.0
"""The history of one transaction: what was permitted in a root session, its sub-agents and accepted sessions.

A permitted call enters at the moment of decision. Between reading and entering nothing is locked: `enter` says whether the
past that was decided upon is still the past, and if it isn't, policy decides again.
"""

from __future__ import annotations

import threading
import weakref
from typing import Final, NamedTuple

from agent_identity.forks import StillLock, hold_still

__all__ = ["History", "Past", "accepted_history", "new_history"]


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

    __slots__ = ("__weakref__", "_handed", "_is_foreign", "_lock", "past")

    def __init__(self) -> None:
        self.past: Past = Past(0, 0, frozenset(), frozenset(), frozenset())
        self._is_foreign = False
        self._handed: set[str] = set()
        self._lock = threading.Lock()

    def renew_lock(self) -> None:
        """Start over in a forked child, where the lock may be held by a thread that isn't there."""
        self._lock = threading.Lock()

    def enter(self, seen: Past, tool: str, resource: str, labels: frozenset[str]) -> bool:
        """Let a permitted call in; False when another got in since `seen` and the decision has to be made again."""
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

    def came_from_elsewhere(self) -> None:
        """Note that the transaction began in another process, which has that part of its history."""
        with self._lock:
            self._is_foreign = True
            self._tell()

    def hand_over(self, jti: str) -> None:
        """Note that work was handed over by this grant. Its calls are unknown here, unless it is accepted in this process."""
        with self._lock:
            self._handed.add(jti)
            self._tell()

    def accept(self, jti: str) -> None:
        """Note that the work handed over by this grant continues in this process."""
        with self._lock:
            self._handed.discard(jti)
            self._tell()

    def _tell(self) -> None:
        whole = not self._is_foreign and not self._handed
        self.past = self.past._replace(version=self.past.version + 1, whole=whole)

    def reached(self, resource: str) -> None:
        """A credential for `resource` was permitted outside any tool; it counts as reached, and as no call."""
        with self._lock:
            past = self.past
            if resource not in past.resources:
                self.past = past._replace(
                    version=past.version + 1, resources=past.resources | {resource}
                )


class _Split:
    """After a fork each process has its own part of the histories that both have."""

    def before_fork(self) -> None: ...

    def after_fork_in_parent(self) -> None:
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        for reference in list(_histories.values()):
            history = reference()
            if history is not None:
                history.renew_lock()
                history.came_from_elsewhere()


_split: Final = _Split()
hold_still(_split)
_still: Final = StillLock()
_histories: Final[dict[str, weakref.ReferenceType[History]]] = {}
_purged: Final = [64]
"""How many there may be before those of sessions that are gone are removed."""


def new_history(txn: str) -> History:
    """The history of a transaction that begins here."""
    with _still.lock:
        history = History()
        _keep(txn, history)
    return history


def accepted_history(txn: str, jti: str) -> History:
    """The history of a transaction of which a part was handed over to this process by the grant `jti`.

    A transaction that began in this process has one history, whichever identity accepts a part of it.
    """
    with _still.lock:
        reference = _histories.get(txn)
        history = None if reference is None else reference()
        if history is None:
            history = History()
            history.came_from_elsewhere()
            _keep(txn, history)
    history.accept(jti)
    return history


def _keep(txn: str, history: History) -> None:
    if len(_histories) >= _purged[0]:
        for other, reference in list(_histories.items()):
            if reference() is None:
                del _histories[other]
        _purged[0] = max(64, 2 * len(_histories))
    _histories[txn] = weakref.ref(history)
