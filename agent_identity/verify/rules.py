# SPDX-License-Identifier: Apache-2.0
"""The rules for assertions, chains and revocations, for calls and requests. One function per rule, one code per refusal."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.delegation.assertion import ASSERTION_TYPE, LIFETIME, Assertion
from agent_identity.delegation.chain import Anchor, Handover, holder_key, verify_chain
from agent_identity.delegation.claims import Claims
from agent_identity.errors import InvalidAssertionError, RevokedError
from agent_identity.keys.algorithms import DELEGATION_ALGORITHMS
from agent_identity.values import LOCAL
from agent_identity.verify.request import is_same

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from agent_identity.delegation.grant import Grant
    from agent_identity.keys.signing import JWK
    from agent_identity.values import JSON
    from agent_identity.verify.anchors import Anchors

_RESENT: Final = re.compile(r"(.+)\.r[1-9][0-9]*", re.ASCII)


def check_audience(grants: Sequence[Grant], audience: str) -> None:
    """Check that the chain's `aud` has this service, byte for byte."""
    if audience == LOCAL or audience not in grants[0].aud:
        raise _audience_mismatch("the chain", grants[0].aud - {LOCAL}, audience)


def check_assertion(
    assertion: Assertion, leaf: Grant, audience: str, *, now: float, skew: float
) -> None:
    """Check that the leaf's agent signed it with the leaf's key, for this service, within a minute."""
    if assertion.use is not None or assertion.aud == LOCAL:
        raise InvalidAssertionError("not_for_sending", "the assertion is only for a ledger")
    if assertion.aud != audience:
        raise _audience_mismatch("the assertion", {assertion.aud}, audience)
    if (assertion.iss, assertion.sub, assertion.txn) != (leaf.agent, leaf.sub, leaf.txn):
        raise InvalidAssertionError("leaf_mismatch", "the assertion isn't the leaf agent's")
    if not is_same(assertion.grant_hash, leaf.hash()):
        raise InvalidAssertionError("grant_mismatch", "the assertion names another grant")
    if not 0 < assertion.exp - assertion.iat <= LIFETIME:
        raise InvalidAssertionError(
            "lifetime_exceeded", "the assertion's lifetime is longer than a minute"
        )
    if now >= assertion.exp + skew:
        raise InvalidAssertionError("expired", "the assertion has expired")
    # Grant and assertion may come from different clocks, so the skew applies between them, too.
    if now < assertion.iat - skew or assertion.iat < leaf.iat - skew:
        raise InvalidAssertionError(
            "not_yet_valid", "the assertion is older than its grant, or from the future"
        )
    holder = _holder(assertion.parsed.head, leaf.jkt)
    holder.prepare(assertion.parsed).check(error=InvalidAssertionError)


def _audience_mismatch(what: str, named: Collection[str], audience: str) -> InvalidAssertionError:
    """The error for another audience. URIs are compared exactly; a missing trailing slash gets a remedy of its own."""
    near = [uri for uri in named if uri.rstrip("/") == audience.rstrip("/")]
    named_uri = ascii(min(near or named, default="no resource"))[:120]
    return InvalidAssertionError(
        "audience_mismatch",
        f"{what} is for {named_uri}, this verifier's audience is {ascii(audience)[:120]}",
        remedy="the two differ by the slash at the end, which counts: write audience= exactly as the resource"
        if near
        else "pass the verifier the audience= that callers name as resource, letter by letter",
    )


@lru_cache(256)
def _holder(head: str, jkt: str) -> jose.FittingKeys:
    """The key in an assertion's header, checked against the leaf. Cached: it is the same for every call of an agent."""
    return jose.fit_keys(
        head,
        (holder_key(Claims(jose.read_header(head)).mapping("jwk"), jkt),),
        algorithms=DELEGATION_ALGORITHMS,
        typ=ASSERTION_TYPE,
        error=InvalidAssertionError,
    )


def check_approval(assertion: Assertion, grants: Sequence[Grant]) -> None:
    """Check that no agent of the chain approved the call."""
    approval = assertion.approval
    if approval is not None and approval.by in {grant.agent for grant in grants}:
        raise InvalidAssertionError("approval_by_actor", "an agent of the chain approved the call")


