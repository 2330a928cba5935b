# SPDX-License-Identifier: Apache-2.0
"""Tokens in files and in environment variables, and the two platforms that write files: Kubernetes, and another program.

A file is read anew for each token. The other program may be an agent of the platform, or spiffe-helper with its JWT-SVIDs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.workload.spiffe import check_jwt_svid, check_trust_domain
from agent_identity.credentials.workload.tokens import check_token, is_whole, malformed_token, trim
from agent_identity.errors import ConfigurationError, CredentialUnavailableError, TransportError
from agent_identity.flow import Flow, pause, read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken
    from agent_identity.values import Secret


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """The pod's projected service account token. The default path holds a token for the API server; others need a projected volume."""

    kind: ClassVar[str] = "kubernetes"

    expect: Mapping[str, str] = field(default_factory=dict[str, str])
    path: str = "/var/run/secrets/kubernetes.io/serviceaccount/token"

    def __post_init__(self) -> None:
        check_path(self.path)

    @property
    def looks_for(self) -> str:
        return self.path

    @property
    def setup(self) -> str:
        return (
            "mount a projected serviceAccountToken volume with the audience, and configure its path"
        )

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        token = yield from token_in_file(self.path)
        if token is None:
            return None
        return check_token(token, audience, now, who="Kubernetes", expect=self.expect)


@dataclass(frozen=True, slots=True)
class File:
    """A JWT, whose audience is checked, or an opaque token. With `trust_domain` it must be a JWT-SVID."""

    kind: ClassVar[str] = "file"

    path: str
    expect: Mapping[str, str] = field(default_factory=dict[str, str])
    trust_domain: str | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        check_trust_domain(self.trust_domain)

    @property
    def looks_for(self) -> str:
        return self.path

    @property
    def setup(self) -> str:
        return f"have the token written to {self.path}"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        opaque = self.trust_domain is None
        token = yield from token_in_file(self.path, opaque=opaque)
        if token is None:
            return None
        checked = check_token(
            token, audience, now, who=self.path, expect=self.expect, opaque=opaque
        )
        if self.trust_domain is not None:
            check_jwt_svid(token, self.trust_domain, who=self.path)
        return checked


_WHILE_WRITING: Final = 0.05
"""Seconds until a half-written file is read again."""


def token_in_file(path: str, *, opaque: bool = False) -> Flow[Secret | None]:
    """Read the token in a file; None where there is no file. A half-written file is read once more.

    Raises:
        CredentialUnavailableError: `token_file_unreadable`, the file holds no complete token.
    """
    text = yield from read(f"file:{path}")
    if text is None:
        return None
    token = _complete_token(text, opaque=opaque)
    if token is None and (yield from _wait_for_writer()):
        text = yield from read(f"file:{path}")
        token = None if text is None else _complete_token(text, opaque=opaque)
    if token is None:
        raise CredentialUnavailableError(
            "token_file_unreadable",
            f"{path} holds no complete token",
            remedy="check that it is written atomically, by renaming, and holds one token alone",
        )
    return token


def _wait_for_writer() -> Flow[bool]:
    """Wait a moment for the writer of a file. Return whether the deadline allowed it."""
    try:
        yield from pause(_WHILE_WRITING)
    except TransportError:
        return False
    return True


def token_in_named_file(variable: str, *, opaque: bool = False) -> Flow[Secret | None]:
    """Read the token in the file that a variable names; None where the variable isn't set.

    Raises:
        CredentialUnavailableError: the file doesn't exist, or as for `token_in_file`.
        ConfigurationError: `token_path`, the variable's value isn't an absolute path.
    """
    path = yield from read(f"env:{variable}")
    if path is None:
        return None
    if not PurePath(path.reveal()).is_absolute():
        raise _not_absolute(variable)
    token = yield from token_in_file(path.reveal(), opaque=opaque)
    if token is None:
        raise CredentialUnavailableError(
            "token_file_missing",
            f"the file that {variable} names doesn't exist",
            remedy=f"mount it, or unset {variable}",
        )
    return token


def token_in_variable(variable: str, who: str) -> Flow[Secret | None]:
    """Read the token in a variable; None where it isn't set.

    Raises:
        CredentialRejectedError: `malformed_token`.
    """
    value = yield from read(f"env:{variable}")
    if value is None:
        return None
    token = trim(value)
    if token is None:
        raise malformed_token(who)
    return token


def check_job_has_token(marker: str, variable: str, setup: str) -> Flow[None]:
    """Refuse a job of a platform that gave it no token: the `marker` variable is set, the token's variable isn't.

    Other identities that the machine may have aren't this job's, so the next platform isn't tried.

    Raises:
        CredentialUnavailableError: `token_variable_missing`.
    """
    mark = yield from read(f"env:{marker}")
    if mark is not None and mark.reveal() == "true":
        raise CredentialUnavailableError(
            "token_variable_missing", f"{marker} is set and {variable} isn't", remedy=setup
        )


def firmware_names(path: str, *names: str) -> Flow[bool]:
    """Whether the firmware's file at `path` holds one of these names."""
    text = yield from read(f"file:{path}")
    return text is not None and text.reveal().strip() in names


def check_path(path: str) -> None:
    """Refuse a path that depends on the working directory.

    Raises:
        ConfigurationError: `token_path`.
    """
    if not PurePath(path).is_absolute():
        raise _not_absolute("the path of a token file")


def _not_absolute(what: str) -> ConfigurationError:
    return ConfigurationError(
        "token_path",
        f"{what} isn't an absolute path",
        remedy="write the absolute path of the token file",
    )


def _complete_token(text: Secret, *, opaque: bool) -> Secret | None:
    token = trim(text)
    return token if token is not None and is_whole(token, opaque=opaque) else None
