# SPDX-License-Identifier: Apache-2.0
"""Checks an answer before it becomes a credential: type, binding, audience, scope, details, expiry, principal and actor.

The claims of a JWT are checked without its signature, since it came from the issuer itself. An opaque token is introspected
where the issuer allows that; otherwise the credential is recorded as opaque.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import orjson

from agent_identity.credentials.oauth.requests import Binding, Issued
from agent_identity.credentials.oauth.responses import (
    STRICT,
    Allowances,
    ath_of,
    audience_remedy,
    check_scope_claim,
    check_scopes,
    json_object,
    looks_signed,
    names_audience,
    read_jwt,
)
from agent_identity.credentials.source import sub_at
from agent_identity.errors import CredentialError, CredentialRejectedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.requests import Form
    from agent_identity.credentials.oauth.responses import Answer, Fields
    from agent_identity.credentials.source import StepUp, Wanted
    from agent_identity.flow import Flow
    from agent_identity.values import JSON, Certificate

_SKEW: Final = 30.0
_UNSTATED_LIFE: Final = 60.0
"""Seconds that a token without an `expires_in` is used."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The request that an answer is checked against. `audience`, `sub` and `actor` are the required claims; None: any.

    `shown_by` says where `sub` must appear: in the `token`, if it is a JWT; after a `sign-in`, in the token, its introspection
    or the ID token beside it; after a `kept` refresh token it may be missing, but must not differ. `extra_scopes` were
    requested too, but the call doesn't need them. `client_id` is that of our client at the issuer.
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
    extra_scopes: frozenset[str] = frozenset()
    allows: Allowances = STRICT
    client_id: str | None = None


def expect(
    issuer: Issuer,
    wanted: Wanted,
    binding: Literal["dpop", "mtls", "none"],
    *,
    audience: str | None = None,
    details: Sequence[JSON] = (),
    sub: str | None = None,
    actor: str | None = None,
) -> Flow[Expected]:
    """What to check the answer to a request against, as of now. `audience` is the resource where it is None."""
    certificate = (yield from issuer.certificate()) if binding == "mtls" else None
    client = yield from issuer.client()
    return Expected(
        issuer=issuer.url,
        resource=wanted.resource,
        scopes=wanted.scopes,
        binding=Binding(binding, wanted.proof_key),
        asked_at=issuer.clock(),
        audience=audience or wanted.resource,
        sub=sub,
        actor=actor,
        details=details,
        certificate=certificate,
        allows=issuer.allows,
        client_id=client.client_id,
    )


def check_issued_type(answer: Answer, expected: str, issuer: str) -> None:
    """Check the type of an exchanged token (RFC 8693 §2.2.1)."""
    if answer.issued_token_type != expected:
        raise CredentialRejectedError(
            "wrong_token_type", f"{issuer} answered with a token of another type"
        )


def check_forwarded(claims: Fields, issuer: Issuer, wanted: Wanted, *, tacit: bool = False) -> None:
    """Check issuer, expiry and principal of a token that is going to be sent to another party.

    `tacit` allows `iss` and `sub` to be missing, where the token's standard does.

    Raises:
        CredentialRejectedError: it names another issuer or principal, or has expired.
    """
    if (claims.has("iss") or not tacit) and claims.get("iss") != issuer.url:
        raise CredentialRejectedError(
            "issuer_mismatch", f"{issuer.url} sent a token that names another issuer"
        )
    end = claims.number("exp")
    if end is None or end <= issuer.clock():
        raise CredentialRejectedError("already_expired", f"{issuer.url} issued an expired token")
    sub = sub_at(issuer, wanted)
    if sub is not None and (claims.has("sub") or not tacit) and claims.get("sub") != sub:
        raise CredentialRejectedError(
            "subject_mismatch", f"{issuer.url} sent a token that names another principal"
        )


