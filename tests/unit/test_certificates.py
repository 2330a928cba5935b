# SPDX-License-Identifier: Apache-2.0
"""Which names a certificate has, for how long, and which certificates are no client's or no authority's."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent_identity.authority.client_proofs import SanDns, SanUri, SubjectDn
from agent_identity.errors import ConfigurationError
from agent_identity.keys.certificates import (
    is_subject,
    read_authorities,
    read_shown,
    read_subject,
    subject_of,
)

BOT = "spiffe://acme.example/bot"


def uri(value: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(value)


def dns(value: str) -> x509.GeneralName:
    return x509.DNSName(value)


@pytest.fixture
def shown(make_ca) -> Any:
    ca = make_ca()
    return lambda *names, **said: read_shown(ca.issue("bot", *names, **said).read_text())


def test_a_certificate_is_read_with_its_names_and_times(shown) -> None:
    found = shown(uri(BOT), dns("bot.example"), dns("x.example"), subject="CN=bot,O=Acme")
    assert found.uris == (BOT,)
    assert found.dns_names == ("bot.example", "x.example")
    assert found.subject.rfc4514_string() == "CN=bot,O=Acme"
    assert found.not_after - found.not_before == 2 * 3600


def test_one_without_alternative_names_has_its_subject(shown) -> None:
    found = shown()
    assert (found.uris, found.dns_names) == ((), ())
    assert SubjectDn("CN=bot").is_in(found)


@pytest.mark.parametrize("pem", ["", "x", "-----BEGIN CERTIFICATE-----\nAA==\n", "\N{SNOWMAN}"])
def test_what_is_no_certificate_is_none(pem: str) -> None:
    assert read_shown(pem) is None
    assert subject_of(pem.encode()) is None


def test_an_authority_is_not_its_own_client(shown) -> None:
    assert shown(uri(BOT), is_ca=True) is None


@pytest.mark.parametrize(
    ("purposes", "is_client"),
    [
        ([ExtendedKeyUsageOID.SERVER_AUTH], False),
        ([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH], True),
        ([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], True),
    ],
)
def test_one_for_servers_alone_is_no_clients(shown, purposes: Any, is_client: bool) -> None:
    assert (shown(uri(BOT), more=(x509.ExtendedKeyUsage(purposes),)) is not None) == is_client


@pytest.mark.parametrize(
    ("wanted", "is_there"),
    [
        (SanUri("https://bot.example/a"), True),
        (SanUri("https://bot.example/A"), False),
        (SanUri("https://bot.example/"), False),
        (SanUri("urn:acme:bot"), True),
        (SanDns("bot.example"), True),
        (SanDns("BOT.Example"), True),
        (SanDns("bot.example."), False),
        (SanDns("a.wild.example"), False),
        (SanDns("example"), False),
        (SubjectDn("CN=Bot,O=Acme,C=DE"), True),
        (SubjectDn("CN=bot,O=Acme,C=DE"), False),
        (SubjectDn("O=Acme,CN=Bot,C=DE"), False),
        (SubjectDn("CN=Bot,O=Acme"), False),
        (SubjectDn("CN=Bot"), False),
    ],
    ids=str,
)
def test_a_name_is_compared_whole(shown, wanted: Any, is_there: bool) -> None:
    names = (uri("https://bot.example/a"), uri("urn:acme:bot"), dns("Bot.example"))
    found = shown(*names, dns("*.wild.example"), subject="CN=Bot,O=Acme,C=DE")
    assert wanted.is_in(found) == is_there


def test_the_common_name_is_no_dns_name(shown) -> None:
    assert not SanDns("bot.example").is_in(shown(subject="CN=bot.example"))


def test_a_spiffe_id_is_the_only_uri_of_its_certificate(shown) -> None:
    """X509-SVID §2: who has two could be taken for either."""
    assert SanUri(BOT).is_in(shown(uri(BOT), dns("bot.example")))
    assert not SanUri(BOT).is_in(shown(uri(BOT), uri("spiffe://acme.example/admin")))
    assert not SanUri(BOT).is_in(shown(uri("spiffe://acme.example/bot2")))


@pytest.mark.parametrize("text", ["", " ", "bot", "CN=", "CN=bot, O=Acme", "CN=a,", "=a"])
def test_what_names_no_subject_is_refused(text: str) -> None:
    """An empty subject is that of every workload whose certificate has a URI alone."""
    assert not is_subject(text)
    with pytest.raises(ConfigurationError) as caught:
        read_subject(text)
    assert caught.value.code == "value_malformed"


def test_authorities_are_as_many_as_there_are_and_end_with_the_first(make_ca) -> None:
    first, second = make_ca("first"), make_ca("second")
    found = read_authorities(first.pem + "text between\n" + second.pem)
    assert found.pem == first.pem + second.pem
    assert found.expires_at == read_authorities(first.pem).expires_at


def test_a_clients_certificate_is_no_authority(make_ca) -> None:
    """Trusted by itself it would prove whatever name it has; one that signs others would prove any."""
    ca = make_ca()
    for text in ("", "x", ca.issue("bot").read_text(), ca.pem + ca.issue("bot").read_text()):
        with pytest.raises(ConfigurationError) as caught:
            read_authorities(text)
        assert caught.value.code == "authorities_unusable"
