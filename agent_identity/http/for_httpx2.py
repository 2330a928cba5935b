# SPDX-License-Identifier: Apache-2.0
"""The credential as `auth=` of an httpx2 client, which takes no `httpx.Auth`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2

from agent_identity.credentials.source import Renewal
from agent_identity.http.credential import sign_into

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
        again: Renewal | bool = sign_into(request.headers, signing, None)
        while again:
            response = yield request
            if response.history:  # it came by a redirect, and is another place's
                return
            again = sign_into(request.headers, signing, (response.status_code, response.headers))
            if isinstance(again, Renewal):
                self._credential.renew(again)
                sign_into(request.headers, signing, None)

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        signing = self._credential.signing(request.method, str(request.url), _body_of(request))
        again: Renewal | bool = sign_into(request.headers, signing, None)
        while again:
            response = yield request
            if response.history:  # it came by a redirect, and is another place's
                return
            again = sign_into(request.headers, signing, (response.status_code, response.headers))
            if isinstance(again, Renewal):
                await self._credential.arenew(again)
                sign_into(request.headers, signing, None)

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
