# SPDX-License-Identifier: Apache-2.0
"""The span that an instrumentation has open for the running tool.

OpenLLMetry and LangSmith make theirs current. OpenInference doesn't: its tracer, a callback handler, keeps each by its run.
"""

from __future__ import annotations

import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final

from langchain_core.runnables import ensure_config

from agent_identity.adapters import below

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.runnables import RunnableConfig

__all__ = ["find_span", "nested"]

_log: Final = logging.getLogger("agent_identity")


def nested(function: Callable[..., Any]) -> Callable[..., Any]:
    """The tool's function, with the spans that it opens below the framework's span for the same run."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def anest(*args: Any, **kwargs: Any) -> Any:
            with below(find_span(ensure_config())):
                return await function(*args, **kwargs)

        return anest

    @functools.wraps(function)
    def nest(*args: Any, **kwargs: Any) -> Any:
        with below(find_span(ensure_config())):
            return function(*args, **kwargs)

    return nest


def find_span(config: RunnableConfig) -> object:
    """The span that a tracer among the callbacks keeps for the run, None if there is none."""
    callbacks = config.get("callbacks")
    run_id = getattr(callbacks, "parent_run_id", None)
    for handler in getattr(callbacks, "handlers", ()):
        get_span = getattr(handler, "get_span", None)
        if run_id is None or get_span is None:
            continue
        try:
            span: object = get_span(run_id)
        except Exception as error:  # noqa: BLE001 - telemetry doesn't change a call's result
            _log.warning("a framework's span could not be found: %s", type(error).__name__)
            continue
        if span is not None:
            return span
    return None
