# SPDX-License-Identifier: Apache-2.0
"""The credential as `auth=` of requests. A redirect that leaves the resource, which requests would follow, goes without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from requests.auth import AuthBase

from agent_identity.credentials.source import Renewal
from agent_identity.http.credential import sign_into
from agent_identity.uris import covers

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

    from agent_identity.http.credential import Credential, Signing

__all__ = ["requests_auth"]


class _Auth(AuthBase):
    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        signing = self._credential.signing(str(r.method), str(r.url), _body_of(r))
        before = {name.lower() for name in r.headers}
        sign_into(r.headers, signing, None)
        added = {name.lower() for name in r.headers} - before
        r.register_hook("response", _Resent(self._credential, signing, r, added))  # type: ignore[no-untyped-call]  # untyped there
        return r

    def __repr__(self) -> str:
        return f"<requests auth of {self._credential!r}>"


class _Resent:
    """What happens when the answer is there: sign again where the server asks for it, and nothing beyond the resource."""

    def __init__(
        self,
        credential: Credential,
        signing: Signing,
        request: PreparedRequest,
        added: set[str],
    ) -> None:
        self._credential = credential
        self._signing = signing
        self._request = request
        self._added = added

    def __call__(self, response: Response, **how: Any) -> Response:
        if response.request is not self._request:
            return response  # it came by a redirect, and another place has no say in what is signed
        if response.is_redirect:
            self._leave(response)
            return response
        again = self._request.copy()
        wanted = sign_into(again.headers, self._signing, (response.status_code, response.headers))
        if isinstance(wanted, Renewal):
            self._credential.renew(wanted)
            wanted = sign_into(again.headers, self._signing, None)
        if not wanted:
            return response
        _ = response.content  # read whole, so that the connection can be used again
        response.close()
        answer: Response = response.connection.send(again, **how)
        answer.history.append(response)
        answer.request = again
        self._request = again
        return self(answer, **how)

    def _leave(self, response: Response) -> None:
        """Take off what signs, where the next request would go to another place: requests copies this one's headers."""
        target = urljoin(str(response.url), response.headers["location"])
        if not covers(self._credential.resource, target):
            for name in self._added:
                response.request.headers.pop(name, None)


def requests_auth(credential: Credential) -> AuthBase:
    """An auth object for requests: `requests.get(url, auth=requests_auth(credential))`.

    A client certificate needs an adapter of your own around `credential.ssl_context()`.
    """
    return _Auth(credential)


def _body_of(request: PreparedRequest) -> bytes | None:
    body: Any = request.body  # a file or an iterator too, whatever its stubs say
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    return body if isinstance(body, bytes) else None
