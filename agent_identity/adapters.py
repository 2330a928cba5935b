# SPDX-License-Identifier: Apache-2.0
"""The interface for integrations. They turn a framework's tool into a `Tool`, wrap its function, and decide nothing.

An `if` about identity in an integration is a line that belongs in the library.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agent_identity import canonical
from agent_identity.decorators import tool_of, wrap, wrap_keywords
from agent_identity.errors import DeniedError, NoSessionError
from agent_identity.pipeline import Call
from agent_identity.provenance.spans import below
from agent_identity.runtime.current import (
    Current,
    activated,
    current,
    open_session,
    parent_call_id,
    running_call,
)
from agent_identity.scrubbing import scrubbed, scrubs
from agent_identity.session import current_session, state_of
from agent_identity.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from agent_identity.errors import AgentIdentityError
    from agent_identity.session import Session

__all__ = [
    "Call",
    "Tool",
    "arefuse",
    "below",
    "check_unchanged",
    "refusal_text",
    "refuse",
    "scrubbed",
    "scrubs",
    "tool_of",
    "within",
    "wrap",
    "wrap_keywords",
]


@contextlib.contextmanager
def within(session: Session | None, *, tool_call_id: str | None = None) -> Generator[Session]:
    """Run the block under the session that the framework carried here; None is the current session.

    A framework also passes on what a run carries to the runs inside its tools. A session that such a tool opened, for instance
    by `delegate`, stays the current one. `tool_call_id` is the model's id of the tool call in the block; `who_triggered` finds it.

    Raises:
        NoSessionError: there is no session.
    """
    entered = current_session() if session is None or _is_inside_tool_of(session) else session
    state = state_of(entered)
    with activated(Current(state.reference, running_call(state), tool_call_id)):
        yield entered


def _is_inside_tool_of(session: Session) -> bool:
    """Whether a tool of the session runs here. Then the current session was opened in that tool, or is the same."""
    try:
        entry = current()
    except NoSessionError:
        return False
    state = state_of(session)
    while entry is not None:
        if entry.call is not None and entry.call.is_running and entry.session() is state:
            return True
        entry = entry.below
    return False


def check_unchanged(name: str, arguments: Mapping[str, object]) -> None:
    """Check that what a framework sends to a remote tool is the running call: its tool, with the arguments that were recorded.

    Raises:
        NoSessionError: there is no current session.
        DeniedError: `call_changed`, it is something else.
    """
    session, _ = open_session()
    call = running_call(session)
    sent = (name, canonical.args_digest(arguments))
    if call is None or (call.tool.name, call.facts.args_hash) != sent:
        raise DeniedError(
            "call_changed",
            "the call that is sent isn't the one that was permitted and recorded",
            remedy="change the tool and its arguments before the call is guarded",
        )


def refuse(name: str, error: AgentIdentityError) -> None:
    """Record that a call of the tool `name` was refused, because the adapter can't guard that tool.

    The call belongs to the current session, and `within` gives the model's id of it. `error` gets its `call_id`.

    Raises:
        NoSessionError: there is no current session.
    """
    _make_call(name).refuse(error)


async def arefuse(name: str, error: AgentIdentityError) -> None:
    """The async twin of `refuse`."""
    await _make_call(name).arefuse(error)


def _make_call(name: str) -> Call:
    session, entry = open_session()
    # The name may be a model's own text, with characters that a record can't contain.
    tool = Tool(name.encode("utf-8", "replace").decode())
    parent_id = parent_call_id(session, entry)
    return Call(session, tool, {}, entry.tool_call_id, parent_id=parent_id)


def refusal_text(error: AgentIdentityError) -> str:
    """The text for a model about a refusal: its code and remedy, without arguments or the policy's reason."""
    help_text = f" {error.remedy}" if error.remedy else ""
    return f"The call was refused and did not run ({error.code}).{help_text}"
