# SPDX-License-Identifier: Apache-2.0
"""JWT bearer, played by hand: where the assertion comes from, and that one from outside is shown once (RFC 7523 §2.1)."""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity import jose
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN, ID_TOKEN, JWT, JWT_BEARER
from agent_identity.credentials.sources.jwt_bearer import JwtBearer
from agent_identity.credentials.workload.tokens import WorkloadToken
from agent_identity.errors import ConfigurationError, CredentialRejectedError
from agent_identity.flow import pure
from agent_identity.testing import play
from agent_identity.values import Principal, Secret


def fetched(rig: Any, *answers: Any, wanted: Any = None, **parts: Any) -> list[Any]:
    """What a good fetch asks for."""
    asks: list[Any] = []
    source = JwtBearer(rig.issuer(), **parts)
    play(source.fetch(wanted or rig.wanted()), *(answers or [rig.answered()]), asks=asks)
    return asks


def test_the_client_signs_for_the_principal_to_the_issuer_alone(rig) -> None:
    (request,) = fetched(rig, key=lambda: pure(rig.client_key))
    form = rig.form(request)
    assert form["grant_type"] == JWT_BEARER
    assert (form["resource"], form["scope"]) == (rig.BILLING, "invoices:read")
    header, _ = jose.verify(
        form["assertion"],
        [{**rig.client_key.public_jwk, "kid": rig.client_key.thumbprint}],
        typ="JWT",
        algorithms={"ES256"},
    )
    assert header["kid"] == rig.client_key.thumbprint
    claims = rig.claims(form["assertion"])
    assert (claims["iss"], claims["sub"], claims["aud"]) == ("client-1", "alice", rig.IDP)
    assert claims["exp"] - claims["iat"] == 60


def test_every_assertion_that_the_client_signs_is_a_new_one(rig) -> None:
    requests = [fetched(rig, key=lambda: pure(rig.client_key))[0] for _ in range(2)]
    one, two = (rig.claims(rig.form(request)["assertion"])["jti"] for request in requests)
    assert one != two


def test_the_principals_own_token_is_shown_as_it_is(rig) -> None:
    token = rig.token()
    subject = rig.Subject(token)
    (request,) = fetched(rig, assertion_from="subject", wanted=rig.wanted(subject=subject))
    assert rig.form(request)["assertion"] == token
    assert subject.asked == [(JWT, ACCESS_TOKEN, ID_TOKEN)]


def test_an_opaque_token_of_the_principal_is_no_assertion(rig) -> None:
    subject = rig.Subject("opaque")
    fetched(rig, assertion_from="subject", wanted=rig.wanted(subject=subject))
    assert subject.asked == [(JWT, ACCESS_TOKEN, ID_TOKEN), (ID_TOKEN,)]


def workload(token: str, **parts: Any) -> WorkloadToken:
    return WorkloadToken(Secret(token), 0, 1, **parts)


def test_the_workloads_token_is_read_when_it_is_needed(rig) -> None:
    tokens = iter(["first", "second"])
    source = JwtBearer(
        rig.issuer(), assertion_from="workload", workload=lambda: pure(workload(next(tokens)))
    )
    asks: list[Any] = []
    for _ in range(2):
        play(source.fetch(rig.wanted()), rig.answered(), asks=asks)
    assert [rig.form(request)["assertion"] for request in asks] == ["first", "second"]


def test_a_workloads_token_that_is_no_jwt_is_not_sent_as_an_assertion(rig) -> None:
    asks: list[Any] = []
    opaque = workload("opaque-workload-token", token_type=ACCESS_TOKEN)
    source = JwtBearer(rig.issuer(), assertion_from="workload", workload=lambda: pure(opaque))
    with pytest.raises(CredentialRejectedError) as caught:
        play(source.fetch(rig.wanted()), asks=asks)
    assert (caught.value.code, asks) == ("assertion_opaque", [])


def test_the_key_is_named_as_it_is_registered(rig) -> None:
    (request,) = fetched(rig, key=lambda: pure(rig.client_key), kid="key-1")
    assert jose.unverified(rig.form(request)["assertion"]).header["kid"] == "key-1"


ELSEWHERE = "https://other-idp.example"


@pytest.mark.parametrize(
    "principal",
    [
        Principal("alice", iss=ELSEWHERE),
        Principal("alice", iss="urn:agent-identity:agent:invoice-bot", profile="trigger"),
        Principal("alice", iss="https://idp.example", profile="trigger"),
        Principal("alice", profile="trigger"),
    ],
    ids=str,
)
def test_a_name_of_somewhere_else_is_signed_for_nobody(rig, principal: Principal) -> None:
    """The name may be somebody else's there, and a trigger's name is whatever set the run off."""
    asks: list[Any] = []
    source = JwtBearer(rig.issuer(), key=lambda: pure(rig.client_key))
    with pytest.raises(CredentialRejectedError) as caught:
        play(source.fetch(rig.wanted(principal=principal)), asks=asks)
    assert (caught.value.code, asks) == ("principal_unknown_there", [])
    assert ("subjects_of" in str(caught.value.remedy)) == (principal.profile == "user")


def test_an_issuer_that_is_said_to_know_the_same_people_is_told_their_name(rig) -> None:
    issuer = rig.issuer()
    issuer.subjects_of = frozenset({ELSEWHERE})
    asks: list[Any] = []
    source = JwtBearer(issuer, key=lambda: pure(rig.client_key))
    wanted = rig.wanted(principal=Principal("alice", iss=ELSEWHERE))
    play(source.fetch(wanted), rig.answered(), asks=asks)
    assert rig.claims(rig.form(asks[0])["assertion"])["sub"] == "alice"


@pytest.mark.parametrize(
    ("parts", "expected", "code"),
    [
        ({"assertion_from": "client"}, ConfigurationError, "client_key_missing"),
        ({"assertion_from": "workload"}, ConfigurationError, "workload_missing"),
        ({"assertion_from": "subject"}, CredentialRejectedError, "subject_token_missing"),
    ],
)
def test_without_an_assertion_nothing_is_sent(rig, parts, expected, code: str) -> None:
    asks: list[Any] = []
    source = JwtBearer(rig.issuer(), **parts)
    with pytest.raises(expected) as caught:
        play(source.fetch(rig.wanted(subject=None)), asks=asks)
    assert caught.value.code == code
    assert asks == []


def test_a_configured_audience_is_asked_for_and_insisted_on(rig) -> None:
    parts: dict[str, Any] = {"assertion_from": "subject", "audience": "billing"}
    (request,) = fetched(rig, rig.answered(rig.token(aud="billing")), **parts)
    assert rig.form(request)["audience"] == "billing"
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, rig.answered(), **parts)
    assert caught.value.code == "audience_mismatch"
