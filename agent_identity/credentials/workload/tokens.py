# SPDX-License-Identifier: Apache-2.0
"""What a platform's token has to show before it is used: whose audience, which workload, how long.

No signature is checked here: the token is the platform's word to whoever the audience is, and theirs to verify. These checks
keep one that was meant for somebody else from being sent at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, Protocol
from urllib.parse import quote

from agent_identity.credentials.oauth.responses import read_jwt
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN, JWT
from agent_identity.errors import ConfigurationError, CredentialRejectedError
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.oauth.responses import Fields
    from agent_identity.flow import Flow

__all__ = [
    "Provider",
    "WorkloadToken",
    "accepted",
    "check_audience",
    "is_whole",
    "malformed",
    "quoted",
    "trimmed",
]

_UNSTATED_LIFE: Final = 60.0
"""Seconds that a token is used which doesn't say how long it lasts."""

_TOKEN: Final = re.compile(r"[!-~]{1,16384}")
_DOTS_OF_SIGNED: Final = 2
_DOTS_OF_ENCRYPTED: Final = 4


@dataclass(frozen=True, slots=True)
class WorkloadToken:
    """What a platform says that this workload is, for one audience.

    Times are Unix seconds; `issued_at` is when it came to us. `token_type` is its URN (RFC 8693 §3).
    """

    token: Secret = field(repr=False)
    issued_at: float
    expires_at: float
    token_type: str = JWT


class Provider(Protocol):
    """A platform that may have given this workload an identity.

    `looks_for` names what shows that the platform is here, `setup` says what to set up there.
    """

    kind: ClassVar[str]

    @property
    def looks_for(self) -> str: ...

    @property
    def setup(self) -> str: ...

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        """A token for exactly this audience; None where the platform isn't here.

        Raises:
            CredentialUnavailableError: it is here and gives none now.
            CredentialRejectedError: it refused, or its token isn't what was asked for.
            ConfigurationError: what names the place of the token can't be used.
        """
        ...


def accepted(
    token: Secret,
    audience: str,
    now: float,
    *,
    who: str,
    expect: Mapping[str, str],
    opaque: bool = False,
) -> WorkloadToken:
    """Hold a token to its audience, its end and the claims that are expected, and name what it is good for.

    `opaque` allows one that is no JWT, whose audience can't be seen.

    Raises:
        CredentialRejectedError: `malformed_token`, `audience_mismatch`, `claim_mismatch` or `token_expired`.
    """
    check_audience(audience)
    if not is_whole(token, opaque=opaque):
        raise malformed(who)
    claims = read_jwt(token)
    if claims is None:
        _check_claims(None, expect, who)
        return WorkloadToken(token, now, now + _UNSTATED_LIFE, ACCESS_TOKEN)
    if claims.get("aud") not in (audience, [audience]):
        raise CredentialRejectedError(
            "audience_mismatch",
            f"the token of {who} is for another audience",
            remedy=f"have {who} issue it for {audience} alone, or name another provider",
        )
    _check_claims(claims, expect, who)
    end = claims.number("exp")
    if end is None and (claims.has("exp") or not opaque):
        raise malformed(who)
    if end is None:
        return WorkloadToken(token, now, now + _UNSTATED_LIFE)
    if end <= now:
        raise CredentialRejectedError(
            "token_expired",
            f"the token of {who} has expired",
            remedy="see that it is renewed, and that this machine's clock is right",
        )
    return WorkloadToken(token, now, end)


def malformed(who: str) -> CredentialRejectedError:
    return CredentialRejectedError(
        "malformed_token",
        f"{who} gives something that can't be read as a token",
        remedy=f"look at what {who} gives: one token and nothing else, a JWT with aud and exp where it signs them",
    )


def _check_claims(claims: Fields | None, expect: Mapping[str, str], who: str) -> None:
    for name in expect:
        if claims is None or claims.get(name) != expect[name]:
            raise CredentialRejectedError(
                "claim_mismatch",
                f"the token of {who} isn't the expected workload's: its {name} differs or is missing",
                remedy=f"run where {name} is as expected, or correct what is expected of it",
            )


def trimmed(secret: Secret) -> Secret | None:
    """A token without the white space around it; None for what can be no token."""
    text = secret.reveal().strip()
    return Secret(text) if _TOKEN.fullmatch(text) else None


def is_whole(token: Secret, *, opaque: bool) -> bool:
    """Whether it reads as a JWT, or is none at all where that is allowed: half of one never passes for opaque."""
    return read_jwt(token) is not None or (opaque and not _looks_signed(token))


def _looks_signed(token: Secret) -> bool:
    text = token.reveal()
    dots = text.count(".")
    return dots == _DOTS_OF_SIGNED or (text.startswith("eyJ") and dots != _DOTS_OF_ENCRYPTED)


def quoted(audience: str) -> str:
    """An audience as it stands in a query."""
    check_audience(audience)
    return quote(audience, safe="")


def check_audience(audience: str) -> None:
    """Refuse to ask for a token that is for nobody in particular.

    Raises:
        ConfigurationError: `audience_missing`.
    """
    if not audience:
        raise ConfigurationError(
            "audience_missing",
            "a workload token is asked for without an audience",
            remedy="say whom it is for: the resource, or the issuer where it authenticates the client",
        )
