# SPDX-License-Identifier: Apache-2.0
"""What the rules of an agent say of its tools. A rule is checked when it is written, a tool before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypedDict

from agent_identity.adapters import Tool
from agent_identity.errors import AgentIdentityError, ConfigurationError, DeniedError
from agent_identity_langchain.origins import check_origin
from agent_identity_langchain.protection import has_resources, is_protected

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

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
    """The rules of one agent, copied when they are given.

    Raises:
        ConfigurationError: a rule can't be read; the message names it.
    """

    def __init__(self, rules: Mapping[str, Mapping[str, Any]] | None) -> None:
        if not isinstance(rules, Mapping | None):
            raise _malformed("the rules are a mapping from the names of tools to their rules")
        self._by_name: dict[str, Rule] = {}
        self._where: dict[str, bool] = {}
        for name, given in (rules or {}).items():
            rule, is_hosted = _checked(name, given)
            if is_hosted is not None:
                self._where[name] = is_hosted
            if not is_hosted:
                self._by_name[name] = rule
        self._for_others = self._by_name.pop(_OTHERS, None)

    def describe(
        self, tool: BaseTool, error: type[ConfigurationError | DeniedError]
    ) -> Rule | None:
        """What the rules say of a tool; None for a tool that `protect` or `agent_identity.tool` describes.

        Raises:
            ConfigurationError: both describe it, or it can't be guarded.
            AgentIdentityError: of the class `error`, nothing describes it, or `check_origin` refuses it.
        """
        rule = self._by_name.get(tool.name)
        describes_itself = is_protected(tool)
        if describes_itself and rule is not None:
            raise ConfigurationError(
                "protected_twice", f"{tool.name} is protected already, and has a rule besides"
            )
        if not describes_itself:
            rule = rule or self._for_others
        has_resource = has_resources(tool) or (rule is not None and rule["resource"] is not None)
        check_origin(tool, has_resource=has_resource, error=error)
        if rule is None and not describes_itself:
            raise error(
                "tool_undescribed",
                f"no rule names the tool {tool.name!r}, and it isn't protected; {self._named()}",
                remedy=(
                    "add a rule with the tool's exact name to the rules of IdentityMiddleware, or describe it with "
                    'protect or agent_identity.tool; the rule "*" says that all other tools are local'
                ),
            )
        return rule

    def check_provider(self, tool: Mapping[str, Any]) -> None:
        """Whether a rule says who runs a tool that isn't LangChain's: the model's provider may, where nobody guards it.

        Raises:
            ConfigurationError: none does, and the model doesn't just get a function's schema.
        """
        name = str(tool.get("name") or tool.get("type") or next(iter(tool), ""))
        if not _is_function(tool) and name not in self._where:
            raise ConfigurationError(
                "tool_hosted",
                f"the tool {name!r} is the model provider's own; where the provider runs it, nothing guards it",
                remedy=(
                    f"leave it out; or add the rule {name!r} with `hosted`: true says that the provider runs it, "
                    "unguarded and unrecorded, false that a tool of this agent with that name does"
                ),
            )

    def check_matched(self, tools: Iterable[BaseTool], others: frozenset[str]) -> None:
        """Whether each rule names one of an agent's tools: a rule with a misspelt name guards nothing.

        `others` are the names of its sub-agents' tools.

        Raises:
            ConfigurationError: a rule names none.
        """
        unmatched = self._by_name.keys() - {tool.name for tool in tools} - others
        if unmatched:
            raise ConfigurationError(
                "rule_unmatched",
                f"the rule {min(unmatched)!r} names no tool of this agent",
                remedy=(
                    "write the tool's exact name, or remove the rule; each agent has an IdentityMiddleware with "
                    "rules for its own tools, and a tool that is added at run time is described by protect"
                ),
            )

    def _named(self) -> str:
        return f"there are rules for {', '.join(sorted(self._by_name)) or 'no tools'}"


def _is_function(tool: Mapping[str, Any]) -> bool:
    """Whether it is a schema in a provider's format: the call comes back to the agent, which looks for a tool."""
    if "type" in tool:
        return tool["type"] in ("function", "custom", "object")
    return not tool.keys().isdisjoint({"function", "parameters", "input_schema"})


def _checked(name: object, rule: object) -> tuple[Rule, bool | None]:
    """The rule, and what it says of who runs the tool."""
    if not isinstance(name, str) or not isinstance(rule, Mapping):
        raise _malformed(f"the rule {name!r} is no mapping under a tool's name")
    keys = _KEYS_OF_OTHERS if name == _OTHERS else _KEYS
    values = dict(rule)
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
