# SPDX-License-Identifier: Apache-2.0
"""The one list of signature algorithms (RFC 7518 §3.1, RFC 8037, RFC 9864), without symmetric ones and without `none`."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Algorithm: TypeAlias = Literal[
    "ES256",
    "ES384",
    "ES512",
    "Ed25519",
    "EdDSA",
    "PS256",
    "PS384",
    "PS512",
    "RS256",
    "RS384",
    "RS512",
]

KEY_TYPES: Final[dict[str, tuple[str, str | None]]] = {
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "Ed25519": ("OKP", "Ed25519"),
    "EdDSA": ("OKP", "Ed25519"),
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
    "PS256": ("RSA", None),
    "PS384": ("RSA", None),
    "PS512": ("RSA", None),
}
"""The `kty` and `crv` of each algorithm's keys. A key that fits several and has no `alg` signs with the first."""

ALGORITHMS: Final = frozenset(KEY_TYPES)
"""What issuers and platforms may sign their tokens with."""

PROOF_ALGORITHMS: Final = frozenset({"ES256", "ES384", "Ed25519", "EdDSA", "PS256", "RS256"})
"""What clients may sign assertions and DPoP proofs with; metadata and challenges list them."""

DELEGATION_ALGORITHMS: Final = frozenset({"ES256", "Ed25519", "EdDSA"})
"""What grants, assertions, records and revocation lists are signed with."""
