# SPDX-License-Identifier: Apache-2.0
"""Ways to get a credential, one file each, as flows: nothing here reaches the world, everything asks it.

    source            what every way has in common; `token_exchange.py` is the pattern for one
    issuer, metadata  an issuer as we know it: endpoints, keys, and when it isn't asked
    client            how we prove there which client we are
    oauth, answers    one request, and its answer read strictly; `checks` and `accepting` hold it to what was asked for
    cache, refusals   what makes two requests the same, how long an answer serves, how long a refusal stands
    subjects          the principal's own tokens: verified before a session opens, renewed while it lasts
    workload/         what the platform says that we are
    legacy, platform  keys, passwords, certificates, the platform's own tokens
    vault             secrets in OpenBao or Vault

`SubjectTokens` and `TokenSource` are what `on_behalf_of` takes beside a single token.
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
