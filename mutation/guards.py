# SPDX-License-Identifier: Apache-2.0
"""Which tests guard which modules. A module's mutants are run against the tests of the first row that its name begins with."""

from __future__ import annotations

SIGNATURES = ("tests/unit/test_jose.py", "tests/adversarial/test_signatures.py", "tests/vectors")
CHAINS = (
    "tests/unit/test_chain.py",
    "tests/vectors/test_delegation.py",
    "tests/unit/test_verifier.py",
)
CALLS = ("tests/unit/test_session.py", "tests/unit/test_call_path.py", "tests/unit/test_hop0.py")

GUARDS: dict[str, tuple[str, ...]] = {
    "jose": (*SIGNATURES, "tests/unit/test_dpop.py", "tests/unit/test_chain.py"),
    "canonical": (
        "tests/unit/test_canonical.py",
        "tests/vectors",
        "tests/adversarial/test_signatures.py",
    ),
    "delegation.limits": ("tests/unit/test_limits.py", "tests/unit/test_session.py"),
    "delegation": (*CHAINS, *CALLS, "tests/adversarial/test_independent_reader.py"),
    "verify": (
        *CHAINS,
        "tests/unit/test_replay.py",
        "tests/unit/test_dpop.py",
        "tests/unit/test_verify_records.py",
    ),
}
USUAL = ("jose", "canonical", "delegation")
"""What `nox -s mutation` takes when nothing is named."""
