# SPDX-License-Identifier: Apache-2.0
"""What a configuration may say of an organisation's authority, and what it may not."""

from __future__ import annotations

import pytest

IDP = '[issuers.idp]\nissuer = "https://idp.acme.example"\ntrust = ["subjects"]\n'
BOT = '[authority.clients.bot]\njwks = "file:bot.jwks.json"\nresources = ["https://b.example"]\n'
PLATFORM = '[issuers.ci]\nissuer = "https://ci.example"\n'
JOB = (
    '[authority.clients.job]\nauth = "workload_token"\nissuer = "ci"\nsubject = "repo:a/b"\n'
    'resources = ["https://b.example"]\n'
)
SVID = BOT + 'auth = "spiffe_jwt"\nsubject = "spiffe://acme.example/bot"\n'


def test_an_anchor_is_an_identity_provider_and_one_client(read, tmp_path) -> None:
    configuration = read("[authority]\n" + IDP + BOT)
    assert configuration.authority is not None
    client = configuration.authority.clients["bot"]
    assert client.jwks == f"file:{tmp_path / 'bot.jwks.json'}"
    assert (client.auth, client.scopes, client.max_depth) == ("private_key_jwt", (), 3)
    assert (client.subject_clients, client.subject_issuers) == ((), None)
    assert (configuration.authority.registration, configuration.authority.rate) == (False, 600)


@pytest.mark.parametrize(
    "text",
    [
        SVID,
        PLATFORM + JOB,
        PLATFORM + JOB + 'claims = {ref = "m"}\n',
    ],
)
def test_every_way_of_proof_can_be_configured(read, text: str) -> None:
    assert read(IDP + text).authority is not None


def client(*lines: str) -> str:
    return IDP + BOT + "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("text", "code", "key"),
    [
        (client('auth = "none"'), "value_malformed", "authority.clients.bot.auth"),
        (client('auth = "client_secret_basic"'), "value_malformed", "authority.clients.bot.auth"),
        (client('auth = "tls_client_auth"'), "value_malformed", "authority.clients.bot.auth"),
        (client('san_uri = "urn:x"'), "unknown_key", "authority.clients.bot.san_uri"),
        (client("[authority.tls]", 'key = "env:K"'), "unknown_key", "authority.tls"),
        (client('client_secret = "env:S"'), "unknown_key", "authority.clients.bot.client_secret"),
        (client('sub = "x"'), "unknown_key", "authority.clients.bot.sub"),
        (client('subject = "x"'), "key_unused", "authority.clients.bot.subject"),
        (client('claims = {ref = "m"}'), "key_unused", "authority.clients.bot.claims"),
        (client('issuer = "idp"'), "key_unused", "authority.clients.bot.issuer"),
        (client('scopes = ["a b"]'), "value_malformed", "authority.clients.bot.scopes"),
        (client("max_depth = 8"), "value_malformed", "authority.clients.bot.max_depth"),
        (client('agent = "a b"'), "value_malformed", "authority.clients.bot.agent"),
        (
            client('agent = "https://idp.acme.example"'),
            "value_conflict",
            "authority.clients.bot.agent",
        ),
        (
            client('subject_issuers = ["x"]'),
            "unknown_issuer",
            "authority.clients.bot.subject_issuers",
        ),
        (client("[authority]", 'trust = "all"'), "unknown_key", "authority.trust"),
        (
            client("[authority]", 'issuer = "http://agents.example"'),
            "url_insecure",
            "authority.issuer",
        ),
        (client("[authority]", "rate = 0"), "value_malformed", "authority.rate"),
        (
            client("[authority]", 'issuer = "https://idp.acme.example"'),
            "value_conflict",
            "issuers.idp.trust",
        ),
        (BOT, "value_missing", "authority.clients.bot.subject_issuers"),
        (IDP + "[authority]\n", "value_missing", "authority.clients"),
        (
            IDP + BOT.replace('jwks = "file:bot.jwks.json"\n', ""),
            "value_missing",
            "authority.clients.bot.jwks",
        ),
        (
            IDP + BOT.replace("file:bot.jwks.json", "http://bot.example/jwks"),
            "url_insecure",
            "authority.clients.bot.jwks",
        ),
        (
            IDP + BOT.replace("https://b.example", "https://b.example/#x"),
            "resource_malformed",
            "authority.clients.bot.resources",
        ),
        (
            IDP + BOT.replace('resources = ["https://b.example"]', ""),
            "value_missing",
            "authority.clients.bot.resources",
        ),
        (
            IDP + BOT.replace('["https://b.example"]', "[]"),
            "value_malformed",
            "authority.clients.bot.resources",
        ),
        (
            PLATFORM + IDP + BOT + 'subject_issuers = ["ci"]\n',
            "value_missing",
            "issuers.ci.trust",
        ),
        (
            IDP + SVID.replace("/bot", "").replace("acme.example/", "acme.example"),
            "value_malformed",
            "authority.clients.bot.subject",
        ),
        (
            IDP + SVID.replace('subject = "spiffe://acme.example/bot"\n', ""),
            "value_missing",
            "authority.clients.bot.subject",
        ),
        (
            IDP + PLATFORM + JOB.replace('subject = "repo:a/b"\n', ""),
            "value_missing",
            "authority.clients.job.subject",
        ),
        (
            IDP + PLATFORM + JOB + 'claims = {aud = "x"}\n',
            "value_conflict",
            "authority.clients.job.claims",
        ),
        (
            IDP + PLATFORM + JOB + 'jwks = "file:x"\n',
            "key_unused",
            "authority.clients.job.jwks",
        ),
        (IDP + JOB, "unknown_issuer", "authority.clients.job.issuer"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(refuse, text: str, code: str, key: str) -> None:
    problems = refuse(text + "\n")
    assert (code, key) in {(problem.code, problem.key) for problem in problems}
    assert all(problem.line for problem in problems)


def test_without_an_authority_an_issuer_says_its_audience_as_before(refuse) -> None:
    assert refuse(IDP)[0].key == "issuers.idp.audience"
