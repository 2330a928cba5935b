# SPDX-License-Identifier: Apache-2.0
"""What an answer is held to before it becomes a credential: type, binding, audience, scope, details, expiry, holder.

A JWT shows what it is for and is held to it, unverified: it is the issuer's word to us. An opaque token shows nothing;
whoever can asks introspection, everybody else records that it is opaque.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import orjson

from agent_identity.credentials.oauth.requests import Issued
from agent_identity.credentials.oauth.responses import (
    ath_of,
    check_scope_claim,
    check_scopes,
    json_object,
    looks_signed,
    read_jwt,
)
from agent_identity.credentials.source import named_by
from agent_identity.errors import CredentialError, CredentialRejectedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.requests import Binding, Form
    from agent_identity.credentials.oauth.responses import Answer, Fields
    from agent_identity.credentials.source import StepUp, Wanted
    from agent_identity.flow import Flow
    from agent_identity.values import JSON, Certificate

__all__ = [
    "Expected",
    "accepted",
    "check_details",
    "check_issued_type",
    "check_said_by",
    "check_shown",
    "check_step_up",
    "issued_from",
    "seen_through",
]

_SKEW: Final = 30.0
_UNSTATED_LIFE: Final = 60.0
"""Seconds that a token is used whose issuer says nothing of its life."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What was asked for. `audience` is what a JWT's `aud` has to be, `sub` and `actor` whom it has to name; None: anyone.

    `shown_by` is what has to show `sub`: the `token`, if it is a JWT; for a `sign-in`, the token, its introspection or the ID token
    beside it; a `kept` refresh token's answer need show nobody, and never somebody else. `aside` are scopes that were asked
    for along the way and that the call doesn't need.
    """

    issuer: str
    resource: str
    scopes: frozenset[str]
    binding: Binding
    asked_at: float
    audience: str | None = None
    sub: str | None = None
    shown_by: Literal["token", "sign-in", "kept"] = "token"
    actor: str | None = None
    details: Sequence[JSON] = ()
    certificate: Certificate | None = None
    aside: frozenset[str] = frozenset()


def check_issued_type(answer: Answer, expected: str, issuer: str) -> None:
    """Hold an exchange's answer to the type that was asked for (RFC 8693 §2.2.1)."""
    if answer.issued_token_type != expected:
        raise CredentialRejectedError(
            "wrong_token_type", f"{issuer} answered with a token of another type"
        )


def check_said_by(claims: Fields, issuer: Issuer, wanted: Wanted, *, tacit: bool = False) -> None:
    """Hold a token that goes on to somebody else to its issuer, its end and the principal.

    `tacit` lets one pass that doesn't name its issuer or the principal, as the standard behind it does.

    Raises:
        CredentialRejectedError: it is another issuer's, has expired, or is about somebody else.
    """
    if (claims.has("iss") or not tacit) and claims.get("iss") != issuer.url:
        raise CredentialRejectedError(
            "issuer_mismatch", f"{issuer.url} answered with what another issuer says"
        )
    end = claims.number("exp")
    if end is None or end <= issuer.clock():
        raise CredentialRejectedError("already_expired", f"{issuer.url} issued what has expired")
    name = named_by(issuer, wanted)
    if name is not None and (claims.has("sub") or not tacit) and claims.get("sub") != name:
        raise CredentialRejectedError(
            "subject_mismatch", f"{issuer.url} answered with what is about another principal"
        )


def issued_from(answer: Answer, expected: Expected) -> Issued:
    """The credential that an answer is, once it holds all that was asked for.

    Raises:
        CredentialRejectedError: it doesn't; `.code` says which part.
    """
    scheme = _scheme(answer, expected)
    check_details(answer.details, expected.details, expected.issuer)
    scopes = check_scopes(answer, expected.scopes, expected.issuer, aside=expected.aside)
    claims = read_jwt(answer.token)
    if claims is None and looks_signed(answer.token):
        raise CredentialRejectedError(
            "malformed_token", f"{expected.issuer} issued a JWT that no strict reader takes"
        )
    life = _UNSTATED_LIFE if answer.expires_in is None else answer.expires_in
    end = expected.asked_at + life
    if claims is not None:
        _check_claims(claims, expected)
        expiry = claims.number("exp")
        end = end if expiry is None else min(end, expiry)
        if end <= expected.asked_at:
            raise CredentialRejectedError(
                "already_expired", f"{expected.issuer} issued what has expired"
            )
    return Issued(
        token=answer.token,
        token_type=scheme,
        resource=expected.resource,
        issuer=expected.issuer,
        scopes=scopes,
        issued_at=expected.asked_at,
        expires_at=end,
        jti=None if claims is None else claims.text("jti"),
        ath=ath_of(answer.token),
        scheme=scheme,
        certificate=expected.certificate,
        is_opaque=claims is None,
        details=answer.details,
    )


