# SPDX-License-Identifier: Apache-2.0
"""What services and auditors check with: the `Verifier` and its parts."""

from agent_identity.verify.anchors import Revocations, TrustAnchor, UnsafeNoRevocations
from agent_identity.verify.replay import MemoryReplay, Replay, UnsafeNoReplayCheck
from agent_identity.verify.verifier import Actor, VerifiedCall, Verifier

__all__ = [
    "Actor",
    "MemoryReplay",
    "Replay",
    "Revocations",
    "TrustAnchor",
    "UnsafeNoReplayCheck",
    "UnsafeNoRevocations",
    "VerifiedCall",
    "Verifier",
]
