# SPDX-License-Identifier: Apache-2.0
"""The issuer asks the person itself, played by hand (OpenID CIBA Core 1.0, poll mode)."""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity.credentials.oauth.token_types import CIBA, ID_TOKEN
from agent_identity.credentials.sources.ciba import Ciba
from agent_identity.credentials.sources.signing_in import SignIn
from agent_identity.errors import (
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import HttpResponse, Show
from agent_identity.testing import play
from agent_identity.values import Principal


def given(rig: Any, **changes: Any) -> HttpResponse:
    members = {"auth_req_id": "the-request", "expires_in": 120, "interval": 5} | changes
    return rig.json(**{name: value for name, value in members.items() if value is not None})


def fetched(rig: Any, *answers: Any, wanted: Any = None, **parts: Any) -> list[Any]:
    """What a fetch asks for."""
    asks: list[Any] = parts.pop("asks", [])
    hint = parts.pop("login_hint_from", "sub")
    source = Ciba(SignIn(rig.issuer(), **parts), hint)
    play(source.fetch(wanted or rig.wanted()), *answers, asks=asks)
    return asks


def test_the_issuer_is_told_whom_to_ask_for_what_and_until_when(rig) -> None:
    request = rig.requests(fetched(rig, given(rig), rig.answered()))[0]
    form = rig.form(request)
    assert request.url == f"{rig.IDP}/bc-authorize"
    assert (form["login_hint"], form["binding_message"]) == ("alice", "close the books")
    assert form["scope"].split(" ") == ["invoices:read", "openid"]
    assert (form["resource"], form["requested_expiry"]) == (rig.BILLING, "300")


@pytest.mark.parametrize("iss", ["https://other-idp.example", "urn:agent:bot"])
def test_a_name_of_another_issuer_is_no_hint(rig, iss: str) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, wanted=rig.wanted(principal=Principal("4711", iss=iss)), asks=asks)
    assert (caught.value.code, rig.requests(asks)) == ("principal_unknown_there", [])


def test_an_id_token_may_be_the_hint(rig) -> None:
    subject = rig.Subject("alices-id-token")
    asks = fetched(
        rig,
        *(given(rig), rig.answered()),
        login_hint_from="id-token",
        wanted=rig.wanted(subject=subject),
    )
    form = rig.form(rig.requests(asks)[0])
    assert (form["id_token_hint"], "login_hint" in form) == ("alices-id-token", False)
    assert subject.asked == [(ID_TOKEN,)]


def test_without_the_id_token_that_is_the_hint_nobody_is_asked(rig) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, login_hint_from="id-token", wanted=rig.wanted(subject=None), asks=asks)
    assert (caught.value.code, rig.requests(asks)) == ("subject_token_missing", [])


def test_a_long_purpose_is_cut_to_what_a_phone_shows(rig) -> None:
    asks = fetched(rig, given(rig), rig.answered(), wanted=rig.wanted(purpose="x" * 200))
    assert rig.form(rig.requests(asks)[0])["binding_message"] == "x" * 60


def test_the_request_is_polled_with_its_id(rig) -> None:
    asks = fetched(rig, given(rig), rig.answered())
    form = rig.form(rig.requests(asks)[1])
    assert (form["grant_type"], form["auth_req_id"]) == (CIBA, "the-request")
    (shown,) = [ask.prompt for ask in asks if isinstance(ask, Show)]
    assert (shown.kind, shown.expires_at) == ("ciba", rig.NOW + 120)
    assert "the-request" not in repr(shown)


def test_an_answer_that_names_openid_as_it_was_asked_is_not_wider(rig) -> None:
    """OpenID CIBA §7.1 wants `openid` in the request; an issuer says so in its answer, and in the token."""
    answer = rig.answered(rig.token(scope="openid invoices:read"), scope="openid invoices:read")
    source = Ciba(SignIn(rig.issuer()))
    issued = play(source.fetch(rig.wanted()), given(rig), answer)
    assert issued.scopes == {"invoices:read"}


@pytest.mark.parametrize("scope", ["openid invoices:read profile", "openid"])
def test_openid_excuses_no_other_difference(rig, scope: str) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, given(rig), rig.answered(scope=scope))
    assert caught.value.code in ("scope_widened", "scope_narrowed")


@pytest.mark.parametrize("change", [{"auth_req_id": None}, {"auth_req_id": 7}])
def test_without_a_request_id_nobody_is_waited_for(rig, change: dict[str, Any]) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, given(rig, **change), asks=asks)
    assert caught.value.code == "malformed_answer"
    assert not [ask for ask in asks if isinstance(ask, Show)]


@pytest.mark.parametrize(
    "failure", [HttpResponse(503), TransportError("exchange_failed", "reset")], ids=["503", "reset"]
)
def test_a_person_is_never_asked_twice_because_the_answer_got_lost(rig, failure: Any) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialUnavailableError):
        fetched(rig, failure, asks=asks)
    assert len(rig.requests(asks)) == 1


@pytest.mark.parametrize("code", ["unknown_user_id", "invalid_binding_message", "access_denied"])
def test_a_refusal_is_told_by_its_code(rig, code: str) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, rig.refused(code))
    assert caught.value.code == code
