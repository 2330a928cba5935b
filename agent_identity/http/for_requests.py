# SPDX-License-Identifier: Apache-2.0
"""The credential as `auth=` of requests. A redirect that would leave the resource is refused, since requests would follow it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from requests.auth import AuthBase

from agent_identity.credentials.source import Renewal
from agent_identity.errors import DeniedError
from agent_identity.http.credential import advanced
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
        step = advanced(signing, None)
        assert isinstance(step, dict)  # noqa: S101 - the first step is always to send
        r.headers.update(step)
        resent = _Resent(self._credential, signing, r)
        r.register_hook("response", resent)  # type: ignore[no-untyped-call]  # untyped there
        return r

    def __repr__(self) -> str:
        return f"<requests auth of {self._credential!r}>"


class _Resent:
    """What happens when the answer is there: go no further than the resource, and sign again where the server asks for it."""

    def __init__(self, credential: Credential, signing: Signing, request: PreparedRequest) -> None:
        self._credential = credential
        self._signing = signing
        self._request = request

    def __call__(self, response: Response, **how: Any) -> Response:
        if response.is_redirect:
            self._check_target(response)
            return response
        step = advanced(self._signing, (response.status_code, response.headers))
        if isinstance(step, Renewal):
            self._credential.renew(step)
            step = advanced(self._signing, None)
        if not isinstance(step, dict):
            return response
        _ = response.content  # read whole, so that the connection can be used again
        response.close()
        again = self._request.copy()
        again.deregister_hook("response", self)  # type: ignore[no-untyped-call]  # untyped there
        again.headers.update(step)
        answer: Response = response.connection.send(again, **how)
        answer.history.append(response)
        answer.request = again
        return self(answer, **how)

    def _check_target(self, response: Response) -> None:
        target = urljoin(str(response.url), response.headers["location"])
        if not covers(self._credential.resource, target):
            response.close()
            raise DeniedError(
                "foreign_url",
                f"{self._credential.resource} redirects to another place, which gets no credential",
            )


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
