# SPDX-License-Identifier: Apache-2.0
"""agent_identity for MCP clients: each call of a server's tool gets its own credential, assertion and record."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from agent_identity_mcp.authorization import auth
    from agent_identity_mcp.call_auth import CallAuth
    from agent_identity_mcp.connecting import connect
    from agent_identity_mcp.guarding import guard

__all__ = ["TESTED", "CallAuth", "auth", "connect", "guard"]

TESTED: Final = {"mcp": ("1.24.0", "1.30.0", "2.3.0"), "fastmcp": ("3.4.11", "4.2.3")}
"""The versions that the tests run with; `agent-identity adapters` shows them."""

_MODULES: Final = {
    "CallAuth": "call_auth",
    "auth": "authorization",
    "connect": "connecting",
    "guard": "guarding",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
