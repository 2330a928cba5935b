# SPDX-License-Identifier: Apache-2.0
"""Verifies the signatures in a ledger: grants with the anchor's key of that time, assertions with the agents' keys.

A grant's record has the public key of its anchor, since issuers delete old keys and an audit may be years later. Whether that
key is trusted is a matter of `TrustAnchor`; here the signed statements are compared with the records about them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.delegation.assertion import ASSERTION_TYPE, Assertion, read_assertion
from agent_identity.delegation.chain import TRIGGER, Anchor, holder_key, verify_chain
from agent_identity.delegation.grant import read_grant
from agent_identity.errors import InvalidAssertionError, VerificationError
from agent_identity.keys.algorithms import DELEGATION_ALGORITHMS
from agent_identity.provenance.records import CALL_INTENDED, GRANT_MADE

if TYPE_CHECKING:
    from agent_identity.delegation.grant import Grant
    from agent_identity.provenance.ledger import Ledger
    from agent_identity.provenance.records import Record
    from agent_identity.values import JSON

_SKEW: Final = 60.0
"""Seconds by which the clocks of an anchor, an agent and its ledger may differ."""


class SignatureCheck:
    """Checks the signatures in records of one ledger. Those of an erased subject can't be checked any more."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._leaves: dict[str, Grant | None] = {}

    def __call__(self, record: Record, /) -> str | None:
        """What is wrong with the signatures in a record; None if nothing is."""
        if record.sealed is None:
            return None
        try:
            if record.kind == GRANT_MADE:
                self._leaves[str(record.body.get("grant_hash"))] = _leaf_of(record)
            elif record.kind == CALL_INTENDED:
                self._check_assertion(record)
        except VerificationError as error:
            return f"its signature is invalid: {error.code}"
        return None

    def _check_assertion(self, record: Record) -> None:
        compact = (record.sealed or {}).get("assertion")
        assertion = read_assertion(compact if isinstance(compact, str) else "")
        leaf = self._leaf(assertion.grant_hash)
        if leaf is None:
            return  # the grant's subject was erased
        jose.verify(
            assertion.compact,
            (holder_key(assertion.jwk, leaf.jkt),),
            algorithms=DELEGATION_ALGORITHMS,
            typ=ASSERTION_TYPE,
            max_header=1024,
            error=InvalidAssertionError,
        )
        _check_agreement(record, assertion, leaf)

    def _leaf(self, grant_hash: str) -> Grant | None:
        """The grant that an assertion names, its chain checked.

        Raises:
            InvalidAssertionError: no such grant is on record.
        """
        if grant_hash not in self._leaves:
            records = self._ledger.find(grant_hash)
            grants = [record for record in records if record.kind == GRANT_MADE]
            if not grants:
                raise InvalidAssertionError("grant_unknown", "its grant is not on record")
            self._leaves[grant_hash] = _leaf_of(grants[0])
        return self._leaves[grant_hash]


def _leaf_of(record: Record) -> Grant | None:
    if record.sealed is None:
        return None
    chain = record.sealed.get("chain")
    compacts = [hop for hop in chain if isinstance(hop, str)] if isinstance(chain, list) else []
    key = record.body.get("anchor_key")
    anchor_id = record.body.get("anchor")
    if not isinstance(key, dict) or not isinstance(anchor_id, str):
        raise InvalidAssertionError("key_missing", "the anchor's key is not on record")
    root = read_grant(compacts[-1] if compacts else "")
    # The anchor's `subjects` aren't known here: any `sub_iss` is accepted, except the agent that declared a trigger.
    subjects = frozenset({root.sub_iss})
    if root.sub_profile == TRIGGER:
        subjects -= {root.agent}
    anchor = Anchor(anchor_id, (key,), evidence="issuer", subjects=subjects)
    leaf = verify_chain(compacts, (anchor,), now=record.at.timestamp(), skew=_SKEW)[0]
    if record.ref != leaf.jti or any(
        record.body.get(name) != value for name, value in _public_fields(leaf).items()
    ):
        raise InvalidAssertionError("grant_mismatch", "the record is about another grant")
    return leaf


def _public_fields(leaf: Grant) -> dict[str, JSON]:
    """The unencrypted fields of a record about a grant."""
    return {
        "agent": leaf.agent,
        "depth": leaf.depth,
        "scope": [*sorted(leaf.scopes)],
        "aud": [*sorted(leaf.aud)],
        "expires_at": leaf.exp,
        "grant_hash": leaf.hash(),
        "evidence": leaf.evidence,
    }


def _check_agreement(record: Record, assertion: Assertion, leaf: Grant) -> None:
    """Compare the record's unencrypted fields with the signed assertion: a difference means that one was changed."""
    body = record.body
    call = (record.call_id, body.get("tool"), body.get("resource"))
    if call != (assertion.call_id, assertion.tool, assertion.aud):
        raise InvalidAssertionError("record_mismatch", "the record is about another call")
    if assertion.use != "record" or assertion.jti != assertion.call_id:
        raise InvalidAssertionError("wrong_door", "the assertion isn't for a ledger")
    if (assertion.iss, assertion.sub, assertion.txn) != (leaf.agent, leaf.sub, leaf.txn):
        raise InvalidAssertionError(
            "leaf_mismatch", "the assertion names another agent than its grant"
        )
    if assertion.aud not in leaf.aud:
        raise InvalidAssertionError("audience_mismatch", "the grant doesn't reach that resource")
    if not leaf.iat - _SKEW <= assertion.iat < leaf.exp + _SKEW:
        raise InvalidAssertionError(
            "expired", "the grant wasn't valid at the time of the assertion"
        )
    named = (body.get("agent"), body.get("txn"), body.get("depth"), body.get("grant_hash"))
    if named != (leaf.agent, leaf.txn, leaf.depth, assertion.grant_hash):
        raise InvalidAssertionError("record_mismatch", "the record names another agent or grant")
