# SPDX-License-Identifier: Apache-2.0
"""The credential as `auth=` of an httpx2 client, which takes no `httpx.Auth`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2

from agent_identity.http.signed_requests import Sending

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from agent_identity.http.credential import Credential


class _Auth(httpx2.Auth):
    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def sync_auth_flow(
        self, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        yield from self._sending(request).flow()

    def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        return self._sending(request).aflow()

    def _sending(self, request: httpx2.Request) -> Sending[httpx2.Request, httpx2.Response]:
        return Sending(self._credential, request, _body_of(request))

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
