# SPDX-License-Identifier: Apache-2.0
"""Which tests guard which modules. A module's mutants are run against the tests of the first row that its name begins with."""

from __future__ import annotations

SIGNATURES = ("tests/unit/test_jose.py", "tests/vectors", "tests/adversarial/test_signatures.py")
VECTORS = ("tests/vectors/test_delegation.py", "tests/vectors/test_conformance.py")
CHAINS = ("tests/unit/test_chain.py", *VECTORS, "tests/unit/test_verifier.py")
CALLS = (
    "tests/unit/test_session.py",
    "tests/unit/test_call_path.py",
    "tests/adversarial/test_independent_reader.py",
)
SERVERS = ("tests/drivers/test_asgi.py", "tests/drivers/test_asgi_frameworks.py")

GUARDS: dict[str, tuple[str, ...]] = {
    "jose": (*SIGNATURES, "tests/unit/test_dpop.py", "tests/unit/test_chain.py"),
    "jose.public_keys": SIGNATURES[::-1],
    "canonical": (
        "tests/unit/test_canonical.py",
        "tests/vectors",
        "tests/adversarial/test_signatures.py",
    ),
    "delegation": (
        *CHAINS,
        "tests/unit/test_detailed_sessions.py",
        "tests/unit/test_handover.py",
        "tests/unit/test_session.py",
    ),
    "delegation.assertion": (
        "tests/unit/test_assertion.py",
        "tests/unit/test_verify_call.py",
        "tests/unit/test_verifier.py",
        *VECTORS,
        *CALLS,
    ),
    "delegation.details": (
        "tests/unit/test_details.py",
        "tests/unit/test_detailed_sessions.py",
        *VECTORS,
    ),
    "delegation.limits": (
        "tests/unit/test_limits.py",
        "tests/unit/test_detailed_sessions.py",
        "tests/unit/test_session.py",
    ),
    "verify.asgi": SERVERS,
    "verify.messages": ("tests/unit/test_verify_message.py",),
    "verify.problems": SERVERS,
    "verify.received": SERVERS,
    "verify.required": SERVERS,
    "verify": (
        "tests/unit/test_verifier.py",
        "tests/unit/test_verify_call.py",
        "tests/unit/test_verify_message.py",
        "tests/unit/test_handover.py",
        "tests/drivers/test_anchors_found.py",
        *VECTORS,
        "tests/unit/test_replay.py",
        "tests/unit/test_dpop.py",
        "tests/unit/test_verify_records.py",
    ),
}
"""The first of a row is asked first and should find the most."""

USUAL = ("jose", "canonical", "delegation")
"""What `nox -s mutation` takes when nothing is named."""
