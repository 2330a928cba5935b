# SPDX-License-Identifier: Apache-2.0
"""Two issuers, played by hand: what each leg asks, and that a grant for anything else never reaches the second.

draft-ietf-oauth-identity-assertion-authz-grant-04, draft-ietf-oauth-identity-chaining-17.
"""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity.credentials.oauth.client import Client, PrivateKeyJwt
from agent_identity.credentials.oauth.responses import Allowances
from agent_identity.credentials.oauth.token_types import (
    ACCESS_TOKEN,
    ID_JAG,
    ID_TOKEN,
    JWT,
    JWT_BEARER,
    REFRESH_TOKEN,
    SAML2,
    TOKEN_EXCHANGE,
)
from agent_identity.credentials.sources.cross_domain import CrossDomain
from agent_identity.errors import CredentialRejectedError, TransportError
from agent_identity.flow import HttpResponse
from agent_identity.testing import KnownIssuer, play
from agent_identity.values import Principal

THERE = "https://as.partner.example"
KINDS = ("id-jag", "identity-chaining")
ISSUED = {"id-jag": ID_JAG, "identity-chaining": JWT}


def source(rig: Any, kind: Any, **parts: Any) -> CrossDomain:
    there = KnownIssuer(
        rig.endpoints(issuer=THERE, token=f"{THERE}/token"),
        Client("client-there", PrivateKeyJwt(rig.client_key)),
        clock=rig.clock,
    )
    return CrossDomain(kind, there, rig.issuer(), **parts)


def grant(rig: Any, typ: str = "oauth-id-jag+jwt", **changes: Any) -> str:
    """A grant as the principal's issuer gives it; None leaves a claim out."""
    claims = {
        "iss": rig.IDP,
        "sub": "alice",
        "aud": THERE,
        "client_id": "client-there",
        "resource": rig.BILLING,
        "scope": "invoices:read",
        "cnf": {"jkt": rig.agent.key.thumbprint},
        "jti": "jag_1",
        "iat": rig.NOW,
        "exp": rig.NOW + 300,
    } | changes
    return rig.signed({name: value for name, value in claims.items() if value is not None}, typ)


