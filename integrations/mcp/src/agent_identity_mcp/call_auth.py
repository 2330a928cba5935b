# SPDX-License-Identifier: Apache-2.0
"""The authentication of a connection that several calls share: each `tools/call` gets the credential of its own call.

The HTTP request of a call is often sent by another task, which has no context of the call. So a request is read: the assertion
in its `_meta` names the call. Everything else, such as `tools/list`, is sent without a credential, unless the server demands one.
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
    from collections.abc import AsyncGenerator, Generator, Mapping

    from agent_identity import Credential
    from agent_identity.adapters import Call, ServerAccess

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

    Give each connection one of its own. `access` has the credentials for requests that belong to no call; without it they carry
    none. `error` is why the last of them was refused.
    """

    requires_request_body = True

    def __init__(self, access: ServerAccess | None = None) -> None:
        self.access: ServerAccess | None = access
        self.error: AgentIdentityError | None = None
        self._sent: dict[str, Sent] = {}
        self._refuses_by_answer = False

    @contextlib.contextmanager
    def telling(self) -> Generator[None]:
        """Raise why a request of the block was refused, instead of the error that mcp makes of it."""
        self.error = None
        try:
            yield
        except Exception:
            if self.error is None:
                raise
            raise self.error from None

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
        message = _read_message(await request.aread()) if request.method == "POST" else {}
        sent, flow = self._find(message), None
        try:
            credential = await self._credential(sent, message)
            if credential is None:
                response = yield request
                if self.access is not None:
                    answer = response.status_code, response.headers
                    credential = await self.access.ademanded(*answer)
            if credential is None:
                return
            flow = _flow(credential, request)
            signed = await anext(flow, None)
            while signed is not None:
                response = yield signed
                signed = await _resume(flow, response)
            return
        except AgentIdentityError as error:
            if sent is None:
                self.error = error
            else:
                sent.error = error
            if not self._refuses_by_answer:
                raise
        finally:
            if flow is not None:
                await flow.aclose()
        # An exception would end the connection, and with it the calls of all others. So the transport answers.
        request.extensions[_REFUSED] = message
        yield request

    def _find(self, message: Mapping[str, Any]) -> Sent | None:
        """The call that a message is sent for, None if it belongs to no call."""
        params = message.get("params")
        if message.get("method") != "tools/call" or not isinstance(params, dict):
            return None
        return self._sent.get(named_request(params.get("_meta")) or "")

    async def _credential(self, sent: Sent | None, message: Mapping[str, Any]) -> Credential | None:
        if sent is None:
            return None if self.access is None else await self.access.acredential()
        params = message["params"]
        check_sent(sent.call, params.get("name"), params.get("arguments", {}))
        return sent.credential


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
        message = request.extensions[_REFUSED]
        if request.method != "POST":
            return http.Response(405, request=request)
        if "id" not in message:
            return http.Response(202, request=request)
        error = {"code": -32000, "message": "the request was refused and not sent"}
        answer = {"jsonrpc": "2.0", "id": message["id"], "error": error}
        return http.Response(200, json=answer, request=request)

    async def aclose(self) -> None:
        await self._network.aclose()


def _read_message(body: bytes) -> dict[str, Any]:
    """The message of a request, empty if it can't be read."""
    try:
        message: dict[str, Any] = loads_object(body)
    except VerificationError:
        return {}
    return message


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