def issued_from(answer: Answer, claims: Fields | None, expected: Expected) -> Issued:
    """Make a credential of an answer, after checking it against the request. `claims` are those of its token, if it is a JWT.

    Raises:
        CredentialRejectedError: it doesn't match; `.code` names the rule.
    """
    scheme = _scheme(answer, expected)
    check_details(answer.details, expected.details, expected.issuer)
    scopes = check_scopes(
        answer,
        expected.scopes,
        expected.issuer,
        extra_scopes=expected.extra_scopes,
        allows=expected.allows,
    )
    if claims is None and looks_signed(answer.token):
        raise CredentialRejectedError(
            "malformed_token", f"{expected.issuer} issued a malformed JWT"
        )
    life = _UNSTATED_LIFE if answer.expires_in is None else answer.expires_in
    end = expected.asked_at + min(life, expected.allows.longest_life)
    if claims is not None:
        _check_claims(claims, expected)
        expiry = claims.number("exp")
        end = end if expiry is None else min(end, expiry)
        if end <= expected.asked_at:
            raise CredentialRejectedError(
                "already_expired", f"{expected.issuer} issued an expired token"
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
    """Return the authentication scheme of a token. A missing binding is an error."""
    kind = answer.token_type.lower()
    if expected.binding.kind == "dpop":
        if kind != "dpop":
            raise CredentialRejectedError(
                "binding_missing",
                f"{expected.issuer} issued a token that isn't bound to the agent's key",
                remedy="let the issuer bind this client's tokens (DPoP), or set binding for the resource",
            )
        return "DPoP"
    if expected.binding.kind == "mtls" and expected.certificate is None:
        raise CredentialRejectedError(
            "binding_missing",
            f"there is no client certificate to bind the token of {expected.issuer} to",
            remedy="give the issuer a client certificate, or set binding for the resource",
        )
    if kind != "bearer":
        raise CredentialRejectedError(
            "wrong_token_type", f"{expected.issuer} issued a token of a type that wasn't requested"
        )
    return "Bearer"


def _check_claims(claims: Fields, expected: Expected) -> None:
    check_binding(claims, expected)
    _check_scope(claims, expected)
    _check_audience(claims, expected)
    _check_holder(claims, expected)


def _check_scope(claims: Fields, expected: Expected) -> None:
    asked = expected.scopes | expected.extra_scopes
    check_scope_claim(claims, asked, expected.issuer, expected.allows)


def _check_audience(claims: Fields, expected: Expected) -> None:
    if expected.audience is None or names_audience(claims, expected.audience, expected.allows):
        return
    way_out = audience_remedy(claims, expected.audience) or "set the resource's audience"
    if expected.client_id is not None and names_audience(claims, expected.client_id):
        if expected.allows.client_audience:
            return
        way_out = "set allow_client_audience for the issuer"
    raise CredentialRejectedError(
        "audience_mismatch",
        f"the audience of the token from {expected.issuer} isn't exactly {expected.audience}",
        remedy=f"register {expected.resource} at {expected.issuer}, or {way_out}",
    )


def _check_holder(claims: Fields, expected: Expected) -> None:
    is_open = expected.shown_by != "token" and not claims.has("sub")
    is_other = expected.sub is not None and claims.get("sub") != expected.sub
    if is_other and not is_open and not expected.allows.other_subject:
        raise CredentialRejectedError(
            "subject_mismatch",
            f"{expected.issuer} issued a token for another principal",
            remedy="if the issuer names the same person differently for each client, set allow_other_subject for it",
        )
    if expected.actor is not None and claims.actor() != expected.actor:
        raise CredentialRejectedError(
            "subject_mismatch", f"{expected.issuer} issued a token for another agent"
        )


def check_binding(claims: Fields, expected: Expected) -> None:
    """Check that a token is bound to our key or certificate, if that was requested (RFC 9449 §6, RFC 8705 §3)."""
    binding = expected.binding
    is_bound = True
    if binding.kind == "dpop" and binding.proof_key is not None:
        is_bound = claims.confirms("jkt") == binding.proof_key.thumbprint
    elif binding.kind == "mtls":
        certificate = expected.certificate
        is_bound = certificate is not None and claims.confirms("x5t#S256") == certificate.thumbprint
    if not is_bound:
        raise CredentialRejectedError(
            "binding_missing", f"{expected.issuer} issued a token without the requested binding"
        )


def _check_signed_in(
    answer: Answer, claims: Fields | None, expected: Expected, client_id: str
) -> None:
    """Check who signed in: by the token, or else by the ID token beside it (OIDC Core §3.1.3.7).

    `claims` are those of the token or of its introspection; None where there are none.

    Raises:
        CredentialRejectedError: `subject_unproven`, the answer doesn't show who signed in; `subject_mismatch`, it was
            another person.
    """
    is_shown = claims is not None and claims.has("sub")
    if expected.sub is None or is_shown or expected.allows.other_subject:
        return
    id_claims = None if answer.id_token is None else read_jwt(answer.id_token)
    if (
        id_claims is None
        or id_claims.text("iss") != expected.issuer
        or id_claims.get("aud") not in (client_id, [client_id])
        or not id_claims.has("sub")
    ):
        raise CredentialRejectedError(
            "subject_unproven",
            f"the answer of {expected.issuer} doesn't show who signed in",
            remedy="let the issuer give this client JWTs, introspection, or an ID token (scope openid), or set allow_other_subject for it",
        )
    if id_claims.get("sub") != expected.sub:
        raise CredentialRejectedError(
            "subject_mismatch",
            f"another person than the principal signed in at {expected.issuer}",
            remedy="sign in as the principal; if the issuer names a person differently for each client, set allow_other_subject for it",
        )


def _apply_introspection(issued: Issued, claims: Fields, expected: Expected) -> Issued:
    """Check an opaque credential against its introspection response (RFC 7662 §2.2).

    Raises:
        CredentialRejectedError: it doesn't match the request.
    """
    if claims.get("active") is not True:
        raise CredentialRejectedError(
            "inactive", f"{expected.issuer} issued a token that isn't valid"
        )
    check_binding(claims, expected)
    _check_scope(claims, expected)
    shows_audience = claims.has("aud")
    if shows_audience:
        _check_audience(claims, expected)
    if claims.has("sub"):
        _check_holder(claims, expected)
    expiry = claims.number("exp")
    end = issued.expires_at if expiry is None else min(issued.expires_at, expiry)
    return replace(issued, expires_at=end, jti=claims.text("jti"), is_opaque=not shows_audience)


def check_details(granted: JSON, asked: Sequence[JSON], issuer: str) -> None:
    """Check granted `authorization_details` against the requested ones (RFC 9396 §7): they may be narrower, not wider."""
    if not asked:
        if granted not in (None, []):
            raise CredentialRejectedError(
                "details_widened", f"{issuer} granted authorization details that weren't requested"
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
            "details_widened", f"{issuer} granted authorization details that weren't requested"
        )


def _covers(wide: JSON, narrow: JSON) -> bool:
    """Whether one details object is within another: lists may be shorter, all other members must be equal."""
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
    """The JSON text of a value, to compare by: in Python `1 == True`, in JSON they differ."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def check_step_up(issued: Issued, step_up: StepUp | None) -> None:
    """Check that a token comes from the sign-in that its resource requires (RFC 9470 §5). An opaque token isn't checked.

    Raises:
        CredentialRejectedError: `step_up_unmet`, the sign-in has another `acr`, or is too old.
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
            f"the sign-in behind the token from {issued.issuer} isn't what {issued.resource} requires",
            remedy="have the principal sign in again, in the way that the resource requires",
        )


