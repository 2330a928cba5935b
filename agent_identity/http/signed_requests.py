# SPDX-License-Identifier: Apache-2.0
"""Signs one request of an httpx or httpx2 client, which may follow redirects with it.

Both clients call a request's `trace` extension before they send. There the request is checked again: for another resource it
is refused before a header leaves, and for another URL of the same resource it is signed again. A transport that reports no
events shows only by its response where the request went; it is then too late to prevent it, but the refusal is recorded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias, TypeVar
from urllib.parse import urljoin

from agent_identity.credentials.source import Renewal
from agent_identity.errors import ConfigurationError, DeniedError
from agent_identity.uris import origin

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Callable,
        Generator,
        Iterable,
        Mapping,
        MutableMapping,
        Sequence,
    )

Signing: TypeAlias = (
    "Generator[dict[str, str] | Renewal, tuple[int, Mapping[str, str]] | None, None]"
)

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # a token (RFC 9110 §5.6.2)
_VALUE: Final = re.compile(
    r"(?:[!-~\x80-\U0010ffff](?:[\t -~\x80-\U0010ffff]*[!-~\x80-\U0010ffff])?)?"
)
_FRAMING: Final = {
    "content-length": re.compile("[0-9]{1,20}"),
    "transfer-encoding": re.compile("chunked", re.IGNORECASE),
}
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CONNECTS: Final = "connection.connect_"
_SENDS: Final = ".send_request_headers.started"
_ANSWERED: Final = ".receive_response_headers.complete"


class _Url(Protocol):
    @property
    def raw_scheme(self) -> bytes: ...
    @property
    def raw_host(self) -> bytes: ...
    @property
    def port(self) -> int | None: ...
    @property
    def raw_path(self) -> bytes: ...


class _Request(Protocol):
    extensions: dict[str, Any]

    @property
    def method(self) -> str: ...
    @property
    def url(self) -> _Url: ...
    @property
    def headers(self) -> MutableMapping[str, str]: ...


class _Answer(Protocol):
    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def history(self) -> Sequence[_Answer]: ...
    @property
    def request(self) -> _Request: ...


R = TypeVar("R", bound=_Request)
A = TypeVar("A", bound=_Answer)


class SigningCredential(Protocol):
    """Signs requests to one resource; implemented by `Credential`."""

    @property
    def header_names(self) -> frozenset[str]: ...

    def headers(self, method: str, url: str, body: bytes | None = None) -> dict[str, str]: ...

    def stay(self, url: str, *, left: bool = False) -> None: ...

    async def astay(self, url: str, *, left: bool = False) -> None: ...

    def signing(self, method: str, url: str, body: bytes | None) -> Signing: ...

    def renew(self, renewal: Renewal) -> None: ...

    async def arenew(self, renewal: Renewal) -> None: ...


class Sending(Generic[R, A]):
    """Signs one request, and keeps it within its resource until the response arrives.

    `body` is None for a streamed body. `prepare` is called each time before the request is sent.
    """

    def __init__(
        self,
        credential: SigningCredential,
        request: R,
        body: bytes | None,
        prepare: Callable[[R], None] = lambda _: None,
    ) -> None:
        self._credential = credential
        self._request = request
        self._body = body
        self._prepare = prepare
        self._url = str(request.url)
        self._target = _target(request.url)
        self._trace: Any = request.extensions.get("trace")
        self._is_fresh = False
        self._at = self._url
        self._location: str | None = None

    def flow(self) -> Generator[R, A, None]:
        """Sign and send; repeat where the server requires its nonce, more scopes or a fresher token."""
        request, credential = self._request, self._credential
        credential.stay(self._url)
        self._check()
        signing = credential.signing(request.method, self._url, self._body)
        again: Renewal | bool = sign_into(request.headers, signing, None)
        try:
            while again:
                self._arm(self._watch)
                response = yield request
                for url in _places(response):
                    credential.stay(url, left=True)
                if _request_of(response) not in (request, None):
                    return  # after a redirect, this isn't the response to the request signed here
                again = sign_into(
                    request.headers, signing, (response.status_code, response.headers)
                )
                if isinstance(again, Renewal):
                    credential.renew(again)
                    sign_into(request.headers, signing, None)
        finally:
            self._disarm()

    async def aflow(self) -> AsyncGenerator[R, A]:
        """The async twin of `flow`."""
        request, credential = self._request, self._credential
        await credential.astay(self._url)
        self._check()
        signing = credential.signing(request.method, self._url, self._body)
        again: Renewal | bool = sign_into(request.headers, signing, None)
        try:
            while again:
                self._arm(self._awatch)
                response = yield request
                for url in _places(response):
                    await credential.astay(url, left=True)
                if _request_of(response) not in (request, None):
                    return
                again = sign_into(
                    request.headers, signing, (response.status_code, response.headers)
                )
                if isinstance(again, Renewal):
                    await credential.arenew(again)
                    sign_into(request.headers, signing, None)
        finally:
            self._disarm()

    def _check(self) -> None:
        if "target" in self._request.extensions:
            raise _malformed_request("its target extension differs from its URL")
        check_sendable(self._request.method, self._request.headers.items())

    def _arm(self, watch: Callable[[str, dict[str, Any]], object]) -> None:
        self._prepare(self._request)
        self._is_fresh = True
        self._location = None
        self._request.extensions["trace"] = watch

    def _disarm(self) -> None:
        if self._trace is None:
            self._request.extensions.pop("trace", None)
        else:
            self._request.extensions["trace"] = self._trace

    def _watch(self, event: str, info: dict[str, Any]) -> object:
        """Handle one trace event of a sync client, after the user's own trace function."""
        traced: object = None if self._trace is None else self._trace(event, info)
        url = self._place_of(event, info)
        if url is not None:
            self._credential.stay(url)
            self._sign_anew(event, info, url)
        return traced

    async def _awatch(self, event: str, info: dict[str, Any]) -> None:
        """The async twin of `_watch`."""
        if self._trace is not None:
            await self._trace(event, info)
        url = self._place_of(event, info)
        if url is not None:
            await self._credential.astay(url)
            self._sign_anew(event, info, url)

    def _place_of(self, event: str, info: dict[str, Any]) -> str | None:
        """The URL that the client is about to connect or send to; None where the event doesn't tell."""
        if event.endswith(_ANSWERED):
            self._location = _location(self._at, info["return_value"])
        elif event.startswith(_CONNECTS):
            return self._location  # set if it follows a redirect
        elif event.endswith(_SENDS) and not self._is_for_a_proxy(info["request"]):
            self._at = _sent_to(info["request"])
            return self._at
        return None

    def _is_for_a_proxy(self, sent: Any) -> bool:
        """Whether this is a proxy's CONNECT without any of our headers."""
        names = self._credential.header_names
        return sent.method == b"CONNECT" and not any(
            name.decode("latin-1").lower() in names for name, _ in sent.headers
        )

    def _sign_anew(self, event: str, info: dict[str, Any], url: str) -> None:
        """Sign a request again for its real URL, unless it is the request that was just signed, sent for the first time."""
        if not event.endswith(_SENDS):
            return
        sent = info["request"]
        method = sent.method.decode("ascii")
        is_fresh, self._is_fresh = self._is_fresh, False
        if is_fresh and (method, url) == (self._request.method, self._target):
            return
        # A redirect either keeps method and body, or becomes a GET without a body.
        body = self._body if method == self._request.method else b""
        names = self._credential.header_names
        others = [
            (name, value)
            for name, value in sent.headers
            if name.decode("latin-1").lower() not in names
        ]
        signed = self._credential.headers(method, url, body)
        # before Transfer-Encoding, see `sign_into`
        framing = [pair for pair in others if pair[0].lower() == b"transfer-encoding"]
        sent.headers = [
            *(pair for pair in others if pair not in framing),
            *((name.encode(), value.encode()) for name, value in signed.items()),
            *framing,
        ]


