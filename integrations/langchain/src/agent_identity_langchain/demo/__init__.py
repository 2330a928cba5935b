# SPDX-License-Identifier: Apache-2.0
"""What `agent-identity demo --langchain` runs: local tools, an MCP server, a sub-agent, and a restart of the process in the middle."""

from __future__ import annotations

from agent_identity_langchain.demo.scenario import SUMMARY, play

__all__ = ["SUMMARY", "play"]
