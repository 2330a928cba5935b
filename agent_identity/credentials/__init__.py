# SPDX-License-Identifier: Apache-2.0
"""Credential sources, written as flows: nothing here does I/O itself.

    source            the protocol of a source, and the request that it answers
    sources/          one file per source; `token_exchange.py` is the pattern, `checks.py` validates the answers
    oauth/            an issuer (metadata, keys, circuit breaker), client authentication, requests, responses, DPoP
    cache             cache keys and lifetimes of credentials and refusals
    principal_tokens  the principal's own tokens: verified before a session opens, renewed while it lasts
    root_grants       the first grant of a chain
    workload/         workload identity tokens of platforms
    vault/            secrets and signatures of OpenBao or Vault

`on_behalf_of` takes a token string, `SubjectTokens` or a `TokenSource`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_identity.credentials.principal_tokens import SubjectTokens, TokenSource

__all__ = ["SubjectTokens", "TokenSource"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.principal_tokens"), name)
