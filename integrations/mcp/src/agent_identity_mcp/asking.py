# SPDX-License-Identifier: Apache-2.0
"""For adapters of frameworks that call tools through a guarded connection: which call the framework was asked to make.

Its own hooks run before the call reaches the connection. The guard refuses a call that they have changed, and raises refusals, which
the adapter turns into the framework's own tool error.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from agent_identity.adapters import AskedCall
from agent_identity_mcp import generations as mcp

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from agent_identity.adapters import RemoteServer, Tool

__all__ = ["asked_of", "asking"]

_asked: Final[ContextVar[tuple[RemoteServer, AskedCall] | None]] = ContextVar(
    "agent_identity_mcp_asked", default=None
)


@contextlib.contextmanager
def asking(
    remote: RemoteServer,
    name: str,
    arguments: Mapping[str, Any],
    *,
    tool: Tool | None = None,
    shown: Any = None,
    is_alone: bool = False,
) -> Generator[None]:
    """While the block runs, this is the one call that it may make at the server.

    `tool` describes the tool, if the framework has the rules; `shown` is mcp's tool as the model was shown it; `is_alone` says that
    the connection is opened for this call only.
    """
    sent = mcp.sent_arguments(mcp.call_params(name, arguments, {})) or {}
    definition = None if shown is None else mcp.listed_tool(shown)
    token = _asked.set((remote, AskedCall(name, sent, tool, definition, is_alone)))
    try:
        yield
    finally:
        _asked.reset(token)


def asked_of(remote: RemoteServer) -> AskedCall | None:
    """The call at this server that the running code was asked to make; None where no framework says so."""
    found = _asked.get()
    return None if found is None or found[0] is not remote else found[1]
