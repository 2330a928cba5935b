# SPDX-License-Identifier: Apache-2.0
"""agent_identity for MCP clients: each call of a server's tool gets its own credential, assertion and record."""

from __future__ import annotations

from typing import Final

__all__ = ["TESTED"]

TESTED: Final = {"mcp": ("1.24.0", "1.30.0", "2.3.0"), "fastmcp": ("3.4.11", "4.2.3")}
"""The versions that the tests run with; `agent-identity adapters` shows them."""
