# SPDX-License-Identifier: Apache-2.0
"""What an integration builds on: a framework's tool becomes a `Tool` and its function a wrapped one; nothing is decided there.

An `if` about identity inside an integration is a line that belongs into the library.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agent_identity.decorators import tool_of, wrap
from agent_identity.pipeline import Call
from agent_identity.runtime.current import Current, activated, open_session, running_call
from agent_identity.scrubbing import scrubbed, scrubs
from agent_identity.session import current_session, state_of
from agent_identity.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_identity.errors import AgentIdentityError
    from agent_identity.session import Session

__all__ = [
    "Call",
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
    """Run the block under a session that the framework carried here, or under the current one where it carried none.

    `tool_call_id` is the model's id of the tool call that is made in the block; `who_triggered` finds it.

    Raises:
        NoSessionError: neither is there.
    """
    entered = session or current_session()
    state = state_of(entered)
    with activated(Current(state.reference, running_call(state), tool_call_id)):
        yield entered


def refuse(name: str, error: AgentIdentityError) -> None:
    """Record that a call of the tool `name` was refused, for a tool that can't be guarded and so must not run.

    It is a call of the current session, and `within` says of which tool call of the model. `error` gets its `call_id`.

    Raises:
        NoSessionError: there is no session here.
    """
    _make_call(name).refuse(error)


async def arefuse(name: str, error: AgentIdentityError) -> None:
    """The async twin of `refuse`."""
    await _make_call(name).arefuse(error)


def _make_call(name: str) -> Call:
    session, found = open_session()
    # The name may be a model's own text, which can hold what no record can.
    described = Tool(name.encode("utf-8", "replace").decode())
    return Call(session, described, {}, found.tool_call_id)


def refusal_text(error: AgentIdentityError) -> str:
    """What a model is told of a refusal: the code and the way out. No argument, and no word of the policy's."""
    help_text = f" {error.remedy}" if error.remedy else ""
    return f"The call was refused and did not run ({error.code}).{help_text}"
