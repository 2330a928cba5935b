# SPDX-License-Identifier: Apache-2.0
"""The credential as `auth=` of the requests library.

requests follows a redirect with a copy of the request. The copy loses our headers, and is signed again when it is sent, or
refused if its URL is outside the resource.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from requests import PreparedRequest
from requests.auth import AuthBase

from agent_identity.credentials.source import Renewal
from agent_identity.http.signed_requests import check_sendable, sign_into

if TYPE_CHECKING:
    from requests import Response

    from agent_identity.http.credential import Credential
    from agent_identity.http.signed_requests import Signing


class _Auth(AuthBase):
    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        request = _make_signed(self._credential, r)
        request.sign()
        request.register_hook("response", _send_again)  # type: ignore[no-untyped-call]  # untyped there
        return request

    def __repr__(self) -> str:
        return f"<requests auth of {self._credential!r}>"


class _Signed(PreparedRequest):
    """A request that signs itself before it is sent."""

    credential: Credential
    signing: Signing | None

    @property
    def path_url(self) -> str:
        """The path and query. requests reads it just before it sends, so it is signed here."""
        if self.signing is None:
            self.sign()
        return super().path_url

    def copy(self) -> _Signed:
        """The same request unsigned."""
        copied = super().copy()
        for name in self.credential.header_names:
            copied.headers.pop(name, None)
        return _make_signed(self.credential, copied)

    def sign(self) -> None:
        """Set the headers for this method, URL and body.

        Raises:
            DeniedError: `foreign_url`, its URL is outside the resource.
        """
        self.credential.stay(str(self.url))
        check_sendable(str(self.method), self.headers.items())
        self.signing = self.credential.signing(str(self.method), str(self.url), _body_of(self))
        sign_into(self.headers, self.signing, None)

    def again(self, response: Response) -> _Signed | None:
        """Return the same request signed again, if the response requires it."""
        signing = self.signing
        if signing is None:
            return None
        request = self.copy()
        request.signing = signing
        answer = (response.status_code, response.headers)
        wanted = sign_into(request.headers, signing, answer)
        if isinstance(wanted, Renewal):
            self.credential.renew(wanted)
            wanted = sign_into(request.headers, signing, None)
        return request if wanted else None


def _make_signed(credential: Credential, request: PreparedRequest) -> _Signed:
    """Turn a request into one that signs itself, in place: requests ignores another object returned by an auth."""
    request.__class__ = _Signed
    assert isinstance(request, _Signed)  # noqa: S101 - it was made one above
    request.credential = credential
    request.signing = None
    return request


def _send_again(response: Response, **how: Any) -> Response:
    """Send a request again if the server requires it. Responses from outside the resource are refused."""
    request = response.request
    if not isinstance(request, _Signed):
        return response
    try:
        request.credential.stay(str(request.url), left=True)
        again = None if response.is_redirect else request.again(response)
    except BaseException:
        response.close()
        raise
    if again is None:
        return response
    _ = response.content  # read whole, so that the connection can be used again
    response.close()
    answer: Response = response.connection.send(again, **how)
    answer.history.append(response)
    answer.request = again
    return _send_again(answer, **how)


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
