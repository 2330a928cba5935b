# SPDX-License-Identifier: Apache-2.0
"""The demo's MCP server, which the adapter for MCP brings, where it is installed."""

from __future__ import annotations

import contextlib
import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from agent_identity.cli.adapters import GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from agent_identity.identity import AgentIdentity
    from agent_identity.verify import Verifier

MISSING = "An MCP server joins in where the adapter is installed: pip install . ./integrations/mcp"


class McpDemo(Protocol):
    """The module `demo` of the adapter for MCP."""

    def serving(self, make_verifier: Callable[[str], Verifier], /) -> AbstractContextManager[str]:
        """Serve on loopback while the block runs; yields the server's URL."""
        ...

    async def send_statement(
        self, identity: AgentIdentity, url: str, customer: str, total: str, /
    ) -> str:
        """Call the server's tool in the current session; returns its answer."""
        ...


class Statements:
    """The MCP server of one run of the demo."""

    def __init__(self, demo: McpDemo, identity: AgentIdentity, url: str) -> None:
        self.url = url
        self._demo = demo
        self._identity = identity

    async def send(self, customer: str, total: str) -> str:
        """Send a statement, and return what the server says."""
        return await self._demo.send_statement(self._identity, self.url, customer, total)


@contextlib.contextmanager
def serving_statements(identity: AgentIdentity) -> Generator[Statements | None]:
    """Serve statements over MCP while the block runs; None if the adapter isn't installed."""
    demo = _find_demo()
    if demo is None:
        yield None
        return
    with demo.serving(identity.verifier) as url:
        yield Statements(demo, identity, url)


def _find_demo() -> McpDemo | None:
    for entry in entry_points(group=GROUP, name="mcp"):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(f"{entry.module}.demo")
    return None
