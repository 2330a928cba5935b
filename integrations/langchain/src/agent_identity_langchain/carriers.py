# SPDX-License-Identifier: Apache-2.0
"""The session that a run carries explicitly, for streams that are read outside the session's block.

LangGraph copies simple values of `configurable` into callbacks' metadata and into checkpoints. A session isn't one of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agent_identity import ConfigurationError, Session

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

__all__ = ["SESSION_KEY", "carried_session", "find_context"]

SESSION_KEY: Final = "agent_identity_session"


def carried_session(context: Any, config: RunnableConfig | None) -> Session | None:
    """The session in a run's `context`, else the one in its `configurable`, else None.

    Raises:
        ConfigurationError: `configurable` has another value in the session's place.
    """
    if isinstance(context, dict):
        context = context.get("session")
    elif not isinstance(context, Session):
        context = getattr(context, "session", None)
    if isinstance(context, Session):
        return context
    carried = ((config or {}).get("configurable") or {}).get(SESSION_KEY)
    if carried is not None and not isinstance(carried, Session):
        raise ConfigurationError(
            "carrier_malformed",
            f"{SESSION_KEY} in the configuration of the run isn't a session",
            remedy=f'pass config={{"configurable": {{"{SESSION_KEY}": session}}}}',
        )
    return carried


def find_context() -> Any:
    """The `context` of the running graph; None outside of graphs."""
    try:
        from langgraph.runtime import get_runtime  # noqa: PLC0415 - langchain brings it, langchain-core doesn't
    except ModuleNotFoundError:
        return None
    try:
        return get_runtime().context
    except (
        AttributeError,
        KeyError,
        RuntimeError,
    ):  # each of them, by version, is "not in a graph"
        return None
