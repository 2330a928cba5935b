# SPDX-License-Identifier: Apache-2.0
"""The span of a call in the user's own tracing, with ids and digests, but never an argument, a result or a token.

Telemetry never changes a call's result. Without a tracer provider there is no span, and the trace and span ids of assertion and
record are made here. All attribute names are in this module.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from opentelemetry import context as otel_context
from opentelemetry import trace as otel

from agent_identity.errors import is_interrupt
from agent_identity.values import new_id, scrub

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, MutableMapping
    from contextvars import Token

_log: Final = logging.getLogger("agent_identity")

OPERATION: Final = "gen_ai.operation.name"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
ERROR_TYPE: Final = "error.type"
CALL_ID: Final = "agent_identity.call.id"
SESSION_ID: Final = "agent_identity.session.id"
TXN: Final = "agent_identity.txn"
AGENT_ID: Final = "agent_identity.agent.id"
PSEUDONYM: Final = "agent_identity.principal.pseudonym"
DEPTH: Final = "agent_identity.chain.depth"
DECISION: Final = "agent_identity.decision"
POLICY_ID: Final = "agent_identity.policy.id"
GRANT_HASH: Final = "agent_identity.grant.hash"
RESOURCE: Final = "agent_identity.resource"


Attachment: TypeAlias = "Token[otel_context.Context]"


class CallSpan:
    """One call's span, or only its ids if tracing is off."""

    __slots__ = ("_span", "span_id", "trace_id")

    def __init__(self, span: otel.Span | None, trace_id: str, span_id: str) -> None:
        self._span = span
        self.trace_id: str = trace_id
        self.span_id: str = span_id

    @property
    def is_recording(self) -> bool:
        """Whether the span records attributes."""
        return self._span is not None

    def attach(self) -> Attachment | None:
        """Make it the current span while the tool's body runs."""
        if self._span is None:
            return None
        return otel_context.attach(otel.set_span_in_context(self._span))

    def detach(self, token: Attachment) -> None:
        """Restore the previous span. `token` is the return value of `attach`."""
        otel_context.detach(token)

    def end(self, attributes: Mapping[str, str | int], error: str | None) -> None:
        """End the span. `error` is an error's code or class name. A failing exporter doesn't affect the call."""
        if self._span is None:
            return
        try:
            self._span.set_attributes(attributes)
            if error is not None:
                self._span.set_attribute(ERROR_TYPE, error)
                self._span.set_status(otel.StatusCode.ERROR)
            self._span.end()
        except Exception as failure:
            if is_interrupt(failure):
                raise
            _log.warning("a span could not be closed: %s", scrub(type(failure).__name__))


def open_call_span(name: str, attributes: Mapping[str, str], tool_call_id: str | None) -> CallSpan:
    """Open the span of a tool call below the current one; `call_attributes` gives what is constant for a tool.

    Inside a framework's own `execute_tool` span it leaves the operation out, so that the call isn't counted twice.
    """
    if tool_call_id is not None:
        attributes = {**attributes, TOOL_CALL_ID: tool_call_id}
    if _is_inside_execute_tool():
        attributes = {key: value for key, value in attributes.items() if key != OPERATION}
    return open_span(name, attributes)


_EXECUTES: Final = otel_context.create_key("agent-identity-executes")


@contextlib.contextmanager
def below(span: object, *, executes_tool: bool = False) -> Generator[None]:
    """Open the spans of the block below a framework's span, which isn't always the current one. None leaves the current one.

    With `executes_tool` the framework has an `execute_tool` span of its own for the call, though it may be another one.
    """
    if not isinstance(span, otel.Span):
        yield
        return
    context = otel.set_span_in_context(span)
    if executes_tool:
        context = otel_context.set_value(_EXECUTES, span, context)
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


def inject(carrier: MutableMapping[str, Any]) -> None:
    """Write the context of the current span, if there is one, into a carrier (W3C Trace Context) that has none yet."""
    if "traceparent" in carrier:
        return
    from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415 - loads on first use

    tracecontext.TraceContextTextMapPropagator().inject(carrier)


def call_attributes(tool: str) -> dict[str, str]:
    """The attributes that every call of a tool begins with."""
    return {OPERATION: "execute_tool", TOOL_NAME: tool}


def open_span(name: str, attributes: Mapping[str, str]) -> CallSpan:
    """Open a span below the current one. Untraced calls get ids, too."""
    try:
        span = _tracer.start_span(name, attributes=attributes)
        if span is otel.INVALID_SPAN:
            return CallSpan(None, new_id(""), new_id("")[:16])
        context = span.get_span_context()
        if span.is_recording():
            return CallSpan(span, f"{context.trace_id:032x}", f"{context.span_id:016x}")
    except Exception as failure:
        if is_interrupt(failure):
            raise
        _log.warning("a span could not be opened: %s", scrub(type(failure).__name__))
        context = otel.INVALID_SPAN_CONTEXT
    # No tracing, or not sampled. A trace that a caller started is continued anyway.
    if context.is_valid:
        return CallSpan(None, f"{context.trace_id:032x}", new_id("")[:16])
    return CallSpan(None, new_id(""), new_id("")[:16])


_tracer: Final = otel.get_tracer("agent_identity")
"""A proxy tracer: it makes no spans until the program sets up a tracer provider."""


def _is_inside_execute_tool() -> bool:
    """Whether a framework's own span for this call is open."""
    if not otel_context.get_current():
        return False
    span = otel.get_current_span()
    attributes: Mapping[str, object] = getattr(span, "attributes", None) or {}
    return attributes.get(OPERATION) == "execute_tool" or otel_context.get_value(_EXECUTES) is span
