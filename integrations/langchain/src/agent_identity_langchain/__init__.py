# SPDX-License-Identifier: Apache-2.0
"""agent_identity for LangChain: `protect` makes a tool a guarded one, `IdentityMiddleware` guards all tools of an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agent_identity_langchain.protection import protect

if TYPE_CHECKING:
    from agent_identity_langchain.middleware import IdentityMiddleware

__all__ = ["TESTED", "IdentityMiddleware", "protect"]

TESTED: Final = {"langchain": ("1.0.8", "1.1.3", "1.2.18", "1.3.18", "1.4.10", "1.5.2")}
"""The versions that the tests run with; `agent-identity adapters` shows them."""


def __getattr__(name: str) -> Any:
    if name != "IdentityMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # It needs langchain itself, and `protect` doesn't.
    from agent_identity_langchain.middleware import IdentityMiddleware  # noqa: PLC0415 - see above

    return IdentityMiddleware
