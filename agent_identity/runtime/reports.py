# SPDX-License-Identifier: Apache-2.0
"""Records refused uses of a credential, whether or not the tool catches the error."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from agent_identity.errors import LedgerError
from agent_identity.flow import Draft
from agent_identity.provenance.records import CREDENTIAL_REFUSED

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from agent_identity.errors import AgentIdentityError, DeniedError
    from agent_identity.runtime.current import RunningCall
    from agent_identity.runtime.state import SessionState

_log: Final = logging.getLogger("agent_identity")
_writing: Final = set[asyncio.Task[None]]()
"""Tasks that still write a record; an event loop holds its tasks only weakly."""


class Reporting:
    """Records that a credential of a session refused a request to another resource.

    `call` is the call that used it, None outside a tool. If the record can't be written, the request stays refused, and so are
    the next calls.
    """

    __slots__ = ("_call", "_resource", "_session")

    def __init__(self, session: SessionState, resource: str, call: RunningCall | None) -> None:
        self._session = session
        self._resource = resource
        self._call = call

    def refused(self, error: DeniedError, place: str, /) -> None:
        """Record a refusal. On the thread of an event loop, don't wait for other writers."""
        draft = self._draft(error, place)
        if _running_loop() is not None:
            _begin(self._awrite(draft))
            return
        try:
            self._session.parts.ledger.append(draft)
        except LedgerError as failure:
            self._shut_gate(failure)

    async def arefused(self, error: DeniedError, place: str, /) -> None:
        """The async twin of `refused`."""
        await self._awrite(self._draft(error, place))

    def unasserted(self) -> None:
        """Log once for each resource of a session that it refused a request without assertion."""
        warned = self._session.warned
        if self._resource in warned:
            return
        warned.add(self._resource)
        _log.warning(
            "%s answered 401 to a request of session.http() or session.credential(…) outside a tool, which asserts no call;"
            " what to do: make the request inside a tool that has this resource, or let the service allow requests"
            ' without assertion, Verifier(…, allow={"unasserted"})',
            self._resource,
        )

    async def _awrite(self, draft: Draft) -> None:
        try:
            await self._session.parts.ledger.aappend(draft)
        except LedgerError as failure:
            self._shut_gate(failure)

    def _draft(self, error: DeniedError, place: str) -> Draft:
        call_id = None if self._call is None else self._call.call_id
        error.call_id = call_id
        _log.warning(
            "a request with the credential for %s was refused on the way to %s (%s)",
            self._resource,
            place,
            error.code,
        )
        return draft_refused(self._session, self._resource, error, place, call_id)

    def _shut_gate(self, failure: LedgerError) -> None:
        self._session.parts.gate.shut()
        _log.warning("a refused use of a credential could not be recorded (%s)", failure.code)


def draft_refused(
    session: SessionState, resource: str, error: AgentIdentityError, place: str, call_id: str | None
) -> Draft:
    """Draft the record of a refused use of a credential; `place` is the origin that the request was for."""
    return Draft(
        CREDENTIAL_REFUSED,
        {"resource": resource, "place": place, "code": error.code},
        pseudonym=session.known_as,
        session_id=session.id,
        call_id=call_id,
    )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _begin(writing: Coroutine[Any, None, None]) -> None:
    """Run a coroutine up to its first wait, where most end; a task does the rest."""
    try:
        waited_for = writing.send(None)
    except StopIteration:
        return
    task = asyncio.create_task(_finish(_Begun(writing, waited_for)))
    _writing.add(task)
    task.add_done_callback(_writing.discard)


async def _finish(begun: _Begun) -> None:
    await begun


class _Begun:
    """A coroutine that has already begun, and waits for something."""

    def __init__(self, coroutine: Coroutine[Any, None, None], waited_for: object) -> None:
        self._coroutine = coroutine
        self._waited_for = waited_for

    def __await__(self) -> Generator[Any, None, None]:
        yield self._waited_for
        yield from self._coroutine.__await__()
