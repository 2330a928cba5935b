# SPDX-License-Identifier: Apache-2.0
"""For tests of agents and of what extends this library: play a flow by hand, and look for leaks.

With pytest installed, the fixtures `identity`, `issuer`, `ledger` and `spans` come by themselves (`agent_identity.testing.plugin`).
"""

from agent_identity.testing.leaks import assert_no_leak, traces_of
from agent_identity.testing.playing import KnownIssuer, play

__all__ = ["KnownIssuer", "assert_no_leak", "play", "traces_of"]
