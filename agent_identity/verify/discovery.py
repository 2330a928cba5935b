# SPDX-License-Identifier: Apache-2.0
"""Discovers an anchor's keys and revocations by its metadata (RFC 8414), and keeps them fresh.

Keys are read again after five minutes, and for an unknown `kid` every thirty seconds; while the issuer can't be reached, old
keys are used for another hour. The signed revocation list is read again after `REFRESH` seconds, and never used after its
`exp`. A verification refreshes what is stale before its rules run, so that the rules never use the network.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from agent_identity import jose
from agent_identity.credentials.cache import Cooldown, digest_of
from agent_identity.credentials.oauth.issuer_keys import STALE, IssuerKeys
from agent_identity.credentials.oauth.responses import failure_of, send
from agent_identity.errors import (
    ConfigurationError,
    CredentialError,
    CredentialRejectedError,
    VerificationError,
)
from agent_identity.flow import HttpRequest, Shared, arun, run, shared
from agent_identity.forks import start_over_in_child
from agent_identity.verify.revocations import LIST_LIMIT, Revocations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from agent_identity.flow import Draft, Flow
    from agent_identity.http.world import World
    from agent_identity.keys.signing import JWK

REFRESH: Final = 30.0
"""Seconds after which a revocation list is read again."""

_REST: Final = 5.0
"""Seconds without a new attempt after a failed one: strangers' requests can trigger it, too."""


class DiscoveredAnchor:
    """The published keys and revocations of one anchor. `keys()` and `is_revoked` use the last ones that were read.

    `lists` says that its revocation list is needed, not only its keys.
    """

    def __init__(self, issuer: str, clock: Callable[[], float], *, lists: bool) -> None:
        self._issuer = IssuerKeys(issuer, clock=clock)
        self._clock = clock
        self._lists = lists
        self._retry_pause = Cooldown(_REST)
        self._failure: CredentialError | VerificationError | None = None
        self._list_age = Cooldown(REFRESH)
        self._last_kid: str | None = None
        self._revocations = Revocations(issuer, self.keys, clock=clock)

    @property
    def issuer(self) -> str:
        """The anchor's issuer URL."""
        return self._issuer.url

    def keys(self) -> Sequence[JWK]:
        """Its keys; none if they expired more than an hour ago."""
        known = self._issuer.known_keys
        if known is None or self._clock() >= known.expires_at + STALE:
            return ()
        return tuple(known.keys.values())

    def is_revoked(self, references: Collection[str], issued_at: float, /) -> bool:
        """See `RevocationCheck`."""
        return self._revocations.is_revoked(references, issued_at)

    def is_stale(self, now: float) -> bool:
        """Whether keys or list must be refreshed before the rules run."""
        known = self._issuer.known_keys
        if known is None or not known.issued_at <= now < known.expires_at:
            return True
        return self._lists and self._list_age.is_over(now)

    def may_look_again(self, now: float) -> bool:
        """Whether the keys may be read again for an unknown `kid`, or are just being read."""
        return self._issuer.may_look(now)

    def refresh(self, *, missing: str | None = None) -> Flow[None]:
        """Refresh what is stale. `missing` is an unknown `kid`.

        Raises:
            CredentialError: the issuer publishes no keys or list, or can't be reached.
        """
        now = self._clock()
        if missing is not None:
            yield from self._issuer.key(missing)
            if self._failure is not None and self._failure.code == "unknown_key":
                self._failure = None  # the list may be signed with that key
        failure = self._failure
        if failure is not None and not self._retry_pause.is_over(now):
            raise failure.copy()
        try:
            yield from self._read(now)
        except (CredentialError, VerificationError) as error:
            self._retry_pause.start(now)
            self._failure = error.copy()
            raise
        self._failure = None

    def _read(self, now: float) -> Flow[None]:
        yield from self._issuer.keys()
        last = self._list_age.started  # read once: threads that see the same value share a request
        if not self._lists or not self._list_age.is_over(now):
            return
        key = digest_of(("revocations", self._issuer.id, repr(last)))
        published = yield from shared(Shared(key, lambda: self._read_list(now)))
        yield from self._update(published.compact)
        self._list_age.start(now)

    def _update(self, compact: str) -> Flow[None]:
        """Use a new list. After a rotation it may be the first token that is signed with the new key."""
        try:
            self._revocations.update(compact)
        except VerificationError as error:
            if error.code != "unknown_key":
                raise
            kid = jose.unverified(compact, max_token=LIST_LIMIT).header.get("kid")
            if not isinstance(kid, str):
                raise
        else:
            return
        # The list comes from the anchor itself, so a stranger's unknown `kid` a moment ago doesn't delay this read.
        is_first, self._last_kid = kid != self._last_kid, kid
        yield from self._issuer.key(kid, at_once=is_first)
        self._revocations.update(compact)

    def _read_list(self, now: float) -> Flow[_Published]:
        endpoints = yield from self._issuer.endpoints()
        url = endpoints.revocations
        if url is None:
            raise CredentialRejectedError(
                "revocations_missing",
                f"{endpoints.issuer} publishes no revocation list",
                remedy="pass the TrustAnchor revocations=Revocations(…), or UnsafeNoRevocations()",
            )
        response = yield from send(HttpRequest("GET", url, {"Accept": _KIND}), endpoints.issuer)
        if response.status != 200:  # noqa: PLR2004 - a status of HTTP
            raise failure_of(response, endpoints.issuer, "its revocation list", now)
        if len(response.body) > LIST_LIMIT or not response.body.isascii():
            raise CredentialRejectedError(
                "malformed_revocations", f"{endpoints.issuer} publishes a malformed revocation list"
            )
        return _Published(response.body.decode("ascii").strip(), now, now + REFRESH)


