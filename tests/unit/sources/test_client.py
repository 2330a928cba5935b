# SPDX-License-Identifier: Apache-2.0
"""How a client proves itself at the token endpoint, played by hand (RFC 6749 §2.3.1, 7523, 8705, 10070)."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import unquote_plus

import pytest

from agent_identity import jose
from agent_identity.credentials.oauth.client import (
    NoProof,
    PrivateKeyJwt,
    SecretBasic,
    SecretPost,
    SpiffeJwt,
    TlsCertificate,
)
from agent_identity.credentials.sources.client_credentials import ClientCredentials
from agent_identity.errors import ConfigurationError, CredentialRejectedError
from agent_identity.flow import HttpRequest, pure
from agent_identity.testing import play
from agent_identity.values import Secret


def asked_as(rig: Any, authentication: Any, *, binding: Any = "dpop", **parts: Any) -> HttpRequest:
    """The one request that a client sends which proves itself like that."""
    asks: list[Any] = []
    svids = parts.pop("svids", None)
    source = ClientCredentials(rig.issuer(authentication, **parts), binding=binding)
    play(source.fetch(rig.wanted()), rig.answered(), asks=asks, svids=svids)
    (request,) = rig.requests(asks)
    return request


def test_an_assertion_names_the_client_twice_and_lives_a_minute(rig) -> None:
    form = rig.form(asked_as(rig, PrivateKeyJwt(rig.client_key)))
    claims = rig.claims(form["client_assertion"])
    assert (claims["iss"], claims["sub"], claims["iat"]) == ("client-1", "client-1", rig.NOW)
    assert 0 < claims["exp"] - claims["iat"] <= 60
    assert form["client_assertion_type"] == (
        "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    )
    assert form["client_id"] == "client-1"


def test_an_assertion_is_signed_by_the_registered_key_under_its_own_typ(rig) -> None:
    form = rig.form(asked_as(rig, PrivateKeyJwt(rig.client_key)))
    header, _ = jose.verify(
        form["client_assertion"],
        [{**rig.client_key.public_jwk, "kid": rig.client_key.thumbprint}],
        typ="client-authentication+jwt",
        algorithms={"ES256"},
    )
    assert header["kid"] == rig.client_key.thumbprint


def test_an_assertion_names_the_kid_that_the_key_is_registered_under(rig) -> None:
    form = rig.form(asked_as(rig, PrivateKeyJwt(rig.client_key, kid="key-7")))
    assert jose.unverified(form["client_assertion"]).header["kid"] == "key-7"


def test_every_assertion_is_a_new_one(rig) -> None:
    forms = [rig.form(asked_as(rig, PrivateKeyJwt(rig.client_key))) for _ in range(3)]
    assert len({rig.claims(form["client_assertion"])["jti"] for form in forms}) == 3


def test_a_key_is_read_anew_for_every_request(rig) -> None:
    reads: list[int] = []

    def key() -> Any:
        reads.append(1)
        return pure(rig.client_key)

    for _ in range(2):
        asked_as(rig, PrivateKeyJwt(key))
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("client_id", "secret"),
    [
        ("client-1", "plain"),
        ("client-1", "with:colon and space"),
        ("a:b", "100%"),
        ("https://client.example/id", "+/&=?"),
        ("clïent", "schlüssel"),
    ],
)
def test_both_parts_of_basic_are_form_encoded_first(rig, client_id: str, secret: str) -> None:
    authentication = SecretBasic(lambda: pure(Secret(secret)))
    proven = play(authentication.prove(client_id, rig.endpoints(), rig.NOW))
    ((name, value),) = proven.headers
    scheme, _, encoded = value.reveal().partition(" ")
    one, _, two = base64.b64decode(encoded, validate=True).decode("ascii").partition(":")
    assert (name, scheme) == ("Authorization", "Basic")
    assert (unquote_plus(one), unquote_plus(two)) == (client_id, secret)


def test_a_secret_in_the_header_stands_nowhere_in_the_form(rig) -> None:
    request = asked_as(rig, SecretBasic(lambda: pure(Secret("s3cret-value"))))
    assert request.headers["Authorization"].startswith("Basic ")
    assert "client_secret" not in rig.form(request)
    assert b"s3cret" not in request.body


def test_a_posted_secret_stands_in_the_form_and_in_no_header(rig) -> None:
    request = asked_as(rig, SecretPost(lambda: pure(Secret("s3cret-value"))))
    form = rig.form(request)
    assert (form["client_id"], form["client_secret"]) == ("client-1", "s3cret-value")
    assert "Authorization" not in request.headers


def test_a_public_client_says_who_it_is_and_proves_nothing(rig) -> None:
    request = asked_as(rig, NoProof())
    form = rig.form(request)
    assert form["client_id"] == "client-1"
    assert not {"client_secret", "client_assertion"} & form.keys()
    assert "Authorization" not in request.headers


def test_a_spiffe_identity_is_asked_for_with_the_issuer_as_its_audience(rig) -> None:
    request = asked_as(rig, SpiffeJwt(), svids={rig.IDP: Secret("the-svid")})
    form = rig.form(request)
    assert form["client_assertion"] == "the-svid"
    assert form["client_assertion_type"] == (
        "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
    )
    assert form["client_id"] == "client-1"


@pytest.mark.parametrize(
    ("svids", "expected", "code"),
    [
        ({}, ConfigurationError, "no_workload_api"),
        ({"https://idp.example": Secret("")}, CredentialRejectedError, "malformed_answer"),
    ],
    ids=["no API", "an empty SVID"],
)
def test_without_a_spiffe_identity_nothing_is_sent(rig, svids, expected, code) -> None:
    asks: list[Any] = []
    source = ClientCredentials(rig.issuer(SpiffeJwt()))
    with pytest.raises(expected) as caught:
        play(source.fetch(rig.wanted()), asks=asks, svids=svids)
    assert caught.value.code == code
    assert rig.requests(asks) == []


def test_a_client_with_a_certificate_shows_it_at_the_alias(rig) -> None:
    alias = "https://mtls.idp.example/token"
    authentication = TlsCertificate(lambda: pure(rig.certificate))
    allowed = frozenset({"https://mtls.idp.example"})
    request = asked_as(rig, authentication, aliases={"token": alias}, origins=allowed)
    assert (request.url, request.certificate) == (alias, rig.certificate)
    assert rig.form(request)["client_id"] == "client-1"
    assert rig.claims(request.headers["DPoP"])["htu"] == alias


def test_E02_an_alias_at_an_origin_that_nobody_allowed_is_refused_to_who_needs_it(rig) -> None:
    authentication = TlsCertificate(lambda: pure(rig.certificate))
    with pytest.raises(CredentialRejectedError) as caught:
        asked_as(rig, authentication, aliases={"token": "https://evil.example/token"})
    assert caught.value.code == "endpoint_origin"


def test_without_an_alias_the_certificate_is_shown_at_the_endpoint_itself(rig) -> None:
    request = asked_as(rig, TlsCertificate(lambda: pure(rig.certificate)))
    assert (request.url, request.certificate) == (f"{rig.IDP}/token", rig.certificate)


def test_a_client_without_a_certificate_stays_away_from_the_alias(rig) -> None:
    request = asked_as(rig, NoProof(), aliases={"token": "https://mtls.idp.example/token"})
    assert (request.url, request.certificate) == (f"{rig.IDP}/token", None)


CANARY = "canary-7f3a-secret"


@pytest.mark.parametrize(
    "make",
    [
        lambda _: SecretBasic(lambda: pure(Secret(CANARY))),
        lambda _: SecretPost(lambda: pure(Secret(CANARY))),
    ],
    ids=["basic", "post"],
)
@pytest.mark.parametrize("echoed", ["invalid_client", CANARY])
def test_a_clients_secret_shows_in_no_repr_and_in_no_error(rig, make, echoed: str) -> None:
    authentication = make(rig)
    asks: list[Any] = []
    source = ClientCredentials(rig.issuer(authentication))
    answer = rig.json(401, error=echoed, error_description=CANARY)
    with pytest.raises(CredentialRejectedError) as caught:
        play(source.fetch(rig.wanted()), answer, asks=asks)
    error = caught.value
    shown = [repr(authentication), str(authentication), repr(source), *map(repr, asks)]
    shown += (
        [str(error), repr(error), repr(error.args), str(error.remedy), *error.__notes__]
        if (hasattr(error, "__notes__"))
        else [str(error), repr(error), repr(error.args)]
    )
    assert not [text for text in shown if CANARY in text]


def test_a_clients_key_shows_in_no_repr(rig) -> None:
    authentication = PrivateKeyJwt(rig.client_key)
    assert "SigningKey" not in repr(authentication)
    assert "PRIVATE" not in repr(rig.issuer(authentication))
