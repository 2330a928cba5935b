# SPDX-License-Identifier: Apache-2.0
"""The session that a run carries explicitly, for streams that are read outside the session's block.

LangGraph copies simple values of `configurable` into callbacks' metadata and into checkpoints. A session isn't one of these.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final, TypeVar

from langchain_core.runnables import ensure_config

from agent_identity import ConfigurationError, NoSessionError, Session
from agent_identity.adapters import current_tool_call_id, delegated, within

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

__all__ = ["SESSION_KEY", "Carrying", "carried_session", "carrying"]

T = TypeVar("T")
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


class Carrying:
    """Runs a tool under the session that the run carries, and tells the model's id of the call, which the function doesn't get."""

    def run(self, *args: Any, **options: Any) -> Any:
        """LangChain's `run`, entered."""
        with _entered(options):
            return super().run(*args, **options)  # type: ignore[misc]  # it is mixed into a tool's class

    async def arun(self, *args: Any, **options: Any) -> Any:
        """LangChain's `arun`, entered."""
        with _entered(options):
            return await super().arun(*args, **options)  # type: ignore[misc]  # as above


@functools.lru_cache(64)
def carrying(kind: type[T]) -> type[T]:
    """A tool's class, with what `Carrying` does."""
    if issubclass(kind, Carrying):
        return kind
    return type(kind.__name__, (Carrying, kind), {"__module__": __name__})


def _entered(options: dict[str, Any]) -> contextlib.AbstractContextManager[object]:
    call_id = options.get("tool_call_id")
    with contextlib.suppress(NoSessionError):
        if call_id is not None and current_tool_call_id() == call_id:
            return contextlib.nullcontext()  # the middleware has entered the session
    session = carried_session(_find_context(), options.get("config") or ensure_config())
    if session is None and call_id is None:
        return contextlib.nullcontext()
    return within(delegated(session, None), tool_call_id=call_id)


def _find_context() -> Any:
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
