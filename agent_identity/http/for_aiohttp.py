# SPDX-License-Identifier: Apache-2.0
"""The credential as a client middleware of aiohttp, which asks it again for every redirect that it follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp.payload import BytesPayload

from agent_identity.credentials.source import Renewal
from agent_identity.http.credential import advanced

if TYPE_CHECKING:
    from aiohttp import ClientHandlerType, ClientMiddlewareType, ClientRequest, ClientResponse

    from agent_identity.http.credential import Credential

__all__ = ["aiohttp_middleware"]


def aiohttp_middleware(credential: Credential) -> ClientMiddlewareType:
    """A middleware that signs as the credential does: `aiohttp.ClientSession(middlewares=[aiohttp_middleware(credential)])`.

    A client certificate goes in as `ssl=credential.ssl_context()`.
    """

    async def sign(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        signing = credential.signing(request.method, str(request.url), await _body_of(request))
        step = advanced(signing, None)
        assert isinstance(step, dict)  # noqa: S101 - the first step is always to send
        while True:
            request.headers.update(step)
            response = await handler(request)
            after = advanced(signing, (response.status, response.headers))
            if isinstance(after, Renewal):
                await credential.arenew(after)
                after = advanced(signing, None)
            if not isinstance(after, dict):
                return response
            step = after
            response.release()

    return sign


async def _body_of(request: ClientRequest) -> bytes | None:
    body = request.body
    if isinstance(body, bytes):
        return body
    return await body.as_bytes() if isinstance(body, BytesPayload) else None
