# SPDX-License-Identifier: Apache-2.0
"""Reads an issuer's responses strictly, and turns its refusals into our errors.

Nothing that an issuer sends is quoted in an error, or is a local variable of a frame that raises: it may echo our secrets.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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
from agent_identity.values import JSON, Secret, scrub

if TYPE_CHECKING:
    from collections.abc import Mapping

_log: Final = logging.getLogger("agent_identity")

_TOKEN: Final = re.compile(r"[!-~]{1,16384}")
_VALUE: Final = re.compile(r"[!-~](?:[ -~]{0,16382}[!-~])?")
LONGEST_LIFE: Final = 24 * 3600.0
"""Seconds that a token may live, unless the configuration of its issuer allows more."""
_DIGITS: Final = 9
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


@dataclass(frozen=True, slots=True)
class Allowances:
    """How an issuer's tokens may differ from what was requested or is expected; by default not at all.

    `longest_life` is in seconds.
    """

    several_audiences: bool = False
    missing_audience: bool = False
    client_audience: bool = False
    extra_scopes: bool = False
    other_subject: bool = False
    bearer_grants: bool = False
    longest_life: float = LONGEST_LIFE


STRICT: Final = Allowances()


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """A token endpoint's answer, read strictly. It hasn't been compared with the request yet."""

    token: Secret
    token_type: str
    issued_token_type: str | None
    expires_in: float | None
    scopes: frozenset[str] | None
    refresh_token: Secret | None = None
    id_token: Secret | None = None
    details: JSON = None


def send(request: HttpRequest, issuer: str) -> Flow[HttpResponse]:
    """Send a request.

    Raises:
        CredentialUnavailableError: `issuer_unreachable`.
    """
    try:
        return (yield from http(request))
    except TransportError as error:
        raise CredentialUnavailableError(
            "issuer_unreachable",
            f"{issuer} could not be reached: {error.code}",
            remedy=error.remedy,
        ) from error


def error_code(response: HttpResponse) -> str:
    """Return the issuer's error code if a standard defines it. Other text is never quoted."""
    try:
        code = jose.loads_object(response.body).get("error")
    except VerificationError:
        return "unreadable_error"
    return known_error(code)


def known_error(code: JSON) -> str:
    return code if isinstance(code, str) and code in _OAUTH_ERRORS else "unknown_error"


def failure_of(
    response: HttpResponse, issuer: str, what: str, now: float, *, as_client: bool = False
) -> CredentialError:
    """The error of a refusal. `as_client` says that a client of the issuer sent the request, which the remedy is about."""
    status = response.status
    if 300 <= status < 400:  # noqa: PLR2004 - a status of HTTP
        return CredentialRejectedError(
            "redirected", f"{issuer} answered with a redirect, which is never followed"
        )
    error: CredentialError
    if status in (408, 429) or status >= 500:  # noqa: PLR2004 - a status of HTTP
        error = CredentialUnavailableError(
            "issuer_busy",
            f"{issuer} answered {status} to a request for {what}",
            retry_after=retry_after(response.headers.get("retry-after"), now),
        )
    else:
        code = error_code(response)
        remedy = _REMEDIES.get(code, _STATUS_REMEDIES.get(status)) if as_client else None
        error = CredentialRejectedError(
            code, f"{issuer} refused {what}: {code} ({status})", remedy=remedy
        )
    error.detail = _words_of(response)
    if error.detail is not None:
        _log.debug("%s about %s: %s", issuer, what, error.detail)
    return error


_CLIENT_REMEDY: Final = "check client_id, client_auth and the key or secret in the issuer's table; at the issuer, check the client's authentication method, its key and the kid"
_REMEDIES: Final[Mapping[str, str]] = {
    "invalid_request": "run doctor --resource to read the issuer's own words about the request; if it refuses the parameter resource, set resource_indicators = false for the issuer",
    "invalid_client": _CLIENT_REMEDY,
    "unauthorized_client": "allow the client this grant type at the issuer, or set another source for the resource",
    "invalid_grant": "get a fresh token of the principal: this one has expired, was revoked, or is of another client or issuer; at the issuer, let the client exchange the tokens that other clients get",
    "invalid_target": "register the resource's URI at the issuer, or set the resource's audience to the name that the issuer knows it by; if the issuer refuses the parameter resource, set resource_indicators = false",
    "invalid_scope": "check the resource's scopes in the file against the issuer's, and allow the client these scopes at the issuer",
    "unsupported_grant_type": "set another source for the resource, or switch this grant type on at the issuer",
}
"""What to do about an issuer's error (RFC 6749 §5.2, RFC 8707 §2), in the file and at the issuer."""

