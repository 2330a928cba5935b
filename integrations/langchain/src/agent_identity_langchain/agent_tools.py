# SPDX-License-Identifier: Apache-2.0
"""The tools of one agent: each is described by a rule or by itself, and runs as a guarded copy, or not at all."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolRuntime

from agent_identity.errors import ConfigurationError, DeniedError
from agent_identity_langchain.protection import finished, protect
from agent_identity_langchain.refusals import tell_model
from agent_identity_langchain.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from langgraph.prebuilt.tool_node import ToolCallRequest

__all__ = ["AgentTools"]

_KEPT: Final = 1024
_KNOWS_ALL_TOOLS: Final = "tools" in {field.name for field in fields(ToolRuntime)}
"""Whether a call's runtime names all tools of the agent: not before langgraph-prebuilt 1.0.11."""


class AgentTools:
    """The tools of one agent under its `rules`, those of `IdentityMiddleware`.

    Raises:
        ConfigurationError: a rule can't be read.
    """

    def __init__(self, rules: Mapping[str, Mapping[str, Any]] | None) -> None:
        self._rules = Rules(rules)
        self._is_whole = True
        self._others: frozenset[str] = frozenset()
        self._guarded: dict[int, tuple[BaseTool, BaseTool]] = {}

    def make_part(self) -> AgentTools:
        """The tools of a sub-agent under the same rules, which needn't all name one of them."""
        part = type(self)(None)
        vars(part).update(_rules=self._rules, _is_whole=False)
        return part

    def add_names(self, names: frozenset[str]) -> None:
        """Let rules name these tools of sub-agents too."""
        self._others |= names

    def check_built(self, tools: Iterable[BaseTool]) -> None:
        """Check all tools of a graph when it is built: each is described, and each rule names one of them.

        Raises:
            ConfigurationError: a tool isn't described or can't be guarded, or a rule names no tool.
        """
        built = list(tools)
        for tool in built:
            self._rules.describe(tool, ConfigurationError)
        self._rules.check_matched(built, self._others)

    def check_shown(self, tools: Sequence[BaseTool | dict[str, Any]]) -> None:
        """Whether each tool that the model is shown is described. Other middleware may hide some, so rules are matched at a call.

        Raises:
            ConfigurationError: a tool isn't described or can't be guarded.
        """
        for tool in tools:
            if isinstance(tool, BaseTool):
                self._rules.describe(tool, ConfigurationError)
            elif isinstance(tool, dict):
                self._rules.check_provider(tool)
        if self._is_whole and not _KNOWS_ALL_TOOLS:
            self._rules.check_matched(tools, self._others)

    def guard_call(self, request: ToolCallRequest) -> ToolCallRequest:
        """The same call of a guarded tool.

        Raises:
            DeniedError: the tool must not run; the model is told.
            ConfigurationError: the agent is set up in a way that can't work; the run stops.
        """
        tool = request.tool
        if tool is None:
            raise DeniedError(
                "tool_unknown",
                f"there is no tool {request.tool_call['name']!r}",
                remedy="call a tool that there is, by its exact name",
            )
        copy = self._guard(tool)
        runtime = request.runtime
        if _KNOWS_ALL_TOOLS:
            if self._is_whole:
                self._rules.check_matched([tool, *runtime.tools], self._others)
            # A tool finds the agent's other tools in its runtime, and may call them.
            runtime = replace(runtime, tools=self._guard_all(runtime.tools))
        return replace(request, tool=copy, runtime=runtime)

    def _guard_all(self, tools: Iterable[BaseTool]) -> list[BaseTool]:
        """Guarded copies of those that can be guarded."""
        copies: list[BaseTool] = []
        for tool in tools:
            with contextlib.suppress(ConfigurationError, DeniedError):
                copies.append(self._guard(tool))
        return copies

    def _guard(self, tool: BaseTool) -> BaseTool:
        known = self._guarded.get(id(tool))
        if known is not None and known[0] is tool:
            return known[1]
        rule = self._rules.describe(tool, DeniedError)
        inner = finished(tool) if rule is None else protect(tool, **rule)
        copy = tell_model(inner, tool.handle_tool_error)
        if len(self._guarded) >= _KEPT:
            self._guarded.clear()  # tools that are made anew for each run
        self._guarded[id(tool)] = (tool, copy)
        return copy
