# SPDX-License-Identifier: Apache-2.0
"""Which credential a connection to an MCP server carries apart from its tool calls. For adapters.

Such requests (`initialize`, `tools/list`) carry none until the server demands one. Then it is a credential of the session in which
they are sent, so that a listing shows what that principal may see; outside of all sessions it is one of an autonomous session.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Final

from agent_identity.errors import NoSessionError
from agent_identity.flow import arun
from agent_identity.http.challenges import demanded_by
from agent_identity.identity import parts_of
from agent_identity.runtime.acquire import acquire_demanded, trace_acquisition
from agent_identity.runtime.current import open_session
from agent_identity.session import open_detached, state_of
from agent_identity.uris import check_resource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.source import Demand
    from agent_identity.http.credential import Credential
    from agent_identity.identity import AgentIdentity
    from agent_identity.runtime.state import SessionState
    from agent_identity.session import Session

__all__ = ["ServerAccess"]

_TRIGGER: Final = "mcp:connection"
_PURPOSE: Final = "connect to an MCP server"
_EARLY: Final = 30.0
"""Seconds before its end at which a credential is replaced."""


class ServerAccess:
    """The credentials of one connection to the server at `uri`, for requests that belong to no tool call.

    `opener` is the session of the first credential, None while there is none, or if it is an autonomous one of the connection.
    """

    def __init__(self, identity: AgentIdentity, uri: str) -> None:
        self.uri: str = check_resource(uri)
        self.opener: SessionState | None = None
        self._identity = identity
        self._parts = parts_of(identity)
        self._is_demanded = False
        self._credentials: list[tuple[SessionState, Credential]] = []
        self._own: Session | None = None
        self._lock = threading.Lock()

    async def acredential(self) -> Credential | None:
        """The credential for a request of the running code; None while the server demands none.

        Raises:
            DeniedError: policy, the configuration or the session's limits refuse it.
            CredentialError: the server's metadata can't be used, or the issuer refused or could not be reached.
        """
        return (await self._acquire(None)) if self._is_demanded else None

    async def ademanded(self, status: int, headers: Mapping[str, str]) -> Credential | None:
        """Read the answer to a request that carried no credential; return the one that it demands, or None.

        Raises:
            DeniedError: policy, the configuration or the session's limits refuse it.
            CredentialError: the server's metadata can't be used, or the issuer refused or could not be reached.
        """
        demand = demanded_by(status, headers.get("www-authenticate", ""))
        return None if demand is None else await self._acquire(demand)

    async def aclose(self) -> None:
        """End the autonomous session of the connection, if there is one."""
        own, self._own = self._own, None
        if own is not None:
            await own.__aexit__(None, None, None)

    async def _acquire(self, demand: Demand | None) -> Credential:
        session = await self._find_session()
        now = self._parts.clock()
        for owner, kept in self._credentials:
            if owner is session and kept.expires_at - _EARLY > now:
                return kept
        with trace_acquisition(session, self.uri):
            flow = acquire_demanded(session, self.uri, demand)
            credential = await arun(flow, self._parts.world.aanswer)
        if self.opener is None and (self._own is None or session is not state_of(self._own)):
            self.opener = session
        others = [
            each for each in self._credentials if each[0] is not session and each[0].life.is_open
        ]
        self._credentials = [*others, (session, credential)]
        self._is_demanded = True
        return credential

    async def _find_session(self) -> SessionState:
        """The session of the running code, otherwise an autonomous one of this connection."""
        try:
            session = open_session()[0]
        except NoSessionError:
            session = None
        if session is not None and session.parts is self._parts:
            return session
        return await asyncio.to_thread(self._open_own)

    def _open_own(self) -> SessionState:
        with self._lock:
            if self._own is None or not state_of(self._own).life.is_open:
                own = self._identity.autonomous(trigger=_TRIGGER, purpose=_PURPOSE)
                open_detached(own)
                self._own = own
            return state_of(self._own)
