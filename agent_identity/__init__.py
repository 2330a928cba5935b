# SPDX-License-Identifier: Apache-2.0
"""Just-in-time credentials, signed delegation and provenance for every tool call of an AI agent.

    identity = AgentIdentity.embedded("invoice-bot")

    @tool(resource="https://billing.example", scopes=["invoices:read"])
    def list_invoices(customer: str) -> list[dict]:
        return httpx.get(f"https://billing.example/invoices", auth=current_credential()).json()

    with identity.on_behalf_of("user:alice", purpose="close the October books") as session:
        list_invoices("ACME")
    print(identity.who_triggered(session))

Each call of a tool opens a span, is decided by policy, gets its own credential, signs what it is about to do, puts that on
record, runs, and records how it ended. `pipeline.py` holds that order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_identity.decorators import tool
    from agent_identity.errors import (
        AgentIdentityError,
        ApprovalRequiredError,
        ConfigurationError,
        CredentialError,
        CredentialRejectedError,
        CredentialUnavailableError,
        DeniedError,
        InvalidAssertionError,
        InvalidSubjectError,
        LedgerError,
        NoSessionError,
        RevokedError,
        TransportError,
        VerificationError,
    )
    from agent_identity.http.credential import Credential
    from agent_identity.identity import AgentIdentity, on_behalf_of
    from agent_identity.provenance.trace import Trace
    from agent_identity.runtime.current import current_credential, current_session
    from agent_identity.session import Session
    from agent_identity.values import Approval, Decision, Principal

__all__ = [
    "AgentIdentity",
    "AgentIdentityError",
    "Approval",
    "ApprovalRequiredError",
    "ConfigurationError",
    "Credential",
    "CredentialError",
    "CredentialRejectedError",
    "CredentialUnavailableError",
    "Decision",
    "DeniedError",
    "InvalidAssertionError",
    "InvalidSubjectError",
    "LedgerError",
    "NoSessionError",
    "Principal",
    "RevokedError",
    "Session",
    "Trace",
    "TransportError",
    "VerificationError",
    "current_credential",
    "current_session",
    "on_behalf_of",
    "tool",
]

_HOMES = {
    "AgentIdentity": "identity",
    "Approval": "values",
    "Credential": "http.credential",
    "Decision": "values",
    "Principal": "values",
    "Session": "session",
    "Trace": "provenance.trace",
    "current_credential": "runtime.current",
    "current_session": "runtime.current",
    "on_behalf_of": "identity",
    "tool": "decorators",
}


__version__: str  # of the installed distribution, read when it is first asked for


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - a name is loaded when it is first asked for

    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def _version() -> str:
    from importlib import metadata  # noqa: PLC0415 - see above

    try:
        return metadata.version("agent-identity-sdk")
    except metadata.PackageNotFoundError:  # run from its source, which wasn't installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
