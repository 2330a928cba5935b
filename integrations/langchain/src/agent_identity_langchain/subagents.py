# SPDX-License-Identifier: Apache-2.0
"""Sub-agents: their names, and the specs of deepagents, which doesn't give them their parent's middleware."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, TypedDict

from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool

from agent_identity.adapters import calling_tool
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from langchain.agents.middleware import AgentMiddleware

__all__ = ["GuardedSpecs", "agent_name", "guard_specs", "other_agent"]


def agent_name(config: Mapping[str, Any] | None = None) -> str | None:
    """LangChain's name of the agent whose run this is, None if it has none; `config` is the run's, by default the current one's."""
    metadata = (config or var_child_runnable_config.get() or {}).get("metadata") or {}
    name = metadata.get("lc_agent_name")
    return name if isinstance(name, str) and name else None


def other_agent(name: str | None) -> str | None:
    """The name, if it is that of an agent that the running tool has started."""
    caller = calling_tool()
    return None if caller is None or name == caller.agent else name


class GuardedSpecs(TypedDict):
    """The specs for `create_deep_agent(subagents=…)`, and the names of the tools that they bring."""

    specs: list[dict[str, Any]]
    tools: frozenset[str]


def guard_specs(
    specs: Iterable[Mapping[str, Any]],
    guard_for: Callable[[str], AgentMiddleware[Any, Any]],
    *,
    general_purpose: bool,
) -> GuardedSpecs:
    """The specs, each with the middleware that `guard_for` makes for its name, unless it has one of that class.

    A compiled sub-agent stays as it is. `general_purpose` adds deepagents' own default sub-agent, if it is missing.

    Raises:
        ConfigurationError: a sub-agent runs on a server.
    """
    given = [dict(spec) for spec in specs]
    if general_purpose and not any(spec.get("name") == "general-purpose" for spec in given):
        deepagents = importlib.import_module("deepagents.middleware.subagents")  # its users have it
        given.insert(0, dict(deepagents.GENERAL_PURPOSE_SUBAGENT))
    tools: set[str] = set()
    for spec in given:
        if "graph_id" in spec:
            raise ConfigurationError(
                "subagent_unguarded",
                f"the sub-agent {spec.get('name')!r} runs on a server, where nothing guards its tools",
                remedy=(
                    "leave it out; or guard the remote agent's tools in its own process, and call it by a tool that "
                    "you write"
                ),
            )
        if "runnable" in spec:
            continue
        middleware = list(spec.get("middleware") or ())
        tools.update(_names_of(spec.get("tools")))
        for each in middleware:
            tools.update(_names_of(getattr(each, "tools", None)))
        guard = guard_for(spec["name"])
        if not any(isinstance(each, type(guard)) for each in middleware):
            spec["middleware"] = [*middleware, guard]
    return GuardedSpecs(specs=given, tools=frozenset(tools))


def _names_of(tools: Any) -> Iterator[str]:
    for tool in tools or ():
        if isinstance(tool, BaseTool):
            yield tool.name
        elif callable(tool):
            yield str(getattr(tool, "__name__", ""))


def is_in_graph(config: Mapping[str, Any]) -> bool:
    """Whether the agent of a run is a part of another graph."""
    return "|" in str((config.get("configurable") or {}).get("checkpoint_ns"))
