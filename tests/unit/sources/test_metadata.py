# SPDX-License-Identifier: Apache-2.0
"""What an issuer says of itself, played by hand: where it is looked for, and what is believed (RFC 8414, 7517, 8705 §5)."""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity.credentials.oauth.metadata import (
    Endpoints,
    discover,
    endpoints_without_metadata,
    read_keys,
)
from agent_identity.errors import (
    CredentialError,
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import HttpResponse
from agent_identity.keys.signing import SigningKey
from agent_identity.testing import play

IDP = "https://idp.example"
TENANT = f"{IDP}/tenant/1"
NOT_FOUND = HttpResponse(404)


def found(
    rig: Any, *answers: Any, issuer: str = IDP, asks: list[Any] | None = None, **parts: Any
) -> Endpoints:
    return play(discover(issuer, rig.clock, **parts), *answers, asks=asks)


def document(rig: Any, issuer: str = IDP, **changes: Any) -> HttpResponse:
    members = {"issuer": issuer, "token_endpoint": f"{IDP}/token"} | changes
    return rig.json(**{name: value for name, value in members.items() if value is not None})


@pytest.mark.parametrize(
    ("issuer", "places"),
    [
        (
            IDP,
            [
                f"{IDP}/.well-known/oauth-authorization-server",
                f"{IDP}/.well-known/openid-configuration",
            ],
        ),
        (
            TENANT,
            [
                f"{IDP}/.well-known/oauth-authorization-server/tenant/1",
                f"{IDP}/.well-known/openid-configuration/tenant/1",
                f"{TENANT}/.well-known/openid-configuration",
            ],
        ),
        (
            f"{IDP}/tenant/",
            [
                f"{IDP}/.well-known/oauth-authorization-server/tenant",
                f"{IDP}/.well-known/openid-configuration/tenant",
                f"{IDP}/tenant/.well-known/openid-configuration",
            ],
        ),
    ],
)
def test_each_place_is_looked_at_once_while_it_is_not_found(rig, issuer, places) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        found(rig, *[NOT_FOUND] * len(places), issuer=issuer, asks=asks)
    assert caught.value.code == "metadata_missing"
    assert [request.url for request in asks] == places


def test_the_first_place_that_answers_is_the_last_one_asked(rig) -> None:
    asks: list[Any] = []
    found(rig, NOT_FOUND, document(rig, TENANT), issuer=TENANT, asks=asks)
    assert len(asks) == 2


@pytest.mark.parametrize(
    ("answer", "expected", "code"),
    [
        (HttpResponse(503), CredentialUnavailableError, "issuer_busy"),
        (HttpResponse(429), CredentialUnavailableError, "issuer_busy"),
        (TransportError("timeout", "t"), CredentialUnavailableError, "issuer_unreachable"),
        (HttpResponse(302), CredentialRejectedError, "redirected"),
    ],
)
def test_a_busy_issuer_and_a_redirect_end_the_search(rig, answer, expected, code: str) -> None:
    asks: list[Any] = []
    with pytest.raises(expected) as caught:
        found(rig, answer, asks=asks)
    assert caught.value.code == code
    assert len(asks) == 1


JSON = {"content-type": "application/json"}
WRONG = {
    "html": (HttpResponse(200, {"content-type": "text/html"}, b"<html>"), "not_json"),
    "no type": (HttpResponse(200), "not_json"),
    "cut off": (HttpResponse(200, JSON, b"{"), "malformed_answer"),
    "another issuer": (
        HttpResponse(200, JSON, b'{"issuer":"https://x.example"}'),
        "issuer_mismatch",
    ),
    "fails": (HttpResponse(500), "issuer_busy"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_next_place_is_tried_after_an_answer_that_is_not_the_document(rig, name: str) -> None:
    answer, code = WRONG[name]
    assert found(rig, answer, document(rig)).token == f"{IDP}/token"
    with pytest.raises(CredentialError) as caught:
        found(rig, answer, NOT_FOUND)
    assert caught.value.code == code


def test_the_metadata_may_be_at_a_place_of_its_own(rig) -> None:
    asks: list[Any] = []
    place = f"{IDP}/config/metadata.json"
    endpoints = found(rig, document(rig), asks=asks, place=place)
    assert [request.url for request in asks] == [place]
    assert endpoints.token == f"{IDP}/token"
    with pytest.raises(CredentialRejectedError) as caught:
        found(rig, document(rig, IDP + "/other"), place=place)
    assert caught.value.code == "issuer_mismatch"


def test_given_endpoints_replace_those_of_the_metadata(rig) -> None:
    elsewhere = "https://tokens.example/oauth"
    given = {"token_endpoint": elsewhere, "introspection_endpoint": f"{elsewhere}/about"}
    endpoints = found(rig, document(rig, revocation_endpoint=f"{IDP}/revoke"), given=given)
    assert (endpoints.token, endpoints.introspection) == (elsewhere, f"{elsewhere}/about")
    assert endpoints.revocation == f"{IDP}/revoke"
    alone = endpoints_without_metadata(IDP, rig.NOW, given)
    assert (alone.token, alone.revocation, alone.jwks) == (elsewhere, None, None)
    with pytest.raises(CredentialRejectedError) as caught:
        endpoints_without_metadata(IDP, rig.NOW, {})
    assert caught.value.code == "metadata_incomplete"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410])
def test_a_place_that_refuses_is_passed_over(rig, status: int) -> None:
    asks: list[Any] = []
    found(rig, HttpResponse(status), document(rig, TENANT), issuer=TENANT, asks=asks)
    assert len(asks) == 2


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b'{"issuer":1,"issuer":2}', b"\xff"])
def test_a_document_that_has_no_one_reading_is_refused(rig, body: bytes) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        found(rig, *[HttpResponse(200, {"content-type": "application/json"}, body)] * 2)
    assert caught.value.code == "malformed_answer"


