# SPDX-License-Identifier: Apache-2.0
"""`agent-identity token`: print a credential, for scripts and for looking at what an issuer returns.

After success the session is not left: leaving it would revoke the printed token, which is valid until it expires.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.config import read_configuration
from agent_identity.config.references import References, is_reference
from agent_identity.credentials.principal_tokens import SubjectTokens
from agent_identity.errors import ConfigurationError
from agent_identity.identity import AgentIdentity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.config import Configuration
    from agent_identity.http.credential import Credential
    from agent_identity.session import Session
    from agent_identity.values import JSON, Secret

PURPOSE: Final = "a token for the command line"


class RequestLine(NamedTuple):
    """The request that headers are made for."""

    method: str
    url: str


def print_token(
    config: Path,
    state_dir: Path | None,
    request: TokenRequest,
    line: RequestLine | None,
    *,
    as_json: bool,
) -> None:
    """Get the credential and print it; `state_dir` None is the default.

    Raises:
        AgentIdentityError: there is no credential, or it is bound and `line` is missing.
    """
    # In a context of its own, since the session is never left.
    contextvars.copy_context().run(_print_token, config, state_dir, request, line, as_json=as_json)


def _print_token(
    config: Path,
    state_dir: Path | None,
    request: TokenRequest,
    line: RequestLine | None,
    *,
    as_json: bool,
) -> None:
    configuration = read_configuration(config)
    check_may_act(request, configuration)
    if line is None and binding_of(request.resource, configuration) is not None:
        raise _request_line_missing(request.resource)
    identity = AgentIdentity.from_config(config, state_dir=state_dir)
    with identity, contextlib.ExitStack() as leaving:
        session = leaving.enter_context(session_for(identity, request, PURPOSE))
        credential = session.credential(request.resource, request.wanted_scopes)
        if line is None and is_bound(credential):
            raise _request_line_missing(request.resource)
        document = _document(credential, line)
        sys.stdout.write(json.dumps(document, indent=2) + "\n" if as_json else _text(document))
        sys.stdout.flush()
        leaving.pop_all()


def _request_line_missing(resource: str) -> ConfigurationError:
    return ConfigurationError(
        "credential_bound",
        f"the credential for {resource} is bound to a key of this process, so the token alone is useless",
        remedy="pass --method and --url of the request to get headers for it",
    )


def _document(credential: Credential, line: RequestLine | None) -> dict[str, JSON]:
    document: dict[str, JSON] = {
        "resource": credential.resource,
        "token_type": credential.token_type,
    }
    if line is None:
        document["access_token"] = credential.reveal()
    else:
        document["headers"] = {**credential.headers(line.method, line.url)}
    ends = datetime.fromtimestamp(int(credential.expires_at), UTC)
    document["expires_at"] = ends.isoformat().replace("+00:00", "Z")
    document["scopes"] = [*sorted(credential.scopes)]
    return document


def _text(document: dict[str, JSON]) -> str:
    lines: list[str] = []
    for name, value in document.items():
        if isinstance(value, dict):
            lines += [f"{header}: {text}" for header, text in value.items()]
        elif isinstance(value, list):
            lines.append(f"{name}: {' '.join(map(str, value))}".rstrip())
        else:
            lines.append(f"{name}: {value}")
    return "\n".join(lines) + "\n"


TRIGGER: Final = "cli"
_SCHEMES: Final = ("env", "file", "keyring", "keyring+plaintext")


class TokenRequest(NamedTuple):
    """What a command asks for. `subject` is a reference, or None; without scopes, those of the configuration."""

    resource: str
    scopes: Sequence[str]
    subject: str | None

    @property
    def wanted_scopes(self) -> Sequence[str] | None:
        return self.scopes or None


def check_may_act(request: TokenRequest, configuration: Configuration) -> None:
    """Refuse a command without a subject unless the configuration allows it.

    Raises:
        ConfigurationError: `autonomous_not_allowed`, or the subject is not a reference.
    """
    if request.subject is not None:
        _check_reference(request.subject)
    elif not configuration.cli.autonomous:
        raise ConfigurationError(
            "autonomous_not_allowed",
            "the configuration doesn't allow to act without a principal",
            remedy="pass the principal's token with --subject-token, or add [cli] autonomous = true",
        )


def session_for(identity: AgentIdentity, request: TokenRequest, purpose: str) -> Session:
    """The session for a command's credential.

    Raises:
        ConfigurationError: there is no token at the reference, or no issuer is trusted for tokens of principals.
    """
    if request.subject is None:
        return identity.autonomous(trigger=TRIGGER, purpose=purpose)
    token = _subject_token(request.subject)
    return identity.on_behalf_of(SubjectTokens(access_token=token.reveal()), purpose=purpose)


def _check_reference(reference: str) -> str:
    """The scheme of a reference. Anything else may be the token itself, so no error repeats it."""
    scheme = reference.partition(":")[0]
    if scheme == "vault":
        raise ConfigurationError(
            "not_supported",
            "--subject-token can't be read from a vault",
            remedy="put the principal's token into env:NAME, file:PATH or keyring:NAME",
        )
    if not is_reference(reference) or scheme not in _SCHEMES:
        raise ConfigurationError(
            "subject_token_in_clear",
            "--subject-token takes a reference to the principal's token, never the token: other users see command lines",
            remedy="pass env:NAME, file:PATH or keyring:NAME; if that was a token, revoke it",
        )
    return scheme


def _subject_token(reference: str) -> Secret:
    scheme = _check_reference(reference)
    if scheme == "file":
        reference = f"file:{Path(reference.removeprefix('file:')).absolute()}"
    token = References().read(reference)
    if token is None or not token.reveal():
        raise ConfigurationError(
            "secret_missing",
            f"there is no token at the {scheme}: reference of --subject-token",
            remedy="put the principal's token there",
        )
    return token


def binding_of(resource: str, configuration: Configuration) -> str | None:
    """What a resource's credential will be bound to, None if to nothing or if the resource is unknown."""
    from agent_identity.config.model import CERTIFICATE_SOURCES  # noqa: PLC0415 - loads pydantic, which is loaded by now

    table = configuration.resources.get(resource)
    if table is None:
        return None if configuration.issuers else "dpop"
    if table.source in CERTIFICATE_SOURCES:
        return "mtls"
    return None if table.binding == "none" else table.binding


def is_bound(credential: Credential) -> bool:
    """Whether a credential is useless without a key that stays in this process."""
    if credential.token_type == "DPoP":  # noqa: S105 - a type
        return True
    try:
        _ = credential.certificate_chain
    except ConfigurationError:
        return False
    return True
