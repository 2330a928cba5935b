# SPDX-License-Identifier: Apache-2.0
"""What a tool is handed: a credential that signs requests to one resource, and nothing else.

It adds the token with its proof of possession, and what the agent says of the call. Asked to sign a request to any other
place it refuses, so that no tool can send one service's token to another.
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
from agent_identity.http.challenges import names_error, wanted_by
from agent_identity.http.seams import client_context
from agent_identity.http.sending import Sending, check_sendable
from agent_identity.http.transport import CERTIFICATE
from agent_identity.uris import covers, htu_of, origin
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
    from agent_identity.http.sending import Signing
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
    """A credential and what goes along with it: the chain, None where the resource is shown none, and who signs below it."""

    issued: Issued
    delegation: str | None
    statement: Statement | None


class Renewer(Protocol):
    """Gets a credential anew, in both colours."""

    def renew(self, renewal: Renewal, /) -> Ready: ...

    async def arenew(self, renewal: Renewal, /) -> Ready: ...


class Reporter(Protocol):
    """Puts on record that a credential wasn't used at another place, in both colours; `place` is that place's origin.

    `unasserted` logs that its resource refused a request that asserts no call.
    """

    def refused(self, error: DeniedError, place: str, /) -> None: ...

    async def arefused(self, error: DeniedError, place: str, /) -> None: ...

    def unasserted(self) -> None: ...


class Credential(httpx.Auth):
    """A credential for one resource, as `auth=` of an httpx client or as plain headers for any other.

    It has no readable form, can't be pickled, copied or serialised, and stops signing when its session ends.
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

    @property
    def resource(self) -> str:
        """The resource URI that requests have to stay under."""
        return self._ready.issued.resource

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes that were granted."""
        return self._ready.issued.scopes

    @property
    def expires_at(self) -> float:
        """When it ends, in Unix seconds."""
        return self._ready.issued.expires_at

    @property
    def token_type(self) -> str:
        """`DPoP` for a token that is bound to the agent's key, `Bearer` for one that isn't, else what its source calls it."""
        return self._ready.issued.token_type

    @property
    def header_names(self) -> frozenset[str]:
        """The names of all headers that may sign a request, in lower case; for other clients' hooks."""
        names = {self._ready.issued.header, "DPoP", ASSERTION, DELEGATION, TXN_TOKEN}
        return frozenset(name.lower() for name in names if name)

    @property
    def certificate_chain(self) -> str:
        """The client certificate's chain, PEM, leaf first.

        Raises:
            ConfigurationError: it has none.
        """
        return self._certificate().chain

    def ssl_context(self) -> ssl.SSLContext:
        """A context for a client of your own: it shows the certificate, and trusts whom the identity trusts.

        Raises:
            ConfigurationError: it has no certificate.
        """
        return self._context(self._certificate())

    def _certificate(self) -> Certificate:
        certificate = self._ready.issued.certificate
        if certificate is None:
            raise ConfigurationError(
                "no_certificate", f"the credential for {self.resource} isn't a certificate"
            )
        return certificate

    def reveal(self) -> str:
        """The token itself. A bound one is worth nothing without a proof; use `headers` instead.

        Raises:
            ConfigurationError: a certificate, which is used by `ssl_context`.
            DeniedError: the session has ended.
        """
        self._check()
        if not self._ready.issued.header:
            raise ConfigurationError(
                "no_token",
                f"the credential for {self.resource} is no token",
                remedy="use session.http(), for a certificate ssl_context(), or headers(…) with a client of your own",
            )
        return self._ready.issued.token.reveal()

    def headers(self, method: str, url: str, body: bytes | None = b"") -> dict[str, str]:
        """The headers that sign one request; each call gives fresh ones.

        `method` is as it will be sent, in upper case. `body` is what will be sent, None for a body that is streamed: then
        its digest is not part of what is signed, and a service has to allow that by name.
        Where the client sends them afterwards is beyond this method: let it follow no redirects.

        Raises:
            DeniedError: `foreign_url`, the request would leave the resource; or the session has ended.
            ConfigurationError: `request_malformed`, the method is no single word.
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
        # Last, and in no variable: whatever fails above is reported with the locals of this frame.
        return {**_secrets(issued), **more}

    def stay(self, url: str, *, left: bool = False) -> None:
        """Pass for a URL of the resource; for other clients' hooks. `left` says that a request has been there already.

        Raises:
            DeniedError: `foreign_url`, it is another place's; that is on record.
        """
        if not covers(self.resource, url):
            error = _foreign(self.resource, left=left)
            self._reporter.refused(error, _place(url))
            raise error

    async def astay(self, url: str, *, left: bool = False) -> None:
        """The async twin of `stay`."""
        if not covers(self.resource, url):
            error = _foreign(self.resource, left=left)
            await self._reporter.arefused(error, _place(url))
            raise error

    def observe(self, status: int, headers: Mapping[str, str], *, url: str | None = None) -> bool:
        """Tell it what came back, for clients that take plain headers; True means: sign again and send once more.

        A server's DPoP nonce is kept for the next request (RFC 9449 §8.2). `url` defaults to the resource.
        """
        found = _joined(headers)
        self._nonces.learn(url or self.resource, found.get("dpop-nonce"))
        challenge = found.get("www-authenticate", "")
        if status != 401:  # noqa: PLR2004 - a status of HTTP
            return False
        if self._shows_chain_alone and not names_error(challenge):
            self._reporter.unasserted()
        return "dpop-nonce" in found and "use_dpop_nonce" in challenge

    @property
    def _shows_chain_alone(self) -> bool:
        """Whether its requests carry the delegation and assert no call, as those of a session outside a tool do."""
        _, delegation, statement = self._ready
        return delegation is not None and (statement is None or self._facts is None)

    def renewal(self, method: str, status: int, headers: Mapping[str, str]) -> Renewal | None:
        """What a refusal asks for, None where a new credential wouldn't help, or the request may not be sent twice."""
        found = _joined(headers)
        challenge = wanted_by(status, found.get("www-authenticate", ""))
        if challenge is None or self._renewer is None:
            return None
        return _renewal(challenge, method, self.scopes)

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Httpx's own hook: sign, send, and once more where the server wants its nonce, more scopes or a fresher token."""
        sending = Sending[httpx.Request, httpx.Response](
            self, request, _body_of(request), self._show
        )
        yield from sending.flow()

    def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """The async twin of `sync_auth_flow`."""
        sending = Sending[httpx.Request, httpx.Response](
            self, request, _body_of(request), self._show
        )
        return sending.aflow()

    def signing(self, method: str, url: str, body: bytes | None) -> Signing:
        """The headers for each time that a request is sent, and what has to be renewed in between; for other clients' hooks.

        It is told the status and headers that came back. A request is sent at most three times: as it is, with the server's
        nonce, and with a new credential.
        """
        may_renew, may_nonce = True, True
        while True:
            answer = yield self.headers(method, url, body)
            if answer is None:
                return
            status, found = answer
            wants_nonce = self.observe(status, found, url=url)
            if body is None:
                return  # a streamed body is gone, and nobody can send it again
            if wants_nonce and may_nonce:
                may_nonce = False
                continue
            renewal = self.renewal(method, status, found)
            if renewal is None or not may_renew:
                return
            may_renew = False
            yield renewal

    def renew(self, renewal: Renewal) -> None:
        """Get this credential anew; for other clients' hooks.

        Raises:
            DeniedError: policy or limits refuse that much.
            CredentialError: the issuer refused or could not be reached.
        """
        if self._renewer is not None:
            self._ready = self._renewer.renew(renewal)

    async def arenew(self, renewal: Renewal) -> None:
        """The async twin of `renew`."""
        if self._renewer is not None:
            self._ready = await self._renewer.arenew(renewal)

    def _show(self, request: httpx.Request) -> None:
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


