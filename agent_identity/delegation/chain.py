# SPDX-License-Identifier: Apache-2.0
"""The rules of a chain of grants: who may delegate what. One function per rule, one code per refusal.

Size limits come first, so that no signature is checked for a chain that is refused anyway. An anchor signs hop 0, the key that
a grant names signs the next hop, and every hop only narrows.
tests/unit/test_chain.py has one test for each rule, tests/adversarial/ the attacks.
"""

from __future__ import annotations

import copy
import hmac
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity import jose
from agent_identity.delegation.carriers import CHAIN_LIMIT
from agent_identity.delegation.grant import (
    EVIDENCE,
    GRANT_TYPE,
    MAX_HOPS,
    Grant,
    read_signed,
    signing_input_hash,
)
from agent_identity.errors import ConfigurationError, InvalidAssertionError
from agent_identity.keys.algorithms import DELEGATION_ALGORITHMS
from agent_identity.keys.signing import JWK, thumbprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TRIGGER: Final = "trigger"
"""The `sub_profile` of an unattended run. The agent itself declares the trigger."""

_RANK: Final = {kind: rank for rank, kind in enumerate(EVIDENCE)}


@dataclass(frozen=True, slots=True)
class Anchor:
    """An issuer whose hop 0 is trusted, the maximum evidence that it may give, and the foreign `sub_iss` that it may vouch for."""

    issuer: str
    keys: Sequence[JWK]
    evidence: str = "asserted"
    subjects: frozenset[str] = frozenset()


def verify_chain(
    compacts: Sequence[str],
    anchors: Iterable[Anchor],
    *,
    now: float,
    skew: float = 30.0,
    evidence: str = "asserted",
) -> tuple[Grant, ...]:
    """Verify a whole chain, newest first, and return its grants in that order.

    `now` is Unix seconds, `skew` is allowed once for the chain, `evidence` is the least that hop 0 must carry.

    Raises:
        InvalidAssertionError: a rule was broken; `.code` says which.
    """
    _check_caps(compacts)
    key = tuple(compacts)
    cached = _cache.get(key)
    read = _parse(key) if cached is None else cached.read
    grants = read.grants
    _check_times(grants, now, skew)
    keys = _check_root(grants[-1], anchors, evidence)
    if cached is None or cached.keys != keys:
        cached = _CachedChain(read, copy.deepcopy(keys), _prepare(read.root_signed, keys))
    cached.root.check(error=InvalidAssertionError)
    for hop in read.hops:
        hop.check(error=InvalidAssertionError)
    _remember(key, cached)
    return grants


class _ParsedChain(NamedTuple):
    """A parsed chain, newest first: the hops with the keys that they name, and the root, whose key an anchor names."""

    grants: tuple[Grant, ...]
    root_signed: jose.Parsed
    hops: tuple[jose.PreparedCheck, ...]


class _CachedChain(NamedTuple):
    """A parsed chain, and the prepared check of its root with the anchor's keys that it names."""

    read: _ParsedChain
    keys: list[JWK]
    root: jose.PreparedCheck


_KEPT: Final = 256
_cache: Final[dict[tuple[str, ...], _CachedChain]] = {}
"""A service gets the same chain with every call of a session. Signatures, time, trust and keys are checked each time; only the
parsing, which depends on the bytes alone, is cached."""


def _remember(key: tuple[str, ...], cached: _CachedChain) -> None:
    if key not in _cache and len(_cache) >= _KEPT:
        _cache.clear()
    _cache[key] = cached


def _parse(compacts: tuple[str, ...]) -> _ParsedChain:
    """Parse a chain, and apply all rules that depend on its bytes alone."""
    signed = [read_signed(compact) for compact in compacts]
    grants = tuple(grant for grant, _ in signed)
    hops = tuple(reversed(grants))
    for depth, grant in enumerate(hops):
        _check_depth(grant, depth)
    for parent, child in itertools.pairwise(hops):
        _check_link(parent, child)
        _check_constants(parent, child)
        _check_actor(parent, child)
        _check_narrowing(parent, child)
    _check_no_actor_twice(grants)
    prepared = [
        _prepare(parsed, (_signer(child, parent),))
        for (child, parsed), (parent, _) in itertools.pairwise(signed)
    ]
    return _ParsedChain(grants, signed[-1][1], tuple(prepared))


