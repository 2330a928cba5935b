# SPDX-License-Identifier: Apache-2.0
"""The interface for integrations. They turn a framework's tool into a `Tool`, wrap its function, and decide nothing.

An `if` about identity in an integration is a line that belongs in the library.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agent_identity.decorators import tool_of, wrap
from agent_identity.pipeline import Call
from agent_identity.runtime.current import (
    Current,
    activated,
    open_session,
    parent_call_id,
    running_call,
)
from agent_identity.scrubbing import scrubbed, scrubs
from agent_identity.session import current_session, state_of
from agent_identity.tool_rules import Rule, Rules
from agent_identity.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_identity.errors import AgentIdentityError
    from agent_identity.session import Session

__all__ = [
    "Call",
    "Rule",
    "Rules",
    "Tool",
    "arefuse",
    "refusal_text",
    "refuse",
    "scrubbed",
    "scrubs",
    "tool_of",
    "within",
    "wrap",
]


@contextlib.contextmanager
def within(session: Session | None, *, tool_call_id: str | None = None) -> Generator[Session]:
    """Run the block under the session that the framework carried here; None is the current session.

    `tool_call_id` is the model's id of the tool call in the block; `who_triggered` finds it.

    Raises:
        NoSessionError: there is no session.
    """
    entered = session or current_session()
    state = state_of(entered)
    with activated(Current(state.reference, running_call(state), tool_call_id)):
        yield entered


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
