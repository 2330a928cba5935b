# SPDX-License-Identifier: Apache-2.0
"""The credential as a client middleware of aiohttp, which calls it again for every redirect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp.payload import BytesPayload

from agent_identity.credentials.source import Renewal
from agent_identity.http.signed_requests import check_sendable, sign_into

if TYPE_CHECKING:
    from aiohttp import ClientHandlerType, ClientMiddlewareType, ClientRequest, ClientResponse

    from agent_identity.http.credential import Credential


def aiohttp_middleware(credential: Credential) -> ClientMiddlewareType:
    """A middleware that signs as the credential does: `aiohttp.ClientSession(middlewares=[aiohttp_middleware(credential)])`.

    A client certificate goes in as `ssl=credential.ssl_context()`.
    """

    async def sign(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        await credential.astay(str(request.url))
        check_sendable(request.method, request.headers.items())
        signing = credential.signing(request.method, str(request.url), await _body_of(request))
        sign_into(request.headers, signing, None)
        while True:
            response = await handler(request)
            # a middleware below this one may have changed the URL; the headers are already sent then
            try:
                await credential.astay(str(request.url), left=True)
            except BaseException:
                response.close()
                raise
            again = sign_into(request.headers, signing, (response.status, response.headers))
            if again is False:
                return response
            response.release()
            if isinstance(again, Renewal):
                await credential.arenew(again)
                sign_into(request.headers, signing, None)

    return sign


async def _body_of(request: ClientRequest) -> bytes | None:
    body = request.body
    if isinstance(body, bytes):
        return body
    return await body.as_bytes() if isinstance(body, BytesPayload) else None