def _scheme(answer: Answer, expected: Expected) -> str:
    """How the token is to be sent; a binding that was asked for is never dropped in silence."""
    kind = answer.token_type.lower()
    if expected.binding.kind == "dpop":
        if kind != "dpop":
            raise CredentialRejectedError(
                "binding_missing",
                f"{expected.issuer} dropped the binding to the agent's key",
                remedy="let the issuer bind this client's tokens (DPoP), or set binding for the resource",
            )
        return "DPoP"
    if expected.binding.kind == "mtls" and expected.certificate is None:
        raise CredentialRejectedError(
            "binding_missing",
            f"there is no certificate that a token of {expected.issuer} could be bound to",
            remedy="give the issuer a client certificate, or set binding for the resource",
        )
    if kind != "bearer":
        raise CredentialRejectedError(
            "wrong_token_type", f"{expected.issuer} issued a token of a type nobody asked for"
        )
    return "Bearer"


def _check_claims(claims: Fields, expected: Expected) -> None:
    check_binding(claims, expected)
    check_scope_claim(claims, expected.scopes | expected.aside, expected.issuer)
    _check_audience(claims, expected)
    _check_holder(claims, expected)


def _check_audience(claims: Fields, expected: Expected) -> None:
    if expected.audience is not None and claims.get("aud") not in (
        expected.audience,
        [expected.audience],
    ):
        raise CredentialRejectedError(
            "audience_mismatch",
            f"{expected.issuer} issued a token that isn't for {expected.audience} alone",
            remedy=f"register {expected.resource} at {expected.issuer}, or set the resource's audience",
        )


def _check_holder(claims: Fields, expected: Expected) -> None:
    is_open = expected.shown_by != "token" and not claims.has("sub")
    if expected.sub is not None and not is_open and claims.get("sub") != expected.sub:
        raise CredentialRejectedError(
            "subject_mismatch", f"{expected.issuer} issued a token for another principal"
        )
    if expected.actor is not None and claims.actor() != expected.actor:
        raise CredentialRejectedError(
            "subject_mismatch", f"{expected.issuer} issued a token for another agent"
        )


def check_binding(claims: Fields, expected: Expected) -> None:
    """Hold a token to being bound to our key or certificate, where that was asked for (RFC 9449 §6, RFC 8705 §3)."""
    binding = expected.binding
    bound = True
    if binding.kind == "dpop" and binding.proof_key is not None:
        bound = claims.confirms("jkt") == binding.proof_key.thumbprint
    elif binding.kind == "mtls":
        certificate = expected.certificate
        bound = certificate is not None and claims.confirms("x5t#S256") == certificate.thumbprint
    if not bound:
        raise CredentialRejectedError(
            "binding_missing", f"{expected.issuer} issued a token that isn't bound as it was asked"
        )


def check_shown(answer: Answer, claims: Fields | None, expected: Expected, client_id: str) -> None:
    """Hold a sign-in to showing who signed in: where the token doesn't, by the ID token beside it (OIDC Core §3.1.3.7).

    `claims` are those of the token, or what its issuer says of it; None where nobody says anything.

    Raises:
        CredentialRejectedError: `subject_unproven`, nothing says who it was; `subject_mismatch`, it was somebody else.
    """
    if expected.sub is None or (claims is not None and claims.has("sub")):
        return
    shown = None if answer.id_token is None else read_jwt(answer.id_token)
    if (
        shown is None
        or shown.text("iss") != expected.issuer
        or shown.get("aud") not in (client_id, [client_id])
        or not shown.has("sub")
    ):
        raise CredentialRejectedError(
            "subject_unproven",
            f"nothing that {expected.issuer} answered shows who signed in",
            remedy="let it issue JWTs or answer introspection for this client, or an ID token (scope openid)",
        )
    if shown.get("sub") != expected.sub:
        raise CredentialRejectedError(
            "subject_mismatch",
            f"somebody else than the principal signed in at {expected.issuer}",
        )


