# SPDX-License-Identifier: Apache-2.0
"""agent_identity for LangChain: `protect` makes a tool a guarded one, `IdentityMiddleware` guards all tools of an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent_identity_langchain.protection import protect

if TYPE_CHECKING:
    from agent_identity_langchain.middleware import IdentityMiddleware

__all__ = ["IdentityMiddleware", "protect"]


def __getattr__(name: str) -> Any:
    if name != "IdentityMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # It needs langchain itself, and `protect` doesn't.
    from agent_identity_langchain.middleware import IdentityMiddleware  # noqa: PLC0415 - see above

    return IdentityMiddleware
