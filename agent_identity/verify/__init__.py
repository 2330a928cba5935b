# SPDX-License-Identifier: Apache-2.0
"""The `Verifier` of services and auditors, and its parts. `verify.asgi` is the middleware for web frameworks."""

from agent_identity.delegation.chain import Handover
from agent_identity.verify.anchors import TrustAnchor
from agent_identity.verify.messages import Carrier
from agent_identity.verify.problems import Problem, RefusedError, problem
from agent_identity.verify.replay import MemoryReplay, Replay, UnsafeNoReplayCheck
from agent_identity.verify.result import Actor, AssertedCall, VerifiedCall
from agent_identity.verify.revocations import RevocationCheck, Revocations, UnsafeNoRevocations
from agent_identity.verify.verifier import Verifier

__all__ = [
    "Actor",
    "AssertedCall",
    "Carrier",
    "Handover",
    "MemoryReplay",
    "Problem",
    "RefusedError",
    "Replay",
    "RevocationCheck",
    "Revocations",
    "TrustAnchor",
    "UnsafeNoReplayCheck",
    "UnsafeNoRevocations",
    "VerifiedCall",
    "Verifier",
    "problem",
]
