# SPDX-License-Identifier: Apache-2.0
"""API keys, passwords, static tokens and certificates: read at each fetch, sent as they are, never shown."""

from __future__ import annotations

import base64
from functools import partial
from typing import Any

import pytest

from agent_identity.credentials.sources.legacy import ApiKey, Basic, ClientCertificate, Static
from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialRejectedError,
)
from agent_identity.flow import Read, pure, read
from agent_identity.testing import assert_no_leak, play
from agent_identity.values import Secret

NOW = 1_795_518_000.0
BILLING = "https://billing.example"
CANARY = "canary-legacy-5Rw8"
KEY = partial(read, "env:KEY")
CONTROLS = [chr(code) for code in (*range(32), 0x7F)]


def clock() -> float:
    return NOW


def fetch(source: Any, wanted: Any, secret: str | None = CANARY) -> Any:
    return play(source.fetch(wanted), secrets={} if secret is None else {"env:KEY": Secret(secret)})


def refused(
    kind: type[AgentIdentityError], code: str, source: Any, wanted: Any, secret: str | None
) -> AgentIdentityError:
    with pytest.raises(kind) as caught:
        fetch(source, wanted, secret)
    assert caught.value.code == code
    assert caught.value.remedy
    if secret is not None:
        assert_no_leak([secret], caught.value)
    return caught.value


SOURCES = [
    ApiKey(KEY, clock=clock, reference="env:KEY"),
    Basic("bot", KEY, clock=clock, reference="env:KEY"),
    Static(KEY, clock=clock, reference="env:KEY"),
]
kinds = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.described.kind)


# -- what is sent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "header", "scheme"),
    [
        ({}, "Authorization", "Bearer"),
        ({"header": "X-Api-Key", "scheme": ""}, "X-Api-Key", ""),
        ({"scheme": "Token"}, "Authorization", "Token"),
    ],
)
def test_an_api_key_goes_into_its_header(wanted, options, header, scheme) -> None:
    issued = fetch(ApiKey(KEY, clock=clock, **options), wanted)
    assert (issued.header, issued.scheme, issued.token.reveal()) == (header, scheme, CANARY)
    assert issued.token_type == "api-key"
    assert issued.is_opaque
    assert not issued.is_bound


@pytest.mark.parametrize(
    ("username", "password", "sent"),
    [
        ("Aladdin", "open sesame", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),  # RFC 7617 §2
        ("test", "123£", "dGVzdDoxMjPCow=="),  # RFC 7617 §2.1
        ("", "pass:word", base64.b64encode(b":pass:word").decode()),
    ],
)
def test_basic_is_the_pair_in_utf8(wanted, username, password, sent) -> None:
    issued = fetch(Basic(username, KEY, clock=clock), wanted, password)
    assert (issued.header, issued.scheme) == ("Authorization", "Basic")
    assert issued.token.reveal() == sent


def test_a_user_name_may_be_a_secret_too(wanted) -> None:
    source = Basic(lambda: pure(Secret("sk_1")), KEY, clock=clock)
    issued = fetch(source, wanted)
    assert base64.b64decode(issued.token.reveal()) == f"sk_1:{CANARY}".encode()
    assert [secret.reveal() for secret in issued.parts] == ["sk_1", CANARY]
    given = fetch(Basic("the-bot", KEY, clock=clock), wanted)
    assert [secret.reveal() for secret in given.parts] == [CANARY]


def test_a_static_token_is_a_bearer(wanted) -> None:
    issued = fetch(Static(KEY, clock=clock), wanted)
    assert (issued.header, issued.scheme, issued.token_type) == (
        *("Authorization", "Bearer"),
        "Bearer",
    )
    assert issued.token.reveal() == CANARY


def test_a_static_token_that_says_when_it_ends_is_used_until_then(wanted, jwt) -> None:
    assert fetch(Static(KEY, clock=clock), wanted, jwt(exp=NOW + 20)).expires_at == NOW + 20
    assert fetch(Static(KEY, clock=clock), wanted, jwt(exp=NOW + 9000)).expires_at == NOW + 300
    refused(
        *(CredentialRejectedError, "token_expired"),
        *(Static(KEY, clock=clock), wanted, jwt(exp=NOW)),
    )


@kinds
def test_a_secret_serves_for_five_minutes_and_is_read_anew_each_time(source, wanted) -> None:
    for secret in ("first-secret", "second-secret"):
        asks: list[Any] = []
        issued = play(source.fetch(wanted), secrets={"env:KEY": Secret(secret)}, asks=asks)
        assert asks == [Read("env:KEY")]
        assert (issued.issued_at, issued.expires_at) == (NOW, NOW + 300)
        text = issued.token.reveal()
        assert secret in (text if issued.scheme != "Basic" else base64.b64decode(text).decode())