def check_is_for_call(assertion: Assertion) -> None:
    """Check that the assertion is for a call, not for one HTTP request."""
    resent = None if assertion.jti == assertion.call_id else _RESENT.fullmatch(assertion.jti)
    if assertion.call_id != (assertion.jti if resent is None else resent[1]):
        raise InvalidAssertionError("wrong_door", "the assertion isn't for a call")
    bound = (assertion.htm, assertion.htu, assertion.htq, assertion.content_digest)
    if bound != (None, None, None, None):
        raise InvalidAssertionError("wrong_door", "the assertion is for an HTTP request")


def check_call(assertion: Assertion, tool: str, digest: str) -> None:
    """Check that tool and arguments are the signed ones."""
    if assertion.tool != tool:
        raise InvalidAssertionError("tool_mismatch", "the assertion is for another tool")
    if not is_same(assertion.args_hash, digest):
        raise InvalidAssertionError("args_mismatch", "the assertion is for other arguments")


def check_details_unseen(
    leaf: Grant, audience: str, tool: str | None, *, unseen_arguments: bool
) -> None:
    """Check an HTTP request, whose tool and arguments aren't visible, against the leaf's details."""
    details = leaf.details
    if details is None:
        return
    if not details.reaches(audience):
        raise InvalidAssertionError(
            "details_exceeded", "the chain's details are for other resources"
        )
    if details.allows_unseen(
        audience, tool if unseen_arguments else None, lenient=unseen_arguments
    ):
        return
    if unseen_arguments:
        raise InvalidAssertionError("details_exceeded", "the chain's details are for another tool")
    raise InvalidAssertionError(
        "details_unseen",
        "the chain limits tools or arguments, which an HTTP request doesn't show",
        remedy='use verify_call, or allow={"unseen_arguments"} where the service checks them itself',
    )


def check_revocations(anchors: Anchors, chains: Sequence[Sequence[Grant]]) -> None:
    """Check that principal, transaction, grants, agents and instances aren't revoked."""
    for grants in chains:
        root = grants[-1]
        references = {
            root.txn,
            f"{root.sub_profile}:{root.sub_iss}#{root.sub}",
            f"{root.sub_profile}:{root.sub}",
        }
        issued = root.iat
        for grant in grants:
            references.update((grant.jti, grant.agent, grant.jkt))
            # The oldest `iat` counts: the later ones are stated by agents.
            issued = min(issued, grant.iat)
        for issuer in {root.iss, root.sub_iss}:
            if anchors.has_revoked(issuer, references, issued):
                raise RevokedError(
                    "revoked", "the principal, the session, a grant or an agent was revoked"
                )


def check_token_revocation(
    anchors: Anchors, claims: Mapping[str, JSON], grants: Sequence[Grant]
) -> None:
    """Check that neither the verified token's issuer nor the chain's issuers revoked it."""
    jti, root = claims.get("jti"), grants[-1]
    if not isinstance(jti, str):
        return
    issued = jose.numeric_date(claims, "iat")
    issuers = {root.iss, root.sub_iss, str(claims.get("iss"))}
    if any(anchors.has_revoked(issuer, {jti}, issued) for issuer in issuers):
        raise RevokedError("revoked", "the access token was revoked")


def read_handover(
    compacts: Sequence[str],
    grants: Sequence[Grant],
    anchors: Sequence[Anchor],
    *,
    now: float,
    skew: float,
    evidence: str,
) -> Handover:
    """Verify a handed-over chain: it must be valid, one hop below the caller's, with the same principal, purpose and transaction."""
    handed = verify_chain(compacts, anchors, now=now, skew=skew, evidence=evidence)
    leaf, root, caller = handed[0], handed[-1], grants[0]
    same = (caller.sub, caller.sub_iss, caller.sub_profile, caller.purpose, caller.txn)
    if (leaf.sub, leaf.sub_iss, leaf.sub_profile, leaf.purpose, leaf.txn) != same:
        raise InvalidAssertionError(
            "handover_mismatch",
            "the handed-over chain has another principal, purpose or transaction than the caller's",
        )
    above = [(grant.agent, grant.jkt) for grant in handed[1:]]
    if above != [(grant.agent, grant.jkt) for grant in grants]:
        raise InvalidAssertionError(
            "handover_mismatch", "the handed-over chain isn't below the caller's"
        )
    return Handover(handed, _anchor_key(root, anchors))


def _anchor_key(root: Grant, anchors: Sequence[Anchor]) -> JWK:
    for anchor in anchors:
        if anchor.issuer == root.iss:
            for key in anchor.keys:
                if key.get("kid") == root.kid:
                    return key
    raise InvalidAssertionError(
        "unknown_anchor", "the chain's root isn't signed by a trusted anchor"
    )
