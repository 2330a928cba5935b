# SPDX-License-Identifier: Apache-2.0
"""The authentication of a connection that several calls share: each `tools/call` gets the credential of its own call.

The HTTP request of a call is often sent by another task, which has no context of the call. So a request is read: the assertion
in its `_meta` names the call. Everything else, such as `tools/list`, is sent without a credential, unless the server demands one.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

from agent_identity import AgentIdentityError, VerificationError
from agent_identity.adapters import check_sent, named_request
from agent_identity.http.signed_requests import Sending
from agent_identity.jose import loads_object
from agent_identity_mcp.generations import IS_SECOND, http

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Generator

    from agent_identity import Credential
    from agent_identity.adapters import Call, ServerAccess
    from agent_identity.http.signed_requests import Signing

__all__ = ["CallAuth", "Sent", "make_client"]

_REFUSED: Final = "agent_identity_refused"
_TIMEOUT: Final = 30.0
_STREAM_TIMEOUT: Final = 300.0
"""Seconds that a server may take between two events; mcp's own limit."""
_FAILED: Final = 400
_NOT_FOUND: Final = 404


class Sent:
    """A request that is being sent for a call. `sign` writes the call into a `_meta`; `error` is why it was refused on the way."""

    def __init__(self, call: Call, sign: Callable[[dict[str, Any]], str]) -> None:
        self.call: Call = call
        self.sign: Callable[[dict[str, Any]], str] = sign
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
        self._may_answer = False

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
    def sending(
        self, name: str, call: Call, sign: Callable[[dict[str, Any]], str]
    ) -> Generator[Sent]:
        """Give the request that is named so in its `_meta` the credential of a call, as long as the block runs."""
        sent = self._sent[name] = Sent(call, sign)
        try:
            yield sent
        finally:
            for key in [key for key, value in self._sent.items() if value is sent]:
                del self._sent[key]

    async def async_auth_flow(
        self, request: http.Request
    ) -> AsyncGenerator[http.Request, http.Response]:
        """Sign one request (the HTTP client's hook); sign it anew where the server requires more scopes."""
        message = _read_call(await request.aread()) if request.method == "POST" else {}
        sent = self._sent.get(named_request(message.get("params", {}).get("_meta")) or "")
        if sent is None:
            async with contextlib.aclosing(self._for_connection(request)) as own:
                signed = await anext(own, None)
                while signed is not None:
                    answer = yield signed
                    signed = await _resume(own, answer)
            return
        try:
            response = None
            for is_last in (False, True):
                params = message["params"]
                check_sent(sent.call, params.get("name"), params.get("arguments", {}))
                flow = Sending[Any, Any](_Once(sent.credential), request, request.content).aflow()
                async with contextlib.aclosing(flow):
                    signed = await anext(flow, None)
                    while signed is not None:
                        response = yield signed
                        signed = await _resume(flow, response)
                if response is None or is_last:
                    break
                renewal = sent.credential.renewal("POST", response.status_code, response.headers)
                if renewal is None:
                    break
                await sent.credential.arenew(renewal)
                request = self._with_other_token(request, message, sent)
            if response is None or not self._breaks(response):
                return
        except AgentIdentityError as error:
            sent.error = error
            if not self._may_answer:
                raise
        # An exception, or with mcp 1 a status, would end the connection and all its calls. So the transport answers.
        request.extensions[_REFUSED] = message.get("id")
        yield request

    async def _for_connection(
        self, request: http.Request
    ) -> AsyncGenerator[http.Request, http.Response]:
        """Sign a request that belongs to no call, if the server demands that."""
        access = self.access
        try:
            credential = None if access is None else await access.acredential()
            if credential is None:
                response = yield request
                if access is None:
                    return
                credential = await access.ademanded(response.status_code, response.headers)
            if credential is None:
                return
            flow = Sending[Any, Any](credential, request, request.content).aflow()
            async with contextlib.aclosing(flow):
                signed = await anext(flow, None)
                while signed is not None:
                    response = yield signed
                    signed = await _resume(flow, response)
            return
        except AgentIdentityError as error:
            self.error = error
            if not self._may_answer:
                raise
        request.extensions[_REFUSED] = _read_message(request.content).get("id")
        yield request

    def _with_other_token(
        self, request: http.Request, message: dict[str, Any], sent: Sent
    ) -> http.Request:
        """The request with another assertion, which names the renewed token."""
        self._sent[sent.sign(message["params"]["_meta"])] = sent
        left_out = {*sent.credential.header_names, "content-length", "transfer-encoding"}
        headers = [pair for pair in request.headers.multi_items() if pair[0] not in left_out]
        return http.Request(
            "POST", request.url, headers=headers, content=json.dumps(message).encode()
        )

    def _breaks(self, response: http.Response) -> bool:
        """Whether mcp 1 would end the connection for this answer; a 404 says that the server ended it."""
        is_failed = response.status_code >= _FAILED and response.status_code != _NOT_FOUND
        return is_failed and self._may_answer and not IS_SECOND


class _Once:
    """A credential that leaves its renewal to `CallAuth`, which has to sign the body anew."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def __getattr__(self, name: str) -> Any:
        return getattr(self._credential, name)

    def signing(self, method: str, url: str, body: bytes | None) -> Signing:
        """Yield the headers, and once more those for the server's nonce."""
        answer = yield self._credential.headers(method, url, body)
        if answer is not None and self._credential.observe(*answer, url=url):
            yield self._credential.headers(method, url, body)


def make_client(auth: CallAuth, context: ssl.SSLContext) -> http.AsyncClient:
    """The HTTP client of one connection. It follows no redirect, and uses no proxy or password of the environment."""
    auth._may_answer = True  # noqa: SLF001 - of this module
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
        if request.method != "POST":
            return http.Response(405, request=request)
        if request.extensions[_REFUSED] is None:  # a notification
            return http.Response(202, request=request)
        error = {"code": -32000, "message": "the request was refused"}
        answer = {"jsonrpc": "2.0", "id": request.extensions[_REFUSED], "error": error}
        return http.Response(200, json=answer, request=request)

    async def aclose(self) -> None:
        await self._network.aclose()


def _read_call(body: bytes) -> dict[str, Any]:
    """The message of a request that calls a tool, an empty one for any other."""
    message = _read_message(body)
    params = message.get("params")
    if message.get("method") != "tools/call" or not isinstance(params, dict):
        return {}
    return message if isinstance(params.get("arguments", {}), dict) else {}


def _read_message(body: bytes) -> dict[str, Any]:
    """The message of a request, an empty one if it can't be read."""
    try:
        message: dict[str, Any] = loads_object(body)
    except VerificationError:
        return {}
    return message


async def _resume(
    flow: AsyncGenerator[http.Request, http.Response], response: http.Response
) -> http.Request | None:
    try:
        return await flow.asend(response)
    except StopAsyncIteration:
        return None
