# SPDX-License-Identifier: Apache-2.0
"""The credential of a tool: it signs requests to one resource.

It adds the token with its proof of possession, the chain and the assertion. It refuses to sign a request to any other
resource, so that a tool can't send one service's token to another.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Protocol

import httpx

from agent_identity.credentials.source import Renewal, StepUp
from agent_identity.credentials.sources.transaction import HEADER as TXN_TOKEN
from agent_identity.delegation.assertion import RequestBinding
from agent_identity.delegation.carriers import ASSERTION, DELEGATION
from agent_identity.errors import ConfigurationError, DeniedError
from agent_identity.http.challenges import demanded_by, names_error, wanted_by
from agent_identity.http.network import client_context
from agent_identity.http.signed_requests import Sending, check_sendable
from agent_identity.http.transport import CERTIFICATE
from agent_identity.uris import covers, htu_of, origin_or_none
from agent_identity.values import b64url, scope_set

if TYPE_CHECKING:
    import ssl
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Generator,
        Iterator,
        Mapping,
    )

    from agent_identity.credentials.oauth.dpop import Nonces, ProofKey
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.delegation.assertion import CallFacts, Statement
    from agent_identity.http.challenges import Challenge
    from agent_identity.http.signed_requests import Signing
    from agent_identity.values import Certificate

__all__ = [
    "Credential",
    "LateCredential",
    "Ready",
    "Renewer",
    "Reporter",
    "confined_aclient",
    "confined_client",
]

_BODY_LIMIT: Final = 1024 * 1024
_AGE_DIGITS: Final = 9
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


class Ready(NamedTuple):
    """A credential, the chain to send with it (None where it isn't sent), and the signer of assertions."""

    issued: Issued
    delegation: str | None
    statement: Statement | None


class Renewer(Protocol):
    """Renews a credential, in sync and async code."""

    def renew(self, renewal: Renewal, /) -> Ready: ...

    async def arenew(self, renewal: Renewal, /) -> Ready: ...


class Reporter(Protocol):
    """Records that a credential refused a request to another resource; `place` is the origin of that URL.

    `unasserted` logs that the resource refused a request that asserts no call.
    """

    def refused(self, error: DeniedError, place: str, /) -> None: ...

    async def arefused(self, error: DeniedError, place: str, /) -> None: ...

    def unasserted(self) -> None: ...


class Credential(httpx.Auth):
    """A credential for one resource, as `auth=` of an httpx client or as plain headers for another client.

    Its `repr` shows no secret. It can't be pickled or copied, and stops signing when its session ends.
    """

    def __init__(
        self,
        ready: Ready,
        *,
        proof_key: ProofKey,
        nonces: Nonces,
        facts: CallFacts | None,
        numbers: Iterator[int] | None,
        check: Callable[[], None],
        reporter: Reporter,
        renewer: Renewer | None = None,
        context: Callable[[Certificate], ssl.SSLContext] = client_context,
        clock: Callable[[], float] = time.time,
        may_learn: bool = False,
    ) -> None:
        self._ready = ready
        self._proof_key = proof_key
        self._nonces = nonces
        self._facts = facts
        self._check = check
        self._reporter = reporter
        self._renewer = renewer
        self._context = context
        self._clock = clock
        self._numbers = numbers or itertools.count(1)
        self._may_learn = may_learn

    @property
    def resource(self) -> str:
        """The URI of the resource; it covers the URL of each request."""
        return self._ready.issued.resource

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes that were granted."""
        return self._ready.issued.scopes

    @property
    def expires_at(self) -> float:
        """When it expires, in Unix seconds."""
        return self._ready.issued.expires_at

    @property
    def token_type(self) -> str:
        """`DPoP` for a token that is bound to the agent's key, `Bearer` for an unbound one, else its source's own name."""
        return self._ready.issued.token_type

    @property
    def header_names(self) -> frozenset[str]:
        """The lower-case names of all headers that it may add; for other clients' hooks."""
        names = {self._ready.issued.header, "DPoP", ASSERTION, DELEGATION, TXN_TOKEN}
        return frozenset(name.lower() for name in names if name)

    @property
    def certificate_chain(self) -> str:
        """The client certificate's chain, PEM, leaf first.

        Raises:
            ConfigurationError: it has none.
        """
        return self._require_certificate().chain

    def ssl_context(self) -> ssl.SSLContext:
        """A TLS context for your own client, with the client certificate and the identity's trusted authorities.

        Raises:
            ConfigurationError: it has no certificate.
        """
        return self._context(self._require_certificate())

    def _require_certificate(self) -> Certificate:
        certificate = self._ready.issued.certificate
        if certificate is None:
            raise ConfigurationError(
                "no_certificate", f"the credential for {self.resource} isn't a certificate"
            )
        return certificate

    def reveal(self) -> str:
        """The token itself. A bound token is useless without a proof; use `headers` instead.

        Raises:
            ConfigurationError: it has no token: it is a certificate (use `ssl_context`), or the chain alone.
            DeniedError: the session has ended.
        """
        self._check()
        if not self._ready.issued.header:
            raise ConfigurationError(
                "no_token",
                f"the credential for {self.resource} isn't a token",
                remedy="use session.http(), ssl_context() for a certificate, or headers(…) with your own client",
            )
        return self._ready.issued.token.reveal()

    def headers(self, method: str, url: str, body: bytes | None = b"") -> dict[str, str]:
        """Sign one request. Each call returns new headers, for one use.

        `method` is in upper case, exactly as sent. `body` is the body that will be sent; None for a streamed one, whose digest
        isn't signed (the service has to allow `unbound_body`). Your client must not follow redirects with these headers.

        Raises:
            DeniedError: `foreign_url`, the URL is outside the resource; or the session has ended.
            ConfigurationError: `request_malformed`, the method isn't a single word.
        """
        self.stay(url)
        check_sendable(method, ())
        issued, delegation, statement = self._ready
        self._check()
        now = self._clock()
        more: dict[str, str] = {}
        if issued.token_type == "DPoP":  # noqa: S105 - a type
            nonce = self._nonces.get(url)
            more["DPoP"] = self._proof_key.proof(method, url, now, ath=issued.ath, nonce=nonce)
        if delegation is not None:
            more[DELEGATION] = delegation
        if statement is not None and self._facts is not None:
            query = url.partition("#")[0].partition("?")[2]
            binding = RequestBinding(
                htm=method,
                htu=htu_of(url),
                htq=_digest(query.encode("ascii")) if query else None,
                content_digest=_digest(body) if body is not None else None,
                ath=issued.sent_ath,
            )
            number = next(self._numbers)
            more[ASSERTION] = statement.for_request(self._facts, int(now), number, binding)
        # At the end, and without a variable: a traceback of an error above may include this frame's local variables.
        return {**_secret_headers(issued), **more}

    def stay(self, url: str, *, left: bool = False) -> None:
        """Check that a URL belongs to the resource; for other clients' hooks. `left` says that a request was already sent there.

        Raises:
            DeniedError: `foreign_url`, it is outside the resource; the refusal is recorded.
        """
        _stay(self.resource, url, self._reporter, left=left)

    async def astay(self, url: str, *, left: bool = False) -> None:
        """The async twin of `stay`."""
        await _astay(self.resource, url, self._reporter, left=left)

    def observe(self, status: int, headers: Mapping[str, str], *, url: str | None = None) -> bool:
        """Report a response, for clients that use plain headers. True means: sign the request again and send it once more.

        The server's DPoP nonce is kept for the next request (RFC 9449 §8.2). `url` defaults to the resource.
        """
        joined = _join_headers(headers)
        self._nonces.learn(url or self.resource, joined.get("dpop-nonce"))
        challenge = joined.get("www-authenticate", "")
        if status != 401:  # noqa: PLR2004 - a status of HTTP
            return False
        if self._shows_chain_alone and not names_error(challenge):
            self._reporter.unasserted()
        return "dpop-nonce" in joined and "use_dpop_nonce" in challenge

    @property
    def _shows_chain_alone(self) -> bool:
        """Whether its requests carry the chain but no assertion, as outside a tool."""
        _, delegation, statement = self._ready
        return delegation is not None and (statement is None or self._facts is None)

    def renewal(self, method: str, status: int, headers: Mapping[str, str]) -> Renewal | None:
        """The renewal that a refusal requires; None where renewing doesn't help, or the request may not be repeated."""
        joined = _join_headers(headers)
        header = joined.get("www-authenticate", "")
        demand = demanded_by(status, header) if self._may_learn else None
        if demand is not None and self._renewer is not None:
            return Renewal(demand=demand)
        challenge = wanted_by(status, header)
        if challenge is None or self._renewer is None:
            return None
        return _read_renewal(challenge, method, self.scopes)

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign and send (httpx's hook); repeat where the server requires its nonce, more scopes or a fresher token."""
        sending = Sending[httpx.Request, httpx.Response](
            self, request, _body_of(request), self._attach_certificate
        )
        yield from sending.flow()

    def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """The async twin of `sync_auth_flow`."""
        sending = Sending[httpx.Request, httpx.Response](
            self, request, _body_of(request), self._attach_certificate
        )
        return sending.aflow()

    def signing(self, method: str, url: str, body: bytes | None) -> Signing:
        """Yield the headers for each attempt, and a `Renewal` where one is due in between; for other clients' hooks.

        Send it the status and headers of each response. A request is sent at most three times: as it is, with the server's
        nonce, and with a renewed credential.
        """
        may_renew, may_nonce = True, True
        while True:
            answer = yield self.headers(method, url, body)
            if answer is None:
                return
            status, response_headers = answer
            wants_nonce = self.observe(status, response_headers, url=url)
            if body is None:
                return  # a streamed body can't be sent again
            if wants_nonce and may_nonce:
                may_nonce = False
                continue
            renewal = self.renewal(method, status, response_headers)
            if renewal is None or not may_renew:
                return
            may_renew = False
            yield renewal

    def renew(self, renewal: Renewal) -> None:
        """Renew this credential; for other clients' hooks.

        Raises:
            DeniedError: policy or limits refuse the renewal.
            CredentialError: the issuer refused or could not be reached.
        """
        if self._renewer is not None:
            self._ready = self._renewer.renew(renewal)

    async def arenew(self, renewal: Renewal) -> None:
        """The async twin of `renew`."""
        if self._renewer is not None:
            self._ready = await self._renewer.arenew(renewal)

    def _attach_certificate(self, request: httpx.Request) -> None:
        if self._ready.issued.certificate is not None:
            request.extensions[CERTIFICATE] = self._ready.issued.certificate

    def __repr__(self) -> str:
        return f"<Credential for {self.resource}>"

    __str__ = __repr__

    def __format__(self, spec: str, /) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: object, /) -> NoReturn:
        raise TypeError("a Credential can't be pickled or copied")

    def __copy__(self) -> NoReturn:
        raise TypeError("a Credential can't be pickled or copied")

    def __deepcopy__(self, memo: object, /) -> NoReturn:
        raise TypeError("a Credential can't be pickled or copied")


def _stay(resource: str, url: str, reporter: Reporter, *, left: bool = False) -> None:
    if not covers(resource, url):
        error = _foreign_url(resource, left=left)
        reporter.refused(error, _read_origin(url))
        raise error


async def _astay(resource: str, url: str, reporter: Reporter, *, left: bool = False) -> None:
    if not covers(resource, url):
        error = _foreign_url(resource, left=left)
        await reporter.arefused(error, _read_origin(url))
        raise error


def _foreign_url(resource: str, *, left: bool) -> DeniedError:
    if left:
        return DeniedError(
            "foreign_url",
            f"a request with the credential for {resource} was redirected outside that resource",
            remedy="don't follow redirects with this transport, since it doesn't report what it sends",
        )
    return DeniedError(
        "foreign_url",
        f"the credential for {resource} doesn't sign requests outside that resource",
        remedy="give the other service a resource and a tool of its own",
    )


def _read_origin(url: str) -> str:
    """The origin of a URL, for a record; path and query are left out, since they may contain secrets."""
    return origin_or_none(url) or "unreadable"


def _secret_headers(issued: Issued) -> dict[str, str]:
    """The secret headers: the credential itself, and its transaction token."""
    headers: dict[str, str] = {}
    if issued.header and issued.scheme:
        headers[issued.header] = f"{issued.scheme} {issued.token.reveal()}"
    elif issued.header:
        headers[issued.header] = issued.token.reveal()
    if issued.txn_token is not None:
        headers[TXN_TOKEN] = issued.txn_token.reveal()
    return headers


def _read_renewal(challenge: Challenge, method: str, scopes: frozenset[str]) -> Renewal | None:
    error = challenge.parameters["error"]
    if error == "insufficient_scope":
        try:
            more = scope_set(challenge.parameters.get("scope", "").split())
        except ConfigurationError:
            return None  # malformed scopes
        return Renewal(scopes=scopes | more) if more - scopes else None
    if error == "insufficient_user_authentication":
        age = challenge.parameters.get("max_age", "")
        return Renewal(
            step_up=StepUp(
                tuple(challenge.parameters.get("acr_values", "").split()),
                int(age) if age.isascii() and age.isdigit() and len(age) <= _AGE_DIGITS else None,
            )
        )
    # The request may have had an effect before the token was refused, so only an idempotent one is repeated.
    return Renewal() if error == "invalid_token" and method in _IDEMPOTENT else None


def _join_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers by lower-case name; the values of a repeated one are joined (RFC 9110 §5.3)."""
    joined: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        joined[key] = f"{joined[key]}, {value}" if key in joined else value
    return joined


def _body_of(request: httpx.Request) -> bytes | None:
    try:
        return request.content
    except httpx.RequestNotRead:
        return None


def _digest(data: bytes) -> str:
    return b64url(hashlib.sha256(data).digest())


def confined_client(
    credential: httpx.Auth, resource: str, transport: httpx.BaseTransport, reporter: Reporter
) -> httpx.Client:
    """A client that can't send requests outside its resource, even if it is told to follow redirects."""
    return httpx.Client(
        auth=credential,
        base_url=resource,
        transport=_Confined(resource, transport, reporter),
        trust_env=False,
        follow_redirects=False,
    )


def confined_aclient(
    credential: httpx.Auth, resource: str, transport: httpx.AsyncBaseTransport, reporter: Reporter
) -> httpx.AsyncClient:
    """The async twin of `confined_client`."""
    return httpx.AsyncClient(
        auth=credential,
        base_url=resource,
        transport=_AConfined(resource, transport, reporter),
        trust_env=False,
        follow_redirects=False,
    )


class _Confined(httpx.BaseTransport):
    def __init__(self, resource: str, inner: httpx.BaseTransport, reporter: Reporter) -> None:
        self._resource = resource
        self._inner = inner
        self._reporter = reporter

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        _stay(self._resource, str(request.url), self._reporter)
        return self._inner.handle_request(request)


class _AConfined(httpx.AsyncBaseTransport):
    def __init__(self, resource: str, inner: httpx.AsyncBaseTransport, reporter: Reporter) -> None:
        self._resource = resource
        self._inner = inner
        self._reporter = reporter

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await _astay(self._resource, str(request.url), self._reporter)
        return await self._inner.handle_async_request(request)


class LateCredential(httpx.Auth):
    """Finds the credential when a request is made: the running tool's if there is one, else the session's.

    Bodies are read first, up to 1 MiB, so that their digest is always signed.
    """

    def __init__(
        self, find: Callable[[], Credential], afind: Callable[[], Awaitable[Credential]]
    ) -> None:
        self._find = find
        self._afind = afind

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        _check_body(request.read())
        yield from self._find().sync_auth_flow(request)

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        _check_body(await request.aread())
        flow = (await self._afind()).async_auth_flow(request)
        try:
            signed = await anext(flow, None)
            while signed is not None:
                response = yield signed
                signed = await _anext_request(flow, response)
        finally:
            await flow.aclose()


async def _anext_request(
    flow: AsyncGenerator[httpx.Request, httpx.Response], response: httpx.Response
) -> httpx.Request | None:
    try:
        return await flow.asend(response)
    except StopAsyncIteration:
        return None


def _check_body(body: bytes) -> None:
    if len(body) > _BODY_LIMIT:
        raise ConfigurationError(
            "body_too_large",
            "a request body larger than 1 MiB can't be bound to its signature",
            remedy="send it in parts, or use your own httpx client with auth=current_credential()",
        )
