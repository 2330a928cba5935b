# SPDX-License-Identifier: Apache-2.0
"""What has been permitted so far in one transaction, a root session and all sub-agents of it.

A permitted call enters at the moment of decision. Between reading and entering nothing is locked: `enter` says whether the
past that was decided upon is still the past, and if it isn't, policy decides again.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

__all__ = ["History", "Past"]


class Past(NamedTuple):
    """One moment of a history; immutable, so a decision can't see it change."""

    version: int
    calls: int
    labels: frozenset[str]
    tools: frozenset[str]
    resources: frozenset[str]


class History:
    """The history of one transaction."""

    __slots__ = ("_lock", "past")

    def __init__(self) -> None:
        self.past: Past = Past(0, 0, frozenset(), frozenset(), frozenset())
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
            )
            return True

    def reached(self, resource: str) -> None:
        """A credential for `resource` was permitted outside any tool; it counts as reached, and as no call."""
        with self._lock:
            past = self.past
            if resource not in past.resources:
                self.past = past._replace(
                    version=past.version + 1, resources=past.resources | {resource}
                )
