# SPDX-License-Identifier: Apache-2.0
"""For whom a command acts, and which credential it may have: what `token` and `exec` share.

The principal's token is named by a reference and never typed, since command lines are seen by others. Without one the session
is autonomous, which the configuration has to allow.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.config.references import References, is_reference
from agent_identity.credentials.principal_tokens import SubjectTokens
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.config import Configuration
    from agent_identity.http.credential import Credential
    from agent_identity.identity import AgentIdentity
    from agent_identity.session import Session
    from agent_identity.values import Secret

__all__ = ["Wish", "binding_of", "check_may_act", "is_bound", "session_for"]

TRIGGER: Final = "cli"
_SCHEMES: Final = ("env", "file", "keyring", "keyring+plaintext")


class Wish(NamedTuple):
    """What a command line asks for. `subject` is a reference, None for nobody; no scopes are those of the configuration."""

    resource: str
    scopes: Sequence[str]
    subject: str | None

    @property
    def wanted_scopes(self) -> Sequence[str] | None:
        return self.scopes or None


def check_may_act(wish: Wish, configuration: Configuration) -> None:
    """Hold a command without a subject to what the configuration allows, before anything is opened.

    Raises:
        ConfigurationError: `autonomous_not_allowed`, or the subject is no reference.
    """
    if wish.subject is not None:
        _check_reference(wish.subject)
    elif not configuration.cli.autonomous:
        raise ConfigurationError(
            "autonomous_not_allowed",
            "without --subject-token this would act for nobody, which the configuration doesn't allow",
            remedy="name the principal's token with --subject-token, or add [cli] autonomous = true",
        )


def session_for(identity: AgentIdentity, wish: Wish, purpose: str) -> Session:
    """The session in which a wish is granted.

    Raises:
        ConfigurationError: the reference names nothing, or no issuer here could verify a token.
    """
    if wish.subject is None:
        return identity.autonomous(trigger=TRIGGER, purpose=purpose)
    token = _subject_token(wish.subject)
    return identity.on_behalf_of(SubjectTokens(access_token=token.reveal()), purpose=purpose)


def _check_reference(reference: str) -> str:
    """The scheme of a reference. What is none may be the token itself, so it isn't repeated."""
    scheme = reference.partition(":")[0]
    if scheme == "vault":
        raise ConfigurationError(
            "not_supported",
            "--subject-token isn't read from a vault",
            remedy="put the principal's token where env:NAME, file:PATH or keyring:NAME says",
        )
    if not is_reference(reference) or scheme not in _SCHEMES:
        raise ConfigurationError(
            "subject_token_in_clear",
            "--subject-token takes the place of the principal's token, never the token: others see command lines",
            remedy="write env:NAME, file:PATH or keyring:NAME; if that was a token, revoke it",
        )
    return scheme


def _subject_token(reference: str) -> Secret:
    scheme = _check_reference(reference)
    if scheme == "file":
        reference = f"file:{Path(reference.removeprefix('file:')).absolute()}"
    found = References().read(reference)
    if found is None or not found.reveal():
        raise ConfigurationError(
            "secret_missing",
            f"there is no token where the {scheme}: reference of --subject-token says",
            remedy="put the principal's token there",
        )
    return found


# -- bound or not -----------------------------------------------------------------------------------------------------


def binding_of(resource: str, configuration: Configuration) -> str | None:
    """What a resource's credential is going to be bound to, None where to nothing or where nobody knows it."""
    from agent_identity.config.model import CERTIFICATE_SOURCES  # noqa: PLC0415 - pydantic is loaded by now

    table = configuration.resources.get(resource)
    if table is None:
        return None if configuration.issuers else "dpop"
    if table.source in CERTIFICATE_SOURCES:
        return "mtls"
    return None if table.binding == "none" else table.binding


def is_bound(credential: Credential) -> bool:
    """Whether a credential opens nothing without a key that stays in this process."""
    if credential.token_type == "DPoP":  # noqa: S105 - a type
        return True
    try:
        _ = credential.certificate_chain
    except ConfigurationError:
        return False
    return True