def _foreign(resource: str, *, left: bool) -> DeniedError:
    if left:
        return DeniedError(
            "foreign_url",
            f"a request with the credential for {resource} was sent on to another place",
            remedy="follow no redirects with this transport, which doesn't report what it sends",
        )
    return DeniedError(
        "foreign_url",
        f"a credential for {resource} doesn't sign requests to another place",
        remedy="give the other service a resource, and a tool, of its own",
    )


def _place(url: str) -> str:
    """What a record says of another place: its origin, since path and query may hold anything."""
    try:
        return origin(url)
    except DeniedError:
        return "unreadable"


def _secrets(issued: Issued) -> dict[str, str]:
    """The headers that are secret: the credential itself, and a transaction token beside it."""
    found: dict[str, str] = {}
    if issued.header and issued.scheme:
        found[issued.header] = f"{issued.scheme} {issued.token.reveal()}"
    elif issued.header:
        found[issued.header] = issued.token.reveal()
    if issued.txn_token is not None:
        found[TXN_TOKEN] = issued.txn_token.reveal()
    return found


def _renewal(challenge: Challenge, method: str, scopes: frozenset[str]) -> Renewal | None:
    error = challenge.parameters["error"]
    if error == "insufficient_scope":
        try:
            more = scope_set(challenge.parameters.get("scope", "").split())
        except ConfigurationError:
            return None  # these are no scopes
        return Renewal(scopes=scopes | more) if more - scopes else None
    if error == "insufficient_user_authentication":
        age = challenge.parameters.get("max_age", "")
        return Renewal(
            step_up=StepUp(
                tuple(challenge.parameters.get("acr_values", "").split()),
                int(age) if age.isascii() and age.isdigit() and len(age) <= _AGE_DIGITS else None,
            )
        )
    # A token that expired on the way says nothing of whether the request had an effect.
    return Renewal() if error == "invalid_token" and method in _IDEMPOTENT else None


def _joined(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers by their names in lower case, a repeated one joined (RFC 9110 §5.3)."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        found[key] = f"{found[key]}, {value}" if key in found else value
    return found


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
    """A client that can't leave its resource, whatever it is told about redirects."""
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
        url = str(request.url)
        if not covers(self._resource, url):
            error = _foreign(self._resource, left=False)
            self._reporter.refused(error, _place(url))
            raise error
        return self._inner.handle_request(request)


class _AConfined(httpx.AsyncBaseTransport):
    def __init__(self, resource: str, inner: httpx.AsyncBaseTransport, reporter: Reporter) -> None:
        self._resource = resource
        self._inner = inner
        self._reporter = reporter

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = str(request.url)
        if not covers(self._resource, url):
            error = _foreign(self._resource, left=False)
            await self._reporter.arefused(error, _place(url))
            raise error
        return await self._inner.handle_async_request(request)


class LateCredential(httpx.Auth):
    """Asks for the credential when a request is made: the running tool's where there is one, else the session's.

    Bodies are read first, up to 1 MiB, so that their digest is always part of what is signed.
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
            remedy="send it in parts, or use an httpx client of your own with auth=current_credential()",
        )
