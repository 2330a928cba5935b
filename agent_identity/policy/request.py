# SPDX-License-Identifier: Apache-2.0
"""A policy's request, in AuthZEN's terms: subject, action, resource, context.

All of it is immutable, and `context` is computed when a policy first reads it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from agent_identity import canonical, jose

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.policy.history import Past
    from agent_identity.values import JSON, Principal


class Entity(NamedTuple):
    """A subject, action or resource of a decision."""

    type: str
    id: str
    properties: Mapping[str, Any]


class Facts(NamedTuple):
    """The pipeline's facts about a call when it asks policy."""

    action: str
    target: Entity
    principal: Principal
    evidence: str
    agent: str
    chain: tuple[str, ...]
    purpose: str
    task: str | None
    now: float
    arguments: bytes
    past: Past


_TYPES = {"user": "User", "service": "Service", "trigger": "Trigger"}


class Request:
    """One question to a policy. `resource.id` is the tool's name, `context["args"]` holds the arguments, immutable."""

    __slots__ = ("_context", "_facts")

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._context: Mapping[str, object] | None = None

    @property
    def subject(self) -> Entity:
        principal = self._facts.principal
        identifier = principal.sub if principal.iss is None else f"{principal.iss}#{principal.sub}"
        return Entity(
            _TYPES.get(principal.profile, "User"),
            identifier,
            MappingProxyType(
                {
                    "iss": principal.iss,
                    "profile": principal.profile,
                    "evidence": self._facts.evidence,
                }
            ),
        )

    @property
    def action(self) -> Entity:
        return Entity("Action", self._facts.action, MappingProxyType({}))

    @property
    def resource(self) -> Entity:
        return self._facts.target

    @property
    def context(self) -> Mapping[str, Any]:
        if self._context is None:
            self._context = self._make_context()
        return self._context

    def _make_context(self) -> Mapping[str, object]:
        facts = self._facts
        past = facts.past
        session = MappingProxyType(
            {
                "labels": past.labels,
                "tools": past.tools,
                "resources": past.resources,
                "calls": past.calls,
                "approvals": 0,
                "whole": past.whole,
            }
        )
        return MappingProxyType(
            {
                "agent": facts.agent,
                "vouched": len(facts.chain) == 1,
                "chain": facts.chain,
                "depth": len(facts.chain) - 1,
                "purpose": facts.purpose,
                "task": facts.task,
                "args": freeze(jose.loads(facts.arguments)),
                "args_hash": canonical.digest(facts.arguments),
                "time": facts.now,
                "approved": False,
                "approval": None,
                "session": session,
            }
        )


def freeze(value: JSON) -> object:
    """Make JSON immutable: objects become read-only mappings, lists become tuples."""
    if isinstance(value, dict):
        return MappingProxyType({name: freeze(member) for name, member in value.items()})
    if isinstance(value, list):
        return tuple(freeze(member) for member in value)
    return value
