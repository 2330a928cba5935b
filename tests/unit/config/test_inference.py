# SPDX-License-Identifier: Apache-2.0
"""What a short file means, why, and that nothing that is written is overruled."""

from __future__ import annotations

import pytest

from agent_identity.config.model import LEGACY_SOURCES, OAUTH_SOURCES


def issuer_of(read, lines: str):
    return read(f'[issuers.a]\nissuer = "https://a.example"\n{lines}').issuers["a"]


@pytest.mark.parametrize(
    ("lines", "key", "value"),
    [
        ('client_id = "c"\nclient_key = "env:K"', "client_auth", "private_key_jwt"),
        ('client_id = "c"\nclient_secret = "env:S"', "client_auth", "client_secret_basic"),
        ('client_id = "c"\nclient_certificate = "env:C"', "client_auth", "tls_client_auth"),
        (
            'client_id = "c"\nclient_certificate = "env:C"\nclient_key = "env:K"',
            "client_auth",
            "tls_client_auth",
        ),
        ('client_id = "c"', "client_auth", None),
        ('client_id = "c"', "registration", "configured"),
        ('client_id = "https://c.example/me"', "registration", "cimd"),
        ("", "registration", None),
        ('client_id = "c"\ntrust = ["subjects"]', "audience", "c"),
        ('client_id = "c"\ntrust = ["subjects"]\naudience = "d"', "audience", "d"),
        ('client_id = "c"\ntrust = ["grants"]', "audience", None),
        (
            'client_id = "c"\nclient_secret = "env:S"\nclient_auth = "client_secret_post"',
            "client_auth",
            "client_secret_post",
        ),
    ],
)
def test_an_issuer_is_filled_in(read, lines, key, value) -> None:
    assert getattr(issuer_of(read, lines), key) == value


def test_a_resource_with_the_only_issuer_is_token_exchange_with_dpop(read, issuer) -> None:
    found = read(issuer + '[resources."https://b.example"]\n').resources["https://b.example"]
    assert (found.issuer, found.source, found.binding) == ("acme", "token-exchange", "dpop")
    assert (found.assertion, found.actor) == ("send", "none")


def test_the_only_issuer_is_not_that_of_a_source_without_one(read, issuer) -> None:
    text = '[resources."https://b.example"]\nsource = "api-key"\nsecret = "env:S"\n'
    assert read(issuer + text).resources["https://b.example"].issuer is None


def test_of_two_issuers_none_is_chosen(refuse, issuer) -> None:
    other = issuer.replace("acme", "other")
    (problem,) = refuse(issuer + other + '[resources."https://b.example"]\nsource = "device"\n')
    assert (problem.code, problem.key) == ("value_missing", 'resources."https://b.example".issuer')


def test_a_resource_without_any_issuer_is_the_embedded_authoritys(read) -> None:
    found = read('[resources."https://b.example"]\nscopes = ["r"]\n').resources["https://b.example"]
    assert (found.source, found.binding, found.assertion) == (None, "dpop", "send")


OTHER = {
    "api-key": 'secret = "env:S"',
    "basic": 'username = "u"\npassword = "env:S"',
    "static": 'token = "env:S"',
    "client-certificate": 'certificate = "env:C"',
    "refresh-token": 'refresh_token = "keyring:R"',
    "id-jag": 'via = "acme"',
    "identity-chaining": 'via = "acme"',
    "auth0-token-vault": 'parameters = {connection = "c"}',
}
BEARER = {"entra-obo", "auth0-token-vault"}
"""Their tokens can't be bound."""


@pytest.mark.parametrize("source", sorted(OAUTH_SOURCES))
def test_what_an_issuer_gives_is_bound_and_asserted(read, issuer, source) -> None:
    text = f'[resources."https://b.example"]\nsource = "{source}"\n{OTHER.get(source, "")}'
    found = read(issuer + text).resources["https://b.example"]
    binding = "none" if source in BEARER else "dpop"
    assert (found.issuer, found.binding, found.assertion) == ("acme", binding, "send")


@pytest.mark.parametrize("source", sorted(LEGACY_SOURCES))
def test_a_stranger_gets_no_delegation_data(read, source) -> None:
    text = f'[resources."https://b.example"]\nsource = "{source}"\n{OTHER[source]}'
    found = read(text).resources["https://b.example"]
    assert (found.binding, found.assertion) == ("none", "omit")


def test_a_resource_that_takes_no_token_gets_chain_and_assertion(read, issuer) -> None:
    found = read(issuer + '[resources."urn:example:files"]\nsource = "chain"\n')
    table = found.resources["urn:example:files"]
    assert (table.issuer, table.binding, table.assertion) == (None, "none", "send")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ('source = "api-key"\nsecret = "env:S"', "header", "Authorization"),
        ('source = "api-key"\nsecret = "env:S"', "scheme", "Bearer"),
        ('source = "api-key"\nsecret = "env:S"\nheader = "X-Api-Key"', "scheme", ""),
        ('source = "api-key"\nsecret = "env:S"\nscheme = "Token"', "scheme", "Token"),
        ('source = "workload-token"', "provider", "ambient"),
        ('source = "jwt-bearer"', "assertion_from", "client"),
        ('source = "jwt-bearer"', "provider", None),
        ('source = "jwt-bearer"\nassertion_from = "workload"', "provider", "ambient"),
        ('source = "token-exchange"\nactor = "workload"', "provider", "ambient"),
        ('source = "ciba"', "login_hint_from", "sub"),
        ('source = "device"\nbinding = "none"\nassertion = "omit"', "binding", "none"),
        ('source = "device"\nbinding = "none"\nassertion = "omit"', "assertion", "omit"),
    ],
)
def test_a_resource_is_filled_in(read, issuer, text, key, value) -> None:
    found = read(f'{issuer}[resources."https://b.example"]\n{text}').resources["https://b.example"]
    assert getattr(found, key) == value


def test_policy_files_mean_cedar(refuse) -> None:
    (problem,) = refuse('[policy]\nfiles = ["*.cedar"]\n')
    assert (problem.code, problem.key) == ("not_supported", "policy.engine")


def test_everything_inferred_is_told_with_its_reason(read, issuer) -> None:
    found = read(issuer + '[resources."https://b.example"]\nbinding = "none"\n').inferred
    assert [(one.key, one.value) for one in found] == [
        ("issuers.acme.registration", "configured"),
        ("issuers.acme.client_auth", "private_key_jwt"),
        ('resources."https://b.example".issuer', "acme"),
        ('resources."https://b.example".source', "token-exchange"),
        ('resources."https://b.example".assertion', "send"),
        ('resources."https://b.example".actor', "none"),
    ]
    assert all(one.reason for one in found)