def holder_key(jwk: JWK | None, jkt: str) -> JWK:
    """Return the key in a header if it is the key that a grant is bound to.

    Raises:
        InvalidAssertionError: there is none, or it is another's.
    """
    if jwk is None:
        raise InvalidAssertionError("key_missing", "the signer's public key isn't in the header")
    try:
        presented = thumbprint(jwk)
    except ConfigurationError:
        raise InvalidAssertionError(
            "key_malformed", "the header's key isn't a public key"
        ) from None
    if not hmac.compare_digest(presented.encode(), jkt.encode()):
        raise InvalidAssertionError(
            "key_mismatch", "the key in the header isn't the one that the grant above names"
        )
    return jwk


def _signer(child: Grant, parent: Grant) -> JWK:
    """The key that signed a hop below the root. Only the parent names it."""
    key = holder_key(child.jwk, parent.jkt)
    if child.kid is not None:
        raise InvalidAssertionError("unknown_key", "a hop below the root names its key by kid")
    return key


def _check_caps(compacts: Sequence[str]) -> None:
    if not compacts:
        raise InvalidAssertionError("chain_empty", "the chain has no grant")
    if len(compacts) > MAX_HOPS:
        raise InvalidAssertionError("chain_too_deep", f"the chain has more than {MAX_HOPS} hops")
    if sum(map(len, compacts)) > CHAIN_LIMIT:
        raise InvalidAssertionError("chain_too_large", "the chain is larger than 64 KiB")


def _check_depth(grant: Grant, depth: int) -> None:
    if grant.depth != depth:
        raise InvalidAssertionError(
            "depth_mismatch", "a hop's depth isn't its position in the chain"
        )
    if grant.depth > grant.max_depth:
        raise InvalidAssertionError("depth_exceeded", "the chain is deeper than its maximum depth")
    if (grant.par_hash is None) != (depth == 0) or (grant.evidence is None) != (depth > 0):
        raise InvalidAssertionError("hop_malformed", "only hop 0 has evidence and no parent")


def _check_link(parent: Grant, child: Grant) -> None:
    expected = signing_input_hash(parent.compact)
    if not hmac.compare_digest(expected.encode(), (child.par_hash or "").encode()):
        raise InvalidAssertionError("parent_mismatch", "a hop names another grant as its parent")
    if child.iss != parent.agent:
        raise InvalidAssertionError("issuer_mismatch", "a hop isn't issued by the agent above it")
    if child.max_depth > parent.max_depth:
        raise InvalidAssertionError(
            "depth_exceeded", "a hop raises the maximum depth of its parent"
        )


def _check_constants(parent: Grant, child: Grant) -> None:
    constant = (parent.sub, parent.sub_iss, parent.sub_profile, parent.purpose, parent.txn)
    if (child.sub, child.sub_iss, child.sub_profile, child.purpose, child.txn) != constant:
        raise InvalidAssertionError("constant_changed", "principal, purpose or transaction changed")


def _check_actor(parent: Grant, child: Grant) -> None:
    if child.act.get("act") != parent.act or child.vouched_by != parent.agent:
        raise InvalidAssertionError(
            "actor_mismatch", "act doesn't nest the hops as they are signed"
        )


def _check_narrowing(parent: Grant, child: Grant) -> None:
    if not child.scopes <= parent.scopes:
        raise InvalidAssertionError("scope_widened", "a hop has a scope that its parent lacks")
    if not child.aud <= parent.aud:
        raise InvalidAssertionError(
            "audience_widened", "a hop has a resource that its parent lacks"
        )
    if parent.details is not None and not parent.details.covers(child.details):
        raise InvalidAssertionError(
            "details_widened", "a hop's details are wider than its parent's"
        )
    if child.exp > parent.exp or child.nbf < parent.nbf or child.iat < parent.nbf:
        raise InvalidAssertionError("lifetime_widened", "a hop's lifetime exceeds its parent's")


def _check_no_actor_twice(grants: Sequence[Grant]) -> None:
    if len({grant.agent for grant in grants}) != len(grants) or len(
        {grant.jkt for grant in grants}
    ) != len(grants):
        raise InvalidAssertionError("actor_repeated", "an agent or a key acts twice in one chain")


