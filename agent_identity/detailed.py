# SPDX-License-Identifier: Apache-2.0
"""Authorization details in a session: what its grants say of them, and whether one call is within.

A session has details of its own, a resource those that it is configured with. A grant carries the session's, which have to be
within the resource's, or else the resource's; a call has to be within both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from agent_identity.delegation.details import Details, about, details_from
from agent_identity.errors import DeniedError
from agent_identity.values import LOCAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agent_identity.delegation.limits import Limits
    from agent_identity.runtime.parts import Resources
    from agent_identity.values import JSON

__all__ = ["check_call", "check_credential", "granted"]

_REMEDY = "call it within what was granted, or grant more when the session is opened or delegated"


def granted(limits: Limits, resources: Resources, audiences: frozenset[str]) -> Details | None:
    """The details of a grant for these resources; None limits nothing.

    Raises:
        DeniedError: `details_not_granted` or `details_not_configured`.
    """
    configured = _configured(resources, audiences)
    if limits.details is None:
        return configured
    reached = audiences | {LOCAL}
    kept = limits.details.towards(reached)
    if kept is None:
        raise DeniedError(
            "details_not_granted",
            f"the authorization details of {limits.agent} say nothing of {min(audiences)}",
            remedy=_REMEDY,
        )
    if configured is None:
        return kept
    kept = kept.apart(reached)  # always, so that a child's objects are covered one by one as well
    if not configured.covers(kept):
        raise DeniedError(
            "details_not_configured",
            f"{min(audiences)} isn't configured for all that the session's authorization details allow",
            remedy="narrow the session's details, or widen those of the resource's configuration",
        )
    return kept


def check_call(
    limits: Limits, resources: Resources, tool: str, resource: str, arguments: bytes
) -> None:
    """Hold one call to the session's details and the resource's; `arguments` are its canonical bytes.

    Raises:
        DeniedError: `details_not_granted`; the message names the tool and no argument.
    """
    own, configured = limits.details, resources.details(resource)
    if own is None and configured is None:
        return
    seen: Mapping[str, JSON] = orjson.loads(arguments)
    in_force = [each for each in (own, configured) if each is not None]
    if not all(each.allows(tool, resource, seen) for each in in_force):
        raise DeniedError(
            "details_not_granted",
            f"{limits.agent} may not call {tool} with these arguments",
            remedy=_REMEDY,
        )


def check_credential(limits: Limits, resources: Resources, resource: str) -> None:
    """Hold a credential outside any tool to them: there is no call whose tool and arguments could be looked at.

    Raises:
        DeniedError: `details_need_call` or `details_not_granted`.
    """
    for details in (limits.details, resources.details(resource)):
        if details is None:
            continue
        if not details.reaches(resource):
            raise DeniedError(
                "details_not_granted", f"{limits.agent} may not reach {resource}", remedy=_REMEDY
            )
        if details.sees_arguments:
            raise DeniedError(
                "details_need_call",
                f"what may be done at {resource} depends on tool and arguments",
                remedy="use current_credential() inside a tool for that resource",
            )


def _configured(resources: Resources, audiences: frozenset[str]) -> Details | None:
    """The configured details of all these resources together; what has none of its own is named without a limit."""
    limited = {uri: found for uri in audiences if (found := resources.details(uri)) is not None}
    if not limited:
        return None
    free = sorted((audiences - limited.keys()) | {LOCAL})
    return details_from(_claims(limited.values(), free))


def _claims(limited: Iterable[Details], free: list[str]) -> Iterator[Mapping[str, JSON]]:
    for each in limited:
        yield from each.claim
    yield about([*free])
