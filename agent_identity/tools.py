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
from agent_identity.values import LOCAL, is_listed, scope_set

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
        _check_name(name)
        self.name = name
        self.name_json: str = orjson.dumps(name).decode()
        self.resource: str = LOCAL if resource is None else checked_resource(resource)
        self.scopes: frozenset[str] | None = None if scopes is None else scope_set(scopes)
        self.labels: frozenset[str] = _labels(labels)
        self.labels_json: list[JSON] = [*sorted(self.labels)]
        self.opaque: frozenset[str] = _texts("opaque", opaque, '["handle"]')
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


_LONGEST: Final = 200


def _check_name(name: str) -> None:
    """Hold a name to what people read and policy compares; `<server>#<name>` is how policy sees a server's tool.

    Raises:
        ConfigurationError: it can't be one.
    """
    if not _is_shown(name) or name != name.strip():
        raise ConfigurationError(
            "tool_malformed",
            f"{_quoted(name)} can't be the name of a tool",
            remedy=f"a name is one line of 1 to {_LONGEST} printable characters without #, and no space begins or ends it",
        )


def _labels(given: Iterable[str]) -> frozenset[str]:
    labels = _texts("labels", given, '{"reads:finance"}')
    for label in labels:
        if not _is_shown(label) or " " in label:
            raise ConfigurationError(
                "tool_malformed",
                f"{_quoted(label)} can't be a label",
                remedy=f"a label is 1 to {_LONGEST} printable characters without spaces and #, for instance reads:finance",
            )
    return labels


def _texts(name: str, given: Iterable[str], example: str) -> frozenset[str]:
    texts = tuple(given) if is_listed(given) else (None,)
    if not all(map(_is_text, texts)):
        raise ConfigurationError(
            "tool_malformed",
            f"{name} is a list of texts, not one string or anything else",
            remedy=f"write {name}={example}",
        )
    return frozenset(text for text in texts if text is not None)


def _is_text(given: object) -> bool:
    return isinstance(given, str)


def _is_shown(text: object) -> bool:
    return (
        isinstance(text, str)
        and 1 <= len(text) <= _LONGEST
        and text.isprintable()
        and "#" not in text
    )


def _quoted(given: object) -> str:
    """A value in an error: ASCII, since it may hold what moves or hides the text beside it, and cut."""
    return ascii(given)[:80]