def test_a_certificate_is_the_whole_credential(certificate, wanted) -> None:
    shown = certificate(expires_at=NOW + 9000)
    issued = play(ClientCertificate(lambda: pure(shown), clock=clock).fetch(wanted))
    assert issued.certificate is shown
    assert issued.is_bound
    assert issued.header == ""
    assert issued.expires_at == NOW + 300


@pytest.mark.parametrize(("left", "code"), [(20, None), (0, "certificate_expired")])
def test_a_certificate_is_used_until_its_own_end(certificate, wanted, left, code) -> None:
    shown = certificate(expires_at=NOW + left)
    source = ClientCertificate(lambda: pure(shown), clock=clock)
    if code is None:
        assert play(source.fetch(wanted)).expires_at == NOW + left
    else:
        refused(CredentialRejectedError, code, source, wanted, None)


# -- what isn't ------------------------------------------------------------------------------------------------------


@kinds
def test_a_secret_that_is_not_there_says_where_to_put_it(source, wanted) -> None:
    error = refused(ConfigurationError, "secret_missing", source, wanted, None)
    assert BILLING in str(error)
    assert "env:KEY" in (error.remedy or "")


def test_a_certificate_or_user_name_that_is_not_there_is_missing(wanted) -> None:
    none: Any = lambda: pure(None)
    refused(
        *(ConfigurationError, "secret_missing", ClientCertificate(none, clock=clock), wanted, None),
    )
    refused(ConfigurationError, "secret_missing", Basic(none, KEY, clock=clock), wanted, CANARY)


@kinds
@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: f"{ord(control):02x}")
@pytest.mark.parametrize("form", ["{}{}x", "{0}x{1}", "x{1}{0}"])
def test_a_secret_with_a_control_character_is_not_sent(source, wanted, control, form) -> None:
    text = form.format(CANARY, control)
    refused(ConfigurationError, "secret_unreadable", source, wanted, text)


@kinds
@pytest.mark.parametrize("text", ["", "\n", "x" * 20_000, "\ud800", "a\x85b"])
def test_a_secret_that_can_t_be_sent_is_refused(source, wanted, text) -> None:
    refused(ConfigurationError, "secret_unreadable", source, wanted, text)


@pytest.mark.parametrize("text", [" padded", "padded ", "schlüssel"])
def test_a_key_that_a_header_would_change_is_refused(wanted, text) -> None:
    refused(ConfigurationError, "secret_unreadable", SOURCES[0], wanted, text)
    refused(ConfigurationError, "secret_unreadable", SOURCES[2], wanted, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "X Key",
        "X-Key:",
        "X-Key\r\nHost: evil",
        "X-Key\n",
        "X-Kéy",
        "(x)",
        "x\0",
        "x" * 300,
    ],
)
def test_a_header_name_that_could_be_more_than_a_name_is_refused(text) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ApiKey(KEY, text, clock=clock)
    assert caught.value.code == "header_malformed"


@pytest.mark.parametrize("text", [" ", "Bearer x", "Bearer\r\nX: y", "Bearer\n", "Bäarer", '"x"'])
def test_a_scheme_that_could_be_more_than_a_word_is_refused(text) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ApiKey(KEY, scheme=text, clock=clock)
    assert caught.value.code == "scheme_malformed"


@pytest.mark.parametrize("name", ["a:b", ":", "a\n", "a\0b", "\x7f", "a\x85"])
def test_a_user_name_with_a_colon_or_a_control_character_is_refused(wanted, name) -> None:
    """A colon would move part of the name into the password (RFC 7617 §2)."""
    with pytest.raises(ConfigurationError) as caught:
        Basic(name, KEY, clock=clock)
    assert caught.value.code == "username_malformed"
    source = Basic(lambda: pure(Secret(name)), KEY, clock=clock)
    with pytest.raises(ConfigurationError):
        fetch(source, wanted)


# -- readable forms --------------------------------------------------------------------------------------------------


@kinds
def test_no_secret_shows_in_a_readable_form(source, wanted) -> None:
    issued = fetch(source, wanted)
    assert_no_leak([CANARY], issued, source, source.described)


def test_what_changes_the_answer_is_described() -> None:
    sources = [
        ApiKey(KEY, clock=clock, reference="env:KEY"),
        ApiKey(KEY, clock=clock, reference="env:OTHER"),
        ApiKey(KEY, "X-Api-Key", clock=clock, reference="env:KEY"),
        ApiKey(KEY, "X-Api-Key", "", clock=clock, reference="env:KEY"),
        Basic("a", KEY, clock=clock, reference="env:KEY"),
        Basic("b", KEY, clock=clock, reference="env:KEY"),
        Static(KEY, clock=clock, reference="env:KEY"),
        ClientCertificate(lambda: pure(None), clock=clock, reference="env:KEY"),
    ]
    assert len({source.described for source in sources}) == len(sources)
    assert {source.patience for source in sources} == {None}
