# SPDX-License-Identifier: Apache-2.0
"""What tests of platforms and secret stores share: signed tokens, a certificate, and what a session asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_identity import jose
from agent_identity.credentials.agent import Agent
from agent_identity.credentials.source import Wanted
from agent_identity.keys.signing import SigningKey
from agent_identity.values import Certificate, Principal, Secret

NOW = 1_795_518_000.0
BILLING = "https://billing.example"
KEY = SigningKey.generate()
AGENT = Agent("urn:agent-identity:agent:invoice-bot")


@pytest.fixture
def jwt():
    """Makes a signed token for billing that ends in ten minutes; a claim that is None is left out."""

    def make(**changes: Any) -> str:
        claims = {"iss": "https://platform.example", "sub": "job-1", "aud": BILLING} | {
            "exp": NOW + 600
        }
        members = {name: value for name, value in (claims | changes).items() if value is not None}
        return KEY.compact(jose.encode_header("ES256", typ="JWT"), json.dumps(members).encode())

    return make


@pytest.fixture
def certificate():
    """Makes a client certificate with these URIs."""

    def make(*uris: str, expires_at: float = NOW + 3600) -> Certificate:
        return Certificate(
            "-----BEGIN CERTIFICATE-----", Secret("canary-key-7Hq2"), "tp", expires_at, uris
        )

    return make


@pytest.fixture
def wanted():
    return Wanted(
        resource=BILLING,
        scopes=frozenset({"invoices:read"}),
        principal=Principal("alice"),
        subject=None,
        chain=(),
        agent=AGENT.uri,
        proof_key=AGENT.proof_key,
        txn="ses_1",
        purpose="close the books",
    )
