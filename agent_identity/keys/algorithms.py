# SPDX-License-Identifier: Apache-2.0
"""The one list of signature algorithms (RFC 7518 §3.1, RFC 8037, RFC 9864). No symmetric one and no `none` is in it."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

__all__ = ["ALGORITHMS", "DELEGATION_ALGORITHMS", "KEY_TYPES", "Algorithm"]

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
"""The `kty` and `crv` of each algorithm's keys. Where a key fits several, a key that names none signs with the first."""

ALGORITHMS: Final = frozenset(KEY_TYPES)
"""What others may sign with: tokens of issuers, assertions of clients, DPoP proofs."""

DELEGATION_ALGORITHMS: Final = frozenset({"ES256", "Ed25519", "EdDSA"})
"""What grants, assertions, records and revocation lists are signed with."""
