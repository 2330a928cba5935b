# SPDX-License-Identifier: Apache-2.0
"""Who may call what, decided at the moment of the call.

`request` is what a policy sees, `history` what was permitted before in the same transaction, `rules` asks a policy object or a
plain callable for its decision.
"""

from agent_identity.policy.request import Entity, Request
from agent_identity.policy.rules import GrantsOnly, Policy, as_policy

__all__ = ["Entity", "GrantsOnly", "Policy", "Request", "as_policy"]
