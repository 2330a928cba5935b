# SPDX-License-Identifier: Apache-2.0
"""The options of a session, as `on_behalf_of`, `autonomous` and `delegate` take them: checked once, then passed as one value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self

from agent_identity.delegation.details import details_from
from agent_identity.delegation.grant import MAX_HOPS
from agent_identity.errors import ConfigurationError
from agent_identity.uris import resource_set
from agent_identity.values import check_task, scope_set

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_identity.delegation.details import Details
    from agent_identity.values import JSON


SHORTEST: Final = 2
"""Seconds that a session lasts at least: grants end on whole seconds, so one that ends within a second is useless."""

MAX_DELEGATIONS: Final = MAX_HOPS - 1


class Options(NamedTuple):
    """`expires_in` is seconds. None is no limit of its own, or for `expires_in` the longest that is allowed."""

    task: str | None
    scopes: frozenset[str] | None
    resources: frozenset[str] | None
    details: Details | None
    expires_in: float | None
    max_depth: int = MAX_DELEGATIONS

    @classmethod
    def read(
        cls,
        *,
        task: str | None,
        scopes: Iterable[str] | None,
        resources: Iterable[str] | None,
        authorization_details: Iterable[Mapping[str, JSON]] | None,
        expires_in: float | None,
        max_depth: int = MAX_DELEGATIONS,
        budget: object = None,
    ) -> Self:
        """Check what a caller passed.

        Raises:
            ConfigurationError: an option can't be used.
        """
        if budget is not None:
            raise ConfigurationError(
                "not_supported", "budgets aren't part of this version", remedy="leave out budget"
            )
        if isinstance(max_depth, bool) or not isinstance(max_depth, int):
            max_depth = -1
        if not 0 <= max_depth <= MAX_DELEGATIONS:
            raise ConfigurationError("max_depth", f"max_depth is between 0 and {MAX_DELEGATIONS}")
        if expires_in is not None and not _is_lifetime(expires_in):
            raise ConfigurationError(
                "expires_in",
                f"expires_in is seconds, at least {SHORTEST}: a grant ends on a whole second",
            )
        return cls(
            check_task(task),
            None if scopes is None else scope_set(scopes),
            None if resources is None else resource_set(resources),
            None if authorization_details is None else details_from(authorization_details),
            expires_in,
            max_depth,
        )

    def lifetime(self, longest: float) -> float:
        """The seconds that the session lasts, where it may last `longest`."""
        return longest if self.expires_in is None else min(self.expires_in, longest)


def _is_lifetime(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and given >= SHORTEST