def granted(rig: Any, kind: str, compact: str | None = None, **changes: Any) -> HttpResponse:
    """The answer to the first leg."""
    members = {"issued_token_type": ISSUED[kind], "token_type": "N_A"} | changes
    return rig.answered(grant(rig) if compact is None else compact, **members)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_leg_asks_for_a_grant_to_the_other_issuer(rig, kind: str) -> None:
    asks: list[Any] = []
    subject = rig.Subject("alices-token")
    play(
        source(rig, kind).fetch(rig.wanted(subject=subject)),
        *(granted(rig, kind), rig.answered()),
        asks=asks,
    )
    request = asks[0]
    form = rig.form(request)
    assert request.url == f"{rig.IDP}/token"
    assert form["grant_type"] == TOKEN_EXCHANGE
    assert form["requested_token_type"] == ISSUED[kind]
    assert form["audience"] == THERE
    # In identity chaining a resource would be the other issuer's own; ID-JAG names what the grant is for.
    assert form.get("resource") == (rig.BILLING if kind == "id-jag" else None)
    assert (form["subject_token"], form["scope"]) == ("alices-token", "invoices:read")
    assert form["subject_token_type"] == subject.asked[0][0]
    assert rig.claims(request.headers["DPoP"])["htu"] == f"{rig.IDP}/token"


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_leg_trades_the_grant_as_the_client_that_is_known_there(rig, kind: str) -> None:
    asks: list[Any] = []
    compact = grant(rig)
    issued = play(
        source(rig, kind).fetch(rig.wanted()),
        *(granted(rig, kind, compact), rig.answered()),
        asks=asks,
    )
    request = asks[1]
    form = rig.form(request)
    assert request.url == f"{THERE}/token"
    assert (form["grant_type"], form["assertion"]) == (JWT_BEARER, compact)
    assert (form["client_id"], form["resource"]) == ("client-there", rig.BILLING)
    assert rig.claims(form["client_assertion"])["aud"] == THERE
    assert (issued.issuer, issued.resource) == (THERE, rig.BILLING)


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("id-jag", (ID_TOKEN, SAML2, REFRESH_TOKEN)),
        ("identity-chaining", (ACCESS_TOKEN, JWT, ID_TOKEN)),
    ],
)
def test_each_kind_shows_only_the_tokens_that_its_draft_knows(rig, kind, types) -> None:
    subject = rig.Subject()
    play(source(rig, kind).fetch(rig.wanted(subject=subject)), granted(rig, kind), rig.answered())
    assert subject.asked == [types]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_token_of_the_principal_nothing_is_asked(rig, kind: str) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        play(source(rig, kind).fetch(rig.wanted(subject=None)), asks=asks)
    assert caught.value.code == "subject_token_missing"
    assert asks == []


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("both", {}, {"issued_token_type": ACCESS_TOKEN}, "wrong_token_type"),
    ("both", {}, {"issued_token_type": None}, "wrong_token_type"),
    ("id-jag", {}, {"issued_token_type": JWT}, "wrong_token_type"),
    ("identity-chaining", {}, {"issued_token_type": ID_JAG}, "wrong_token_type"),
    ("both", {}, {"token_type": "Bearer"}, "wrong_token_type"),
    ("both", {}, {"token_type": "DPoP"}, "wrong_token_type"),
    ("both", {}, {"scope": "invoices:read invoices:pay"}, "scope_widened"),
    ("both", {"scope": "invoices:read invoices:pay"}, {"scope": None}, "scope_widened"),
    ("both", {"aud": [THERE, "https://mail.example"]}, {}, "audience_mismatch"),
    ("both", {"aud": "https://mail.example"}, {}, "audience_mismatch"),
    ("both", {"aud": f"{THERE}/"}, {}, "audience_mismatch"),
    ("both", {"aud": []}, {}, "audience_mismatch"),
    ("both", {"aud": None}, {}, "audience_mismatch"),
    ("both", {"resource": "https://mail.example"}, {}, "audience_mismatch"),
    ("both", {"resource": ["https://mail.example"]}, {}, "audience_mismatch"),
    ("id-jag", {"client_id": "client-1"}, {}, "client_mismatch"),
    ("id-jag", {"client_id": None}, {}, "client_mismatch"),
    ("id-jag", {"client_id": ["client-there"]}, {}, "client_mismatch"),
    ("id-jag", {"cnf": None}, {}, "binding_missing"),
    ("id-jag", {"cnf": {"jkt": "another"}}, {}, "binding_missing"),
    ("id-jag", {"cnf": {}}, {}, "binding_missing"),
    ("both", {"iss": "https://other.example"}, {}, "issuer_mismatch"),
    ("both", {"iss": None}, {}, "issuer_mismatch"),
    ("both", {"exp": 1_795_518_000}, {}, "already_expired"),
    ("both", {"exp": None}, {}, "already_expired"),
    ("both", {"exp": "soon"}, {}, "already_expired"),
    ("both", {"sub": "bob"}, {}, "subject_mismatch"),
    ("both", {"sub": None}, {}, "subject_mismatch"),
    ("both", {"sub": ["alice"]}, {}, "subject_mismatch"),
    ("id-jag", {"typ": "JWT"}, {}, "malformed_grant"),
    ("id-jag", {"typ": "at+jwt"}, {}, "malformed_grant"),
]


