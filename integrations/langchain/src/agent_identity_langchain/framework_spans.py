# SPDX-License-Identifier: Apache-2.0
"""The span that an instrumentation has open for the running tool.

OpenLLMetry and LangSmith make theirs current. OpenInference doesn't: its tracer, a callback handler, keeps each by its run.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from langchain_core.runnables import ensure_config

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

__all__ = ["find_span"]

_log: Final = logging.getLogger("agent_identity")


def find_span(config: RunnableConfig | None = None) -> object:
    """The span that a tracer among the callbacks keeps for the run, None if there is none; `config` is by default the current one."""
    callbacks = (ensure_config() if config is None else config).get("callbacks")
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
