# SPDX-License-Identifier: Apache-2.0
"""The credential as `auth=` of an httpx2 client, which takes no `httpx.Auth`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2

from agent_identity.credentials.source import Renewal
from agent_identity.http.credential import advanced

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from agent_identity.http.credential import Credential

__all__ = ["httpx2_auth"]


class _Auth(httpx2.Auth):
    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def sync_auth_flow(
        self, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        signing = self._credential.signing(request.method, str(request.url), _body_of(request))
        step = advanced(signing, None)
        while step is not None:
            if isinstance(step, Renewal):
                self._credential.renew(step)
                step = advanced(signing, None)
            else:
                request.headers.update(step)
                response = yield request
                step = advanced(signing, (response.status_code, response.headers))

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        signing = self._credential.signing(request.method, str(request.url), _body_of(request))
        step = advanced(signing, None)
        while step is not None:
            if isinstance(step, Renewal):
                await self._credential.arenew(step)
                step = advanced(signing, None)
            else:
                request.headers.update(step)
                response = yield request
                step = advanced(signing, (response.status_code, response.headers))

    def __repr__(self) -> str:
        return f"<httpx2 auth of {self._credential!r}>"


def httpx2_auth(credential: Credential) -> httpx2.Auth:
    """An `httpx2.Auth` that signs as the credential does: `httpx2.Client(auth=httpx2_auth(credential))`.

    A client certificate goes in as `verify=credential.ssl_context()`.
    """
    return _Auth(credential)


def _body_of(request: httpx2.Request) -> bytes | None:
    try:
        return request.content
    except httpx2.RequestNotRead:
        return None