def check_sendable(method: str, headers: Iterable[tuple[str, str | bytes]]) -> None:
    """Refuse a malformed request before it is signed: the HTTP client's own error about it would contain the token.

    Raises:
        ConfigurationError: `request_malformed`.
    """
    if _NAME.fullmatch(method) is None:
        raise _malformed_request("its method isn't a single word")
    for name, value in headers:
        if _NAME.fullmatch(name) is None:
            raise _malformed_request("it has an invalid header name")
        text = value if isinstance(value, str) else value.decode("latin-1")
        if _FRAMING.get(name.lower(), _VALUE).fullmatch(text) is None:
            raise _malformed_request(f"its header {name} has an invalid value")


def _malformed_request(what: str) -> ConfigurationError:
    return ConfigurationError(
        "request_malformed",
        f"a request can't be signed: {what}",
        remedy="correct the request; a header value is one line without space around it",
    )


def sign_into(
    headers: MutableMapping[str, str],
    signing: Signing,
    answer: tuple[int, Mapping[str, str]] | None,
) -> Renewal | bool:
    """Take signing one step, and put the signed headers into a request, so that no waiting frame holds them.

    Returns True: send the request; a `Renewal`: renew the credential and call this again; False: done. The headers are put
    before `Transfer-Encoding`, since a server that lists trailers among headers may refuse headers behind it.
    """
    try:
        step = signing.send(answer)
    except StopIteration:
        return False
    if isinstance(step, Renewal):
        return step
    framing = headers.pop("transfer-encoding", None)
    headers.update(step)
    if framing is not None:
        headers["transfer-encoding"] = framing
    return True


def _request_of(response: _Answer) -> _Request | None:
    """The request of a response; None where a test made the response without one."""
    try:
        return response.request
    except RuntimeError:
        return None


def _places(response: _Answer) -> list[str]:
    """The URLs that a request was sent to, redirects included."""
    requests = [_request_of(each) for each in (*response.history, response)]
    return [_target(request.url) for request in requests if request is not None]


def _location(at: str, answer: Any) -> str | None:
    """The other origin that a response from `at` redirects to, as httpcore reports it; None where there is none."""
    status = next(member for member in answer if isinstance(member, int))
    if status not in _REDIRECTS:
        return None
    locations: list[str] = [
        value.decode("latin-1") for name, value in answer[-1] if name.lower() == b"location"
    ]
    if not locations:
        return None
    try:
        place = origin(urljoin(at, locations[0]).partition("#")[0])
    except (ValueError, DeniedError):
        return locations[0]  # unreadable, so no resource covers it
    return None if place == origin(at) else place


def _target(url: _Url) -> str:
    """A URL in the form of `_sent_to`."""
    return _url_text(url.raw_scheme, url.raw_host, url.port, url.raw_path)


def _sent_to(sent: Any) -> str:
    """The URL of a request that httpcore is about to send. For a forward proxy its target is the whole URL."""
    url = sent.url
    target: bytes = url.target
    if not target.startswith(b"/"):
        return target.decode("latin-1")
    return _url_text(url.scheme, url.host, url.port, target)


def _url_text(scheme: bytes, host: bytes, port: int | None, target: bytes) -> str:
    name = f"[{host.decode('latin-1')}]" if b":" in host else host.decode("latin-1")
    where = name if port is None else f"{name}:{port}"
    return f"{scheme.decode('latin-1')}://{where}{target.decode('latin-1')}"
