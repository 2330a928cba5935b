# SPDX-License-Identifier: Apache-2.0
"""Where platforms put tokens: in a file, in a file that a variable names, in a variable. Each use reads anew."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from agent_identity.credentials.workload.tokens import is_whole, malformed, trimmed
from agent_identity.errors import ConfigurationError, CredentialUnavailableError, TransportError
from agent_identity.flow import Flow, pause, read

if TYPE_CHECKING:
    from agent_identity.values import Secret

__all__ = [
    "check_path",
    "machine_says",
    "refuse_inside",
    "token_in_file",
    "token_in_named_file",
    "token_in_variable",
]

_WHILE_WRITING: Final = 0.05
"""Seconds until a file is read again that was met half-written."""


def token_in_file(path: str, *, opaque: bool = False) -> Flow[Secret | None]:
    """The token in a file, None where there is no file. One that is being written is read once more.

    Raises:
        CredentialUnavailableError: `token_file_unreadable`, the file is there and holds no whole token.
    """
    found = yield from read(f"file:{path}")
    if found is None:
        return None
    token = _whole(found, opaque=opaque)
    if token is None and (yield from _waited()):
        found = yield from read(f"file:{path}")
        token = None if found is None else _whole(found, opaque=opaque)
    if token is None:
        raise CredentialUnavailableError(
            "token_file_unreadable",
            f"{path} holds no whole token",
            remedy="see that it is written in one step, by renaming, and holds one token and nothing else",
        )
    return token


def _waited() -> Flow[bool]:
    """Give whoever writes a moment; False when the deadline has none left."""
    try:
        yield from pause(_WHILE_WRITING)
    except TransportError:
        return False
    return True


def token_in_named_file(variable: str, *, opaque: bool = False) -> Flow[Secret | None]:
    """The token in the file that a variable names, None where the variable isn't set.

    Raises:
        CredentialUnavailableError: the file isn't there, or as for `token_in_file`.
        ConfigurationError: `token_path`, the variable names no absolute path.
    """
    named = yield from read(f"env:{variable}")
    if named is None:
        return None
    if not PurePath(named.reveal()).is_absolute():
        raise _not_absolute(variable)
    token = yield from token_in_file(named.reveal(), opaque=opaque)
    if token is None:
        raise CredentialUnavailableError(
            "token_file_missing",
            f"the file that {variable} names isn't there",
            remedy=f"mount it, or unset {variable}",
        )
    return token


def token_in_variable(variable: str, who: str) -> Flow[Secret | None]:
    """The token in a variable, None where it isn't set.

    Raises:
        CredentialRejectedError: `malformed_token`.
    """
    found = yield from read(f"env:{variable}")
    if found is None:
        return None
    token = trimmed(found)
    if token is None:
        raise malformed(who)
    return token


def refuse_inside(marker: str, variable: str, setup: str) -> Flow[None]:
    """Where a platform's mark is set but not the variable in which it gives tokens, the job isn't allowed to have one.

    It is here but broken: what else the machine could say of itself is not this job's identity.

    Raises:
        CredentialUnavailableError: `token_variable_missing`.
    """
    mark = yield from read(f"env:{marker}")
    if mark is not None and mark.reveal() == "true":
        raise CredentialUnavailableError(
            "token_variable_missing", f"{marker} is set and {variable} isn't", remedy=setup
        )


def machine_says(path: str, *names: str) -> Flow[bool]:
    """Whether the machine's firmware gives one of these names in this place."""
    found = yield from read(f"file:{path}")
    return found is not None and found.reveal().strip() in names


def check_path(path: str) -> None:
    """Refuse a path that means something else in each working directory.

    Raises:
        ConfigurationError: `token_path`.
    """
    if not PurePath(path).is_absolute():
        raise _not_absolute("the path of a token file")


def _not_absolute(what: str) -> ConfigurationError:
    return ConfigurationError(
        "token_path", f"{what} is no absolute path", remedy="write the whole path of the token file"
    )


def _whole(found: Secret, *, opaque: bool) -> Secret | None:
    token = trimmed(found)
    return token if token is not None and is_whole(token, opaque=opaque) else None
