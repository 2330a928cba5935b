# SPDX-License-Identifier: Apache-2.0
"""The authority: an OAuth authorization server in small, that turns a principal's token into hop 0 of a chain.

One request in, one answer out: `handle` knows neither sockets nor frameworks, so that an authority inside the agent's
process and one that is served are the same one. Which request goes where is decided here and nowhere else.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING

from agent_identity.authority.asgi import AsgiApp
from agent_identity.authority.authentication import Authenticator
from agent_identity.authority.clients import GRANT_TYPES, TOKEN_EXCHANGE, Terms, json_key
from agent_identity.authority.dpop import Proofs
from agent_identity.authority.endpoints import Endpoints, endpoints_of
from agent_identity.authority.issuance import Issuance
from agent_identity.authority.keyring import open_keyring
from agent_identity.authority.organisation import Clients, alone
from agent_identity.authority.registration import created, new_client, read_registration
from agent_identity.authority.requests import (
    REFUSALS,
    OAuthError,
    answer,
    read_request,
    refusal_of,
)
from agent_identity.authority.revocation import Inspection, RevocationList
from agent_identity.authority.store import open_store
from agent_identity.authority.subjects import Principals, Subjects
from agent_identity.authority.token_endpoint import Rates, TokenEndpoint
from agent_identity.authority.tokens import Tokens
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
    from agent_identity.authority.requests import Asked
    from agent_identity.authority.store import Store
    from agent_identity.flow import HttpRequest, HttpResponse
    from agent_identity.values import JSON


class Authority:
    """The embedded issuer. Thread-safe and fork-safe.

    Several processes may share one state directory, and with it keys, clients and revocations; which assertions and proofs
    were used each process remembers for itself.

    `state_dir` None keeps everything in memory. `issuer` None is a stable name under the reserved `.invalid` domain, kept
    in the state directory; an authority that is served has the URL where it is. `terms` is what a registration allows.
    `organisation` makes it the anchor in front of an organisation's identity providers, with clients that are configured.
    `issued` counts the tokens that left, by kind: `access_token`, `grant`.

    Raises:
        ConfigurationError: the issuer is no such URL, or the state directory can't be used.
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
        self.endpoints: Endpoints = endpoints_of(issuer or self._kept("issuer", _new_issuer))
        self.issuer: str = self.endpoints.issuer
        self._keyring = open_keyring(self._state_dir, clock)
        self._store = open_store(self._state_dir)
        nonce_key = (
            self._kept("nonce-key", secrets.token_urlsafe).encode() if require_nonce else None
        )
        self._replay = MemoryReplay(clock=clock)
        self._run = new_id("run_")
        self._organisation = organisation
        drive = alone if organisation is None else organisation.drive
        self._clients = Clients(organisation, self._store)
        authenticator = Authenticator(self.issuer, self._clients, self._replay, drive, self._run)
        tokens = Tokens(self.issuer, self._keyring)
        subjects = Subjects(self.issuer, tokens, self._principals(), drive)
        self._inspection = Inspection(authenticator, self._keyring, tokens, self._store)
        self.issuance: Issuance = Issuance(
            self.issuer, self._keyring, tokens, self._store, self._count
        )
        self._token_endpoint = TokenEndpoint(
            self.endpoints.token,
            authenticator=authenticator,
            rates=Rates(None if organisation is None else organisation.requests_per_minute),
            proofs=Proofs(self._replay, nonce_key, self._run),
            subjects=subjects,
            issuance=self.issuance,
        )
        self._revocations = RevocationList(self.issuer, self._keyring, self._store)
        self._routes: dict[str, tuple[str, Callable[[Asked, float], HttpResponse]]] = {
            self.endpoints.metadata: ("GET", self._metadata),
            self.endpoints.jwks: ("GET", self._answer_jwks),
            self.endpoints.token: ("POST", self._token_endpoint.answer),
            self.endpoints.introspection: ("POST", self._inspection.introspect),
            self.endpoints.revocation: ("POST", self._inspection.revoke),
            self.endpoints.revocations: ("GET", self._revocations.answer),
        }
        if self._registers:
            self._routes[self.endpoints.registration] = ("POST", self._register)

    def handle(self, request: HttpRequest) -> HttpResponse:
        """Answer one request. Whatever is in it, the answer is JSON, and quotes nothing of it."""
        try:
            return self._routed(request)
        except REFUSALS as error:
            return refusal_of(error).response()

    def jwks(self) -> dict[str, JSON]:
        """The public keys that verify what this authority signed, as a JWK Set."""
        return {"keys": [*self.public_keys]}

    @property
    def public_keys(self) -> list[dict[str, JSON]]:
        """The same keys as a list."""
        return [json_key(key) for key in self._keyring.jwks]

    def rotate(self) -> None:
        """Sign with a new key from now on. The old one verifies for an hour more, which is longer than a token lives."""
        self._keyring.rotate()

    def registration_token(self) -> Secret:
        """The initial access token by which an agent instance registers itself; a file of 0600 in the state directory."""
        return Secret(self._kept("registration-token", lambda: secrets.token_urlsafe(32)))

    def register(self, metadata: dict[str, JSON]) -> ClientRecord:
        """Register an agent instance as a client, on the authority's terms (RFC 7591 §2; see `registration`).

        Raises:
            OAuthError: `invalid_client_metadata`.
        """
        providers = () if self._organisation is None else self._organisation.providers
        client = new_client(
            metadata,
            terms=self._terms,
            issuers={self.issuer, *providers},
            registrar=self._run,
            now=int(self.clock()),
        )
        self._store.add_client(client)
        return client

    def client(self, client_id: str) -> ClientRecord:
        """A client whose registration hasn't ended.

        Raises:
            OAuthError: `invalid_client`.
        """
        client = self._clients.client(client_id, self.clock())
        if client is None:
            raise OAuthError("invalid_client", "client_unknown", status=401)
        return client

    def add_client(self, client: ClientRecord) -> None:
        """Enter a client that doesn't register itself, on terms of its own."""
        self._store.add_client(client)

    def revocations(self) -> str:
        """The signed list of what was revoked, for verifiers that aren't in this process (`Revocations.update`)."""
        return self._revocations.signed(self.clock())

    def revoke(self, reference: str, *, ends: float | None = None) -> None:
        """End a principal (`user:alice`), session or transaction, grant or token (`jti`), agent or client, or all (`*`).

        What it names gets nothing more, and its tokens aren't active any more, until `reinstate` lets new ones begin.
        `ends` is when all that it names has expired anyway, so that it needn't be remembered for longer.
        """
        self._store.revoke(reference, int(self.clock()), None if ends is None else int(ends) + 1)

    def is_revoked(self, references: Collection[str], issued_at: float, /) -> bool:
        """Whether any of the references was revoked at or after `issued_at`; what `verify.RevocationCheck` asks."""
        return self._store.is_revoked(references, issued_at)

    def reinstate(self, reference: str) -> None:
        """Let what is issued from the next second on begin; what was issued before stays ended.

        Raises:
            ConfigurationError: `not_revoked`, nothing of that name is, or it was reinstated already.
        """
        self._store.reinstate(reference, int(self.clock()))

    @property
    def store(self) -> Store:
        """Its clients and revocations."""
        return self._store

    def asgi(self, *, body_timeout: float | None = None) -> AsgiApp:
        """This authority as an ASGI 3 application; `body_timeout` is the seconds within which a body has to come, or ten."""
        return AsgiApp(self.handle, self.endpoints, body_timeout=body_timeout)

    def close(self) -> None:
        """Release the database. A closed authority answers 503."""
        self._store.close()

    def _routed(self, request: HttpRequest) -> HttpResponse:
        asked = read_request(request)
        url, question, _ = asked.url.partition("?")
        method, respond = self._routes.get(url, (None, None))
        if method is None or respond is None:
            raise OAuthError("invalid_request", "no_such_endpoint", status=404)
        if asked.method != method:
            raise OAuthError("invalid_request", "method", status=405, headers={"allow": method})
        if question and method == "POST":
            # a credential in a URL is one in every log on the way
            raise OAuthError("invalid_request", "query_unsupported")
        return respond(asked, self.clock())

    def _metadata(self, _asked: Asked, _now: float) -> HttpResponse:
        return answer(self._document(), public=True)

    def _document(self) -> dict[str, JSON]:
        organisation, registers = self._organisation, self._registers
        methods = {"private_key_jwt"} if registers else set[str]()
        if organisation is not None:
            clients = organisation.clients.values()
            methods |= {each.configured.proof.method for each in clients if each.configured}
        types = GRANT_TYPES if registers else (TOKEN_EXCHANGE,)
        return self.endpoints.document(types, methods, registers=registers)

    @property
    def _registers(self) -> bool:
        return self._organisation is None or self._organisation.registers

    def _principals(self) -> Principals:
        organisation = self._organisation
        if organisation is None:
            return Principals(self.issuer, {}, ())
        return Principals(self.issuer, organisation.providers, organisation.audiences)

    def _answer_jwks(self, _asked: Asked, _now: float) -> HttpResponse:
        return answer(self.jwks(), public=True)

    def _register(self, asked: Asked, _now: float) -> HttpResponse:
        metadata = read_registration(asked, self.registration_token())
        return created(self.register(metadata))

    def _count(self, kind: str) -> None:
        with self._counting.lock:
            self.issued[kind] += 1

    def _kept(self, name: str, make: Callable[[], str]) -> str:
        """A text that stays the same for this state directory."""
        if self._state_dir is None:
            return self._memory.setdefault(name, make())
        return read_or_make(self._state_dir / f"authority-{name}", lambda: make().encode()).decode()


def _new_issuer() -> str:
    return f"https://{secrets.token_hex(8)}.agent-identity.invalid"
