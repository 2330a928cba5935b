# SPDX-License-Identifier: Apache-2.0
"""`guard`: every tool call of a connection is permitted, asserted and recorded under the session of the running code.

All ways to call a tool end in `send_request` of the connection's `ClientSession`, so that is replaced on the object. `call_tool`
is replaced too, so that all rounds of one call, and the check of its result, are one call on record.
"""

from __future__ import annotations

import contextlib
import functools
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from agent_identity import ConfigurationError, DeniedError, current_session
from agent_identity.adapters import RemoteServer, is_for_model, refusal_text, scrubs
from agent_identity_mcp import generations as mcp
from agent_identity_mcp.asking import asked_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from agent_identity import AgentIdentity, AgentIdentityError
    from agent_identity.adapters import AskedCall, Call
    from agent_identity_mcp.call_auth import CallAuth

__all__ = ["Connection", "connection_of", "guard"]

S = TypeVar("S")
_MARK: Final = "__agent_identity_connection__"


def guard(
    session: S,
    identity: AgentIdentity | None = None,
    *,
    server: str,
    rules: Mapping[str, Mapping[str, Any]] | None = None,
    auth: CallAuth | None = None,
) -> S:
    """Guard the tool calls of a connection, in place, and return it: a `ClientSession`, or the client of mcp 2 or fastmcp.

    `server` is the server's URL, or for a stdio server a URI of your own, such as `urn:example:files`: the audience of assertions,
    and the resource of the tools. Only sessions of `identity` may use the connection; None is any. `rules` map tools to their
    `scopes` and `labels`; with rules, a tool without one is refused, unless there is the rule `"*"`. `auth` is that of the
    connection's HTTP client; without it the server gets chain and assertion, but no credential.

    A refused call isn't sent: its result is an error with code and remedy.

    Raises:
        ConfigurationError: it isn't connected, or guarded for another server already; a value can't be used.
    """
    access = None if auth is None else auth.access
    remote = RemoteServer(server, identity=identity, rules=rules, access=access)
    is_client = isinstance(getattr(type(session), "session", None), property)
    below: Any = _session_of(session) if is_client else session
    around = connection_of(below)
    if around is not None and around.remote.uri != remote.uri:
        raise ConfigurationError(
            "protected_twice", f"the connection is already guarded for {around.remote.uri}"
        )
    connection = around or Connection(remote, auth)
    if is_client:
        connection.guard_client(session)
    connection.guard_session(below)
    return session


def connection_of(session: Any) -> Connection | None:
    """The guarded connection of a `ClientSession`, None if it isn't guarded."""
    found: Connection | None = getattr(session.send_request, _MARK, None)
    return found


def _session_of(client: Any) -> Any:
    try:
        return client.session
    except RuntimeError as error:
        raise ConfigurationError(
            "not_connected",
            "the client isn't connected",
            remedy="enter it first: `async with client:`, then guard(client, server=…)",
        ) from error


class _Running:
    """A call that runs, with its arguments as they are sent."""

    def __init__(
        self, connection: Connection, call: Call, arguments: Mapping[str, Any] | None
    ) -> None:
        self.call: Call = call
        self.arguments: Mapping[str, Any] | None = None if arguments is None else call.arguments
        self.error: AgentIdentityError | None = None
        self._connection = connection
        self._may_send = True

    def covers(self, connection: Connection, params: Any) -> bool:
        """Whether a request belongs to this call: its first one, one after an error, or a further round."""
        return (
            connection is self._connection
            and params.name == self.call.tool.name
            and (self._may_send or mcp.is_further_round(params))
            and (mcp.sent_arguments(params) or {}) == self.call.arguments
        )

    async def send(
        self, auth: CallAuth | None, request: Any, send: Callable[[Any], Awaitable[Any]]
    ) -> Any:
        """Send one request of the call, with an assertion of its own."""
        self._may_send = False
        meta = mcp.meta_of(mcp.called(request))
        sign = functools.partial(
            self._connection.remote.sign, self.call, with_token=auth is not None
        )
        name = sign(meta)
        request = mcp.with_call(request, self.arguments, meta)
        try:
            if auth is None:
                return await send(request)
            with auth.sending(name, self.call, sign) as sent:
                try:
                    return await send(request)
                except Exception:
                    self.error = sent.error
                    if sent.error is None:
                        raise
                    raise sent.error from None
        except BaseException:
            self._may_send = True
            raise


_running: Final[ContextVar[_Running | None]] = ContextVar("agent_identity_mcp", default=None)


