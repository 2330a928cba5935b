# SPDX-License-Identifier: Apache-2.0
"""The rules of one agent for its tools. A rule is checked when it is written, a tool before it runs.

An adapter gives the facts: a tool's name, whether it describes itself, whether it has a resource.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypedDict

from agent_identity.errors import AgentIdentityError, ConfigurationError, DeniedError
from agent_identity.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Rule", "Rules"]

_OTHERS: Final = "*"
_HOSTED: Final = "hosted"
_KEYS: Final = frozenset({_HOSTED, "labels", "opaque", "resource", "scopes"})
_KEYS_OF_OTHERS: Final = frozenset({"labels"})
"""The rule for all other tools is for tools that nobody looked at: it gives none a credential and hides no argument."""


class Rule(TypedDict):
    """What `protect` takes for a tool."""

    resource: str | None
    scopes: frozenset[str] | None
    labels: frozenset[str]
    opaque: frozenset[str]


class Rules:
    """The rules of one agent, copied when they are given. `guard` is the adapter's class that takes them, for error texts.

    Raises:
        ConfigurationError: a rule can't be read; the message names it.
    """

    def __init__(self, rules: Mapping[str, Mapping[str, Any]] | None, *, guard: str) -> None:
        if not isinstance(rules, Mapping | None):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise _malformed("the rules are a mapping from the names of tools to their rules")
        self._guard = guard
        self._by_name: dict[str, Rule] = {}
        self._where: dict[str, bool] = {}
        for name, values in (rules or {}).items():
            rule, is_hosted = _checked(name, values)
            if is_hosted is not None:
                self._where[name] = is_hosted
            if not is_hosted:
                self._by_name[name] = rule
        self._for_others = self._by_name.pop(_OTHERS, None)

    def describe(
        self,
        name: str,
        *,
        describes_itself: bool,
        has_resource: bool,
        error: type[ConfigurationError | DeniedError],
        check_origin: Callable[[bool], None] | None = None,
    ) -> Rule | None:
        """What the rules say of a tool; None for a tool that `protect` or `agent_identity.tool` describes.

        `check_origin` is called with whether the tool gets a credential. It raises if a guard about the tool wouldn't guard
        all that the tool does.

        Raises:
            ConfigurationError: both describe it.
            AgentIdentityError: of the class `error`, nothing describes it.
        """
        rule = self._by_name.get(name)
        if describes_itself and rule is not None:
            raise ConfigurationError(
                "protected_twice",
                f"{name} is protected already, and has a rule besides",
                remedy="remove the rule; for a tool of a guarded MCP session, put its scopes and labels into the rules of guard",
            )
        if not describes_itself:
            rule = rule or self._for_others
        if check_origin is not None:
            check_origin(has_resource or (rule is not None and rule["resource"] is not None))
        if rule is None and not describes_itself:
            raise error(
                "tool_undescribed",
                f"no rule names the tool {name!r}, and it isn't protected; {self._named()}",
                remedy=(
                    f"add a rule with the tool's exact name to the rules of {self._guard}, or describe it with "
                    'protect or agent_identity.tool; the rule "*" says that all other tools are local'
                ),
            )
        return rule

    def check_hosted(self, name: str) -> None:
        """Whether a rule says who runs a tool that the model's provider may run, where nothing guards it.

        Raises:
            ConfigurationError: no rule says it.
        """
        if name not in self._where:
            raise ConfigurationError(
                "tool_hosted",
                f"the tool {name!r} is the model provider's own; where the provider runs it, nothing guards it",
                remedy=(
                    f"leave it out; or add the rule {name!r} with `hosted`: true says that the provider runs it, "
                    "unguarded and unrecorded, false that a tool of this agent with that name does"
                ),
            )

    def check_matched(self, names: Iterable[str]) -> None:
        """Whether each rule names one of an agent's tools: a rule with a misspelt name guards nothing.

        Raises:
            ConfigurationError: a rule names none.
        """
        unmatched = self._by_name.keys() - set(names)
        if unmatched:
            raise ConfigurationError(
                "rule_unmatched",
                f"the rule {min(unmatched)!r} names no tool of this agent",
                remedy=(
                    f"write the tool's exact name, or remove the rule; each agent has an {self._guard} with "
                    "rules for its own tools, and a tool that is added at run time is described by protect"
                ),
            )

    def _named(self) -> str:
        return f"there are rules for {', '.join(sorted(self._by_name)) or 'no tools'}"


def _checked(name: object, rule: object) -> tuple[Rule, bool | None]:
    """The rule, and what it says of who runs the tool."""
    if not isinstance(name, str) or not isinstance(rule, Mapping):
        raise _malformed(f"the rule {name!r} is no mapping under a tool's name")
    keys = _KEYS_OF_OTHERS if name == _OTHERS else _KEYS
    values: dict[str, Any] = dict(rule)  # pyright: ignore[reportUnknownArgumentType]
    for key in values:
        if key not in keys:
            raise _malformed(
                f"the rule {name!r} has the key {key!r}",
                remedy=f"this rule may have the keys {', '.join(sorted(keys))}",
            )
    is_hosted = values.pop(_HOSTED, None)
    if not isinstance(is_hosted, bool | None) or (is_hosted and values):
        raise _malformed(
            f"the rule {name!r} has the key {_HOSTED!r}, which is true and then the only key, or false"
        )
    try:
        described = Tool(name, **values)
    except AgentIdentityError as error:
        error.add_note(f"in the rule {name!r}")
        raise
    except TypeError as error:
        raise _malformed(f"a value of the rule {name!r} has a wrong type: {error}") from error
    # Values as they were checked: an iterator would be empty the second time.
    checked = Rule(
        resource=values.get("resource"),
        scopes=described.scopes,
        labels=described.labels,
        opaque=described.opaque,
    )
    return checked, is_hosted


def _malformed(message: str, *, remedy: str | None = None) -> ConfigurationError:
    return ConfigurationError("rule_malformed", message, remedy=remedy)
