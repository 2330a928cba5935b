# SPDX-License-Identifier: Apache-2.0
"""Anchors that publish what they are: keys and revocations found in an issuer's metadata (RFC 8414), and kept fresh.

Keys are read again after five minutes, and for an unknown `kid` every thirty seconds; while the issuer can't be reached, old ones
serve an hour longer. The signed list of revocations is read again after `REFRESH` seconds and never serves beyond its own end.
A verification asks for what is stale before its rules run, so that the rules themselves know no network.
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

__all__ = ["Discovery", "Found"]

REFRESH: Final = 30.0
"""Seconds after which a revocation list is asked for again."""

_REST: Final = 5.0
"""Seconds for which an anchor that couldn't be had isn't asked again: strangers' requests ask for it as well as callers'."""


class Found:
    """One anchor as it publishes itself: `keys()` and `is_revoked` are what was found last.

    `lists` says that its revocation list is wanted, and not only its keys.
    """

    def __init__(self, issuer: str, clock: Callable[[], float], *, lists: bool) -> None:
        self._issuer = IssuerKeys(issuer, clock=clock)
        self._clock = clock
        self._lists = lists
        self._failed = Cooldown(_REST)
        self._failure: CredentialError | VerificationError | None = None
        self._listed = Cooldown(REFRESH)
        self._sought: str | None = None
        self._revocations = Revocations(issuer, self.keys, clock=clock)

    @property
    def issuer(self) -> str:
        """The anchor's name."""
        return self._issuer.url

    def keys(self) -> Sequence[JWK]:
        """Its keys; none any more once they are an hour past their time."""
        known = self._issuer.known_keys
        if known is None or self._clock() >= known.expires_at + STALE:
            return ()
        return tuple(known.keys.values())

    def is_revoked(self, references: Collection[str], issued_at: float, /) -> bool:
        """See `RevocationCheck`."""
        return self._revocations.is_revoked(references, issued_at)

    def is_stale(self, now: float) -> bool:
        """Whether something has to be asked for before the rules may run."""
        known = self._issuer.known_keys
        if known is None or not known.issued_at <= now < known.expires_at:
            return True
        return self._lists and self._listed.is_over(now)

    def may_look_again(self, now: float) -> bool:
        """Whether a key that wasn't there is worth another look, or is being looked for."""
        return self._issuer.may_look(now)

    def refreshed(self, *, missing: str | None = None) -> Flow[None]:
        """Ask for what is stale; `missing` is the `kid` of a key that wasn't there.

        Raises:
            CredentialError: the issuer has none, or can't be reached.
        """
        now = self._clock()
        if missing is not None:
            yield from self._issuer.key(missing)
            if self._failure is not None and self._failure.code == "unknown_key":
                self._failure = None  # the list may be signed with that key
        failure = self._failure
        if failure is not None and not self._failed.is_over(now):
            raise failure.again()
        try:
            yield from self._read(now)
        except (CredentialError, VerificationError) as error:
            self._failed.start(now)
            self._failure = error.again()
            raise
        self._failure = None

    def _read(self, now: float) -> Flow[None]:
        yield from self._issuer.keys()
        last = self._listed.started  # read once: threads that saw the same one ask together
        if not self._lists or not self._listed.is_over(now):
            return
        key = digest_of(("revocations", self._issuer.id, repr(last)))
        found = yield from shared(Shared(key, lambda: self._read_list(now)))
        yield from self._take(found.compact)
        self._listed.start(now)

    def _take(self, compact: str) -> Flow[None]:
        """Take a list; after a rotation it may be the first thing that is signed with the new key."""
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
        # The list is the anchor's own answer: a stranger's look a moment ago doesn't delay this one.
        is_first, self._sought = kid != self._sought, kid
        yield from self._issuer.key(kid, at_once=is_first)
        self._revocations.update(compact)

    def _read_list(self, now: float) -> Flow[_Published]:
        endpoints = yield from self._issuer.endpoints()
        url = endpoints.revocations
        if url is None:
            raise CredentialRejectedError(
                "revocations_missing",
                f"{endpoints.issuer} publishes no revocation list",
                remedy="give the TrustAnchor revocations=Revocations(…), or UnsafeNoRevocations()",
            )
        response = yield from send(HttpRequest("GET", url, {"Accept": _KIND}), endpoints.issuer)
        if response.status != 200:  # noqa: PLR2004 - a status of HTTP
            raise failure_of(response, endpoints.issuer, "its revocation list", now)
        if len(response.body) > LIST_LIMIT or not response.body.isascii():
            raise CredentialRejectedError(
                "malformed_revocations", f"{endpoints.issuer} publishes no such list"
            )
        return _Published(response.body.decode("ascii").strip(), now, now + REFRESH)


class _Published(NamedTuple):
    """A revocation list as it was published, and until when nobody asks for another."""

    compact: str
    issued_at: float
    expires_at: float


_KIND: Final = "application/jwt"


class Discovery:
    """Asks for what is stale of the anchors that a verifier finds by itself, in both colours."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._world: World | None = None
        self.start_over()
        start_over_in_child(self)

    def start_over(self) -> None:
        """In a forked child: not with a lock that a thread of the parent held."""
        self._opening = threading.Lock()

    def find(self, issuer: str, *, lists: bool) -> Found:
        return Found(issuer, self._clock, lists=lists)

    def refresh(self, found: Iterable[Found], *, missing: str | None = None) -> None:
        """Ask for what is stale.

        Raises:
            VerificationError: `anchor_unavailable`, what it takes to judge isn't there.
        """
        for each in found:
            try:
                run(each.refreshed(missing=missing), self._opened().answer)
            except (CredentialError, VerificationError) as error:
                self._unless_usable(each, error)

    async def arefresh(self, found: Iterable[Found], *, missing: str | None = None) -> None:
        """The async twin of `refresh`."""
        for each in found:
            try:
                await arun(each.refreshed(missing=missing), self._opened().aanswer)
            except (CredentialError, VerificationError) as error:
                self._unless_usable(each, error)

    def _unless_usable(self, found: Found, error: CredentialError | VerificationError) -> None:
        """What was found before goes on serving while its own time lasts; `keys` and the list each look at theirs."""
        if found.keys():
            return
        raise VerificationError(
            "anchor_unavailable",
            f"an anchor's keys or revocations can't be had ({error.code})",
            remedy=error.remedy,
        ) from error

    def _opened(self) -> World:
        from agent_identity.http.transport import Transport  # noqa: PLC0415 - httpx loads on first use
        from agent_identity.http.world import World  # noqa: PLC0415 - see above

        with self._opening:  # one for all threads: what two of them ask for at once is asked once
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
    """A verifier records nothing."""

    def append(self, draft: Draft, /) -> NoReturn:
        raise ConfigurationError("no_ledger", f"a verifier records no {draft.kind}")

    async def aappend(self, draft: Draft, /) -> NoReturn:
        raise ConfigurationError("no_ledger", f"a verifier records no {draft.kind}")
