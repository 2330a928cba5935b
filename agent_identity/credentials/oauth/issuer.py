# SPDX-License-Identifier: Apache-2.0
"""An issuer as one identity knows it: where its endpoints are, its keys, and as which client the identity asks there.

All of it is shared by everybody in the process: found once, kept while it lasts, and for an hour longer while the issuer
can't be reached.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from agent_identity.credentials.cache import Cooldown, digest_of
from agent_identity.credentials.oauth.dpop import Nonces
from agent_identity.credentials.oauth.metadata import discover, read_keys
from agent_identity.credentials.oauth.requests import UNBOUND, form_request, token_request
from agent_identity.credentials.oauth.responses import failure_of
from agent_identity.credentials.oauth.retries import ATTEMPTS, Breaker, wait_for
from agent_identity.errors import (
    AgentIdentityError,
    CredentialRejectedError,
    CredentialUnavailableError,
)
from agent_identity.flow import Expiring, Shared, shared
from agent_identity.values import Secret, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.oauth.client import Client
    from agent_identity.credentials.oauth.metadata import Endpoints, KeySet
    from agent_identity.credentials.oauth.requests import Binding, Form
    from agent_identity.credentials.oauth.responses import Answer
    from agent_identity.flow import Flow, HttpResponse
    from agent_identity.values import JSON, Certificate

__all__ = ["STALE", "Clients", "Issuer", "KnownClient"]

E = TypeVar("E", bound=Expiring)
T = TypeVar("T")

STALE: Final = 3600.0
"""Seconds that metadata and keys outlive their end while the issuer can't be reached."""

_KEY_PAUSE: Final = 30.0
"""Seconds between two looks at an issuer's keys for one that isn't there, and after a reading that failed."""

_NOTHING: Final = 404


class Clients(Protocol):
    """How an identity becomes a client of an issuer: it is configured, or it registers."""

    def client(self, issuer: Issuer, /) -> Flow[Client]: ...


class _Look:
    """One reading of an issuer's keys for a key that isn't there, from its beginning (Unix seconds) until it has ended."""

    __slots__ = ("cooldown", "has_ended")

    def __init__(self, began: float) -> None:
        self.cooldown = Cooldown(_KEY_PAUSE, began)
        self.has_ended = False


