# SPDX-License-Identifier: Apache-2.0
"""`on_behalf_of` for programs that hold no identity of their own: that of the configuration which the environment names."""

from __future__ import annotations

import atexit
import threading
from typing import TYPE_CHECKING, Final

from agent_identity.config import configuration_file
from agent_identity.errors import ConfigurationError
from agent_identity.identity import AgentIdentity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from agent_identity.credentials.principal_tokens import SubjectTokens, TokenSource
    from agent_identity.session import Session
    from agent_identity.values import JSON, Principal

__all__ = ["on_behalf_of"]

_identities: Final[dict[Path, AgentIdentity]] = {}
_lock = threading.Lock()


def on_behalf_of(
    subject: str | Principal | SubjectTokens | TokenSource,
    *,
    purpose: str,
    task: str | None = None,
    scopes: Iterable[str] | None = None,
    resources: Iterable[str] | None = None,
    authorization_details: Iterable[Mapping[str, JSON]] | None = None,
    expires_in: float | None = None,
    max_depth: int = 3,
    budget: object = None,
) -> Session:
    """A session of the identity that `AGENT_IDENTITY_CONFIG` configures. It never falls back to an embedded one.

    Raises:
        ConfigurationError: nothing is configured, or what is can't be used.
    """
    path = configuration_file()
    if path is None:
        raise ConfigurationError(
            "not_configured",
            "AGENT_IDENTITY_CONFIG names no configuration",
            remedy='use AgentIdentity.embedded("…").on_behalf_of(…), or set AGENT_IDENTITY_CONFIG',
        )
    return _identity(path).on_behalf_of(
        subject,
        purpose=purpose,
        task=task,
        scopes=scopes,
        resources=resources,
        authorization_details=authorization_details,
        expires_in=expires_in,
        max_depth=max_depth,
        budget=budget,
    )


def _identity(path: Path) -> AgentIdentity:
    """One identity a file, made when it is first needed and closed when the program ends."""
    with _lock:
        found = _identities.get(path)
        if found is None:
            found = _identities[path] = AgentIdentity.from_config(path)
            atexit.register(found.close)
        return found
