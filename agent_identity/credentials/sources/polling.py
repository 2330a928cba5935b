# SPDX-License-Identifier: Apache-2.0
"""Polls an issuer until a person has decided on another device (RFC 8628 §3.5, CIBA §11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity.errors import (
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import pause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.requests import Binding
    from agent_identity.credentials.oauth.responses import Answer, Fields
    from agent_identity.flow import Flow
    from agent_identity.values import Secret

__all__ = ["poll", "span_of"]

_SLOWER: Final = 5.0
_INTERVAL: Final = 5.0
_LONGEST: Final = 60.0


def span_of(fields: Fields, patience: float) -> tuple[float, float]:
    """Return the polling interval and the lifetime in seconds: the issuer's values, within our bounds."""
    interval = fields.number("interval") if fields.has("interval") else _INTERVAL
    life = fields.number("expires_in")
    return (
        min(max(interval or _INTERVAL, 1.0), _LONGEST),
        patience if life is None or life <= 0 else min(life, patience),
    )


def poll(
    issuer: Issuer,
    form: Sequence[tuple[str, str | Secret]],
    *,
    binding: Binding,
    interval: float,
    expires_at: float,
) -> Flow[Answer]:
    """Poll until the person has decided. `expires_at` is Unix seconds.

    Raises:
        CredentialRejectedError: they refused, or the request has expired.
        CredentialUnavailableError: `interaction_timeout`, they didn't decide in time.
    """
    last: CredentialUnavailableError | None = None
    while issuer.clock() + interval < expires_at:
        try:
            yield from pause(interval)
        except TransportError:
            break
        try:
            return (yield from issuer.token(form, binding=binding, one_use=True, may_refresh=True))
        except CredentialRejectedError as error:
            if error.code == "slow_down":
                interval += _SLOWER
            elif error.code != "authorization_pending":
                raise
        except CredentialUnavailableError as error:
            # The person may still decide while the issuer is busy: continue, but slower (RFC 8628 §3.5).
            last = error
            interval = min(max(2 * interval, error.retry_after or 0.0), _LONGEST)
    raise CredentialUnavailableError(
        "interaction_timeout", f"the sign-in at {issuer.url} timed out", remedy="try again"
    ) from last