class Issuer:
    """One issuer, asked as one client.

    `origins` are further origins that its endpoints may have, `jwks` is where its keys are when that isn't left to its metadata,
    `key_use` what those say that they are for,
    `certificate` what the client shows in TLS where tokens are bound to it. `resource_indicators` False leaves out `resource`
    (RFC 8707), for issuers that refuse requests that have one. `subjects_of` are the URLs of issuers whose `sub` names the same
    people here. `clock` gives Unix seconds. `id` tells it from others of the same URL, which may be asked in another way: what
    is kept of one never serves another.
    """

    def __init__(
        self,
        url: str,
        *,
        clients: Clients,
        clock: Callable[[], float],
        origins: frozenset[str] = frozenset(),
        jwks: str | None = None,
        certificate: Callable[[], Flow[Certificate]] | None = None,
        resource_indicators: bool = True,
        subjects_of: frozenset[str] = frozenset(),
        key_use: str = "sig",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self.id: str = new_id("issuer_")
        self.subjects_of = subjects_of
        self.clock = clock
        self.resource_indicators = resource_indicators
        self.nonces: Nonces = Nonces()
        self.breaker: Breaker = Breaker(monotonic)
        self._clients = clients
        self._origins = origins
        self._jwks = jwks
        self._key_use = key_use
        self._certificate = certificate
        self._endpoints: Endpoints | None = None
        self._keys: KeySet | None = None
        self._keys_refused: CredentialRejectedError | None = None
        self._reading = Cooldown(_KEY_PAUSE)
        self._look = _Look(float("-inf"))

    def start_over(self) -> None:
        """In a forked child: locks may be held by threads that aren't there, and nonces are the parent's."""
        self.nonces.forget()
        self.breaker.forget()

    # -- what it says of itself --------------------------------------------------------------------------------------

    def endpoints(self) -> Flow[Endpoints]:
        """The issuer's metadata.

        Raises:
            CredentialError: there is none, or it can't be had.
        """
        key = digest_of(("metadata", self.id))
        start = lambda: self._guarded(lambda: discover(self.url, self.clock, self._origins))  # noqa: E731 - a flow to be made twice
        self._endpoints = yield from self._or_stale(Shared(key, start), self._endpoints)
        return self._endpoints

    def key(self, kid: str, *, at_once: bool = False) -> Flow[dict[str, JSON]]:
        """The public key by which the issuer signs under `kid`; for unknown ones the keys are read again every thirty seconds.

        That is apart from the ordinary reading: a key that came a moment after it is found. `at_once` doesn't wait for the
        thirty seconds: for what the issuer has just answered itself, and nobody else can send.

        Raises:
            CredentialRejectedError: `unknown_key`, the issuer has no such key.
            CredentialUnavailableError: its keys can't be had.
        """
        keys, was_read = yield from self._current()
        if keys.get(kid) is None and not was_read:
            keys = yield from self._looked_at_again(keys, at_once=at_once)
        found = keys.get(kid)
        if found is None:
            raise CredentialRejectedError(
                "unknown_key", f"{self.url} signed with a key that it doesn't publish"
            )
        return found

    def keys(self) -> Flow[KeySet]:
        """All its keys, read again when they are five minutes old."""
        return (yield from self._current())[0]

    @property
    def known_keys(self) -> KeySet | None:
        """The keys that were read last, however old they are."""
        return self._keys

    def may_look(self, now: float) -> bool:
        """Whether an unknown key is looked for: the pause after the last look is over, or that look isn't."""
        return not self._look.has_ended or self._look.cooldown.is_over(now)

    def _current(self) -> Flow[tuple[KeySet, bool]]:
        """The keys, and whether they were read for this very call."""
        known = self._keys
        if known is not None:
            now = self.clock()
            stale = now < known.expires_at + STALE and not self._reading.is_over(now)
            if known.issued_at <= now < known.expires_at or stale:
                return known, False
        elif self._keys_refused is not None and not self._reading.is_over(self.clock()):
            raise self._keys_refused.again()
        return (yield from self._newer(known, self._read_keys)), True

    def _looked_at_again(self, keys: KeySet, *, at_once: bool) -> Flow[KeySet]:
        """The keys as a new look finds them; callers that come while a look is under way share it."""
        look = self._look
        now = self.clock()
        if at_once or look.cooldown.is_over(now):
            look = self._look = _Look(now)
        elif look.has_ended:
            return self._keys or keys  # the look may have ended since the caller read them
        return (yield from self._newer(keys, lambda: self._read_for(look)))

    def _read_for(self, look: _Look) -> Flow[KeySet]:
        """Read the keys once for a look. A caller that joins after a look has failed doesn't start another."""
        if look.has_ended:
            raise CredentialUnavailableError(
                "issuer_unavailable", f"the keys of {self.url} were asked for a moment ago"
            )
        try:
            self._keys = yield from self._read_keys()
        except AgentIdentityError:
            look.has_ended = True  # an interrupted look goes on with the next caller
            raise
        look.has_ended = True  # after the keys are in place: callers that see the end use them
        return self._keys

    def _newer(self, known: KeySet | None, start: Callable[[], Flow[KeySet]]) -> Flow[KeySet]:
        self._reading.start(self.clock())
        key = digest_of(("keys", self.id, "" if known is None else repr(known.issued_at)))
        try:
            self._keys = yield from self._or_stale(Shared(key, start), known)
        except CredentialRejectedError as error:
            self._keys_refused = error.again()
            raise
        return self._keys

    def _read_keys(self) -> Flow[KeySet]:
        place = self._jwks
        if place is None:
            # Guarded for itself: what failed three times isn't tried three times again for the keys' sake.
            place = (yield from self.endpoints()).jwks
        read = lambda: read_keys(self.url, place, self.clock, use=self._key_use)  # noqa: E731 - a flow to be made twice
        return (yield from self._guarded(read))

    def _or_stale(self, ask: Shared[E], last: E | None) -> Flow[E]:
        try:
            return (yield from shared(ask))
        except CredentialUnavailableError:
            if last is None or self.clock() >= last.expires_at + STALE:
                raise
            return last

    # -- what is asked of it -----------------------------------------------------------------------------------------

    def client(self) -> Flow[Client]:
        """The client that this identity is to the issuer."""
        return self._clients.client(self)

    def certificate(self) -> Flow[Certificate | None]:
        """What the client shows in TLS, None where it has nothing to show."""
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
        """Send a token request; asked again while the issuer is busy, unless `one_use` says that the form is good once.

        Raises:
            CredentialRejectedError: the issuer said no, or its answer is malformed.
            CredentialUnavailableError: it could not be reached, is busy, or isn't asked for now.
        """
        endpoints = yield from self.endpoints()
        client = yield from self.client()
        certificate = yield from self.certificate()

        def once() -> Flow[Answer]:
            return token_request(
                endpoints,
                client,
                form,
                binding=binding,
                nonces=self.nonces,
                clock=self.clock,
                headers=headers,
                certificate=certificate,
                may_refresh=may_refresh,
            )

        return (yield from self._guarded(once, attempts=1 if one_use else ATTEMPTS))

    def post(
        self,
        place: str,
        form: Sequence[tuple[str, str | Secret]],
        what: str,
        *,
        binding: Binding = UNBOUND,
        accepted: frozenset[int] = frozenset({200}),
        attempts: int = ATTEMPTS,
    ) -> Flow[HttpResponse]:
        """Post a form to one of the issuer's other endpoints (a field of `Endpoints`), as its client; `what` names it in errors.

        Raises:
            CredentialRejectedError: the issuer said no, or has no such endpoint.
            CredentialUnavailableError: it could not be reached, is busy, or isn't asked for now.
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
                certificate=certificate,
            )
            if response.status not in accepted:
                raise failure_of(response, self.url, what, self.clock())
            return response

        return (yield from self._guarded(once, attempts))

    def _guarded(self, once: Callable[[], Flow[T]], attempts: int = ATTEMPTS) -> Flow[T]:
        """Ask unless the issuer isn't asked for now, and keep count of how it goes."""
        attempt = 1
        while True:
            self.breaker.check(self.url)
            try:
                value = yield from once()
            except CredentialUnavailableError as error:
                if error.code != "issuer_unavailable":
                    self.breaker.failed()
                if attempt >= attempts:
                    raise
                failure = error
            except CredentialRejectedError:
                self.breaker.answered()
                raise
            else:
                self.breaker.answered()
                return value
            yield from wait_for(failure, attempt)
            attempt += 1


class KnownClient:
    """A client that was configured, and has nothing to register."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def client(self, issuer: Issuer, /) -> Flow[Client]:  # noqa: ARG002 - it is the same for whoever asks
        yield from ()
        return self._client
