# SPDX-License-Identifier: Apache-2.0
"""The result of a successful verification: the principal, the agents of the chain, the purpose and the call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agent_identity.values import Principal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.delegation.assertion import Assertion
    from agent_identity.delegation.chain import Handover
    from agent_identity.delegation.details import Details
    from agent_identity.delegation.grant import Grant
    from agent_identity.values import Approval


class Actor(NamedTuple):
    """One agent of a verified chain. `vouched` is True where an anchor, not another agent, named it."""

    agent: str
    instance: str
    depth: int
    scopes: frozenset[str]
    vouched: bool


class AssertedCall(NamedTuple):
    """The call as its agent signed it. `verify_call` compares tool and arguments; `verify_request` can't."""

    id: str
    tool: str
    args_hash: str
    trace_id: str | None
    span_id: str | None


@dataclass(frozen=True, slots=True)
class VerifiedCall:
    """A call that passed every rule.

    `chain` is newest first. `scopes` are those that the chain carries, and the token too where it was verified. `details` limit
    them further. `call` is None where nothing was asserted (`allow={"unasserted"}`). `expires_at` is Unix seconds.
    """

    principal: Principal
    evidence: str
    purpose: str
    task: str | None
    txn: str
    chain: tuple[Actor, ...]
    scopes: frozenset[str]
    details: Details | None
    call: AssertedCall | None
    approval: Approval | None
    token_verified: bool
    expires_at: float
    handover: Handover | None = field(default=None)

    @property
    def agent(self) -> str:
        """The agent that acts."""
        return self.chain[0].agent


def call_of(
    grants: Sequence[Grant],
    assertion: Assertion | None,
    *,
    scopes: frozenset[str],
    token_verified: bool,
    handover: Handover | None,
) -> VerifiedCall:
    """Make the result of statements that passed every rule."""
    leaf, root = grants[0], grants[-1]
    return VerifiedCall(
        principal=Principal(leaf.sub, iss=leaf.sub_iss, profile=leaf.sub_profile),
        evidence=root.evidence or "asserted",
        purpose=leaf.purpose,
        task=leaf.task,
        txn=leaf.txn,
        chain=tuple(
            [
                Actor(grant.agent, grant.jkt, grant.depth, grant.scopes, grant.depth == 0)
                for grant in grants
            ]
        ),
        scopes=scopes,
        details=leaf.details,
        call=None if assertion is None else _call(assertion),
        approval=None if assertion is None else assertion.approval,
        token_verified=token_verified,
        expires_at=leaf.exp,
        handover=handover,
    )


def _call(assertion: Assertion) -> AssertedCall:
    return AssertedCall(
        assertion.call_id,
        assertion.tool,
        assertion.args_hash,
        assertion.trace_id,
        assertion.span_id,
    )