_STATUS_REMEDIES: Final[Mapping[int, str]] = {
    401: _CLIENT_REMEDY,
    403: "allow the client this request at the issuer: its grant types, resources and scopes; a gateway in front of the issuer may also have refused it",
}
"""The same for a refusal without a standard error."""


def _words_of(response: HttpResponse) -> str | None:
    try:
        document = Fields(jose.loads_object(response.body))
    except VerificationError:
        return None
    return issuers_words(document.get("error"), document.get("error_description"))


def issuers_words(code: JSON, description: JSON) -> str | None:
    """An error's code, unless a standard defines it, and its description, cleaned for `.detail`; None where there is neither."""
    texts = [] if known_error(code) == code else [code]
    words = ": ".join(text for text in (*texts, description) if isinstance(text, str) and text)
    words = words if len(words) <= _READ else words[:_READ].rpartition(" ")[0]
    words = " ".join("".join(c if c.isprintable() else " " for c in scrub(words)).split())
    words = _RUN.sub(lambda run: run[0] if _WORDS.fullmatch(run[0]) else "[token]", scrub(words))
    return words[:_SHOWN].rstrip() or None


_READ: Final = 4000
_SHOWN: Final = 200
_RUN: Final = re.compile(r"[A-Za-z0-9+/=_~.%-]{20,}")
_WORDS: Final = re.compile(
    r"/*[A-Z]?[a-z]*(?:[/=_~.%+-]+[A-Z]?[a-z]*)*"  # words, also in a URL or a code
    r"|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"  # the UUID of a trace
)
"""What may be in the words as it is; any other run of such characters may be a token."""


class Fields:
    """The members of a JSON answer, without a `repr` of its values.

    An issuer may echo our secrets. With this class, a traceback that captures local variables doesn't contain them: frames
    that raise hold a `Fields`, not its members.
    """

    __slots__ = ("_members",)

    def __init__(self, members: dict[str, JSON]) -> None:
        self._members = members

    @property
    def members(self) -> dict[str, JSON]:
        """All members, for a rule that needs several at once."""
        return self._members

    def get(self, name: str) -> JSON:
        return self._members.get(name)

    def has(self, name: str) -> bool:
        """Whether a member is present and not null."""
        return self._members.get(name) is not None

    def is_text(self, name: str) -> bool:
        value = self._members.get(name)
        return isinstance(value, str) and 0 < len(value) <= _TOKEN_LIMIT

    def is_token(self, name: str) -> bool:
        """Whether a member is visible ASCII without spaces, as a header's token must be."""
        value = self._members.get(name)
        return isinstance(value, str) and _TOKEN.fullmatch(value) is not None

    def text(self, name: str) -> str | None:
        value = self._members.get(name)
        return value if isinstance(value, str) and value else None

    def texts(self, name: str) -> frozenset[str] | None:
        """A list of strings; None where there is no list."""
        value = self._members.get(name)
        if not isinstance(value, list):
            return None
        return frozenset(item for item in value if isinstance(item, str))

    def nested(self, name: str) -> Fields | None:
        value = self._members.get(name)
        return Fields(value) if isinstance(value, dict) else None

    def actor(self) -> JSON:
        """The `act.sub` of a token (RFC 8693 §4.1)."""
        act = self._members.get("act")
        return act.get("sub") if isinstance(act, dict) else None

    def confirms(self, member: str) -> JSON:
        """The `cnf.jkt` (RFC 9449 §6.1) or `cnf.x5t#S256` (RFC 8705 §3.1) of a token."""
        confirmation = self._members.get("cnf")
        return confirmation.get(member) if isinstance(confirmation, dict) else None

    def secret(self, name: str) -> Secret | None:
        value = self.text(name)
        return None if value is None else Secret(value)

    def number(self, name: str) -> float | None:
        """A finite number; None for anything else."""
        return _finite(self._members.get(name))


_JSON: Final = frozenset({"application/json"})


def json_object(
    response: HttpResponse, issuer: str, kinds: frozenset[str] | None = _JSON
) -> Fields:
    """Return the JSON object of a response. `kinds` are the content types that it may have, None is any."""
    if kinds is not None and _content_type(response) not in kinds:
        raise CredentialRejectedError("not_json", f"the answer of {issuer} isn't JSON")
    try:
        return Fields(jose.loads_object(response.body))
    except AgentIdentityError as error:
        code = error.code
    raise CredentialRejectedError("malformed_answer", f"{issuer} sent invalid JSON: {code}")


def _content_type(response: HttpResponse) -> str:
    kind = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower()


