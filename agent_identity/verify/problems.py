# SPDX-License-Identifier: Apache-2.0
"""Responses to refused requests: problem details (RFC 9457) that help an honest caller and tell an attacker nothing.

There are a few kinds of refusals, and all of one kind have the same response, so that a caller can't find out by trial which
rule failed. The exact code goes to the service's log, under the id in the response's `instance`.
"""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from agent_identity.errors import DeniedError, InvalidAssertionError, RevokedError
from agent_identity.keys.algorithms import PROOF_ALGORITHMS
from agent_identity.values import scope_set

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_identity.errors import VerificationError

_log: Final = logging.getLogger("agent_identity")

_TYPE: Final = "urn:agent-identity:problem:"
_ALGORITHMS: Final = f'algs="{" ".join(sorted(PROOF_ALGORITHMS))}"'


class Problem(NamedTuple):
    """A response for any server: `status, headers, body = problem(error)`."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class RefusedError(InvalidAssertionError):
    """A verified call isn't allowed here, or no call was verified. `scopes` are the required ones, if some are missing."""

    scopes: frozenset[str] = frozenset()


class _Kind(NamedTuple):
    """One kind of refusal. `error` is its code in a challenge (RFC 6750 §3.1)."""

    name: str
    status: int
    title: str
    detail: str
    error: str | None = None


_REQUIRED: Final = _Kind(
    "credentials_required",
    401,
    "Credentials are required",
    "Send Agent-Delegation and Agent-Assertion, signed for this very request; a request outside a tool has no Agent-Assertion.",
)
_REFUSED: Final = _Kind(
    "refused",
    401,
    "The credentials were refused",
    "Sign the request anew, exactly as it is sent, and send it once.",
    "invalid_token",
)
_EXPIRED: Final = _Kind(
    "expired",
    401,
    "The credentials are not valid at this time",
    "Get fresh ones and sign the request anew; if that doesn't help, set the clock.",
    "invalid_token",
)
_SCOPE: Final = _Kind(
    "insufficient_scope",
    403,
    "More scopes are needed",
    "Get credentials with the scopes that are named here, in chain and token both.",
    "insufficient_scope",
)
_FORBIDDEN: Final = _Kind(
    "forbidden",
    403,
    "The call is not allowed here",
    "The asserted tool, or the details of the chain, don't go with this address.",
)
_REVOKED: Final = _Kind(
    "revoked",
    403,
    "The authority to act was revoked",
    "Stop: sending it again doesn't bring back what was revoked.",
)
_TOO_LARGE: Final = _Kind("too_large", 413, "The body is too large", "Send less with one request.")
_TOO_SLOW: Final = _Kind(
    "too_slow", 408, "The body came too slowly", "Send all of it at once, on a new connection."
)
_BUSY: Final = _Kind(
    "busy",
    503,
    "Nothing can be verified at the moment",
    "Sign the request anew a little later.",
)
_RETRY_AFTER: Final = 5

_BY_CODE: Final = {
    code: kind
    for kind, codes in (
        (_REQUIRED, ("chain_missing", "assertion_missing", "token_missing")),
        (_EXPIRED, ("expired", "not_yet_valid", "dpop_stale", "before_start")),
        (_SCOPE, ("insufficient_scope",)),
        (_FORBIDDEN, ("tool_mismatch", "details_exceeded", "details_unseen")),
        (_TOO_LARGE, ("body_too_large",)),
        (_TOO_SLOW, ("body_too_slow",)),
        (
            _BUSY,
            (
                "anchor_unavailable",
                "clock_failed",
                "revocations_failed",
                "revocations_missing",
                "revocations_stale",
            ),
        ),
    )
    for code in codes
}


def problem(
    error: VerificationError | DeniedError,
    *,
    scopes: Iterable[str] = (),
    resource_metadata: str | None = None,
) -> Problem:
    """Return the response to a request that a `Verifier` refused. Code and remedy are logged with the response's `instance`.

    `scopes` are those passed to `verify_request`; the response names them if some are missing. `resource_metadata` is the URL of
    the service's metadata (RFC 9728), which a challenge names.
    """
    kind = _kind_of(error)
    instance = f"urn:uuid:{uuid.uuid4()}"
    # Without the message, which may quote the caller's input.
    _log.warning(
        "a request was answered with %s (%s): %s%s",
        kind.name,
        error.code,
        instance,
        f"; what to do: {error.remedy}" if error.remedy else "",
    )
    needed = " ".join(sorted(scope_set(scopes))) if kind is _SCOPE else ""
    document = {
        "type": _TYPE + kind.name,
        "title": kind.title,
        "status": kind.status,
        "detail": kind.detail,
        "instance": instance,
    }
    body = orjson.dumps(document | {"scope": needed} if needed else document)
    return Problem(kind.status, _headers(kind, needed, resource_metadata, body), body)


def _kind_of(error: VerificationError | DeniedError) -> _Kind:
    if isinstance(error, RevokedError):
        return _REVOKED
    kind = _BY_CODE.get(error.code)
    if kind is not None:
        return kind
    # The remaining DeniedErrors come from the replay store: it is full or unavailable.
    return _BUSY if isinstance(error, DeniedError) else _REFUSED


def _headers(kind: _Kind, needed: str, metadata: str | None, body: bytes) -> dict[str, str]:
    headers = {
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
    }
    if kind.status == _REQUIRED.status or kind is _SCOPE:
        parameters = (
            f'error="{kind.error}"' if kind.error else "",
            f'scope="{needed}"' if needed else "",
            f'resource_metadata="{metadata}"' if metadata else "",
            _ALGORITHMS,
        )
        headers["WWW-Authenticate"] = "DPoP " + ", ".join(each for each in parameters if each)
    if kind is _BUSY:
        headers["Retry-After"] = str(_RETRY_AFTER)
    return headers