def _check_times(grants: Sequence[Grant], now: float, skew: float) -> None:
    # Hops only narrow, so the leaf ends first and begins last: the skew counts once, at the leaf.
    leaf = grants[0]
    if now >= leaf.exp + skew:
        raise InvalidAssertionError("expired", "the chain has expired")
    begins = leaf.nbf
    for grant in grants:
        if grant.exp <= grant.nbf:
            raise InvalidAssertionError("lifetime_empty", "a hop ends before it begins")
        begins = max(begins, grant.iat)
    if now < begins - skew:
        raise InvalidAssertionError("not_yet_valid", "the chain begins in the future")


def _check_root(root: Grant, anchors: Iterable[Anchor], evidence: str) -> list[JWK]:
    """Check hop 0 against its anchor. Return the anchor's keys that may have signed it."""
    known = tuple(anchors)
    named = [anchor for anchor in known if anchor.issuer == root.iss]
    if not named:
        raise InvalidAssertionError(
            "unknown_anchor",
            "no trusted anchor signed the chain's root",
            remedy="add a TrustAnchor for its issuer, if you trust it",
        )
    anchor = named[0]
    _check_vouching(root, anchor, evidence)
    if root.sub_profile == TRIGGER:
        _check_trigger(root, known)
    if "act" in root.act or root.vouched_by != anchor.issuer:
        raise InvalidAssertionError(
            "actor_mismatch", "hop 0 names another actor than its anchor may"
        )
    if root.kid is None or root.jwk is not None:
        raise InvalidAssertionError("key_missing", "hop 0 doesn't name its anchor's key by kid")
    return [key for key in anchor.keys if key.get("kid") == root.kid]


def _check_vouching(root: Grant, anchor: Anchor, evidence: str) -> None:
    claimed = root.evidence or "asserted"  # always set at hop 0, to a known word
    if _RANK[claimed] > _RANK[anchor.evidence]:
        raise InvalidAssertionError(
            "evidence_exceeded",
            f"the anchor claims evidence {claimed}, more than it may give here",
            remedy=f"pass TrustAnchor(…, evidence={claimed!r}) if the anchor verifies principals itself",
        )
    if _RANK[claimed] < _RANK[evidence]:
        raise InvalidAssertionError(
            "evidence_too_low",
            f"the principal's evidence is {claimed}, and {evidence} is required",
            remedy="require less evidence only if unverified principals may call",
        )
    is_trigger = root.sub_profile == TRIGGER and root.sub_iss == root.agent
    if root.sub_iss != anchor.issuer and root.sub_iss not in anchor.subjects and not is_trigger:
        raise InvalidAssertionError(
            "subject_not_vouched",
            "the anchor may not vouch for a principal of this issuer",
            remedy="add that issuer to the TrustAnchor's subjects, if the anchor may vouch for it",
        )


def _check_trigger(root: Grant, anchors: Iterable[Anchor]) -> None:
    """Check a trigger, which has no token to verify, and whose agent is its issuer.

    An agent with the name of an issuer could declare triggers that look like that issuer's principals.
    """
    if root.evidence == "issuer":
        raise InvalidAssertionError(
            "evidence_exceeded",
            "hop 0 claims evidence issuer for a trigger, which can have agent at most",
            remedy="mint hop 0 of a trigger with evidence agent",
        )
    issuers = {name for anchor in anchors for name in (anchor.issuer, *anchor.subjects)}
    if root.agent in issuers:
        raise InvalidAssertionError(
            "agent_is_issuer", "the agent that declares a trigger has an issuer's name"
        )


def _prepare(signed: jose.Parsed, keys: Sequence[JWK]) -> jose.PreparedCheck:
    fitting = jose.fit_keys(
        signed.head,
        keys,
        algorithms=DELEGATION_ALGORITHMS,
        typ=GRANT_TYPE,
        error=InvalidAssertionError,
    )
    return fitting.prepare(signed)


class Handover(NamedTuple):
    """A verified chain that was handed over with a call, newest first. Its leaf is for the recipient.

    `anchor_key` is the public key that its first grant was signed with.
    """

    grants: tuple[Grant, ...]
    anchor_key: JWK

    def __repr__(self) -> str:
        return f"<Handover to {self.grants[0].agent}>"
