# SPDX-License-Identifier: Apache-2.0
"""Whose session is current, and which call of it is running: one context variable, read at call time.

Context variables follow into tasks and `asyncio.to_thread`, not into executors and threads (`session.bind` carries them).
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from agent_identity.errors import ConfigurationError, NoSessionError
from agent_identity.values import LOCAL

if TYPE_CHECKING:
    import weakref

    from agent_identity.http.credential import Credential
    from agent_identity.pipeline import Call
    from agent_identity.session import Session

__all__ = ["CURRENT", "Current", "current_credential", "current_session"]


class Current(NamedTuple):
    """What is current in one context.

    The session is held weakly: when the block or task that entered it is gone without leaving it, so is the session, and a
    pool's next job finds none instead of a stranger's. `tool_call_id` is the model's id of the call that is about to be made.
    """

    session: weakref.ReferenceType[Session]
    call: Call | None
    tool_call_id: str | None = None


CURRENT: ContextVar[Current | None] = ContextVar("agent_identity_current", default=None)


def current_session() -> Session:
    """The session of the running code.

    Raises:
        NoSessionError: there is none, or the one that was left behind here has ended.
    """
    current = CURRENT.get()
    session = None if current is None else current.session()
    if session is None or not session.is_open:
        raise NoSessionError(
            "no_session",
            "there is no session here",
            remedy="open one: `with identity.on_behalf_of(…, purpose=…):`; in a thread, use session.bind(fn)",
        )
    return session


def current_credential() -> Credential:
    """The credential of the running tool, as `auth=` of an httpx client or by its `headers`.

    Raises:
        NoSessionError: there is no session here.
        ConfigurationError: no tool is running, or the running one has no resource.
    """
    session = current_session()
    current = CURRENT.get()
    call = None if current is None else current.call
    if call is None or call.tool.resource == LOCAL:
        raise ConfigurationError(
            "no_resource",
            "there is no running tool with a resource",
            remedy="give the tool a resource, or ask session.credential(resource)",
        )
    return call.reach.credential(session, call)
