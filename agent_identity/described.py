# SPDX-License-Identifier: Apache-2.0
"""What is known of a tool before it is called."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import orjson

from agent_identity.errors import ConfigurationError
from agent_identity.policy.request import Entity
from agent_identity.provenance.spans import call_attributes
from agent_identity.uris import checked_resource
from agent_identity.values import LOCAL, can_be_signed, scope_set

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_identity.values import JSON

__all__ = ["Tool"]

_CANCELLATIONS: Final = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)


class Tool:
    """What is known of a tool before it is called: its name, what it reaches, what it says of itself.

    `scopes=None` means those that its resource is configured with, `resource=None` that it reaches nothing outside.
    `pauses` are a framework's exceptions by which a body stops to go on later; they are no failure.
    """

    __slots__ = (
        *("_target", "labels", "labels_json", "name", "name_json", "opaque", "pauses", "resource"),
        *("scopes", "span_attributes", "span_name"),
    )

    def __init__(
        self,
        name: str,
        *,
        resource: str | None = None,
        scopes: Iterable[str] | None = None,
        labels: Iterable[str] = (),
        opaque: Iterable[str] = (),
        pauses: tuple[type[BaseException], ...] = (),
    ) -> None:
        if isinstance(labels, str) or isinstance(opaque, str):
            raise ConfigurationError(
                "tool_malformed", "labels and opaque are lists, not one string"
            )
        labels = frozenset(labels)
        if not all(map(can_be_signed, (name, *labels))):
            raise ConfigurationError(
                "tool_malformed", "a tool's name and labels are text without lone surrogates"
            )
        self.name = name
        self.name_json: str = orjson.dumps(name).decode()
        self.resource: str = LOCAL if resource is None else checked_resource(resource)
        self.scopes: frozenset[str] | None = None if scopes is None else scope_set(scopes)
        self.labels: frozenset[str] = labels
        self.labels_json: list[JSON] = [*sorted(self.labels)]
        self.opaque: frozenset[str] = frozenset(opaque)
        self.span_name: str = f"execute_tool {name}"
        self.span_attributes: dict[str, str] = call_attributes(name)
        self._target: tuple[frozenset[str], Entity] | None = None
        self.pauses: tuple[type[BaseException], ...] = (*_CANCELLATIONS, *pauses)

    def named(self, name: str) -> Tool:
        """The same under another name."""
        return Tool(
            name,
            resource=None if self.resource == LOCAL else self.resource,
            scopes=self.scopes,
            labels=self.labels,
            opaque=self.opaque,
        )

    def target(self, scopes: frozenset[str]) -> Entity:
        """The tool as policy sees it when it asks for these scopes."""
        known = self._target
        if known is None or known[0] is not scopes:
            facts = {"resource": self.resource, "scopes": scopes, "labels": self.labels}
            known = (scopes, Entity("Tool", self.name, MappingProxyType(facts)))
            self._target = known
        return known[1]
