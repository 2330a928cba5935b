# SPDX-License-Identifier: Apache-2.0
"""Revocation, and how it reaches running sessions."""

from __future__ import annotations

from agent_identity.lifecycle.reference import Reference, read_reference
from agent_identity.lifecycle.revocation import Revocation, Revocations, RevocationStore

__all__ = ["Reference", "Revocation", "RevocationStore", "Revocations", "read_reference"]
