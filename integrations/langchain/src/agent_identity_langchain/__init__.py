# SPDX-License-Identifier: Apache-2.0
"""agent_identity for LangChain: `protect` makes a tool a guarded one, `IdentityMiddleware` guards all tools of an agent.

`guarded_tool_node` is the node of a raw LangGraph graph with the same rules as the middleware.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from agent_identity_langchain.protection import protect

if TYPE_CHECKING:
    from agent_identity_langchain.middleware import IdentityMiddleware
    from agent_identity_langchain.tool_nodes import guarded_tool_node

__all__ = ["TESTED", "IdentityMiddleware", "guarded_tool_node", "protect"]

TESTED: Final = {"langchain": ("1.0.8", "1.1.3", "1.2.18", "1.3.18", "1.4.10", "1.5.2")}
"""The versions that the tests run with; `agent-identity adapters` shows them."""

_MODULES: Final = {"IdentityMiddleware": "middleware", "guarded_tool_node": "tool_nodes"}
"""They need langchain itself, and `protect` doesn't."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
