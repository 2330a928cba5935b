# SPDX-License-Identifier: Apache-2.0
"""How an instance becomes a client, played by hand: what is said, and what isn't said again (RFC 7591 §3)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_identity.credentials.oauth.client import (
    Client,
    NoProof,
    PrivateKeyJwt,
    SecretBasic,
    SecretPost,
)
from agent_identity.credentials.oauth.registration import (
    InstanceRegistration,
    Registered,
    Registration,
    metadata_document,
    register,
)
from agent_identity.errors import (
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import HttpResponse, Shared, pure
from agent_identity.testing import KnownIssuer, play
from agent_identity.values import Secret

CANARY = "initial-token-canary"


def registered(
    rig: Any,
    *answers: Any,
    asks: list[Any] | None = None,
    owner: str | None = None,
    types: tuple[str, ...] = (),
    redirect_uri: str | None = None,
    **known: Any,
) -> Registered:
    flow = register(
        rig.endpoints(**({"registration": f"{rig.IDP}/register"} | known)),
        Registration(
            "invoice-bot", rig.agent.uri, owner, rig.agent.key, types, redirect_uri=redirect_uri
        ),
        initial_token=Secret(CANARY),
        clock=rig.clock,
    )
    return play(flow, *answers, asks=asks)


def test_an_instance_registers_under_the_public_half_of_its_key(rig) -> None:
    asks: list[Any] = []
    registered(rig, rig.json(201, client_id="c-1"), asks=asks, owner="team-billing")
    (request,) = asks
    document = json.loads(request.body)
    (key,) = document["jwks"]["keys"]
    assert (document["agent_id"], document["owner"]) == (rig.agent.uri, "team-billing")
    assert document["token_endpoint_auth_method"] == "private_key_jwt"
    assert {name: key[name] for name in rig.agent.key.public_jwk} == rig.agent.key.public_jwk
    assert "d" not in key
    assert request.headers["Authorization"] == f"Bearer {CANARY}"
    assert CANARY not in repr(request)


def test_a_registered_client_proves_itself_with_that_key(rig) -> None:
    found = registered(rig, rig.json(201, client_id="c-1"))
    assert (found.client.client_id, found.issued_at) == ("c-1", rig.NOW)
    assert isinstance(found.client.authentication, PrivateKeyJwt)
    assert found.client.authentication.key is rig.agent.key


SECRET = "registered-secret-canary"


@pytest.mark.parametrize(
    ("offered", "method"),
    [
        (None, "private_key_jwt"),
        ({"private_key_jwt", "client_secret_basic"}, "private_key_jwt"),
        ({"client_secret_post", "client_secret_basic"}, "client_secret_post"),
        ({"client_secret_basic", "none"}, "client_secret_basic"),
        ({"client_secret_post", "none"}, "client_secret_post"),
        ({"none"}, "none"),
    ],
)
def test_the_method_is_one_that_the_issuer_offers(rig, offered: Any, method: str) -> None:
    asks: list[Any] = []
    answer = rig.json(200, client_id="c-1", client_secret=SECRET, client_secret_expires_at=0)
    found = registered(rig, answer, asks=asks, auth_methods=offered)
    assert json.loads(asks[0].body)["token_endpoint_auth_method"] == method
    assert found.client.client_id == "c-1"
    assert SECRET not in repr(found)


def test_an_issuer_without_a_usable_method_is_not_asked(rig) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        registered(rig, asks=asks, auth_methods={"tls_client_auth"})
    assert (caught.value.code, asks) == ("registration_unsupported", [])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("client_secret_basic", SecretBasic),
        ("client_secret_post", SecretPost),
        ("none", NoProof),
        ("private_key_jwt", PrivateKeyJwt),
        (None, SecretBasic),
    ],
)
def test_the_method_of_the_answer_counts(rig, method: str | None, expected: type) -> None:
    members = {"client_id": "c-1", "client_secret": SECRET, "token_endpoint_auth_method": method}
    answer = rig.json(201, **{name: value for name, value in members.items() if value})
    assert isinstance(registered(rig, answer).client.authentication, expected)


@pytest.mark.parametrize(
    "members",
    [
        {"token_endpoint_auth_method": "client_secret_basic"},
        {"token_endpoint_auth_method": "client_secret_post", "client_secret": ""},
        {"token_endpoint_auth_method": "tls_client_auth"},
        {"token_endpoint_auth_method": "client_secret_jwt", "client_secret": SECRET},
    ],
    ids=str,
)
def test_a_client_that_could_not_authenticate_is_refused(rig, members: Any) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        registered(rig, rig.json(201, client_id="c-1", **members))
    assert caught.value.code == "registration_unusable"


@pytest.mark.parametrize(("ends", "life"), [(0, 43_200), (600, 600), (99_999, 43_200)])
def test_a_registration_ends_with_its_secret(rig, ends: int, life: int) -> None:
    answer = rig.json(
        201,
        client_id="c-1",
        client_secret=SECRET,
        client_secret_expires_at=ends and rig.NOW + ends,
        token_endpoint_auth_method="client_secret_basic",
    )
    assert registered(rig, answer).expires_at == rig.NOW + life


@pytest.mark.parametrize(
    ("offered", "expected"),
    [(None, "a b"), ({"a", "b", "openid"}, "a b openid"), ({"a"}, "a b")],
)
def test_it_registers_for_the_scopes_of_its_resources(rig, offered: Any, expected: str) -> None:
    asks: list[Any] = []
    answer = rig.json(201, client_id="c-1")
    metadata = {"registration": f"{rig.IDP}/register", "scopes": offered}
    registration = Registration("bot", "urn:x", None, rig.agent.key, (), frozenset({"a", "b"}))
    flow = register(rig.endpoints(**metadata), registration, initial_token=None, clock=rig.clock)
    play(flow, answer, asks=asks)
    assert json.loads(asks[0].body)["scope"] == expected


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        (None, ["authorization_code", "refresh_token"]),
        ({"authorization_code", "refresh_token"}, ["authorization_code", "refresh_token"]),
        ({"authorization_code"}, ["authorization_code"]),
    ],
)
def test_a_client_that_signs_people_in_says_where_they_come_back(rig, offered, expected) -> None:
    asks: list[Any] = []
    uri = "http://127.0.0.1:8400/callback"
    types = ("authorization_code", "refresh_token")
    known = {"grant_types": offered}
    answer = rig.json(201, client_id="c-1")
    registered(rig, answer, asks=asks, types=types, redirect_uri=uri, **known)
    document = json.loads(asks[0].body)
    assert (document["redirect_uris"], document["grant_types"]) == ([uri], expected)


@pytest.mark.parametrize(
    ("answer", "expected", "code"),
    [
        (HttpResponse(201, {}, b"<html>"), CredentialRejectedError, "malformed_answer"),
        (HttpResponse(201, {}, b"{}"), CredentialRejectedError, "malformed_answer"),
        (HttpResponse(201, {}, b'{"client_id":7}'), CredentialRejectedError, "malformed_answer"),
        (HttpResponse(200, {}, b'{"client_id":7}'), CredentialRejectedError, "malformed_answer"),
        (HttpResponse(202, {}, b'{"client_id":"c"}'), CredentialRejectedError, "unknown_error"),
        (HttpResponse(307), CredentialRejectedError, "redirected"),
        (HttpResponse(401), CredentialRejectedError, "unreadable_error"),
        (HttpResponse(503), CredentialUnavailableError, "issuer_busy"),
        (TransportError("timeout", "t"), CredentialUnavailableError, "issuer_unreachable"),
    ],
)
def test_whatever_else_comes_back_registers_nobody_and_is_not_repeated(
    rig, answer: Any, expected: type[Exception], code: str
) -> None:
    with pytest.raises(expected) as caught:
        registered(rig, answer)
    assert getattr(caught.value, "code", None) == code
    assert CANARY not in str(caught.value)


def test_an_issuer_that_registers_nobody_is_not_asked(rig) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        registered(rig, registration=None, asks=asks)
    assert (caught.value.code, asks) == ("registration_unsupported", [])


def test_two_tables_of_one_url_register_each_for_itself(rig) -> None:
    """They may have initial tokens of their own, and ask for other grants."""
    keys: list[bytes] = []
    for client_id in ("c-1", "c-2"):
        clients = InstanceRegistration(
            "bot", rig.agent, owner=None, initial_token=None, recorded=lambda: pure(None)
        )
        issuer = KnownIssuer(
            rig.endpoints(registration=f"{rig.IDP}/register"),
            Client("unused", NoProof()),
            clock=rig.clock,
        )
        asks: list[Any] = []
        answer = rig.json(201, client_id=client_id)
        assert play(clients.client(issuer), answer, asks=asks).client_id == client_id
        keys += [ask.key for ask in asks if isinstance(ask, Shared)]
    assert len(set(keys)) == 2


@pytest.mark.parametrize("kid", [None, "key-1"])
def test_a_clients_document_names_its_key_as_the_assertions_do(rig, kid: str | None) -> None:
    document = metadata_document(
        "https://me.example/client.json",
        name="bot",
        method="private_key_jwt",
        key=rig.client_key,
        grant_types=(),
        kid=kid,
    )
    (key,) = document["jwks"]["keys"]
    assert key["kid"] == (kid or rig.client_key.thumbprint)
