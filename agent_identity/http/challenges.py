# SPDX-License-Identifier: Apache-2.0
"""Reads `WWW-Authenticate` (RFC 9110 §11.6.1) strictly: schemes and their parameters. Its text is never quoted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.credentials.source import Demand
from agent_identity.errors import ConfigurationError
from agent_identity.values import scope_set

if TYPE_CHECKING:
    from collections.abc import Mapping

_LIMIT: Final = 8_000
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105 - RFC 9110's own word
_PARAMETER: Final = re.compile(
    rf"[ \t,]*+({_TOKEN})[ \t]*+=[ \t]*+(?:({_TOKEN})|\"((?:[^\"\\\x00-\x1f\x7f]|\\[\t -~])*+)\")[ \t]*+(?:,|\Z)"
)
_SCHEME: Final = re.compile(rf"[ \t,]*+({_TOKEN})(?:[ \t]++|,|\Z)(?!=)")
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]++=*+[ \t]*+(?:,|\Z)")


class Challenge(NamedTuple):
    """One challenge: its scheme in lower case, its parameters by name in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def names_error(header: str) -> bool:
    """Whether a challenge has an error, so that it refuses the credentials and doesn't just ask for them."""
    return any("error" in challenge.parameters for challenge in challenges_of(header))


def challenges_of(header: str) -> list[Challenge]:
    """The challenges of a header, in order, up to the first malformed one. One with a repeated parameter is left out."""
    challenges: list[Challenge] = []
    at = 0
    while at < len(header) <= _LIMIT:
        scheme = _SCHEME.match(header, at)
        if scheme is None:
            break
        at = scheme.end()
        bare = None if header[at - 1] == "," else _TOKEN68.match(header, at)
        if bare is not None and not _PARAMETER.match(header, at):
            at = bare.end()
            continue
        parameters: dict[str, str] = {}
        twice = False
        while (parameter := _PARAMETER.match(header, at)) is not None:
            name: str = parameter[1].lower()
            quoted: str | None = parameter[3]
            twice = twice or name in parameters
            parameters[name] = parameter[2] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            at = parameter.end()
        if not twice:
            challenges.append(Challenge(scheme[1].lower(), parameters))
    return challenges


def demanded_by(status: int, header: str) -> Demand | None:
    """The demand of a 401 response for a token, or for another one than the request had; None if it demands none.

    A request that gets a 401 response wasn't applied (RFC 9110 §15.5.2), so it can be sent again.
    """
    if status != 401:  # noqa: PLR2004 - a status of HTTP
        return None
    for challenge in challenges_of(header):
        parameters = challenge.parameters
        if challenge.scheme not in ("bearer", "dpop"):
            continue
        if parameters.get("error", "invalid_token") == "invalid_token":
            return Demand(parameters.get("resource_metadata"), _scopes(parameters.get("scope")))
    return None


def _scopes(text: str | None) -> frozenset[str] | None:
    """The scopes of a challenge; None for none, or malformed ones."""
    try:
        return None if text is None else scope_set(text.split())
    except ConfigurationError:
        return None


def wanted_by(status: int, header: str) -> Challenge | None:
    """The first `Bearer` or `DPoP` challenge of a refusal that has an error, which a client can act on; else None."""
    if status not in (401, 403):
        return None
    for challenge in challenges_of(header):
        if challenge.scheme in ("bearer", "dpop") and "error" in challenge.parameters:
            return challenge
    return None
