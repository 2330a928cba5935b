# SPDX-License-Identifier: Apache-2.0
"""What a service checks before it believes a call: chain, assertion, token and proof, and that they belong together.

Two doors onto the same rules: `verify_call` where tool and arguments are seen, `verify_request` where an HTTP request is.
Everything is offline unless an anchor is left to be found. Nothing in a token supplies trust, caps come before crypto, every rule
has its own code, and what is relaxed is relaxed by name. The rules are in `judging`; tests/unit/test_verifier.py has one test for each.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeGuard

from agent_identity import canonical, jose
from agent_identity.delegation.carriers import ASSERTION, DELEGATION, HANDOVER, split_chain
from agent_identity.delegation.chain import EVIDENCE
from agent_identity.errors import (
    ConfigurationError,
    DeniedError,
    InvalidAssertionError,
    VerificationError,
)
from agent_identity.uris import htu_of
from agent_identity.values import scope_set
from agent_identity.verify.anchors import Anchors
from agent_identity.verify.discovery import Discovery
from agent_identity.verify.judge import Examined, Judge, Seen
from agent_identity.verify.plugins import ticking
from agent_identity.verify.replay import MemoryReplay, Replay
from agent_identity.verify.request import is_text, read_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent_identity.verify.anchors import TrustAnchor
    from agent_identity.verify.discovery import Found
    from agent_identity.verify.request import Headers
    from agent_identity.verify.result import VerifiedCall

__all__ = ["Verifier"]

_RELAXATIONS: Final = frozenset(
    {"unbound_body", "unasserted", "unseen_arguments", "unlinked_token"}
)


class Verifier:
    """Verifies calls to one service.

    `audience` is the service's own resource URI, `evidence` the least that its callers' principals must be known by, `public_url`
    what callers see of it behind a proxy, `clock` gives Unix seconds. `allow` relaxes by name: `unbound_body` lets a body pass that
    the assertion doesn't bind, `unasserted` a request without assertion whose token is bound to the leaf's key, `unseen_arguments`
    an HTTP request under details about tools or arguments, `unlinked_token` a token of another issuer or principal than the chain's.

    Raises:
        ConfigurationError: something that decides security was left out, or a relaxation has an unknown name.
    """

    def __init__(
        self,
        trust: Iterable[TrustAnchor],
        *,
        audience: str,
        replay: Replay | None = None,
        evidence: str = "issuer",
        approvers: Collection[Mapping[str, object]] = (),
        allow: Collection[str] = frozenset(),
        public_url: str | None = None,
        clock: Callable[[], float] = time.time,
        skew: float = 30.0,
    ) -> None:
        _check_settings(evidence, approvers, allow, public_url, skew)
        self.audience: Final = audience
        clock = ticking(clock)
        self._discovery = Discovery(clock)
        self._anchors = Anchors(trust, self._discovery.find)
        self._judge = Judge(
            self._anchors,
            audience=audience,
            evidence=evidence,
            skew=skew,
            allow=frozenset(allow),
            replay=MemoryReplay(clock=clock) if replay is None else replay,
        )
        self._public_url = public_url
        self._clock = clock

    def verify_call(
        self,
        assertion: str,
        chain: Sequence[str],
        *,
        tool: str,
        args: Mapping[str, object],
        scopes: Iterable[str],
        token: str | None = None,
        handover: Sequence[str] = (),
    ) -> VerifiedCall:
        """Check a call whose tool and arguments are seen: over MCP, from a queue, in process.

        `chain` is the list of compact grants, newest first. `args` is what the tool will get (over MCP `params.arguments` as sent);
        it is digested here and compared. `scopes` is what the service needs, an explicit `()` for nothing; `token` the access token
        that came along. `handover` is a further chain, handed over to this service's agent.

        Raises:
            VerificationError: a rule was broken; `.code` says which.
            RevokedError: the principal, the session, a grant or an agent was revoked.
            DeniedError: the replay store is full, or away.
        """
        return self._judged(_call_seen(assertion, chain, tool, args, scopes, token, handover))

    async def averify_call(
        self,
        assertion: str,
        chain: Sequence[str],
        *,
        tool: str,
        args: Mapping[str, object],
        scopes: Iterable[str],
        token: str | None = None,
        handover: Sequence[str] = (),
    ) -> VerifiedCall:
        """The async twin of `verify_call`; it waits only where an anchor has to be found."""
        return await self._ajudged(
            _call_seen(assertion, chain, tool, args, scopes, token, handover)
        )

    def verify_request(
        self,
        method: str,
        url: str,
        headers: Headers,
        body: bytes | None = b"",
        *,
        scopes: Iterable[str],
    ) -> VerifiedCall:
        """Check one HTTP request; `scopes` is what the service needs for it, an explicit `()` for nothing.

        `url` is the whole URL as requested, `body` the bytes as received; None is a body that wasn't seen,
        which takes `allow={"unbound_body"}`.

        Raises:
            VerificationError: a rule was broken; `.code` says which.
            RevokedError: the principal, the session, a grant or an agent was revoked.
            DeniedError: the replay store is full, or away.
        """
        return self._judged(self._request_seen(method, url, headers, body, scopes))

    async def averify_request(
        self,
        method: str,
        url: str,
        headers: Headers,
        body: bytes | None = b"",
        *,
        scopes: Iterable[str],
    ) -> VerifiedCall:
        """The async twin of `verify_request`; it waits only where an anchor has to be found."""
        return await self._ajudged(self._request_seen(method, url, headers, body, scopes))

    def examine_request(
        self, method: str, url: str, headers: Headers, *, scopes: Iterable[str]
    ) -> Examined:
        """Check the head of a request before its body is read; `admit_request` checks the rest.

        Raises:
            VerificationError: a rule was broken; `.code` says which.
            RevokedError: the principal, the session, a grant or an agent was revoked.
        """
        return self._examined(self._request_seen(method, url, headers, b"", scopes))

    async def aexamine_request(
        self, method: str, url: str, headers: Headers, *, scopes: Iterable[str]
    ) -> Examined:
        """The async twin of `examine_request`; it waits only where an anchor has to be found."""
        return await self._aexamined(self._request_seen(method, url, headers, b"", scopes))

    def admit_request(self, examined: Examined, body: bytes) -> VerifiedCall:
        """Check the body of a request whose head was examined, that nothing ended meanwhile, and that it comes once.

        Raises:
            VerificationError: a rule was broken; `.code` says which.
            RevokedError: it was revoked meanwhile.
            DeniedError: the replay store is full, or away.
        """
        self._judge.check_again(examined, self._clock())
        return self._judge.admit(examined, body)

    def close(self) -> None:
        """Close the connections to anchors that were found; a verifier whose anchors are given has none."""
        self._discovery.close()

    async def aclose(self) -> None:
        """The async twin of `close`."""
        await self._discovery.aclose()

    # -- driving -----------------------------------------------------------------------------------------------------

    def _judged(self, seen: Seen) -> VerifiedCall:
        return self._judge.admit(self._examined(seen), _body_of(seen))

    async def _ajudged(self, seen: Seen) -> VerifiedCall:
        return self._judge.admit(await self._aexamined(seen), _body_of(seen))

    def _examined(self, seen: Seen) -> Examined:
        now = self._clock()
        if stale := self._stale(seen, now):
            self._discovery.refresh(stale)
        try:
            return self._judge.examine(seen, now)
        except VerificationError as error:
            again = self._worth_another_look(error, seen, now)
            if again is None:
                raise
        self._discovery.refresh(again.anchors, missing=again.kid)
        return self._judge.examine(seen, now)

    async def _aexamined(self, seen: Seen) -> Examined:
        now = self._clock()
        if stale := self._stale(seen, now):
            await self._discovery.arefresh(stale)
        try:
            return self._judge.examine(seen, now)
        except VerificationError as error:
            again = self._worth_another_look(error, seen, now)
            if again is None:
                raise
        await self._discovery.arefresh(again.anchors, missing=again.kid)
        return self._judge.examine(seen, now)

    def _stale(self, seen: Seen, now: float) -> list[Found]:
        """The anchors that have to be asked first: found ones that this very call names, so that no other's absence matters."""
        stale = [found for found in self._anchors.found if found.is_stale(now)]
        if not stale:
            return stale
        named = _issuers_named(seen)
        return [found for found in stale if found.issuer in named]

    def _worth_another_look(
        self, error: VerificationError, seen: Seen, now: float
    ) -> _Again | None:
        """Where a key that wasn't there may be a new one: at found anchors that the call names, not asked a moment ago."""
        if error.code != "unknown_key" or not self._anchors.found:
            return None
        named = _issuers_named(seen)
        anchors = [found for found in self._anchors.found if found.issuer in named]
        anchors = [found for found in anchors if found.may_look_again(now)]
        known = {key.get("kid") for keys in [found.keys() for found in anchors] for key in keys}
        kids = [kid for kid in map(_kid_of, seen.anchored()) if kid is not None]
        missing = next((kid for kid in kids if kid not in known), None)
        return _Again(anchors, missing) if anchors and missing is not None else None

    def _request_seen(
        self,
        method: str,
        url: str,
        headers: Headers,
        body: bytes | None,
        scopes: Iterable[str],
    ) -> Seen:
        needed = _needed(scopes)
        request = read_request(method, url, headers, body, public_url=self._public_url)
        carried = request.headers.get(DELEGATION.lower())
        if carried is None:
            raise InvalidAssertionError("chain_missing", "the request carries no delegation")
        handed = request.headers.get(HANDOVER.lower())
        return Seen(
            chain=split_chain(carried),
            assertion=request.headers.get(ASSERTION.lower()),
            handover=() if handed is None else split_chain(handed),
            scopes=needed,
            request=request,
        )


