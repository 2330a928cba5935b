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

__all__ = ["IdentityMiddleware", "guarded_tool_node", "protect"]

_MODULES: Final = {"IdentityMiddleware": "middleware", "guarded_tool_node": "tool_nodes"}
"""They need langchain itself, and `protect` doesn't."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