def read_answer(fields: Fields, issuer: str, *, may_refresh: bool = False) -> Answer:
    """Read a token response (RFC 6749 §5.1). Refresh and ID tokens that weren't requested are dropped.

    Raises:
        CredentialRejectedError: a member is missing or malformed; the message never quotes it.
    """
    if fields.has("error") or not fields.is_text("access_token"):
        raise CredentialRejectedError("malformed_answer", f"the answer of {issuer} has no token")
    if not fields.is_text("token_type") or (
        fields.has("issued_token_type") and not fields.is_text("issued_token_type")
    ):
        raise CredentialRejectedError(
            "malformed_answer", f"the answer of {issuer} has no usable token type"
        )
    used = ("access_token", "refresh_token", "id_token") if may_refresh else ("access_token",)
    for name in used:
        if fields.has(name) and not fields.is_token(name):
            raise CredentialRejectedError(
                "malformed_token", f"{issuer} issued a token with characters that are not allowed"
            )
    if fields.has("scope") and not isinstance(fields.get("scope"), str):
        raise CredentialRejectedError("malformed_answer", f"the scope from {issuer} isn't a string")
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
    seconds = _seconds(fields.get("expires_in"))
    if seconds is None:
        raise CredentialRejectedError(
            "malformed_answer", f"the expires_in from {issuer} isn't a number"
        )
    if seconds <= 0:
        raise CredentialRejectedError("already_expired", f"{issuer} issued an expired token")
    return seconds


def _seconds(value: JSON) -> float | None:
    """A number, or its digits in a string, as some issuers write it."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _DIGITS:
        return float(value)
    return _finite(value)


def _finite(value: JSON) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def check_scopes(
    answer: Answer,
    asked: frozenset[str],
    issuer: str,
    *,
    extra_scopes: frozenset[str] = frozenset(),
    allows: Allowances = STRICT,
) -> frozenset[str]:
    """Return the granted scopes: as requested where the answer has none, never more (RFC 8693 §2.2.1).

    `extra_scopes` are scopes that were also requested but that the call doesn't need, such as `openid`.
    """
    is_wider = answer.scopes is not None and not answer.scopes <= asked | extra_scopes
    if is_wider and not allows.extra_scopes:
        raise _widened(issuer)
    if answer.scopes is not None and not asked <= answer.scopes:
        raise CredentialRejectedError(
            "scope_narrowed",
            f"{issuer} granted fewer scopes than the call needs",
            remedy="register the missing scopes for this client at the issuer",
        )
    return asked


def check_scope_claim(
    claims: Fields, asked: frozenset[str], issuer: str, allows: Allowances = STRICT
) -> None:
    """Check the `scope` claim of a token (RFC 9068 §2.2.3) against the request, whatever the response around it says."""
    scope = claims.get("scope")
    inside = frozenset(scope.split(" ")) - {""} if isinstance(scope, str) else claims.texts("scope")
    if inside is not None and not inside <= asked and not allows.extra_scopes:
        raise _widened(issuer)


def _widened(issuer: str) -> CredentialRejectedError:
    return CredentialRejectedError(
        "scope_widened",
        f"{issuer} granted scopes that weren't requested",
        remedy="register only these scopes for the client, or set allow_extra_scopes for the issuer",
    )


def read_jwt(token: Secret, *, typ: str | None = None) -> Fields | None:
    """Return the claims of a JWT without verifying it (it came from the issuer itself); None for an opaque token.

    With `typ`, a JWT of any other type counts as opaque.
    """
    try:
        parsed = jose.unverified(token.reveal())
        if typ is not None and parsed.header.get("typ") != typ:
            return None
        return Fields(jose.loads_object(parsed.payload))
    except VerificationError:
        return None


def names_audience(claims: Fields, audience: str, allows: Allowances = STRICT) -> bool:
    """Whether the `aud` of a token is exactly this audience, or differs from it as `allows` says."""
    aud = claims.get("aud")
    if aud is None:
        return allows.missing_audience
    return aud in (audience, [audience]) or (
        allows.several_audiences and isinstance(aud, list) and audience in aud
    )


def audience_remedy(claims: Fields, audience: str) -> str | None:
    """What would allow the `aud` of a token; None where nothing would."""
    aud = claims.get("aud")
    if aud is None:
        return "set allow_missing_audience for the issuer"
    if isinstance(aud, list) and audience in aud:
        return "set allow_several_audiences for the issuer"
    return None


def looks_signed(token: Secret) -> bool:
    """Whether a token looks like a compact JWS with a JSON header, valid or not."""
    text = token.reveal()
    return text.startswith("eyJ") and text.count(".") == 2  # noqa: PLR2004 - header, payload, signature


def is_sendable(secret: Secret) -> bool:
    """Whether a header can carry a secret: visible ASCII, no space at either end."""
    return _VALUE.fullmatch(secret.reveal()) is not None


def ath_of(token: Secret) -> str:
    """The `ath` of a token: the SHA-256 digest of its ASCII bytes (RFC 9449 §4.2)."""
    return hash_of(token.reveal())