def _call_seen(
    assertion: str,
    chain: Sequence[str],
    tool: str,
    args: Mapping[str, object],
    scopes: Iterable[str],
    token: str | None,
    handover: Sequence[str],
) -> Seen:
    if not _is_object(args):
        raise InvalidAssertionError("args_malformed", "the arguments of a call are an object")
    try:
        arguments = canonical.bound(args, frozenset())[1]
    except DeniedError as error:
        raise InvalidAssertionError(error.code, str(error)) from None
    if token is not None and not is_text(token):
        raise InvalidAssertionError("token_malformed", "an access token is text")
    return Seen(
        chain=_compacts(chain),
        assertion=assertion,
        handover=_compacts(handover),
        scopes=_needed(scopes),
        token=token,
        tool=tool,
        arguments=arguments,
    )


def _body_of(seen: Seen) -> bytes | None:
    return None if seen.request is None else seen.request.body


def _compacts(given: Sequence[str]) -> Sequence[str]:
    """A chain as a list of texts, whatever JSON somebody sent; one text is a header's form, and not this one's."""
    if not _is_texts(given):
        raise InvalidAssertionError("chain_malformed", "a chain is a list of compact grants")
    return given


def _is_object(given: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(given, dict | Mapping)  # most are dicts, which are told sooner


def _is_texts(given: object) -> TypeGuard[Sequence[str]]:
    return isinstance(given, list | tuple) and all(map(is_text, given))  # pyright: ignore[reportUnknownArgumentType]  # whatever JSON came


def _needed(scopes: Iterable[str]) -> frozenset[str]:
    """The scopes that a service asks for, which are the same few with every call.

    Raises:
        ConfigurationError: `scope_malformed`.
    """
    return scope_set(scopes) if isinstance(scopes, str) else _known_scopes(tuple(scopes))


@lru_cache(256)
def _known_scopes(scopes: tuple[str, ...]) -> frozenset[str]:
    return scope_set(scopes)


class _Again(NamedTuple):
    """Whom to ask once more, and for which key."""

    anchors: list[Found]
    kid: str


def _issuers_named(seen: Seen) -> frozenset[str]:
    """Whose word a call brings, as it says itself: nobody else is asked anything for its sake."""
    named: set[str] = set()
    for compact in seen.anchored():
        try:
            claims = jose.loads_object(jose.unverified(compact).payload)
        except VerificationError:
            continue
        named |= {
            name for name in (claims.get("iss"), claims.get("sub_iss")) if isinstance(name, str)
        }
    return frozenset(named)


def _kid_of(compact: str) -> str | None:
    try:
        kid = jose.unverified(compact).header.get("kid")
    except VerificationError:
        return None
    return kid if isinstance(kid, str) else None


def _check_settings(
    evidence: str,
    approvers: Collection[object],
    allow: Collection[str],
    public_url: str | None,
    skew: float,
) -> None:
    if isinstance(allow, str):
        raise ConfigurationError("relaxation_unknown", "allow is a set of words, not one text")
    unknown = frozenset(allow) - _RELAXATIONS
    if unknown:
        raise ConfigurationError(
            "relaxation_unknown",
            f"there is no relaxation named {min(unknown)}",
            remedy=f"known are {', '.join(sorted(_RELAXATIONS))}",
        )
    if approvers:
        raise ConfigurationError(
            "not_supported",
            "proofs of approval aren't checked in this version: each counts as asserted",
            remedy="leave approvers out",
        )
    if evidence not in EVIDENCE:
        raise ConfigurationError("evidence", f"evidence is one of {', '.join(EVIDENCE)}")
    if not 0 <= skew <= 60:  # noqa: PLR2004 - the text below says it
        raise ConfigurationError("skew", "the clock skew is between 0 and 60 seconds")
    if public_url is not None and not _is_base(public_url):
        raise ConfigurationError(
            "public_url", "public_url is an http or https URL without query and fragment"
        )


def _is_base(url: str) -> bool:
    try:
        htu_of(url)
    except DeniedError:
        return False
    return "?" not in url and "#" not in url
