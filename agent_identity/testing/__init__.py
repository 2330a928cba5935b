# SPDX-License-Identifier: Apache-2.0
"""For tests of agents and of extensions: play a flow by hand, run an issuer on loopback, look for leaks.

`FakeIssuer` is a light authorization server, `FakeWeb` any server; `agent_identity.testing.hostile` makes either misbehave.
pytest finds the fixtures `identity`, `issuer`, `ledger` and `spans` by itself (`agent_identity.testing.plugin`).
"""

from agent_identity.testing.issuer import FakeIssuer
from agent_identity.testing.leaks import assert_no_leak, traces_of
from agent_identity.testing.playing import KnownIssuer, play
from agent_identity.testing.web import FakeWeb

__all__ = ["FakeIssuer", "FakeWeb", "KnownIssuer", "assert_no_leak", "play", "traces_of"]
