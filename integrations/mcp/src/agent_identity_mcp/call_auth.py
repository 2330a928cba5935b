# SPDX-License-Identifier: Apache-2.0
"""The authentication of a connection that several calls share: each `tools/call` gets the credential of its own call.

The HTTP request of a call is often sent by another task, which has no context of the call. So a request is read: the assertion
in its `_meta` names the call. Everything else, such as `tools/list`, is sent without a credential.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from agent_identity import AgentIdentityError, VerificationError
from agent_identity.adapters import check_sent, named_request
from agent_identity.jose import loads_object
from agent_identity_mcp.generations import IS_SECOND, http

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Generator

    from agent_identity import Credential
    from agent_identity.adapters import Call

__all__ = ["CallAuth", "Sent", "make_client"]

_REFUSED: Final = "agent_identity_refused"
_TIMEOUT: Final = 30.0
_STREAM_TIMEOUT: Final = 300.0
"""Seconds that a server may take between two events; mcp's own limit."""


class Sent:
    """A request that is being sent for a call. `error` is why it was refused on the way."""

    def __init__(self, call: Call) -> None:
        self.call: Call = call
        self.credential: Credential = call.credential()
        self.error: AgentIdentityError | None = None


class CallAuth(http.Auth):
    """The `auth` of the HTTP client of a connection: `guard(session, server=url, auth=auth)`, with the same object.

    Give each connection one of its own.
    """

    requires_request_body = True

    def __init__(self) -> None:
        self._sent: dict[str, Sent] = {}
        self._refuses_by_answer = False

    @contextlib.contextmanager
    def sending(self, name: str, call: Call) -> Generator[Sent]:
        """Give the request that is named so in its `_meta` the credential of a call, as long as the block runs."""
        sent = self._sent[name] = Sent(call)
        try:
            yield sent
        finally:
            self._sent.pop(name, None)

    async def async_auth_flow(
        self, request: http.Request
    ) -> AsyncGenerator[http.Request, http.Response]:
        """Sign one request (the HTTP client's hook)."""
        message = _read_call(await request.aread()) if request.method == "POST" else None
        params = {} if message is None else message["params"]
        sent = self._sent.get(named_request(params.get("_meta")) or "")
        if message is None or sent is None:
            yield request
            return
        flow = _flow(sent.credential, request)
        try:
            check_sent(sent.call, params.get("name"), params.get("arguments", {}))
            signed = await anext(flow, None)
            while signed is not None:
                response = yield signed
                signed = await _resume(flow, response)
            return
        except AgentIdentityError as error:
            sent.error = error
            if not self._refuses_by_answer:
                raise
        finally:
            await flow.aclose()
        # An exception would end the connection, and with it the calls of all others. So the transport answers.
        request.extensions[_REFUSED] = message.get("id")
        yield request


def make_client(auth: CallAuth, context: ssl.SSLContext) -> http.AsyncClient:
    """The HTTP client of one connection. It follows no redirect, and uses no proxy or password of the environment."""
    auth._refuses_by_answer = True  # noqa: SLF001 - of this module
    return http.AsyncClient(
        auth=auth,
        transport=_Transport(http.AsyncHTTPTransport(verify=context)),
        timeout=http.Timeout(_TIMEOUT, read=_STREAM_TIMEOUT, pool=None),
        follow_redirects=False,
        trust_env=False,
    )


class _Transport(http.AsyncBaseTransport):
    """Answers requests that were refused, without sending them."""

    def __init__(self, network: http.AsyncBaseTransport) -> None:
        self._network = network

    async def handle_async_request(self, request: http.Request) -> http.Response:
        if _REFUSED not in request.extensions:
            return await self._network.handle_async_request(request)
        error = {"code": -32000, "message": "the request was refused and not sent"}
        answer = {"jsonrpc": "2.0", "id": request.extensions[_REFUSED], "error": error}
        return http.Response(200, json=answer, request=request)

    async def aclose(self) -> None:
        await self._network.aclose()


def _read_call(body: bytes) -> dict[str, Any] | None:
    """The message of a request that calls a tool, None for any other one."""
    try:
        message: dict[str, Any] = loads_object(body)
    except VerificationError:
        return None
    is_call = message.get("method") == "tools/call" and isinstance(message.get("params"), dict)
    return message if is_call else None


def _flow(
    credential: Credential, request: http.Request
) -> AsyncGenerator[http.Request, http.Response]:
    auth: Any = credential  # for mcp 1, which has httpx
    if IS_SECOND:
        from agent_identity.http import httpx2_auth  # noqa: PLC0415 - mcp 1 doesn't bring httpx2

        auth = httpx2_auth(credential)
    flow: AsyncGenerator[http.Request, http.Response] = auth.async_auth_flow(request)
    return flow


async def _resume(
    flow: AsyncGenerator[http.Request, http.Response], response: http.Response
) -> http.Request | None:
    try:
        return await flow.asend(response)
    except StopAsyncIteration:
        return None
