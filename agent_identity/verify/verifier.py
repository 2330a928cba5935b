# SPDX-License-Identifier: Apache-2.0
"""Verifies calls for a service: chain, assertion, token and proof, and that they belong together.

`verify_call` is for a tool and its arguments, `verify_request` for an HTTP request, `verify_message` for a call that came as a message
in a request, which is verified as both. All apply the same rules. Verification is offline unless an anchor has to be discovered. No token supplies its own trust, limits come before cryptography, every rule has
its own code, and every relaxation has a name. `judge` applies the rules; tests/unit/test_verifier.py has one test for each.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeGuard

from agent_identity import canonical, jose
from agent_identity.delegation.carriers import ASSERTION, DELEGATION, HANDOVER, split_chain
from agent_identity.delegation.grant import EVIDENCE
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
from agent_identity.verify.judge import Examined, Judge, Submission
from agent_identity.verify.messages import check_same_call, is_signed, read_meta, token_of
from agent_identity.verify.plugins import wrap_clock
from agent_identity.verify.replay import MemoryReplay, Replay
from agent_identity.verify.request import is_text, read_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent_identity.verify.anchors import TrustAnchor
    from agent_identity.verify.discovery import DiscoveredAnchor
    from agent_identity.verify.messages import Carrier
    from agent_identity.verify.request import Headers, ReceivedRequest
    from agent_identity.verify.result import VerifiedCall

_RELAXATIONS: Final = frozenset(
    {"unbound_body", "unasserted", "unseen_arguments", "unlinked_token"}
)


class Verifier:
    """Verifies calls to one service.

    `audience` is the service's resource URI, `evidence` the minimum evidence for principals, `public_url` the service's URL in
    front of a proxy; `clock` returns Unix seconds. `allow` names relaxations: `unbound_body` accepts a body that the assertion
    doesn't bind, `unasserted` a request without an assertion whose token is bound to the leaf's key, `unseen_arguments` an HTTP
    request under details about tools or arguments, `unlinked_token` a token of another issuer or principal than the chain's.

    Raises:
        ConfigurationError: a setting is missing or invalid, or a relaxation has an unknown name.
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
        clock = wrap_clock(clock)
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
        self._may_be_unbound = "unbound_body" in allow
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
        """Verify a call with its tool and arguments: over MCP, from a queue, in process.

        `chain` is the list of compact grants, newest first. `args` are the tool's arguments (over MCP `params.arguments` as sent);
        their digest is compared with the signed one. `scopes` are the required ones, `()` for none. `token` is the access token
        of the call. `handover` is a further chain, handed over to this service's agent.

        Raises:
            VerificationError: a rule was broken; `.code` says which.
            RevokedError: the principal, the session, a grant or an agent was revoked.
            DeniedError: the replay store is full or unavailable.
        """
        return self._verify(_read_call(assertion, chain, tool, args, scopes, token, handover))

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
        """The async twin of `verify_call`. It waits only where an anchor has to be discovered."""
        return await self._averify(
            _read_call(assertion, chain, tool, args, scopes, token, handover)
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
        """Verify one HTTP request. `scopes` are the required ones, `()` for none.

        `url` is the whole URL as requested, `body` the received bytes; None is a body that wasn't read, which requires
        `allow={"unbound_body"}`.

        Raises:
            VerificationError: a rule was broken; `.code` says which.
            RevokedError: the principal, the session, a grant or an agent was revoked.
            DeniedError: the replay store is full or unavailable.
        """
        return self._verify(self._read_request(method, url, headers, body, scopes))

    async def averify_request(
        self,
        method: str,
        url: str,
        headers: Headers,
        body: bytes | None = b"",
        *,
        scopes: Iterable[str],
    ) -> VerifiedCall:
        """The async twin of `verify_request`. It waits only where an anchor has to be discovered."""
        return await self._averify(self._read_request(method, url, headers, body, scopes))

    def examine_request(
        self, method: str, url: str, headers: Headers, *, scopes: Iterable[str]
    ) -> Examined:
        """Verify the head of a request before its body is read. `admit_request` checks the rest.

        Raises:
            VerificationError: a rule was broken; `.code` says which.
            RevokedError: the principal, the session, a grant or an agent was revoked.
        """
        return self._examine(self._read_request(method, url, headers, b"", scopes))

    async def aexamine_request(
        self, method: str, url: str, headers: Headers, *, scopes: Iterable[str]
    ) -> Examined:
        """The async twin of `examine_request`. It waits only where an anchor has to be discovered."""
        return await self._aexamine(self._read_request(method, url, headers, b"", scopes))

    def admit_request(self, examined: Examined, body: bytes) -> VerifiedCall:
        """Verify the body of an examined request, that nothing has expired or been revoked since, and that it is the first use.

        Raises:
            VerificationError: a rule was broken; `.code` says which.
            RevokedError: it was revoked in the meantime.
            DeniedError: the replay store is full or unavailable.
        """
        self._judge.check_again(examined, self._clock())
        return self._judge.admit(examined, body)

    def verify_message(
        self,
        meta: object,
        *,
        tool: str,
        args: Mapping[str, object],
        scopes: Iterable[str],
        carrier: Carrier | None = None,
        needs_token: bool = False,
    ) -> VerifiedCall:
        """Verify a tool call that came as a message: the statements in its `_meta`, and the HTTP request that carried it.

        `carrier` is None where no HTTP request did, as over stdio. Headers and `_meta` must be signed for one call. With
        `allow={"unbound_body"}` the headers may carry no statement. `needs_token` refuses a call without a verified access token.

        Raises:
            VerificationError: a rule was broken; `.code` says which.
            RevokedError: the principal, the session, a grant or an agent was revoked.
            DeniedError: the replay store is full or unavailable.
        """
        seen = self._read_message(meta, tool, args, scopes, carrier)
        examined = [self._examine(each) for each in seen]
        return self._admit_message(examined, needs_token=needs_token)

    async def averify_message(
        self,
        meta: object,
        *,
        tool: str,
        args: Mapping[str, object],
        scopes: Iterable[str],
        carrier: Carrier | None = None,
        needs_token: bool = False,
    ) -> VerifiedCall:
        """The async twin of `verify_message`. It waits only where an anchor has to be discovered."""
        seen = self._read_message(meta, tool, args, scopes, carrier)
        examined = [await self._aexamine(each) for each in seen]
        return self._admit_message(examined, needs_token=needs_token)

    def close(self) -> None:
        """Close the connections to discovered anchors."""
        self._discovery.close()

    async def aclose(self) -> None:
        """The async twin of `close`."""
        await self._discovery.aclose()

    def _verify(self, seen: Submission) -> VerifiedCall:
        return self._judge.admit(self._examine(seen), _body_of(seen))

    async def _averify(self, seen: Submission) -> VerifiedCall:
        return self._judge.admit(await self._aexamine(seen), _body_of(seen))

    def _examine(self, seen: Submission) -> Examined:
        now = self._clock()
        if stale := self._stale(seen, now):
            self._discovery.refresh(stale)
        try:
            return self._judge.examine(seen, now)
        except VerificationError as error:
            again = self._second_look(error, seen, now)
            if again is None:
                raise
        self._discovery.refresh(again.anchors, missing=again.kid)
        return self._judge.examine(seen, now)

    async def _aexamine(self, seen: Submission) -> Examined:
        now = self._clock()
        if stale := self._stale(seen, now):
            await self._discovery.arefresh(stale)
        try:
            return self._judge.examine(seen, now)
        except VerificationError as error:
            again = self._second_look(error, seen, now)
            if again is None:
                raise
        await self._discovery.arefresh(again.anchors, missing=again.kid)
        return self._judge.examine(seen, now)

    def _stale(self, seen: Submission, now: float) -> list[DiscoveredAnchor]:
        """The discovered anchors to refresh first. Only those that the call names: failures of others don't matter."""
        stale = [anchor for anchor in self._anchors.discovered if anchor.is_stale(now)]
        if not stale:
            return stale
        named = _named_issuers(seen)
        return [anchor for anchor in stale if anchor.issuer in named]

    def _second_look(
        self, error: VerificationError, seen: Submission, now: float
    ) -> _SecondLook | None:
        """The discovered anchors that may have a new key with the unknown `kid`, unless they were asked a moment ago."""
        if error.code != "unknown_key" or not self._anchors.discovered:
            return None
        named = _named_issuers(seen)
        anchors = [anchor for anchor in self._anchors.discovered if anchor.issuer in named]
        anchors = [anchor for anchor in anchors if anchor.may_look_again(now)]
        known = {key.get("kid") for keys in [anchor.keys() for anchor in anchors] for key in keys}
        kids = [kid for kid in map(_kid_of, seen.anchor_tokens()) if kid is not None]
        missing = next((kid for kid in kids if kid not in known), None)
        return _SecondLook(anchors, missing) if anchors and missing is not None else None

    def _read_message(
        self,
        meta: object,
        tool: str,
        args: Mapping[str, object],
        scopes: Iterable[str],
        carrier: Carrier | None,
    ) -> list[Submission]:
        """The call, and before it the request that carried it, unless there is none or it may be unsigned."""
        request = None if carrier is None else read_request(*carrier, public_url=self._public_url)
        token = None if request is None else token_of(request)
        assertion, chain, handover = read_meta(meta)
        call = _read_call(assertion, chain, tool, args, scopes, token, handover)
        if request is None or (self._may_be_unbound and not is_signed(request)):
            return [call]
        head = _submit_request(request, call.scopes)
        return [head._replace(tool=tool, arguments=call.arguments), call]

    def _admit_message(self, examined: list[Examined], *, needs_token: bool) -> VerifiedCall:
        call = examined[-1]
        if needs_token and call.token_evidence.claims is None:
            raise _token_error(call.seen.token)
        for each in examined[:-1]:
            check_same_call(each, call)
            self._judge.admit(each, _body_of(each.seen))
        return self._judge.admit(call, None)

    def _read_request(
        self,
        method: str,
        url: str,
        headers: Headers,
        body: bytes | None,
        scopes: Iterable[str],
    ) -> Submission:
        needed = _required_scopes(scopes)
        request = read_request(method, url, headers, body, public_url=self._public_url)
        return _submit_request(request, needed)


def _submit_request(request: ReceivedRequest, scopes: frozenset[str]) -> Submission:
    carried = request.headers.get(DELEGATION.lower())
    if carried is None:
        raise InvalidAssertionError("chain_missing", "the request carries no delegation")
    handed = request.headers.get(HANDOVER.lower())
    return Submission(
        chain=split_chain(carried),
        assertion=request.headers.get(ASSERTION.lower()),
        handover=() if handed is None else split_chain(handed),
        scopes=scopes,
        request=request,
    )


def _read_call(
    assertion: str,
    chain: Sequence[str],
    tool: str,
    args: Mapping[str, object],
    scopes: Iterable[str],
    token: str | None,
    handover: Sequence[str],
) -> Submission:
    if not _is_object(args):
        raise InvalidAssertionError("args_malformed", "the arguments of a call must be an object")
    try:
        arguments = canonical.copy_and_encode(args, frozenset())[1]
    except DeniedError as error:
        raise InvalidAssertionError(error.code, str(error)) from None
    if token is not None and not is_text(token):
        raise InvalidAssertionError("token_malformed", "the access token must be a string")
    return Submission(
        chain=_compacts(chain),
        assertion=assertion,
        handover=_compacts(handover),
        scopes=_required_scopes(scopes),
        token=token,
        tool=tool,
        arguments=arguments,
    )


def _token_error(token: str | None) -> VerificationError:
    if token is None:
        return VerificationError("token_missing", "the call has no access token")
    return VerificationError("token_unverified", "no trusted issuer's key verifies the token")


def _body_of(seen: Submission) -> bytes | None:
    return None if seen.request is None else seen.request.body


def _compacts(chain: Sequence[str]) -> Sequence[str]:
    """Check that a chain is a list of strings; one string is the form of the HTTP header."""
    if not _is_list_of_text(chain):
        raise InvalidAssertionError("chain_malformed", "a chain must be a list of compact grants")
    return chain


def _is_object(value: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(value, dict | Mapping)  # dict first, since that check is faster


def _is_list_of_text(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and all(map(is_text, value))  # pyright: ignore[reportUnknownArgumentType]  # any JSON


def _required_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """The scopes that a service requires. Cached, since they are the same for many calls.

    Raises:
        ConfigurationError: `scope_malformed`.
    """
    return scope_set(scopes) if isinstance(scopes, str) else _known_scopes(tuple(scopes))


@lru_cache(256)
def _known_scopes(scopes: tuple[str, ...]) -> frozenset[str]:
    return scope_set(scopes)


class _SecondLook(NamedTuple):
    """The anchors to refresh for an unknown key, and its `kid`."""

    anchors: list[DiscoveredAnchor]
    kid: str


def _named_issuers(seen: Submission) -> frozenset[str]:
    """The issuers that a call names, unverified. No other anchor is refreshed for it."""
    named: set[str] = set()
    for compact in seen.anchor_tokens():
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
        raise ConfigurationError("relaxation_unknown", "allow must be a set of names, not a string")
    unknown = frozenset(allow) - _RELAXATIONS
    if unknown:
        raise ConfigurationError(
            "relaxation_unknown",
            f"there is no relaxation named {min(unknown)}",
            remedy=f"use one of {', '.join(sorted(_RELAXATIONS))}",
        )
    if approvers:
        raise ConfigurationError(
            "not_supported",
            "proofs of approval aren't checked in this version: each counts as asserted",
            remedy="leave approvers out",
        )
    if evidence not in EVIDENCE:
        raise ConfigurationError("evidence", f"evidence must be one of {', '.join(EVIDENCE)}")
    if not 0 <= skew <= 60:  # noqa: PLR2004 - the message has the limits
        raise ConfigurationError("skew", "the clock skew must be between 0 and 60 seconds")
    if public_url is not None and not _is_base(public_url):
        raise ConfigurationError(
            "public_url", "public_url must be an http or https URL without query and fragment"
        )


def _is_base(url: str) -> bool:
    try:
        htu_of(url)
    except DeniedError:
        return False
    return "?" not in url and "#" not in url