def seen_through(issued: Issued, claims: Fields, expected: Expected) -> Issued:
    """An opaque credential, held to what its issuer says of it when asked (RFC 7662 §2.2).

    Raises:
        CredentialRejectedError: it isn't what was asked for.
    """
    if claims.get("active") is not True:
        raise CredentialRejectedError(
            "inactive", f"{expected.issuer} issued a token that isn't valid"
        )
    check_binding(claims, expected)
    check_scope_claim(claims, expected.scopes | expected.aside, expected.issuer)
    shows_audience = claims.has("aud")
    if shows_audience:
        _check_audience(claims, expected)
    if claims.has("sub"):
        _check_holder(claims, expected)
    expiry = claims.number("exp")
    end = issued.expires_at if expiry is None else min(issued.expires_at, expiry)
    return replace(issued, expires_at=end, jti=claims.text("jti"), is_opaque=not shows_audience)


def check_details(granted: JSON, asked: Sequence[JSON], issuer: str) -> None:
    """Hold granted `authorization_details` to those asked for (RFC 9396 §7): narrower is fine, wider is refused."""
    if not asked:
        if granted not in (None, []):
            raise CredentialRejectedError(
                "details_widened", f"{issuer} granted authorization details nobody asked for"
            )
        return
    if not isinstance(granted, list) or not granted:
        raise CredentialRejectedError(
            "details_missing",
            f"{issuer} doesn't say which authorization details it granted",
            remedy="choose an issuer that implements RFC 9396, or leave authorization_details out",
        )
    if not all(any(_covers(wide, narrow) for wide in asked) for narrow in granted):
        raise CredentialRejectedError(
            "details_widened", f"{issuer} granted authorization details nobody asked for"
        )


def _covers(wide: JSON, narrow: JSON) -> bool:
    """Whether one details object is within another: lists may be shorter, every other member is equal and none is missing."""
    if not isinstance(wide, dict) or not isinstance(narrow, dict):
        return False
    return wide.keys() == narrow.keys() and all(
        _within(wide[name], value) for name, value in narrow.items()
    )


def _within(wide: JSON, narrow: JSON) -> bool:
    if isinstance(wide, list) and isinstance(narrow, list):
        allowed = {_text(item) for item in wide}
        return all(_text(item) in allowed for item in narrow) and (bool(narrow) or not wide)
    return _text(wide) == _text(narrow)


def _text(value: JSON) -> bytes:
    """One text for one value: in Python `1 == True`, in JSON they differ."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def check_step_up(issued: Issued, step_up: StepUp | None) -> None:
    """Hold a token to the sign-in that its resource asked for (RFC 9470 §5); an opaque one shows nothing of it.

    Raises:
        CredentialRejectedError: `step_up_unmet`, the sign-in behind it is another, or older.
    """
    claims = None if step_up is None else read_jwt(issued.token)
    if step_up is None or claims is None:
        return
    wrong_acr = bool(step_up.acr_values) and claims.get("acr") not in step_up.acr_values
    signed_in = claims.number("auth_time")
    too_old = step_up.max_age is not None and (
        signed_in is None or signed_in + step_up.max_age + _SKEW < issued.issued_at
    )
    if wrong_acr or too_old:
        raise CredentialRejectedError(
            "step_up_unmet",
            f"{issued.issuer} issued a token whose sign-in isn't what {issued.resource} asks for",
            remedy="have the principal sign in again, in the way that the resource asks for",
        )


def accepted(issuer: Issuer, answer: Answer, expected: Expected) -> Flow[Issued]:
    """The credential that an answer is. One that stays opaque, since nobody says what it holds, says so in `is_opaque`.

    Raises:
        CredentialRejectedError: it isn't what was asked for.
    """
    issued = issued_from(answer, expected)
    claims = read_jwt(answer.token)
    if issued.is_opaque:
        claims = yield from _introspected(issuer, answer)
        issued = issued if claims is None else seen_through(issued, claims, expected)
    elif expected.shown_by == "kept" and expected.sub is not None and not _names(claims):
        issued = replace(issued, is_opaque=True)
    if expected.shown_by == "sign-in" and expected.sub is not None:
        client = yield from issuer.client()
        check_shown(answer, claims, expected, client.client_id)
    return issued


def _names(claims: Fields | None) -> bool:
    return claims is not None and claims.has("sub")


def _introspected(issuer: Issuer, answer: Answer) -> Flow[Fields | None]:
    """What the issuer says of a token, None where it says nothing: not every client may ask, and the token is no worse for it."""
    endpoints = yield from issuer.endpoints()
    if endpoints.introspection is None:
        return None
    form: Form = [("token", answer.token), ("token_type_hint", "access_token")]
    try:
        response = yield from issuer.post("introspection", form, "about a token", attempts=1)
        return json_object(response, issuer.url)
    except CredentialError:
        return None