class Connection:
    """One guarded connection."""

    def __init__(self, remote: RemoteServer, auth: CallAuth | None) -> None:
        self.remote: RemoteServer = remote
        self._auth = auth
        self._listing: anyio.Event | None = None
        self._listings = 0

    def guard_session(self, session: Any) -> None:
        """Guard the calls of a `ClientSession`, once."""
        if connection_of(session) is not None:
            return
        send_request = session.send_request

        @functools.wraps(send_request)
        async def send(request: Any, *args: Any, **kwargs: Any) -> Any:
            method = mcp.method_of(request)
            if method == "tools/list":
                with self._telling():
                    result = await send_request(request, *args, **kwargs)
                following, tools = mcp.listed(result)
                self.remote.add_page(mcp.cursor_of(request), following, tools)
                await self.remote.apin()
                return result
            if method != "tools/call":
                with self._telling():
                    return await send_request(request, *args, **kwargs)

            async def pass_on(signed: Any) -> Any:
                return await send_request(signed, *args, **kwargs)

            async def call(running: _Running) -> Any:
                return await running.send(self._auth, request, pass_on)

            return await self._call(session, mcp.called(request), call)

        guarded = scrubs(send)
        setattr(guarded, _MARK, self)
        session.send_request = guarded
        session.call_tool = self._wrap_call(lambda: session, session.call_tool)

    def _telling(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._auth is None else self._auth.telling()

    def guard_client(self, client: Any) -> None:
        """Guard the calls of a client, which loops over the rounds of a call and may connect again."""
        name = "call_tool_mcp" if hasattr(client, "call_tool_mcp") else "call_tool"
        if getattr(getattr(client, name), _MARK, None) is not None:
            return

        def session() -> Any:
            current = _session_of(client)
            self.guard_session(current)
            return current

        setattr(client, name, self._wrap_call(session, getattr(client, name)))

    def _wrap_call(self, session: Callable[[], Any], call_tool: Callable[..., Any]) -> Any:
        @functools.wraps(call_tool)
        async def guarded(
            name: str, arguments: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any
        ) -> Any:
            params = mcp.call_params(name, arguments, kwargs)

            async def call(running: _Running) -> Any:
                own = running.arguments
                return await call_tool(name, None if own is None else dict(own), *args, **kwargs)

            return await self._call(session(), params, call)

        wrapped = scrubs(guarded)
        setattr(wrapped, _MARK, self)
        return wrapped

    async def _call(
        self, session: Any, params: Any, body: Callable[[_Running], Awaitable[Any]]
    ) -> Any:
        """Run the body as a call of the current session, or as part of the running call that it belongs to."""
        running = _running.get()
        if running is not None and running.covers(self, params):
            return await body(running)
        current_session()
        await self._list(session, params.name)
        asked, arguments = asked_of(self.remote), mcp.sent_arguments(params)
        call = self.remote.call(params.name, arguments or {}, asked)
        is_stateless = mcp.is_stateless(session)
        try:
            if asked is not None:
                asked.check(params.name, arguments or {})
            await self.remote.acheck(call, params.name, is_stateless=is_stateless, asked=asked)
        except (DeniedError, ConfigurationError) as error:
            await call.arefuse(error)
            return _tell(error, asked)
        try:
            await call.aenter()
        except DeniedError as error:
            return _tell(error, asked)
        running = _Running(self, call, arguments)
        try:
            return await _run(running, body)
        except DeniedError as error:
            if error is not running.error:
                raise
            return _tell(error, asked)

    async def _list(self, session: Any, name: str) -> None:
        """List the server's tools, unless the tool is listed already. Calls at the same time share one listing."""
        before = self._listings
        while not self.remote.is_listed(name) and self._listings == before:
            if self._listing is not None:
                await self._listing.wait()
                continue
            self._listing = anyio.Event()
            try:
                cursor, seen = None, set[str | None]()
                while cursor not in seen:
                    seen.add(cursor)
                    page = await session.list_tools(params=mcp.make_list_params(cursor))
                    cursor, _ = mcp.listed(page)
                    if cursor is None:
                        break
                self._listings += 1
            finally:
                self._listing.set()
                self._listing = None


async def _run(running: _Running, body: Callable[[_Running], Awaitable[Any]]) -> Any:
    call = running.call
    error: BaseException | None = None
    try:
        try:
            call.resume()
            token = _running.set(running)
            try:
                result = await body(running)
            finally:
                _running.reset(token)
        finally:
            call.suspend()
        if mcp.is_error(result):
            call.failed("tool_error")
        return result
    except BaseException as failure:
        error = failure
        raise
    finally:
        # A cancelled scope would cancel this await, too.
        with anyio.CancelScope(shield=True):
            await call.aleave(error)


def _tell(error: AgentIdentityError, asked: AskedCall | None) -> Any:
    """The result for a refusal that a model is told of; any other one is raised, and all are where a framework tells the model."""
    if asked is not None or not is_for_model(error):
        raise error
    return mcp.refusal(refusal_text(error))