def check_answer(issuer: Issuer, answer: Answer, expected: Expected) -> Flow[Issued]:
    """Check an answer, by introspection too if the token is opaque, and return the credential.

    Raises:
        CredentialRejectedError: it doesn't match the request.
    """
    claims = read_jwt(answer.token)
    issued = issued_from(answer, claims, expected)
    if issued.is_opaque:
        claims = yield from _introspect(issuer, answer)
        issued = issued if claims is None else _apply_introspection(issued, claims, expected)
    elif expected.shown_by == "kept" and expected.sub is not None and not _names_subject(claims):
        issued = replace(issued, is_opaque=True)
    if expected.shown_by == "sign-in" and expected.sub is not None:
        client = yield from issuer.client()
        _check_signed_in(answer, claims, expected, client.client_id)
    return issued


def _names_subject(claims: Fields | None) -> bool:
    return claims is not None and claims.has("sub")


def _introspect(issuer: Issuer, answer: Answer) -> Flow[Fields | None]:
    """Introspect a token; None where that says nothing about it.

    Not every client may introspect. `active: false` about a token that was issued a moment ago means that the issuer introspects
    tokens of other kinds only (RFC 7662 §2.2 has no other answer for those). The token is usable in both cases.
    """
    endpoints = yield from issuer.endpoints()
    if endpoints.introspection is None:
        return None
    form: Form = [("token", answer.token), ("token_type_hint", "access_token")]
    try:
        response = yield from issuer.post("introspection", form, "about a token", attempts=1)
        claims = json_object(response, issuer.url)
    except CredentialError:
        return None
    return None if claims.get("active") is False else claims
