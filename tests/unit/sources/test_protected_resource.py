# SPDX-License-Identifier: Apache-2.0
"""What a resource says of itself is read strictly, and only where it speaks of itself (RFC 9728)."""

from __future__ import annotations

import json

import pytest

from agent_identity.credentials.oauth.protected_resource import (
    ProtectedResource,
    discover_resource,
)
from agent_identity.errors import (
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import Ask, HttpRequest, HttpResponse
from agent_identity.testing import play

RESOURCE = "https://api.example/v1"


def said(document: object, status: int = 200) -> HttpResponse:
    headers = {"content-type": "application/json"}
    return HttpResponse(status, headers, json.dumps(document).encode())


def read(response: HttpResponse | TransportError, resource: str = RESOURCE) -> object:
    return play(discover_resource(resource, lambda: 0.0), response)


@pytest.mark.parametrize(
    ("resource", "place"),
    [
        (RESOURCE, "https://api.example/.well-known/oauth-protected-resource/v1"),
        ("https://api.example", "https://api.example/.well-known/oauth-protected-resource"),
        ("https://api.example/", "https://api.example/.well-known/oauth-protected-resource"),
    ],
)
def test_it_is_asked_where_the_standard_says(resource: str, place: str) -> None:
    asks: list[Ask] = []
    play(discover_resource(resource, lambda: 0.0), HttpResponse(404), asks=asks)
    (request,) = asks
    assert isinstance(request, HttpRequest)
    assert request.url == place


def test_what_it_says_is_taken() -> None:
    document = {
        "resource": RESOURCE,
        "authorization_servers": ["https://idp.example"],
        "scopes_supported": ["read"],
        "dpop_bound_access_tokens_required": True,
    }
    assert read(said(document)) == ProtectedResource(
        RESOURCE, frozenset({"https://idp.example"}), frozenset({"read"}), True, False
    )


def test_one_that_publishes_nothing_says_nothing() -> None:
    assert read(HttpResponse(404)) is None


@pytest.mark.parametrize(
    "named", ["https://api.example/v2", "https://api.example/v1/", "https://evil.example/v1", None]
)
def test_E03_metadata_for_another_resource_is_refused(named: str | None) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        read(said({"resource": named, "authorization_servers": ["https://evil.example"]}))
    assert caught.value.code == "resource_mismatch"


@pytest.mark.parametrize("value", ["true", 1, None, "yes"])
def test_a_flag_that_is_no_boolean_asks_for_nothing(value: object) -> None:
    document = {"resource": RESOURCE, "dpop_bound_access_tokens_required": value}
    found = read(said(document))
    assert isinstance(found, ProtectedResource)
    assert not found.wants_dpop


def test_one_that_fails_is_an_error() -> None:
    with pytest.raises(CredentialUnavailableError):
        read(TransportError("exchange_failed", "x"))
    with pytest.raises(CredentialUnavailableError):
        read(HttpResponse(503))
    with pytest.raises(CredentialRejectedError):
        read(HttpResponse(301))
