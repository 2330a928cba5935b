# SPDX-License-Identifier: Apache-2.0
"""The interface for integrations. They turn a framework's tool into a `Tool`, wrap its function, and decide nothing.

An `if` about identity in an integration is a line that belongs in the library.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Final, TypeVar

from agent_identity.decorators import mark, tool_of, wrap
from agent_identity.errors import AgentIdentityError, DeniedError, NoSessionError
from agent_identity.identity import parts_of
from agent_identity.pipeline import Call
from agent_identity.provenance.spans import below
from agent_identity.remote_access import ServerAccess
from agent_identity.remote_tools import (
    AskedCall,
    ListedTool,
    RemoteServer,
    check_sent,
    named_request,
)
from agent_identity.runtime.current import (
    Attempt,
    Current,
    activated,
    current,
    open_session,
    parent_call_id,
    running_call,
)
from agent_identity.scrubbing import scrubbed, scrubs
from agent_identity.session import Session, current_session, state_of
from agent_identity.subagents import (
    Caller,
    adelegated,
    astarting,
    calling_tool,
    delegated,
    starting,
)
from agent_identity.tool_rules import Rule, Rules
from agent_identity.tools import Tool

if TYPE_CHECKING:
    import ssl
    from collections.abc import Generator

    from agent_identity.identity import AgentIdentity

__all__ = [
    "AskedCall",
    "Attempt",
    "Call",
    "Caller",
    "ListedTool",
    "RemoteServer",
    "Rule",
    "Rules",
    "ServerAccess",
    "Tool",
    "adelegated",
    "arefuse",
    "astarting",
    "below",
    "calling_tool",
    "check_owner",
    "check_sent",
    "current_tool_call_id",
    "delegated",
    "is_for_model",
    "mark",
    "mark_owner",
    "named_request",
    "refusal_for_model",
    "refusal_text",
    "refuse",
    "scrubbed",
    "scrubs",
    "starting",
    "tls_context",
    "tool_of",
    "within",
    "wrap",
]


E = TypeVar("E", bound=AgentIdentityError)


@contextlib.contextmanager
def within(
    session: Session | None, *, tool_call_id: str | None = None, attempt: Attempt | None = None
) -> Generator[Session]:
    """Run the block under the session that the framework carried here; None is the current session.

    A framework also passes on what a run carries to the runs inside its tools. A session that such a tool opened, for instance
    by `delegate`, stays the current one. `tool_call_id` is the model's id of the tool call in the block; `who_triggered` finds it.
    `attempt` says which interrupted call this one continues, and gets the id of the call that is made.

    Raises:
        NoSessionError: there is no session.
    """
    entered = current_session() if session is None or _is_inside_tool_of(session) else session
    state = state_of(entered)
    with activated(Current(state.reference, running_call(state), tool_call_id, attempt)):
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


def current_tool_call_id() -> str | None:
    """The model's id of the tool call that begins here, None if `within` was given none."""
    return open_session()[1].tool_call_id


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


def refusal_for_model(error: E) -> E:
    """A copy of a refusal for frameworks that show exceptions to others: its message is `refusal_text`, and it has no cause."""
    copy = error.copy()
    copy.args = (refusal_text(error),)
    copy.__cause__ = None
    return copy


_FOREIGN_RESUME: Final = "resumed_by_another"
_STOPS: Final = frozenset({_FOREIGN_RESUME, "call_running"})


def mark_owner() -> str:
    """A mark of the current session's principal, for a framework to store with an interrupted call. It names nobody.

    Raises:
        NoSessionError: there is no session.
    """
    salt = secrets.token_hex(16)
    return f"{salt}.{_digest_owner(salt)}"


def check_owner(mark: object) -> None:
    """Check that an interrupted call goes on for the principal whose `mark_owner` is stored with it.

    Raises:
        NoSessionError: there is no session.
        DeniedError: it is another principal, or the mark can't be read.
    """
    salt, _, digest = mark.partition(".") if isinstance(mark, str) else ("", "", "")
    if not hmac.compare_digest(_digest_owner(salt).encode(), digest.encode()):
        raise DeniedError(
            _FOREIGN_RESUME,
            "the interrupted call belongs to another principal",
            remedy="resume it in a session of the principal whose call was interrupted",
        )


def _digest_owner(salt: str) -> str:
    state = state_of(current_session())
    owner = state.parts.own_principal(state.principal)
    return hashlib.sha256(f"{salt}\0{owner}".encode()).hexdigest()


def is_for_model(error: AgentIdentityError) -> bool:
    """Whether the model is told of an error; any other one stops the run.

    The refusal of a resumption stops the run, because an answer to the model would use up the interrupt.
    """
    return isinstance(error, DeniedError) and error.code not in _STOPS


def tls_context(owner: AgentIdentity | Session) -> ssl.SSLContext:
    """A TLS context that trusts what an identity trusts, or the one of a session, for an adapter's own HTTP client."""
    parts = state_of(owner).parts if isinstance(owner, Session) else parts_of(owner)
    return parts.world.context(None)
