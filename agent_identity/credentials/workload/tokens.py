# SPDX-License-Identifier: Apache-2.0
"""Checks a platform's token before it is used: audience, expected claims, expiry.

The signature isn't checked here: that is up to the audience, which receives the token. These checks keep a token for another
audience or workload from being sent.
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

_UNSTATED_LIFE: Final = 60.0
"""Seconds that a token without an expiry is used."""

_TOKEN: Final = re.compile(r"[!-~]{1,16384}")
_DOTS_OF_SIGNED: Final = 2
_DOTS_OF_ENCRYPTED: Final = 4


@dataclass(frozen=True, slots=True)
class WorkloadToken:
    """A platform's token for this workload and one audience.

    Times are Unix seconds; `issued_at` is when we received it. `token_type` is its URN (RFC 8693 §3).
    """

    token: Secret = field(repr=False)
    issued_at: float
    expires_at: float
    token_type: str = JWT


class Provider(Protocol):
    """A platform that may provide an identity for this workload.

    `looks_for` names how the platform is detected, `setup` says how to set it up.
    """

    kind: ClassVar[str]

    @property
    def looks_for(self) -> str: ...

    @property
    def setup(self) -> str: ...

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        """Get a token for exactly this audience; None where this isn't the platform.

        Raises:
            CredentialUnavailableError: this is the platform, but it issues no token now.
            CredentialRejectedError: it refused, or its token doesn't match the request.
            ConfigurationError: the configured place of the token can't be used.
        """
        ...


def check_token(
    token: Secret,
    audience: str,
    now: float,
    *,
    who: str,
    expect: Mapping[str, str],
    opaque: bool = False,
) -> WorkloadToken:
    """Check a token's audience, expiry and expected claims.

    `opaque` allows a token that isn't a JWT, whose audience can't be checked.

    Raises:
        CredentialRejectedError: `malformed_token`, `audience_mismatch`, `claim_mismatch` or `token_expired`.
    """
    check_audience(audience)
    if not is_whole(token, opaque=opaque):
        raise malformed_token(who)
    claims = read_jwt(token)
    if claims is None:
        _check_claims(None, expect, who)
        return WorkloadToken(token, now, now + _UNSTATED_LIFE, ACCESS_TOKEN)
    if claims.get("aud") not in (audience, [audience]):
        raise CredentialRejectedError(
            "audience_mismatch",
            f"the token of {who} is for another audience",
            remedy=f"have {who} issue it for {audience} alone, or configure another provider",
        )
    _check_claims(claims, expect, who)
    end = claims.number("exp")
    if end is None and (claims.has("exp") or not opaque):
        raise malformed_token(who)
    if end is None:
        return WorkloadToken(token, now, now + _UNSTATED_LIFE)
    if end <= now:
        raise CredentialRejectedError(
            "token_expired",
            f"the token of {who} has expired",
            remedy="check that it is renewed, and this machine's clock",
        )
    return WorkloadToken(token, now, end)


def malformed_token(who: str) -> CredentialRejectedError:
    return CredentialRejectedError(
        "malformed_token",
        f"{who} returned something that isn't a token",
        remedy=f"check the output of {who}: it must be one token alone, and a JWT must have aud and exp",
    )


def _check_claims(claims: Fields | None, expect: Mapping[str, str], who: str) -> None:
    for name in expect:
        if claims is None or claims.get(name) != expect[name]:
            raise CredentialRejectedError(
                "claim_mismatch",
                f"the token of {who} is for another workload: its {name} differs or is missing",
                remedy=f"run in a workload with the expected {name}, or correct the configured value",
            )


def trim(secret: Secret) -> Secret | None:
    """Return a token without the white space around it; None if it can't be a token."""
    text = secret.reveal().strip()
    return Secret(text) if _TOKEN.fullmatch(text) else None


def is_whole(token: Secret, *, opaque: bool) -> bool:
    """Whether it is a complete JWT, or opaque where that is allowed. A truncated JWT doesn't count as opaque."""
    return read_jwt(token) is not None or (opaque and not _looks_signed(token))


def _looks_signed(token: Secret) -> bool:
    text = token.reveal()
    dots = text.count(".")
    return dots == _DOTS_OF_SIGNED or (text.startswith("eyJ") and dots != _DOTS_OF_ENCRYPTED)


def quote_audience(audience: str) -> str:
    """An audience, quoted for a URL's query."""
    check_audience(audience)
    return quote(audience, safe="")


def check_audience(audience: str) -> None:
    """Refuse an empty audience.

    Raises:
        ConfigurationError: `audience_missing`.
    """
    if not audience:
        raise ConfigurationError(
            "audience_missing",
            "a workload token needs an audience",
            remedy="set it: the resource, or the issuer if the token authenticates the client",
        )