@pytest.mark.parametrize("token_endpoint", [None, ""])
def test_without_a_token_endpoint_there_is_no_issuer(rig, token_endpoint: str | None) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        found(rig, document(rig, token_endpoint=token_endpoint))
    assert caught.value.code in ("metadata_incomplete", "endpoint_origin")


@pytest.mark.parametrize("value", [7, True, ["https://idp.example/token"], {}, "/token", "token"])
@pytest.mark.parametrize("name", ["token_endpoint", "jwks_uri", "authorization_endpoint"])
def test_an_endpoint_of_another_type_is_none(rig, name: str, value: Any) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        found(rig, document(rig, **{name: value}))
    assert caught.value.code == "endpoint_origin"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("code_challenge_methods_supported", "S256"),
        ("code_challenge_methods_supported", {"S256": True}),
        ("authorization_response_iss_parameter_supported", "true"),
        ("authorization_response_iss_parameter_supported", 1),
        ("require_pushed_authorization_requests", "true"),
        ("authorization_grant_profiles_supported", "urn:ietf:params:oauth:grant-profile:id-jag"),
        ("mtls_endpoint_aliases", ["https://idp.example/mtls"]),
    ],
)
def test_a_statement_of_another_type_says_nothing(rig, name: str, value: Any) -> None:
    assert found(rig, document(rig, **{name: value})) == found(rig, document(rig))


def test_what_the_document_says_is_known_for_five_minutes(rig) -> None:
    endpoints = found(
        rig,
        document(
            rig,
            authorization_endpoint=f"{IDP}/authorize",
            jwks_uri=f"{IDP}/jwks",
            code_challenge_methods_supported=["plain", "S256", 7],
            authorization_response_iss_parameter_supported=True,
            require_pushed_authorization_requests=True,
            pushed_authorization_request_endpoint=f"{IDP}/par",
        ),
    )
    assert (endpoints.authorization, endpoints.jwks) == (f"{IDP}/authorize", f"{IDP}/jwks")
    assert endpoints.challenge_methods == {"plain", "S256"}
    assert (endpoints.names_itself_in_response, endpoints.requires_pushed) == (True, True)
    assert endpoints.expires_at == rig.NOW + 300


def test_aliases_are_for_clients_with_a_certificate_and_for_the_places_they_name(rig) -> None:
    endpoints = found(
        rig, document(rig, mtls_endpoint_aliases={"token_endpoint": f"{IDP}/mtls/token"})
    )
    assert endpoints.at("token", certificate=True) == f"{IDP}/mtls/token"
    assert endpoints.at("token") == f"{IDP}/token"
    with pytest.raises(CredentialRejectedError) as caught:
        endpoints.at("pushed_authorization", certificate=True)
    assert caught.value.code == "endpoint_missing"


def jwk(kid: str | None = "k-1", **changes: Any) -> dict[str, Any]:
    members = dict(SigningKey.generate().public_jwk) | {"kid": kid} | changes
    return {name: value for name, value in members.items() if value is not None}


def keys_of(rig: Any, *keys: Any) -> set[str]:
    flow = read_keys(IDP, f"{IDP}/jwks", rig.clock)
    return set(play(flow, rig.json(keys=[*keys])).keys)


def test_keys_are_known_by_the_name_that_they_have(rig) -> None:
    assert keys_of(rig, jwk("k-1"), jwk("k-2")) == {"k-1", "k-2"}


@pytest.mark.parametrize("kid", [None, 7, ["k"], {}])
def test_a_key_without_a_name_is_left_out(rig, kid: Any) -> None:
    assert keys_of(rig, jwk(kid), jwk("k-2")) == {"k-2"}


@pytest.mark.parametrize("key", [None, 7, "k", [], {}])
def test_what_is_no_key_is_left_out(rig, key: Any) -> None:
    assert keys_of(rig, key, jwk("k-2")) == {"k-2"}


@pytest.mark.parametrize(
    "kind", ["application/jwk-set+json; charset=utf-8", "text/plain", "application/octet-stream"]
)
def test_a_key_set_may_have_another_content_type(rig, kind: str) -> None:
    answer = rig.json(keys=[jwk()])
    answer.headers = {"content-type": kind}
    assert set(play(read_keys(IDP, f"{IDP}/jwks", rig.clock), answer).keys) == {"k-1"}


@pytest.mark.parametrize(
    ("jwks", "answers", "code"),
    [
        (None, [], "metadata_incomplete"),
        (f"{IDP}/jwks", [NOT_FOUND], "unreadable_error"),
        (
            f"{IDP}/jwks",
            [HttpResponse(200, {"content-type": "text/html"}, b"{}")],
            "malformed_keys",
        ),
        (
            f"{IDP}/jwks",
            [HttpResponse(200, {"content-type": "application/json"}, b'{"keys":{}}')],
            "malformed_keys",
        ),
        (
            f"{IDP}/jwks",
            [HttpResponse(200, {"content-type": "application/json"}, b"{}")],
            "malformed_keys",
        ),
    ],
)
def test_what_is_no_key_set_is_refused(rig, jwks, answers, code: str) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        play(read_keys(IDP, jwks, rig.clock), *answers)
    assert caught.value.code == code
