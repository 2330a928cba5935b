# SPDX-License-Identifier: Apache-2.0
"""How an issuer's answer is read before anybody uses it, and how its refusals become errors of ours.

Nothing that an issuer sends is quoted, and nothing of it stands in a frame that raises: it may echo what it was sent.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from agent_identity import jose
from agent_identity.credentials.oauth.retries import retry_after
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

__all__ = [
    "Answer",
    "Fields",
    "asked",
    "ath_of",
    "check_scope_claim",
    "check_scopes",
    "error_code",
    "failure_of",
    "is_sendable",
    "json_object",
    "known_error",
    "looks_signed",
    "read_answer",
    "read_jwt",
]

_TOKEN: Final = re.compile(r"[!-~]{1,16384}")
_VALUE: Final = re.compile(r"[!-~](?:[ -~]{0,16382}[!-~])?")
_LONGEST_LIFE: Final = 24 * 3600
_TOKEN_LIMIT: Final = 16_384
_OAUTH_ERRORS: Final = frozenset(
    {
        *("invalid_request", "invalid_client", "invalid_grant", "unauthorized_client"),
        *("unsupported_grant_type", "invalid_scope", "invalid_target", "invalid_dpop_proof"),
        *("use_dpop_nonce", "access_denied", "invalid_token", "invalid_client_metadata"),
        *("insufficient_scope", "temporarily_unavailable", "server_error"),
        *("invalid_authorization_details", "insufficient_user_authentication"),
        *("authorization_pending", "slow_down", "expired_token", "unsupported_token_type"),
        *("unauthorized_client", "interaction_required", "login_required", "consent_required"),
        *("invalid_binding_message", "unknown_user_id", "missing_user_code", "invalid_user_code"),
        *("invalid_redirect_uri", "invalid_software_statement", "unapproved_software_statement"),
        *("expired_login_hint_token", "invalid_request_uri", "unsupported_response_type"),
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
    refresh_token: Secret | None = None
    id_token: Secret | None = None
    details: JSON = None


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
    return known_error(found)


def known_error(found: JSON) -> str:
    return found if isinstance(found, str) and found in _OAUTH_ERRORS else "unknown_error"


def failure_of(response: HttpResponse, issuer: str, what: str, now: float) -> CredentialError:
    status = response.status
    if 300 <= status < 400:  # noqa: PLR2004 - a status of HTTP
        return CredentialRejectedError(
            "redirected", f"{issuer} answered with a redirect, which is never followed"
        )
    if status in (408, 429) or status >= 500:  # noqa: PLR2004 - a status of HTTP
        return CredentialUnavailableError(
            "issuer_busy",
            f"{issuer} answered {status} when asked for {what}",
            retry_after=retry_after(response.headers.get("retry-after"), now),
        )
    code = error_code(response)
    return CredentialRejectedError(code, f"{issuer} refused {what}: {code} ({status})")


class Fields:
    """The members of an answer, without a readable form.

    What an issuer sends may echo what it was sent. A traceback that captures locals finds it neither here nor in the frames
    that raise: those ask questions, and hold only the answers.
    """

    __slots__ = ("_members",)

    def __init__(self, members: dict[str, JSON]) -> None:
        self._members = members

    @property
    def members(self) -> dict[str, JSON]:
        """All of them, for a rule that looks at several at once."""
        return self._members

    def get(self, name: str) -> JSON:
        return self._members.get(name)

    def has(self, name: str) -> bool:
        """Whether a member is there with a value."""
        return self._members.get(name) is not None

    def is_text(self, name: str) -> bool:
        value = self._members.get(name)
        return isinstance(value, str) and 0 < len(value) <= _TOKEN_LIMIT

    def is_token(self, name: str) -> bool:
        """Whether a member is visible ASCII without spaces, as what goes into a header has to be."""
        value = self._members.get(name)
        return isinstance(value, str) and _TOKEN.fullmatch(value) is not None

    def text(self, name: str) -> str | None:
        value = self._members.get(name)
        return value if isinstance(value, str) and value else None

    def texts(self, name: str) -> frozenset[str] | None:
        """A list of texts, None where there is none."""
        value = self._members.get(name)
        if not isinstance(value, list):
            return None
        return frozenset(item for item in value if isinstance(item, str))

    def nested(self, name: str) -> Fields | None:
        value = self._members.get(name)
        return Fields(value) if isinstance(value, dict) else None

    def actor(self) -> JSON:
        """`act.sub` of a token (RFC 8693 §4.1)."""
        act = self._members.get("act")
        return act.get("sub") if isinstance(act, dict) else None

    def confirms(self, member: str) -> JSON:
        """`cnf.jkt` (RFC 9449 §6.1) or `cnf.x5t#S256` (RFC 8705 §3.1) of a token."""
        confirmation = self._members.get("cnf")
        return confirmation.get(member) if isinstance(confirmation, dict) else None

    def secret(self, name: str) -> Secret | None:
        value = self.text(name)
        return None if value is None else Secret(value)

    def number(self, name: str) -> float | None:
        """A finite number, None for whatever else."""
        return _finite(self._members.get(name))


_JSON: Final = frozenset({"application/json"})


def json_object(response: HttpResponse, issuer: str, kinds: frozenset[str] = _JSON) -> Fields:
    if _content_type(response) not in kinds:
        raise CredentialRejectedError("not_json", f"{issuer} answered something other than JSON")
    try:
        return Fields(jose.loads_object(response.body))
    except AgentIdentityError as error:
        code = error.code
    raise CredentialRejectedError(
        "malformed_answer", f"{issuer} answered JSON that is refused: {code}"
    )


def _content_type(response: HttpResponse) -> str:
    kind = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower()


def read_answer(fields: Fields, issuer: str, *, may_refresh: bool = False) -> Answer:
    if fields.has("error") or not fields.is_text("access_token"):
        raise CredentialRejectedError("malformed_answer", f"{issuer} answered without a token")
    if not fields.is_text("token_type") or (
        fields.has("issued_token_type") and not fields.is_text("issued_token_type")
    ):
        raise CredentialRejectedError("malformed_answer", f"{issuer} doesn't say what it issued")
    if fields.has("refresh_token") and not (may_refresh and fields.is_text("refresh_token")):
        raise CredentialRejectedError(
            "unexpected_refresh_token", f"{issuer} answered with a refresh token nobody asked for"
        )
    for name in ("access_token", "refresh_token", "id_token"):
        if fields.has(name) and not fields.is_token(name):
            raise CredentialRejectedError(
                "malformed_token", f"{issuer} issued a token with characters that no token has"
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
        refresh_token=fields.secret("refresh_token") if may_refresh else None,
        id_token=fields.secret("id_token") if may_refresh else None,
        details=fields.get("authorization_details"),
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


def check_scopes(
    answer: Answer, asked: frozenset[str], issuer: str, *, aside: frozenset[str] = frozenset()
) -> frozenset[str]:
    """The scopes that were granted: as asked where the answer is silent, never more (RFC 8693 §2.2.1).

    `aside` was asked for along with them and is no part of what the call needs, as `openid` for a sign-in.
    """
    if answer.scopes is not None and not answer.scopes <= asked | aside:
        raise CredentialRejectedError("scope_widened", f"{issuer} granted more than was asked for")
    if answer.scopes is not None and not asked <= answer.scopes:
        raise CredentialRejectedError(
            "scope_narrowed",
            f"{issuer} granted less than the call needs",
            remedy="register the missing scopes for this client at the issuer",
        )
    return asked


def check_scope_claim(claims: Fields, asked: frozenset[str], issuer: str) -> None:
    """Hold the `scope` inside a token (RFC 9068 §2.2.3) to what was asked for, whatever the answer around it says."""
    scope = claims.get("scope")
    inside = frozenset(scope.split(" ")) - {""} if isinstance(scope, str) else claims.texts("scope")
    if inside is not None and not inside <= asked:
        raise CredentialRejectedError("scope_widened", f"{issuer} granted more than was asked for")


def read_jwt(token: Secret) -> Fields | None:
    """The claims of a token that is a JWT, unverified: the issuer's word to us, and None for an opaque one."""
    try:
        return Fields(jose.loads_object(jose.unverified(token.reveal()).payload))
    except VerificationError:
        return None


def looks_signed(token: Secret) -> bool:
    """Whether a token has the form of a compact JWS with a JSON header, well made or not."""
    text = token.reveal()
    return text.startswith("eyJ") and text.count(".") == 2  # noqa: PLR2004 - header, payload, signature


def is_sendable(secret: Secret) -> bool:
    """Whether a secret can stand in a header: visible ASCII, spaces only within."""
    return _VALUE.fullmatch(secret.reveal()) is not None


def ath_of(token: Secret) -> str:
    """The `ath` of a token: SHA-256 of its ASCII bytes."""
    return hash_of(token.reveal())
