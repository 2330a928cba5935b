# SPDX-License-Identifier: Apache-2.0
"""What a tool is handed: a credential that signs requests to one resource, and nothing else.

It adds the token with its proof of possession, and what the agent says of the call. Asked to sign a request to any other
place it refuses, so that no tool can send one service's token to another.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from typing import TYPE_CHECKING, Final, NoReturn

import httpx

from agent_identity.delegation.assertion import RequestBinding
from agent_identity.delegation.carriers import ASSERTION, DELEGATION
from agent_identity.errors import ConfigurationError, DeniedError
from agent_identity.uris import covers, htu_of
from agent_identity.values import b64url

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Mapping

    from agent_identity.credentials.oauth import Issued
    from agent_identity.credentials.proofs import Nonces, ProofKey
    from agent_identity.delegation.assertion import CallFacts, Statement

__all__ = ["Credential", "LateCredential", "confined_aclient", "confined_client"]

_BODY_LIMIT: Final = 1024 * 1024


class Credential(httpx.Auth):
    """A credential for one resource, as `auth=` of an httpx client or as plain headers for any other.

    It has no readable form, can't be pickled, copied or serialised, and stops signing when its session ends.
    """

    def __init__(
        self,
        issued: Issued,
        *,
        proof_key: ProofKey,
        nonces: Nonces,
        delegation: str,
        statement: Statement | None,
        facts: CallFacts | None,
        numbers: Iterator[int] | None,
        check: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issued = issued
        self._proof_key = proof_key
        self._nonces = nonces
        self._delegation = delegation
        self._statement = statement
        self._facts = facts
        self._check = check
        self._clock = clock
        self._numbers = numbers or itertools.count(1)

    @property
    def resource(self) -> str:
        """The resource URI that requests have to stay under."""
        return self._issued.resource

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes that were granted."""
        return self._issued.scopes

    @property
    def expires_at(self) -> float:
        """When the token ends, in Unix seconds."""
        return self._issued.expires_at

    @property
    def token_type(self) -> str:
        """`DPoP` for a token that is bound to the agent's key, `Bearer` for one that isn't."""
        return self._issued.token_type

    def reveal(self) -> str:
        """The token itself. A bound one is worth nothing without a proof; use `headers` instead."""
        return self._issued.token.reveal()

    def headers(self, method: str, url: str, body: bytes | None = None) -> dict[str, str]:
        """The headers that sign one request; each call gives fresh ones.

        `body` is what will be sent, None for a body that is streamed: then its digest is not part of what is signed.

        Raises:
            DeniedError: `foreign_url`, the request would leave the resource; or the session has ended.
        """
        if not covers(self._issued.resource, url):
            raise DeniedError(
                "foreign_url",
                f"a credential for {self._issued.resource} doesn't sign requests to another place",
                remedy="give the other service a resource, and a tool, of its own",
            )
        self._check()
        now = self._clock()
        nonce = self._nonces.get(url)
        proof = self._proof_key.proof(method, url, now, ath=self._issued.ath, nonce=nonce)
        asserted: dict[str, str] = {}
        if self._statement is not None and self._facts is not None:
            query = url.partition("#")[0].partition("?")[2]
            binding = RequestBinding(
                htm=method,
                htu=htu_of(url),
                htq=_digest(query.encode("ascii")) if query else None,
                content_digest=_digest(body) if body is not None else None,
                ath=self._issued.ath,
            )
            number = next(self._numbers)
            asserted[ASSERTION] = self._statement.for_request(
                self._facts, int(now), number, binding
            )
        # Last, and in no variable: whatever fails above is reported with the locals of this frame.
        return {
            "Authorization": f"{self._issued.token_type} {self._issued.token.reveal()}",
            "DPoP": proof,
            DELEGATION: self._delegation,
            **asserted,
        }

    def observe(self, status: int, headers: Mapping[str, str], *, url: str | None = None) -> bool:
        """Tell it what came back, for clients that take plain headers; True means: sign again and send once more.

        A server's DPoP nonce is kept for the next request (RFC 9449 §8.2). `url` defaults to the resource.
        """
        found = {name.lower(): value for name, value in headers.items()}
        self._nonces.learn(url or self._issued.resource, found.get("dpop-nonce"))
        challenge = found.get("www-authenticate", "")
        return (
            status == 401  # noqa: PLR2004 - a status of HTTP
            and "dpop-nonce" in found
            and "use_dpop_nonce" in challenge
        )

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Httpx's own hook: sign, send, and once more where the server wants its nonce in the proof."""
        url = str(request.url)
        body = _body_of(request)
        request.headers.update(self.headers(request.method, url, body))
        response = yield request
        if self.observe(response.status_code, response.headers, url=url):
            request.headers.update(self.headers(request.method, url, body))
            response = yield request
            self.observe(response.status_code, response.headers, url=url)

    def __repr__(self) -> str:
        return f"<Credential for {self._issued.resource}>"

    __str__ = __repr__

    def __format__(self, spec: str, /) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: object, /) -> NoReturn:
        raise TypeError("a Credential can't be pickled or copied")

    def __copy__(self) -> NoReturn:
        raise TypeError("a Credential can't be pickled or copied")

    def __deepcopy__(self, memo: object, /) -> NoReturn:
        raise TypeError("a Credential can't be pickled or copied")


def _body_of(request: httpx.Request) -> bytes | None:
    try:
        return request.content
    except httpx.RequestNotRead:
        return None


def _digest(data: bytes) -> str:
    return b64url(hashlib.sha256(data).digest())


def confined_client(
    credential: httpx.Auth, resource: str, transport: httpx.BaseTransport
) -> httpx.Client:
    """A client that can't leave its resource, whatever it is told about redirects."""
    return httpx.Client(
        auth=credential,
        base_url=resource,
        transport=_Confined(resource, transport),
        trust_env=False,
        follow_redirects=False,
    )


def confined_aclient(
    credential: httpx.Auth, resource: str, transport: httpx.AsyncBaseTransport
) -> httpx.AsyncClient:
    """The async twin of `confined_client`."""
    return httpx.AsyncClient(
        auth=credential,
        base_url=resource,
        transport=_AConfined(resource, transport),
        trust_env=False,
        follow_redirects=False,
    )


class _Confined(httpx.BaseTransport):
    def __init__(self, resource: str, inner: httpx.BaseTransport) -> None:
        self._resource = resource
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        _stay(self._resource, request)
        return self._inner.handle_request(request)


class _AConfined(httpx.AsyncBaseTransport):
    def __init__(self, resource: str, inner: httpx.AsyncBaseTransport) -> None:
        self._resource = resource
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        _stay(self._resource, request)
        return await self._inner.handle_async_request(request)


def _stay(resource: str, request: httpx.Request) -> None:
    if not covers(resource, str(request.url)):
        raise DeniedError("foreign_url", f"this client doesn't leave {resource}")


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
        yield from self._find().auth_flow(request)

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        _check_body(await request.aread())
        flow = (await self._afind()).auth_flow(request)
        signed: httpx.Request | None = next(flow)
        while signed is not None:
            response = yield signed
            signed = _next_request(flow, response)


def _next_request(
    flow: Generator[httpx.Request, httpx.Response, None], response: httpx.Response
) -> httpx.Request | None:
    try:
        return flow.send(response)
    except StopIteration:
        return None


def _check_body(body: bytes) -> None:
    if len(body) > _BODY_LIMIT:
        raise ConfigurationError(
            "body_too_large",
            "a request body larger than 1 MiB can't be bound to its signature",
            remedy="send it in parts, or use an httpx client of your own with auth=current_credential()",
        )
