# SPDX-License-Identifier: Apache-2.0
"""The options of `on_behalf_of`, `autonomous` and `delegate`: checked once, then passed as one value."""

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
"""Seconds that a session lasts, at least. Grants end on whole seconds, so a shorter one could be over at once."""

MAX_DELEGATIONS: Final = MAX_HOPS - 1


class Options(NamedTuple):
    """The options of one session. `expires_in` is in seconds; None is the longest that is allowed. Elsewhere None is no limit."""

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
        """Check the arguments of a caller.

        Raises:
            ConfigurationError: an option can't be used.
        """
        if budget is not None:
            raise ConfigurationError(
                "not_supported", "this version has no budgets", remedy="leave out budget"
            )
        if not _is_depth(max_depth):
            raise ConfigurationError(
                "max_depth", f"max_depth isn't a number between 0 and {MAX_DELEGATIONS}"
            )
        if expires_in is not None and not _is_lifetime(expires_in):
            raise ConfigurationError(
                "expires_in",
                f"expires_in isn't a number of at least {SHORTEST} seconds",
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
        """How many seconds the session lasts, at most `longest`."""
        return longest if self.expires_in is None else min(self.expires_in, longest)


def _is_depth(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= MAX_DELEGATIONS


def _is_lifetime(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= SHORTEST
