# SPDX-License-Identifier: Apache-2.0
"""How an issuer's answer is read before anybody uses it, and how its refusals become errors of ours.

Nothing that an issuer sends is quoted, and nothing of it stands in a frame that raises: it may echo what it was sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.delegation.grant import hash_of
from agent_identity.errors import (
    AgentIdentityError,
    CredentialError,
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
    VerificationError,
)
from agent_identity.flow import Flow, HttpRequest, HttpResponse, http
from agent_identity.values import JSON, Secret

if TYPE_CHECKING:
    from agent_identity.credentials.proofs import ProofKey

__all__ = [
    "Answer",
    "Fields",
    "asked",
    "ath_of",
    "check_binding",
    "check_scopes",
    "error_code",
    "failure_of",
    "json_object",
    "read_answer",
    "read_jwt",
    "retry_after",
]

_LONGEST_LIFE: Final = 24 * 3600
_TOKEN_LIMIT: Final = 16_384
_SECONDS_DIGITS: Final = 9
_OAUTH_ERRORS: Final = frozenset(
    {
        *("invalid_request", "invalid_client", "invalid_grant", "unauthorized_client"),
        *("unsupported_grant_type", "invalid_scope", "invalid_target", "invalid_dpop_proof"),
        *("use_dpop_nonce", "access_denied", "invalid_token", "invalid_client_metadata"),
        *("insufficient_scope", "temporarily_unavailable", "server_error"),
        "invalid_authorization_details",
    }
)


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """A token endpoint's answer, read strictly; nothing in it has been compared with what was asked."""

    token: Secret
    token_type: str
    issued_token_type: str | None
    expires_in: float | None
    scopes: frozenset[str] | None


def asked(request: HttpRequest, issuer: str) -> Flow[HttpResponse]:
    try:
        return (yield from http(request))
    except TransportError as error:
        raise CredentialUnavailableError(
            "issuer_unreachable", f"{issuer} could not be asked: {error.code}", remedy=error.remedy
        ) from error


def error_code(response: HttpResponse) -> str:
    """The issuer's error code if it is one that a standard names; its own words are never quoted."""
    try:
        found = jose.loads_object(response.body).get("error")
    except VerificationError:
        return "unreadable_error"
    return found if isinstance(found, str) and found in _OAUTH_ERRORS else "unknown_error"


def failure_of(response: HttpResponse, issuer: str, what: str) -> CredentialError:
    status = response.status
    if 300 <= status < 400:  # noqa: PLR2004 - a status of HTTP
        return CredentialRejectedError(
            "redirected", f"{issuer} answered with a redirect, which is never followed"
        )
    if status in (408, 429) or status >= 500:  # noqa: PLR2004 - a status of HTTP
        return CredentialUnavailableError(
            "issuer_busy",
            f"{issuer} answered {status} when asked for {what}",
            retry_after=retry_after(response.headers.get("retry-after")),
        )
    code = error_code(response)
    return CredentialRejectedError(code, f"{issuer} refused {what}: {code} ({status})")


def retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header in its plain form; anything else is no word at all."""
    if value is None or not value.isascii() or not value.isdigit() or len(value) > _SECONDS_DIGITS:
        return None
    return min(float(value), 3600.0)


class Fields:
    """The members of an answer, without a readable form.

    What an issuer sends may echo what it was sent. A traceback that captures locals finds it neither here nor in the frames
    that raise: those ask questions, and hold only the answers.
    """

    __slots__ = ("_members",)

    def __init__(self, members: dict[str, JSON]) -> None:
        self._members = members

    def get(self, name: str) -> JSON:
        return self._members.get(name)

    def has(self, name: str) -> bool:
        """Whether a member is there with a value."""
        return self._members.get(name) is not None

    def is_text(self, name: str) -> bool:
        value = self._members.get(name)
        return isinstance(value, str) and 0 < len(value) <= _TOKEN_LIMIT

    def text(self, name: str) -> str | None:
        value = self._members.get(name)
        return value if isinstance(value, str) and value else None

    def actor(self) -> JSON:
        """`act.sub` of a token (RFC 8693 §4.1)."""
        act = self._members.get("act")
        return act.get("sub") if isinstance(act, dict) else None

    def bound_key(self) -> JSON:
        """`cnf.jkt` of a token (RFC 9449 §6.1)."""
        confirmation = self._members.get("cnf")
        return confirmation.get("jkt") if isinstance(confirmation, dict) else None


def json_object(response: HttpResponse, issuer: str) -> Fields:
    if not _says_json(response):
        raise CredentialRejectedError("not_json", f"{issuer} answered something other than JSON")
    try:
        return Fields(jose.loads_object(response.body))
    except AgentIdentityError as error:
        code = error.code
    raise CredentialRejectedError(
        "malformed_answer", f"{issuer} answered JSON that is refused: {code}"
    )


def _says_json(response: HttpResponse) -> bool:
    kind = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower() == "application/json"


def read_answer(fields: Fields, issuer: str) -> Answer:
    if fields.has("error") or not fields.is_text("access_token"):
        raise CredentialRejectedError("malformed_answer", f"{issuer} answered without a token")
    if not fields.is_text("token_type") or (
        fields.has("issued_token_type") and not fields.is_text("issued_token_type")
    ):
        raise CredentialRejectedError("malformed_answer", f"{issuer} doesn't say what it issued")
    if fields.has("refresh_token"):
        raise CredentialRejectedError(
            "unexpected_refresh_token", f"{issuer} answered with a refresh token nobody asked for"
        )
    if fields.has("scope") and not isinstance(fields.get("scope"), str):
        raise CredentialRejectedError("malformed_answer", f"{issuer} gives a scope that is none")
    scope = fields.text("scope") if fields.has("scope") else None
    return Answer(
        token=Secret(fields.text("access_token") or ""),
        token_type=fields.text("token_type") or "",
        issued_token_type=fields.text("issued_token_type"),
        expires_in=_expires_in(fields, issuer),
        scopes=None if not fields.has("scope") else frozenset((scope or "").split(" ")) - {""},
    )


def _expires_in(fields: Fields, issuer: str) -> float | None:
    if not fields.has("expires_in"):
        return None
    seconds = _finite(fields.get("expires_in"))
    if seconds is None:
        raise CredentialRejectedError("malformed_answer", f"{issuer} gives a lifetime that is none")
    if seconds <= 0:
        raise CredentialRejectedError("already_expired", f"{issuer} issued what has expired")
    return min(seconds, _LONGEST_LIFE)


def _finite(value: JSON) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def check_scopes(answer: Answer, asked: frozenset[str], issuer: str) -> frozenset[str]:
    """The scopes that were granted: as asked where the answer is silent, never more (RFC 8693 §2.2.1)."""
    if answer.scopes is not None and not answer.scopes <= asked:
        raise CredentialRejectedError("scope_widened", f"{issuer} granted more than was asked for")
    if answer.scopes is not None and not asked <= answer.scopes:
        raise CredentialRejectedError(
            "scope_narrowed",
            f"{issuer} granted less than the call needs",
            remedy="register the missing scopes for this client at the issuer",
        )
    return asked


def check_binding(claims: Fields, key: ProofKey, issuer: str) -> None:
    """Hold a token to being bound to our key (RFC 9449 §6): a binding that was asked for is never dropped in silence."""
    if claims.bound_key() != key.thumbprint:
        raise CredentialRejectedError(
            "binding_missing", f"{issuer} issued a token that isn't bound to the agent's key"
        )


def read_jwt(token: Secret) -> Fields | None:
    """The claims of a token that is a JWT, unverified: the issuer's word to us, and None for an opaque one."""
    try:
        return Fields(jose.loads_object(jose.unverified(token.reveal()).payload))
    except VerificationError:
        return None


def ath_of(token: Secret) -> str:
    """The `ath` of a token: SHA-256 of its ASCII bytes."""
    return hash_of(token.reveal())
