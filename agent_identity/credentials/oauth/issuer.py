# SPDX-License-Identifier: Apache-2.0
"""An issuer and the client that this identity is there: token requests and requests to its other endpoints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from agent_identity.credentials.oauth.dpop import Nonces
from agent_identity.credentials.oauth.issuer_keys import IssuerKeys
from agent_identity.credentials.oauth.requests import UNBOUND, form_request
from agent_identity.credentials.oauth.responses import (
    STRICT,
    failure_of,
    json_object,
    read_answer,
)
from agent_identity.credentials.oauth.retries import ATTEMPTS
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent_identity.credentials.oauth.client import Client
    from agent_identity.credentials.oauth.requests import Binding, Form, Issued
    from agent_identity.credentials.oauth.responses import Allowances, Answer
    from agent_identity.flow import Flow, HttpResponse
    from agent_identity.values import Certificate


class Clients(Protocol):
    """Provides the client of an issuer: a configured one, or one that registers."""

    def client(self, issuer: Issuer, /) -> Flow[Client]: ...


class Issuer(IssuerKeys):
    """One issuer, used as one client. Without `clients` only its keys and metadata can be read.

    `allows` is what its tokens may differ in. `redirect_uri` is the loopback URI that the client is registered with; None is a
    free port. `assumes_pkce` signs in although the metadata doesn't list PKCE methods. `revokes` is whether tokens are revoked at
    the end of a session. `certificate` is the TLS client certificate that tokens are bound to. `resource_indicators=False` leaves out `resource`
    (RFC 8707), for issuers that refuse it. `subjects_of` are the URLs of issuers whose `sub` names the same person here.
    `is_discovered` says that a resource named the issuer, and no configuration did; then it leads to no private address, unless
    `may_be_private`.
    """

    def __init__(
        self,
        url: str,
        *,
        clients: Clients | None,
        clock: Callable[[], float],
        origins: frozenset[str] = frozenset(),
        jwks: str | None = None,
        metadata: str | None = None,
        has_metadata: bool = True,
        endpoints: Mapping[str, str] | None = None,
        allows: Allowances = STRICT,
        redirect_uri: str | None = None,
        assumes_pkce: bool = False,
        revokes: bool = True,
        certificate: Callable[[], Flow[Certificate]] | None = None,
        resource_indicators: bool = True,
        subjects_of: frozenset[str] = frozenset(),
        is_discovered: bool = False,
        may_be_private: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            url,
            clock=clock,
            origins=origins,
            jwks=jwks,
            metadata=metadata,
            has_metadata=has_metadata,
            endpoints=endpoints,
            discovered=is_discovered and not may_be_private,
            monotonic=monotonic,
        )
        self.allows = allows
        self.redirect_uri = redirect_uri
        self.assumes_pkce = assumes_pkce
        self.revokes = revokes
        self.subjects_of = subjects_of
        self.is_discovered = is_discovered
        self.resource_indicators = resource_indicators
        self.nonces: Nonces = Nonces()
        self._clients = clients
        self._certificate = certificate

    def start_over(self) -> None:
        """In a forked child: the nonces belong to the parent, too."""
        super().start_over()
        self.nonces.forget()

    def client(self) -> Flow[Client]:
        """Return this identity's client at the issuer.

        Raises:
            ConfigurationError: `client_missing`, there is none.
        """
        if self._clients is None:
            raise ConfigurationError(
                "client_missing",
                f"there is no client configured for the issuer {self.url}",
                remedy="set client_id in its table of [issuers], and how the client authenticates",
            )
        return (yield from self._clients.client(self))

    def certificate(self) -> Flow[Certificate | None]:
        """Return the TLS client certificate; None where there is none."""
        if self._certificate is None:
            return None
        return (yield from self._certificate())

    def token(
        self,
        form: Form | Callable[[], Form],
        *,
        binding: Binding = UNBOUND,
        headers: Sequence[tuple[str, str]] = (),
        one_use: bool = False,
        may_refresh: bool = False,
    ) -> Flow[Answer]:
        """Send a token request, with retries while the issuer is busy, and read the answer strictly.

        `one_use` forms are sent once. `may_refresh` allows a refresh token in the answer.

        Raises:
            CredentialRejectedError: the issuer refused, or its answer is malformed.
            CredentialUnavailableError: it could not be reached, is busy, or the circuit breaker is open.
        """
        response = yield from self.post(
            "token",
            form,
            "a token",
            binding=binding,
            headers=headers,
            attempts=1 if one_use else ATTEMPTS,
        )
        fields = json_object(response, self.url)
        return read_answer(fields, self.url, may_refresh=may_refresh)

    def post(
        self,
        place: str,
        form: Form | Callable[[], Form],
        what: str,
        *,
        binding: Binding = UNBOUND,
        headers: Sequence[tuple[str, str]] = (),
        accepted: frozenset[int] = frozenset({200}),
        attempts: int = ATTEMPTS,
    ) -> Flow[HttpResponse]:
        """Post a form to one of the issuer's endpoints (a field of `Endpoints`). `what` names the request in errors.

        Raises:
            CredentialRejectedError: the issuer refused, or has no such endpoint.
            CredentialUnavailableError: it could not be reached, is busy, or the circuit breaker is open.
        """
        endpoints = yield from self.endpoints()
        client = yield from self.client()
        certificate = yield from self.certificate()

        def once() -> Flow[HttpResponse]:
            response = yield from form_request(
                endpoints,
                client,
                place,
                form,
                binding=binding,
                nonces=self.nonces,
                clock=self.clock,
                headers=headers,
                certificate=certificate,
            )
            if response.status not in accepted:
                raise failure_of(response, self.url, what, self.clock(), as_client=True)
            return response

        return (yield from self._attempt(once, attempts))

    def revoke(self, issued: Issued, /) -> Flow[bool]:
        """Revoke a token, by one request (RFC 7009). False where the issuer revokes none, or isn't to be asked.

        Raises:
            CredentialError: the issuer refused, or could not be reached.
        """
        if not self.revokes:
            return False
        endpoints = yield from self.endpoints()
        if endpoints.revocation is None:
            return False
        form = [("token", issued.token)]
        yield from self.post("revocation", form, "a revocation", attempts=1)
        return True


class KnownClient:
    """A client that is configured and doesn't register."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def client(self, issuer: Issuer, /) -> Flow[Client]:  # noqa: ARG002 - the protocol's
        yield from ()
        return self._client
