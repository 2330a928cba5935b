# SPDX-License-Identifier: Apache-2.0
"""The authority: a small OAuth authorization server that exchanges a principal's token for hop 0 of a chain.

`handle` takes one request and returns one response, without sockets or frameworks. The same authority runs inside the agent's
process or behind a web server. All requests are routed here.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING

from agent_identity.authority.asgi import AsgiApp
from agent_identity.authority.authentication import Authenticator, UsedOnce
from agent_identity.authority.clients import GRANT_TYPES, Terms, json_key
from agent_identity.authority.dpop import Proofs
from agent_identity.authority.endpoints import Endpoints, endpoints_of
from agent_identity.authority.issuance import Issuance
from agent_identity.authority.keyring import open_keyring
from agent_identity.authority.organisation import STANDALONE, Clients
from agent_identity.authority.registration import (
    new_client,
    read_registration,
    registration_response,
)
from agent_identity.authority.requests import (
    REFUSALS,
    OAuthError,
    json_response,
    read_request,
    refusal_of,
)
from agent_identity.authority.revocation import Inspection, RevocationList
from agent_identity.authority.store import open_store
from agent_identity.authority.subjects import Principals, Subjects
from agent_identity.authority.token_endpoint import Rates, TokenEndpoint
from agent_identity.authority.tokens import Tokens
from agent_identity.credentials.oauth.token_types import TOKEN_EXCHANGE
from agent_identity.forks import StillLock
from agent_identity.keys.private_files import make_private_directory, read_or_make
from agent_identity.values import Secret, new_id
from agent_identity.verify.plugins import wrap_clock
from agent_identity.verify.replay import MemoryReplay

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from agent_identity.authority.clients import ClientRecord
    from agent_identity.authority.organisation import Organisation
    from agent_identity.authority.requests import ParsedRequest
    from agent_identity.authority.store import Store
    from agent_identity.flow import HttpRequest, HttpResponse
    from agent_identity.values import JSON


class Authority:
    """The embedded issuer. Thread-safe and fork-safe.

    Several processes may share one state directory: its keys, clients and revocations. Each process has its own memory of used
    assertions and proofs.

    `state_dir` None keeps everything in memory. `issuer` is the authority's URL if it is served; None is a stable name under the
    reserved `.invalid` domain, stored in the state directory. `terms` limits registered clients. `organisation` makes it the
    anchor of an organisation, with configured clients. `issued` counts the issued tokens by kind: `access_token`, `grant`.

    Raises:
        ConfigurationError: the issuer's URL is malformed, or the state directory can't be used.
    """

    def __init__(
        self,
        state_dir: Path | None = None,
        *,
        issuer: str | None = None,
        clock: Callable[[], float] = time.time,
        require_nonce: bool = False,
        terms: Terms | None = None,
        organisation: Organisation | None = None,
    ) -> None:
        self._state_dir = None if state_dir is None else make_private_directory(state_dir)
        clock = wrap_clock(clock)
        self.clock: Callable[[], float] = clock
        self._terms = terms or Terms()
        self._memory: dict[str, str] = {}
        self.issued: Counter[str] = Counter()
        self._counting = StillLock()
        self.endpoints: Endpoints = endpoints_of(
            issuer or self._read_or_create("issuer", _new_issuer)
        )
        self.issuer: str = self.endpoints.issuer
        self._keyring = open_keyring(self._state_dir, clock)
        self._store = open_store(self._state_dir)
        nonce_key = (
            self._read_or_create("nonce-key", secrets.token_urlsafe).encode()
            if require_nonce
            else None
        )
        self._run = new_id("run_")
        organisation = organisation or STANDALONE
        self._organisation = organisation
        self._clients = Clients(organisation, self._store)
        self._replay = MemoryReplay(clock=clock)
        used = UsedOnce(self._replay, self._run)
        authenticator = Authenticator(self.issuer, self._clients, used, organisation.drive)
        tokens = Tokens(self.issuer, self._keyring)
        principals = Principals(self.issuer, organisation.providers, organisation.audiences)
        subjects = Subjects(self.issuer, tokens, principals, organisation.drive)
        self._inspection = Inspection(authenticator, self._keyring, tokens, self._store)
        self.issuance: Issuance = Issuance(
            self.issuer, self._keyring, tokens, self._store, self._count
        )
        self._token_endpoint = TokenEndpoint(
            self.endpoints.token,
            authenticator=authenticator,
            rates=Rates(organisation.requests_per_minute),
            proofs=Proofs(used, nonce_key),
            subjects=subjects,
            issuance=self.issuance,
        )
        self._revocations = RevocationList(self.issuer, self._keyring, self._store)
        self._routes: dict[str, tuple[str, Callable[[ParsedRequest, float], HttpResponse]]] = {
            self.endpoints.metadata: ("GET", self._answer_metadata),
            self.endpoints.jwks: ("GET", self._answer_jwks),
            self.endpoints.token: ("POST", self._token_endpoint.answer),
            self.endpoints.introspection: ("POST", self._inspection.introspect),
            self.endpoints.revocation: ("POST", self._inspection.revoke),
            self.endpoints.revocations: ("GET", self._revocations.answer),
        }
        if organisation.registers:
            self._routes[self.endpoints.registration] = ("POST", self._answer_registration)

    def handle(self, request: HttpRequest) -> HttpResponse:
        """Answer one request. The response quotes nothing of the request."""
        try:
            return self._dispatch(request)
        except REFUSALS as error:
            return refusal_of(error).response()

    def jwks(self) -> dict[str, JSON]:
        """The public keys that verify this authority's signatures, as a JWK Set."""
        return {"keys": [*self.public_keys]}

    @property
    def public_keys(self) -> list[dict[str, JSON]]:
        """The same keys as a list."""
        return [json_key(key) for key in self._keyring.jwks]

    def rotate(self) -> None:
        """Sign with a new key from now on. The old key verifies for another hour, which is longer than a token's lifetime."""
        self._keyring.rotate()

    def registration_token(self) -> Secret:
        """The initial access token for registrations; it is stored in the state directory (0600)."""
        return Secret(self._read_or_create("registration-token", lambda: secrets.token_urlsafe(32)))

    def register(self, metadata: dict[str, JSON]) -> ClientRecord:
        """Register an agent instance as a client, limited by the authority's terms (RFC 7591 §2; see `registration`).

        Raises:
            OAuthError: `invalid_client_metadata`.
        """
        client = new_client(
            metadata,
            terms=self._terms,
            issuers={self.issuer, *self._organisation.providers},
            registrar=self._run,
            now=int(self.clock()),
        )
        self._store.add_client(client)
        return client

    def client(self, client_id: str) -> ClientRecord:
        """The client with this id, if its registration hasn't expired.

        Raises:
            OAuthError: `invalid_client`.
        """
        client = self._clients.client(client_id, self.clock())
        if client is None:
            raise OAuthError("invalid_client", "client_unknown", status=401)
        return client

    def add_client(self, client: ClientRecord) -> None:
        """Add a client that doesn't register itself, with terms of its own."""
        self._store.add_client(client)

    def revocations(self) -> str:
        """The signed revocation list, for verifiers in other processes (`Revocations.update`)."""
        return self._revocations.sign(self.clock())

    def revoke(self, reference: str, *, ends: float | None = None) -> None:
        """Revoke a principal (`user:alice`), session or transaction, grant or token (`jti`), agent or client, or all (`*`).

        Its tokens are inactive from now on, and no new ones are issued until `reinstate`. After `ends` (Unix seconds) everything
        that it names has expired, and the revocation is deleted.
        """
        self._store.revoke(reference, int(self.clock()), None if ends is None else int(ends) + 1)

    def is_revoked(self, references: Collection[str], issued_at: float, /) -> bool:
        """Whether any of the references was revoked at or after `issued_at`; what `verify.RevocationCheck` asks."""
        return self._store.is_revoked(references, issued_at)

    def reinstate(self, reference: str) -> None:
        """Allow new tokens from the next second on; older ones stay revoked.

        Raises:
            ConfigurationError: `not_revoked`, the reference isn't revoked, or it was already reinstated.
        """
        self._store.reinstate(reference, int(self.clock()))

    @property
    def store(self) -> Store:
        """The clients and revocations."""
        return self._store

    def asgi(self, *, body_timeout: float | None = None) -> AsgiApp:
        """This authority as an ASGI 3 application; `body_timeout` is how many seconds a body may take, by default ten."""
        return AsgiApp(self.handle, self.endpoints, body_timeout=body_timeout)

    def close(self) -> None:
        """Release the database. A closed authority answers 503."""
        self._store.close()

    def _dispatch(self, request: HttpRequest) -> HttpResponse:
        parsed = read_request(request)
        url, question, _ = parsed.url.partition("?")
        method, respond = self._routes.get(url, (None, None))
        if method is None or respond is None:
            raise OAuthError("invalid_request", "no_such_endpoint", status=404)
        if parsed.method != method:
            raise OAuthError("invalid_request", "method", status=405, headers={"allow": method})
        if question and method == "POST":
            # a credential in a URL gets into the logs of proxies and servers
            raise OAuthError("invalid_request", "query_unsupported")
        return respond(parsed, self.clock())

    def _answer_metadata(self, _request: ParsedRequest, _now: float) -> HttpResponse:
        return json_response(self._build_metadata(), public=True)

    def _build_metadata(self) -> dict[str, JSON]:
        registers = self._organisation.registers
        methods = {"private_key_jwt"} if registers else set[str]()
        clients = self._organisation.clients.values()
        methods |= {each.configured.proof.method for each in clients if each.configured}
        types = GRANT_TYPES if registers else (TOKEN_EXCHANGE,)
        return self.endpoints.document(types, methods, registers=registers)

    def _answer_jwks(self, _request: ParsedRequest, _now: float) -> HttpResponse:
        return json_response(self.jwks(), public=True)

    def _answer_registration(self, request: ParsedRequest, _now: float) -> HttpResponse:
        metadata = read_registration(request, self.registration_token())
        return registration_response(self.register(metadata))

    def _count(self, kind: str) -> None:
        with self._counting.lock:
            self.issued[kind] += 1

    def _read_or_create(self, name: str, make: Callable[[], str]) -> str:
        """Read a text of the state directory; the first call makes and stores it."""
        if self._state_dir is None:
            return self._memory.setdefault(name, make())
        return read_or_make(self._state_dir / f"authority-{name}", lambda: make().encode()).decode()


def _new_issuer() -> str:
    return f"https://{secrets.token_hex(8)}.agent-identity.invalid"