class _Published(NamedTuple):
    """A published revocation list, and when it is read again."""

    compact: str
    issued_at: float
    expires_at: float


_KIND: Final = "application/jwt"


class Discovery:
    """Refreshes the discovered anchors of a verifier, in sync and async code."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._world: World | None = None
        self.start_over()
        start_over_in_child(self)

    def start_over(self) -> None:
        """In a forked child: a thread of the parent may hold the lock."""
        self._opening = threading.Lock()

    def find(self, issuer: str, *, lists: bool) -> DiscoveredAnchor:
        return DiscoveredAnchor(issuer, self._clock, lists=lists)

    def refresh(self, anchors: Iterable[DiscoveredAnchor], *, missing: str | None = None) -> None:
        """Refresh what is stale.

        Raises:
            VerificationError: `anchor_unavailable`, an anchor's keys can't be read.
        """
        for anchor in anchors:
            try:
                run(anchor.refresh(missing=missing), self._open_world().answer)
            except (CredentialError, VerificationError) as error:
                self._check_usable(anchor, error)

    async def arefresh(
        self, anchors: Iterable[DiscoveredAnchor], *, missing: str | None = None
    ) -> None:
        """The async twin of `refresh`."""
        for anchor in anchors:
            try:
                await arun(anchor.refresh(missing=missing), self._open_world().aanswer)
            except (CredentialError, VerificationError) as error:
                self._check_usable(anchor, error)

    def _check_usable(
        self, anchor: DiscoveredAnchor, error: CredentialError | VerificationError
    ) -> None:
        """Raise unless the anchor still has usable keys from an earlier read. The list checks its own age."""
        if anchor.keys():
            return
        raise VerificationError(
            "anchor_unavailable",
            f"an anchor's keys or revocations can't be read ({error.code})",
            remedy=error.remedy,
        ) from error

    def _open_world(self) -> World:
        from agent_identity.http.transport import Transport  # noqa: PLC0415 - httpx loads on first use
        from agent_identity.http.world import World  # noqa: PLC0415 - see above

        with self._opening:  # one world for all threads, so that they share requests
            if self._world is None:
                self._world = World(Transport, _NoLedger(), clock=self._clock)
            return self._world

    def close(self) -> None:
        world, self._world = self._world, None
        if world is not None:
            world.close()

    async def aclose(self) -> None:
        world, self._world = self._world, None
        if world is not None:
            await world.aclose()


class _NoLedger:
    """Refuses records: a verifier has no ledger."""

    def append(self, draft: Draft, /) -> NoReturn:
        raise ConfigurationError("no_ledger", f"a verifier records no {draft.kind}")

    async def aappend(self, draft: Draft, /) -> NoReturn:
        raise ConfigurationError("no_ledger", f"a verifier records no {draft.kind}")
