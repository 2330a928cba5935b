# SPDX-License-Identifier: Apache-2.0
"""Further form members of a resource: they go with each request for its token, and are part of the cache key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from agent_identity.credentials.source import Source
from agent_identity.credentials.sources.authorization_code import AuthorizationCode
from agent_identity.credentials.sources.ciba import Ciba
from agent_identity.credentials.sources.client_credentials import ClientCredentials
from agent_identity.credentials.sources.cross_domain import CrossDomain
from agent_identity.credentials.sources.device import DeviceAuthorization
from agent_identity.credentials.sources.entra_obo import EntraObo
from agent_identity.credentials.sources.jwt_bearer import JwtBearer
from agent_identity.credentials.sources.refresh_token import RefreshToken, RefreshTokens
from agent_identity.credentials.sources.signing_in import SignIn
from agent_identity.credentials.sources.token_exchange import TokenExchange
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Callback
from agent_identity.testing import play
from agent_identity.values import Prompt, Secret

MORE = (("organization", "org_1"), ("access_type", "offline"))

SOURCES: dict[str, Callable[..., Source]] = {
    "token-exchange": TokenExchange,
    "auth0-token-vault": lambda issuer, **more: TokenExchange(issuer, "auth0-token-vault", **more),
    "client-credentials": ClientCredentials,
    "jwt-bearer": lambda issuer, **more: JwtBearer(issuer, "subject", **more),
    "id-jag": lambda issuer, **more: CrossDomain("id-jag", issuer, via=issuer, **more),
    "refresh-token": lambda issuer, **more: RefreshToken(issuer, RefreshTokens(), **more),
    "entra-obo": EntraObo,
    "authorization-code": lambda issuer, **more: AuthorizationCode(SignIn(issuer, **more)),
    "device": lambda issuer, **more: DeviceAuthorization(SignIn(issuer, **more)),
    "ciba": lambda issuer, **more: Ciba(SignIn(issuer, **more)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_other_parameters_are_another_cache_key(rig, name) -> None:
    issuer = rig.issuer()
    described = [
        SOURCES[name](issuer, parameters=parameters).described
        for parameters in ((), MORE, MORE[:1], (("organization", "org_1&access_type=offline"),))
    ]
    assert len(set(described)) == 4
    assert {replaced._replace(parameters="") for replaced in described} == {described[0]}


@pytest.mark.parametrize(
    "name", ["token-exchange", "auth0-token-vault", "client-credentials", "jwt-bearer", "entra-obo"]
)
def test_they_go_with_the_token_request(rig, name) -> None:
    asks: list[Any] = []
    source = SOURCES[name](rig.issuer(), parameters=MORE)
    with pytest.raises(CredentialRejectedError, match="refused a token"):
        play(source.fetch(rig.wanted()), rig.refused("invalid_grant"), asks=asks)
    assert dict(MORE).items() <= rig.form(asks[0]).items()


def test_they_go_with_a_refresh(rig) -> None:
    tokens = RefreshTokens()
    play(tokens.put(rig.wanted(), Secret("rt")))
    asks: list[Any] = []
    source = RefreshToken(rig.issuer(), tokens, parameters=MORE)
    play(source.fetch(rig.wanted()), rig.answered(), asks=asks)
    assert dict(MORE).items() <= rig.form(rig.requests(asks)[0]).items()


def test_they_go_with_the_refresh_after_a_sign_in(rig) -> None:
    tokens = RefreshTokens()
    play(tokens.put(rig.wanted(), Secret("rt")))
    source = AuthorizationCode(SignIn(rig.issuer(), parameters=MORE, tokens=tokens))
    (form,) = sent(rig, source, rig.answered())
    assert form["grant_type"] == "refresh_token"
    assert dict(MORE).items() <= form.items()


def sent(rig: Any, source: Source, *answers: Any, visitor: Any = None) -> list[dict[str, str]]:
    """The forms of all requests of a sign-in."""
    asks: list[Any] = []
    play(source.fetch(rig.wanted()), *answers, asks=asks, visitor=visitor)
    return [rig.form(request) for request in rig.requests(asks)]


def test_they_go_with_the_link_that_is_opened_and_with_the_code(rig) -> None:
    links: list[str] = []

    def sign_in(redirect_uri: str, prompt: Prompt) -> Callback:
        links.append(prompt.authorization_url or "")
        state = dict(parse_qsl(urlsplit(links[0]).query))["state"]
        return Callback(redirect_uri, (("code", "c"), ("state", state)))

    source = AuthorizationCode(SignIn(rig.issuer(), parameters=MORE))
    (form,) = sent(rig, source, rig.answered(), visitor=sign_in)
    assert dict(MORE).items() <= dict(parse_qsl(urlsplit(links[0]).query)).items()
    assert dict(MORE).items() <= form.items()


@pytest.mark.parametrize("name", ["device", "ciba"])
def test_they_go_with_the_request_that_asks_the_person_and_with_each_poll(rig, name) -> None:
    asked = rig.json(
        device_code="d",
        user_code="WDJB-MJHT",
        verification_uri="https://idp.example/device",
        auth_req_id="r",
        expires_in=600,
    )
    source = SOURCES[name](rig.issuer(), parameters=MORE)
    answers = (asked, rig.refused("authorization_pending"), rig.answered())
    forms = sent(rig, source, *answers)
    assert len(forms) == 3
    assert all(dict(MORE).items() <= form.items() for form in forms)
    assert ["grant_type" in form for form in forms] == [False, True, True]


def test_the_issuer_that_only_vouches_for_the_principal_does_not_get_them(rig) -> None:
    claims = {"iss": rig.IDP, "sub": "alice", "aud": rig.IDP, "exp": rig.NOW + 300}
    grant = rig.json(
        access_token=rig.signed(claims, "JWT"),
        issued_token_type="urn:ietf:params:oauth:token-type:jwt",
        token_type="N_A",
    )
    issuer = rig.issuer()
    source = CrossDomain("identity-chaining", issuer, via=issuer, parameters=MORE)
    first, second = sent(rig, source, grant, rig.answered())
    assert not dict(MORE).keys() & first.keys()
    assert dict(MORE).items() <= second.items()
