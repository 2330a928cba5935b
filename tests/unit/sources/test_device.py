# SPDX-License-Identifier: Apache-2.0
"""A code to enter elsewhere, played by hand: what the person is shown and what they are never shown (RFC 8628)."""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity.credentials.oauth.token_types import DEVICE_CODE
from agent_identity.credentials.sources.device import DeviceAuthorization
from agent_identity.credentials.sources.signing_in import SignIn
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import HttpResponse, Pause, Show
from agent_identity.testing import play
from agent_identity.values import Prompt

GIVEN: dict[str, Any] = {
    "device_code": "the-device-code",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://idp.example/device",
    "expires_in": 600,
    "interval": 5,
}


def given(rig: Any, **changes: Any) -> HttpResponse:
    members = GIVEN | changes
    return rig.json(**{name: value for name, value in members.items() if value is not None})


def fetched(rig: Any, *answers: Any, asks: list[Any] | None = None, **parts: Any) -> list[Any]:
    """What a fetch asks for."""
    collected: list[Any] = [] if asks is None else asks
    source = DeviceAuthorization(SignIn(rig.issuer(), **parts))
    play(source.fetch(rig.wanted()), *answers, asks=collected)
    return collected


def prompts(asks: list[Any]) -> list[Prompt]:
    return [ask.prompt for ask in asks if isinstance(ask, Show)]


def test_the_request_says_what_is_wanted_at_the_device_endpoint(rig) -> None:
    asks = fetched(rig, given(rig), rig.answered())
    request = rig.requests(asks)[0]
    form = rig.form(request)
    assert request.url == f"{rig.IDP}/device"
    assert (form["resource"], form["scope"]) == (rig.BILLING, "invoices:read")
    assert (form["client_id"], "grant_type" in form) == ("client-1", False)


def test_the_person_is_shown_the_code_and_where_to_enter_it(rig) -> None:
    link = "https://idp.example/device?user_code=WDJB-MJHT"
    (prompt,) = prompts(
        fetched(rig, given(rig, verification_uri_complete=link), rig.answered(), patience=120.0)
    )
    assert (prompt.kind, prompt.issuer, prompt.user_code) == ("device", rig.IDP, "WDJB-MJHT")
    assert prompt.verification_uri == "https://idp.example/device"
    assert prompt.verification_uri_complete == link
    assert prompt.expires_at == rig.NOW + 120


def test_the_device_code_is_polled_with_and_shown_to_nobody(rig) -> None:
    asks = fetched(rig, given(rig), rig.answered())
    form = rig.form(rig.requests(asks)[1])
    assert (form["grant_type"], form["device_code"]) == (DEVICE_CODE, "the-device-code")
    assert "the-device-code" not in repr(prompts(asks))


def test_nobody_is_asked_before_the_first_interval_has_passed(rig) -> None:
    asks = fetched(rig, given(rig, interval=7), rig.answered())
    kinds = [type(ask) for ask in asks]
    assert kinds.index(Show) < kinds.index(Pause)
    assert [ask.seconds for ask in asks if isinstance(ask, Pause)] == [7.0]


UNSAFE_LINKS = [
    "javascript:alert(1)",
    "file:///etc/passwd",
    "data:text/html,x",
    "http://idp.example/device",
    "https://user:pw@idp.example/device",
    "https://idp.example\\@evil.example",
    "-https://idp.example",
    "$(calc)",
    " https://idp.example/device",
    "https://іdp.example/device",  # noqa: RUF001 - a Cyrillic letter
    "https://idp.example/\r\nx",
    "https://idp.example/\u202e",
    "device",
]


@pytest.mark.parametrize("link", UNSAFE_LINKS)
def test_a_link_that_no_person_should_follow_is_never_shown(rig, link: str) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, given(rig, verification_uri=link), asks=asks)
    assert caught.value.code == "malformed_answer"
    assert prompts(asks) == []


@pytest.mark.parametrize("link", UNSAFE_LINKS)
def test_an_unsafe_complete_link_is_left_out(rig, link: str) -> None:
    (prompt,) = prompts(fetched(rig, given(rig, verification_uri_complete=link), rig.answered()))
    assert prompt.verification_uri_complete is None


@pytest.mark.parametrize(
    "change",
    [
        {"device_code": None},
        {"device_code": 7},
        {"user_code": None},
        {"user_code": ""},
        {"user_code": "A" * 65},
        {"user_code": "A\x1b[2J"},
        {"user_code": "A\nB"},
        {"user_code": "АВС"},  # noqa: RUF001 - Cyrillic letters
        {"verification_uri": None},
        {"verification_uri": ["https://idp.example/device"]},
    ],
)
def test_an_answer_without_a_code_to_enter_shows_nothing(rig, change: dict[str, Any]) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, given(rig, **change), asks=asks)
    assert caught.value.code == "malformed_answer"
    assert prompts(asks) == []


def test_an_issuer_without_the_endpoint_is_not_asked(rig) -> None:
    asks: list[Any] = []
    source = DeviceAuthorization(SignIn(rig.issuer(device_authorization=None)))
    with pytest.raises(CredentialRejectedError) as caught:
        play(source.fetch(rig.wanted()), asks=asks)
    assert (caught.value.code, rig.requests(asks)) == ("endpoint_missing", [])
