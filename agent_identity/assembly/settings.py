# SPDX-License-Identifier: Apache-2.0
"""Times and limits of an identity: those of its configuration, else the usual ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from agent_identity.delegation.carriers import HEADER_LIMIT

if TYPE_CHECKING:
    from agent_identity.config import Configuration

__all__ = ["DEEPEST", "Settings"]

DEEPEST: Final = 7
"""A chain has eight hops at most, the root's among them."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Times are seconds. `session_lifetime` and `max_depth` are the most that a session may ask for."""

    session_lifetime: float = 3600.0
    grant_lifetime: float = 900.0
    max_depth: int = DEEPEST
    deadline: float = 10.0
    body_limit: int = 1024 * 1024
    header_limit: int = HEADER_LIMIT
    allow_private: frozenset[str] = frozenset()
    authorities: str | None = None

    @classmethod
    def of(cls, configuration: Configuration | None) -> Self:
        if configuration is None:
            return cls()
        return cls(
            session_lifetime=configuration.session.lifetime,
            grant_lifetime=configuration.session.grant_lifetime,
            max_depth=configuration.session.max_depth,
            deadline=configuration.http.deadline,
            body_limit=configuration.http.body_limit,
            header_limit=configuration.http.header_limit,
            allow_private=frozenset(configuration.http.allow_private),
            authorities=configuration.http.ca,
        )
