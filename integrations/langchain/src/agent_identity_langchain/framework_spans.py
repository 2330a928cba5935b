# SPDX-License-Identifier: Apache-2.0
"""Our spans below the span that an instrumentation has open for the same run.

OpenLLMetry makes its span current. OpenInference doesn't: its tracer, a callback handler, keeps each by its run. LangSmith in its
OpenTelemetry mode opens its spans in a thread of its own, about 50 ms after each run began. No call waits for the span of its own
run: ours is below that of the nearest run around it. Only where none is open yet, at the beginning of a trace, a call waits a moment
for the first one, since it would be in another trace otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from langchain_core.runnables import ensure_config

from agent_identity.adapters import below

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from langchain_core.runnables import RunnableConfig

__all__ = ["abelow_framework", "below_framework"]

_log: Final = logging.getLogger("agent_identity")
_LONGEST: Final = 0.1
"""Seconds that a call waits for the first of LangSmith's spans. After that, its own span is a root."""
_STEP: Final = 0.005


def below_framework(config: RunnableConfig | None = None) -> AbstractContextManager[None]:
    """Open the spans of the block below the framework's span of the run; `config` is the run's, by default the current one."""
    run = _Run.of(config)
    deadline = time.monotonic() + _LONGEST
    while run.is_awaited and time.monotonic() < deadline:
        time.sleep(_STEP)
    return run.below()


async def abelow_framework(config: RunnableConfig | None = None) -> AbstractContextManager[None]:
    """The async twin of `below_framework`, to be awaited before the block."""
    run = _Run.of(config)
    deadline = time.monotonic() + _LONGEST
    while run.is_awaited and time.monotonic() < deadline:  # noqa: ASYNC110 - LangSmith's thread has no event to wait for
        await asyncio.sleep(_STEP)
    return run.below()


class _Run(NamedTuple):
    """The runs that LangChain tells callbacks of, this one first, and who may have a span for them."""

    handlers: tuple[Any, ...]
    run_id: Any

    @classmethod
    def of(cls, config: RunnableConfig | None) -> _Run:
        callbacks = (ensure_config() if config is None else config).get("callbacks")
        run_id = getattr(callbacks, "parent_run_id", None)
        handlers = getattr(callbacks, "handlers", ()) if run_id is not None else ()
        return cls(tuple(handlers), run_id)

    @property
    def is_awaited(self) -> bool:
        """Whether LangSmith is going to open a span for the run, and has opened none. It may leave out some of the traces."""
        return any(
            is_whole and all(store.get(run) is None for run in runs)
            for store, runs, is_whole in self._langsmith()
        )

    def below(self) -> AbstractContextManager[None]:
        try:
            for handler in self.handlers:
                get_span = getattr(handler, "get_span", None)
                span = None if get_span is None else get_span(self.run_id)
                if span is not None:
                    return below(span)
            for store, runs, _ in self._langsmith():
                found = (store.get(run) for run in runs)
                span = next((each.span for each in found if each is not None), None)
                if span is not None:
                    return below(span, executes_tool=True)
        except Exception as error:  # noqa: BLE001 - telemetry doesn't change a call's result
            _log.warning("a framework's span could not be found: %s", type(error).__name__)
        return below(None)

    def _langsmith(self) -> Iterator[tuple[Any, list[Any], bool]]:
        """The spans by run that LangSmith's exporter keeps, the ids of this run and those around it, and whether it keeps all."""
        for handler in self.handlers:
            client = getattr(handler, "client", None)
            exporter = getattr(client, "otel_exporter", None)
            store, known = getattr(exporter, "_span_info", None), getattr(handler, "run_map", None)
            if not hasattr(store, "get") or not isinstance(known, dict):
                continue
            runs, run_id = [], self.run_id
            while run_id is not None and run_id not in runs:
                runs.append(run_id)
                run_id = getattr(known.get(str(run_id)), "parent_run_id", None)
            yield store, runs, getattr(client, "tracing_sample_rate", None) is None
