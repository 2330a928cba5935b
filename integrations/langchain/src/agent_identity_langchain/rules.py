# SPDX-License-Identifier: Apache-2.0
"""What the rules of an agent say of LangChain's tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agent_identity import adapters
from agent_identity_langchain.origins import check_origin
from agent_identity_langchain.tool_functions import has_resources, is_protected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from langchain_core.tools import BaseTool

    from agent_identity.adapters import Rule
    from agent_identity.errors import ConfigurationError, DeniedError

__all__ = ["Rules"]


class Rules:
    """The rules of one agent.

    Raises:
        ConfigurationError: a rule can't be read; the message names it.
    """

    def __init__(self, rules: Mapping[str, Mapping[str, Any]] | None) -> None:
        self._rules = adapters.Rules(rules, guard="IdentityMiddleware")

    def describe(
        self, tool: BaseTool, error: type[ConfigurationError | DeniedError]
    ) -> Rule | None:
        """What the rules say of a tool; None for a tool that `protect` or `agent_identity.tool` describes.

        Raises:
            ConfigurationError: both describe it, or it can't be guarded.
            AgentIdentityError: of the class `error`, nothing describes it, or `check_origin` refuses it.
        """
        return self._rules.describe(
            tool.name,
            describes_itself=is_protected(tool),
            has_resource=has_resources(tool),
            error=error,
            check_origin=lambda credentialed: check_origin(
                tool, has_resource=credentialed, error=error
            ),
        )

    def check_provider(self, tool: Mapping[str, Any]) -> None:
        """Whether a rule says who runs a tool that isn't LangChain's, unless it is just a function's schema.

        Raises:
            ConfigurationError: none does.
        """
        if not _is_function(tool):
            self._rules.check_hosted(_name(tool))

    def check_matched(
        self, tools: Iterable[BaseTool | dict[str, Any]], others: frozenset[str]
    ) -> None:
        """Whether each rule names one of an agent's tools; `others` are the names of its sub-agents' tools.

        Raises:
            ConfigurationError: a rule names none.
        """
        self._rules.check_matched([*map(_name, tools), *others])


def _name(tool: BaseTool | Mapping[str, Any]) -> str:
    if isinstance(tool, Mapping):
        return str(tool.get("name") or tool.get("type") or next(iter(tool), ""))
    return tool.name


def _is_function(tool: Mapping[str, Any]) -> bool:
    """Whether it is a schema in a provider's format: the call comes back to the agent, which looks for a tool."""
    if "type" in tool:
        return tool["type"] in ("function", "custom", "object")
    return not tool.keys().isdisjoint({"function", "parameters", "input_schema"})
