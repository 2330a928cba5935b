# SPDX-License-Identifier: Apache-2.0
"""The URLs of the authority's endpoints, and its metadata document (RFC 8414, RFC 9449 §5.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_identity.errors import ConfigurationError, DeniedError
from agent_identity.keys.algorithms import PROOF_ALGORITHMS
from agent_identity.uris import is_loopback, origin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_identity.values import JSON

_WELL_KNOWN: Final = "/.well-known/oauth-authorization-server"
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/?")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The URLs below an issuer; `metadata` inserts the well-known path before the issuer's own (RFC 8414 §3.1)."""

    issuer: str
    origin: str
    metadata: str
    token: str
    jwks: str
    introspection: str
    revocation: str
    registration: str
    revocations: str

    def document(
        self, grant_types: Iterable[str], auth_methods: Iterable[str], *, registers: bool
    ) -> dict[str, JSON]:
        """The metadata document: grant types, client authentication methods, and whether clients may register."""
        methods: list[JSON] = [*sorted(auth_methods)]
        types: list[JSON] = [*grant_types]
        algorithms: list[JSON] = [*sorted(PROOF_ALGORITHMS)]
        document: dict[str, JSON] = {
            "issuer": self.issuer,
            "token_endpoint": self.token,
            "jwks_uri": self.jwks,
            "introspection_endpoint": self.introspection,
            "revocation_endpoint": self.revocation,
            "agent_identity_revocations_uri": self.revocations,
            "grant_types_supported": types,
            "response_types_supported": [],
            "token_endpoint_auth_methods_supported": methods,
            "token_endpoint_auth_signing_alg_values_supported": algorithms,
            "introspection_endpoint_auth_methods_supported": methods,
            "introspection_endpoint_auth_signing_alg_values_supported": algorithms,
            "revocation_endpoint_auth_methods_supported": methods,
            "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
            "dpop_signing_alg_values_supported": algorithms,
        }
        if registers:
            document["registration_endpoint"] = self.registration
        return document


def endpoints_of(issuer: str) -> Endpoints:
    """The endpoints of an issuer: an https URL (http on loopback) with a plain path and no query or fragment.

    Raises:
        ConfigurationError: `issuer_malformed`.
    """
    try:
        base = origin(issuer)
    except DeniedError:
        base = ""
    path = issuer[len(base) :]
    is_safe = issuer.startswith("https://") or is_loopback(issuer)
    if not base or not issuer.startswith(base) or not is_safe or not _PATH.fullmatch(path):
        raise ConfigurationError(
            "issuer_malformed",
            "the authority's issuer isn't an https URL in normal form, or an http one on loopback",
            remedy="write it like https://agents.example or http://127.0.0.1:8600",
        )
    below = issuer.rstrip("/")
    return Endpoints(
        issuer=issuer,
        origin=base,
        metadata=f"{base}{_WELL_KNOWN}{path.rstrip('/')}",
        token=f"{below}/token",
        jwks=f"{below}/jwks",
        introspection=f"{below}/introspect",
        revocation=f"{below}/revoke",
        registration=f"{below}/register",
        revocations=f"{below}/revocations",
    )
