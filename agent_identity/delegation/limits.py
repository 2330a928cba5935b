# SPDX-License-Identifier: Apache-2.0
"""The limits of a session: which scopes and resources it may request, and which a child may get.

None means no limit, an empty set means nothing at all. A request that exceeds the limits is refused, never reduced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_identity.errors import DeniedError
from agent_identity.values import LOCAL

if TYPE_CHECKING:
    from agent_identity.delegation.details import Details


@dataclass(frozen=True, slots=True)
class Limits:
    """The scopes, resources and authorization details of one agent's session. Local tools are always allowed."""

    agent: str
    scopes: frozenset[str] | None
    resources: frozenset[str] | None
    details: Details | None = None

    def check(
        self, resource: str, requested: frozenset[str], configured: frozenset[str] | None
    ) -> None:
        """Check a call against these limits, and against the configured scopes of `resource`.

        Raises:
            DeniedError: `resource_not_granted`, `scope_not_granted` or `scope_not_configured`.
        """
        if self.resources is not None and resource not in self.resources and resource != LOCAL:
            raise DeniedError(
                "resource_not_granted",
                f"{self.agent} may not reach {resource} in this session",
                remedy="name the resource when the session is opened or delegated",
            )
        if self.scopes is not None and not requested <= self.scopes:
            raise DeniedError(
                "scope_not_granted",
                f"{self.agent} lacks {', '.join(sorted(requested - self.scopes))} in this session",
                remedy="grant the scope when the session is opened or delegated, or don't call this tool",
            )
        if configured is not None and not requested <= configured:
            raise DeniedError(
                "scope_not_configured",
                f"{resource} isn't configured for {', '.join(sorted(requested - configured))}",
                remedy="add the scope to the resource's configuration",
            )

    def default_scopes(
        self,
        resource: str,
        configured: frozenset[str] | None,
        asked: frozenset[str] | None = None,
    ) -> frozenset[str]:
        """The scopes of a call that names none: all configured scopes of `resource` that these limits allow.

        `asked` are those that the resource asks for; None if it doesn't say. Of them, only those that are configured and allowed.
        An empty set if nothing is set, and for local tools.
        """
        if resource == LOCAL:
            return frozenset()
        if asked is not None:
            limits = [each for each in (configured, self.scopes) if each is not None]
            return asked.intersection(*limits)
        if configured is None or self.scopes is None:
            return configured or self.scopes or frozenset()
        return configured & self.scopes

    def narrow(
        self,
        agent: str,
        scopes: frozenset[str] | None,
        resources: frozenset[str] | None,
        details: Details | None = None,
    ) -> Limits:
        """The limits of a child. None means the same as here.

        Raises:
            DeniedError: `scope_widened`, `audience_widened` or `details_widened`.
        """
        details = self.details if details is None else details
        scopes = self.scopes if scopes is None else scopes
        resources = self.resources if resources is None else resources
        if self.scopes is not None and not (scopes is not None and scopes <= self.scopes):
            raise DeniedError(
                "scope_widened",
                f"{self.agent} can't pass on {_beyond(scopes, self.scopes)}, which it lacks in this session",
                remedy=f"leave the scope out of delegate(…), or grant it to {self.agent} when its session is opened",
            )
        if self.resources is not None and not (
            resources is not None and resources <= self.resources
        ):
            raise DeniedError(
                "audience_widened",
                f"{self.agent} can't pass on {_beyond(resources, self.resources)}, which it lacks in this session",
                remedy=f"leave the resource out of delegate(…), or grant it to {self.agent} when its session is opened",
            )
        if self.details is not None and not self.details.covers(details):
            raise DeniedError(
                "details_widened", f"{self.agent} can't pass on more than its own details allow"
            )
        return Limits(agent, scopes, resources, details)


def _beyond(requested: frozenset[str] | None, allowed: frozenset[str]) -> str:
    return ", ".join(sorted((requested or frozenset[str]()) - allowed))