@pytest.mark.parametrize(
    ("kind", "claims", "members", "code"),
    [
        (kind, claims, members, code)
        for kinds, claims, members, code in REFUSED
        for kind in (KINDS if kinds == "both" else (kinds,))
    ],
)
def test_a_grant_for_anything_else_never_reaches_the_second_issuer(
    rig, kind, claims, members, code
) -> None:
    asks: list[Any] = []
    answer = granted(rig, kind, grant(rig, **claims), **members)
    with pytest.raises(CredentialRejectedError) as caught:
        play(source(rig, kind).fetch(rig.wanted()), answer, asks=asks)
    assert caught.value.code == code
    assert [request.url for request in asks] == [f"{rig.IDP}/token"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compact", ["opaque", "a.b.c", "eyJ.eyJ."])
def test_a_grant_that_nobody_can_read_is_not_sent(rig, kind: str, compact: str) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        play(source(rig, kind).fetch(rig.wanted()), granted(rig, kind, compact), asks=asks)
    assert caught.value.code == "malformed_grant"
    assert len(asks) == 1


@pytest.mark.parametrize(
    ("kind", "claims"),
    [
        ("id-jag", {"aud": [THERE]}),
        ("id-jag", {"resource": ["https://billing.example"]}),
        ("id-jag", {"resource": None, "scope": None}),
        ("identity-chaining", {"client_id": None, "cnf": None, "typ": "JWT"}),
    ],
)
def test_what_a_draft_leaves_open_is_taken(rig, kind: str, claims: dict[str, Any]) -> None:
    answer = granted(rig, kind, grant(rig, **claims))
    assert play(source(rig, kind).fetch(rig.wanted()), answer, rig.answered()).issuer == THERE


def test_a_principal_of_a_third_issuer_may_have_another_name_in_the_grant(rig) -> None:
    wanted = rig.wanted(principal=Principal("4711", iss="https://third.example"))
    answer = granted(rig, "id-jag")
    assert play(source(rig, "id-jag").fetch(wanted), answer, rig.answered()).issuer == THERE


def test_a_refusal_of_the_first_issuer_ends_it(rig) -> None:
    asks: list[Any] = []
    answer = rig.refused("insufficient_user_authentication")
    with pytest.raises(CredentialRejectedError) as caught:
        play(source(rig, "id-jag").fetch(rig.wanted()), answer, asks=asks)
    assert caught.value.code == "insufficient_user_authentication"
    assert len(asks) == 1


def test_a_failure_on_the_way_to_the_first_issuer_may_be_tried_again(rig) -> None:
    asks: list[Any] = []
    reset = TransportError("exchange_failed", "reset")
    play(
        source(rig, "id-jag").fetch(rig.wanted()),
        *(reset, granted(rig, "id-jag"), rig.answered()),
        asks=asks,
    )
    assert [request.url for request in rig.requests(asks)] == [
        *(f"{rig.IDP}/token", f"{rig.IDP}/token", f"{THERE}/token")
    ]


def test_without_a_binding_a_grant_without_one_will_do(rig) -> None:
    answer = granted(rig, "id-jag", grant(rig, cnf=None))
    bearer = rig.answered(rig.token(cnf=None), token_type="Bearer")
    issued = play(source(rig, "id-jag", binding="none").fetch(rig.wanted()), answer, bearer)
    assert issued.token_type == "Bearer"


@pytest.mark.parametrize("kind", ["id-jag", "identity-chaining"])
def test_a_key_allows_a_grant_that_is_called_a_bearer_token(rig, kind: str) -> None:
    """Okta's documentation shows `Bearer` where the draft requires `N_A`."""
    made = source(rig, kind)
    made.via.allows = Allowances(bearer_grants=True)
    answer = granted(rig, kind, token_type="Bearer")
    assert play(made.fetch(rig.wanted()), answer, rig.answered()).issuer == THERE
    with pytest.raises(CredentialRejectedError) as caught:
        play(source(rig, kind).fetch(rig.wanted()), answer)
    assert "allow_bearer_grants" in (caught.value.remedy or "")


def test_an_access_token_is_no_id_jag_whatever_is_allowed(rig) -> None:
    made = source(rig, "id-jag")
    made.via.allows = Allowances(bearer_grants=True)
    access_token = granted(rig, "id-jag", grant(rig, "at+jwt"), token_type="Bearer")
    with pytest.raises(CredentialRejectedError) as caught:
        play(made.fetch(rig.wanted()), access_token)
    assert caught.value.code == "malformed_grant"
