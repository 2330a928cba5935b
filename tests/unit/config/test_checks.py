# SPDX-License-Identifier: Apache-2.0
"""What a configuration can't say: each problem has its code, its key and its line, and one look shows all of them."""

from __future__ import annotations

import typing

import pytest

from agent_identity.config import read_configuration
from agent_identity.config.model import ProviderName
from agent_identity.config.problems import InvalidConfigurationError
from agent_identity.credentials.workload import provider
from agent_identity.errors import ConfigurationError

A = '[issuers.acme]\nissuer = "https://a.example"\n'
CLIENT = A + 'client_id = "c"\nclient_key = "env:K"\n'
ANCHOR = CLIENT + 'trust = ["grants"]\n'
B = '[resources."https://b.example"]\n'
IN_B = 'resources."https://b.example"'

REFUSED = {
    # keys
    "a top-level key": ("nothing = 1", "unknown_key", "nothing", 1),
    "a misspelt table": ('[isuers.a]\nissuer = "x"', "unknown_key", "isuers", 1),
    "a misspelt key": (A + 'client_idd = "c"', "unknown_key", "issuers.acme.client_idd", 3),
    "a dotted misspelt key": ("session.lifetimes = 3", "unknown_key", "session.lifetimes", 1),
    "a misspelt key in a table in a line": (
        CLIENT + B + 'transaction_token = {issuer = "acme", audience = "t", x = 1}',
        "unknown_key",
        f"{IN_B}.transaction_token.x",
        6,
    ),
    # parameters
    "a reserved parameter": (
        CLIENT + B + 'parameters = {audience = "x"}',
        "parameter_reserved",
        f"{IN_B}.parameters.audience",
        6,
    ),
    "a parameter that no form has": (
        CLIENT + B + 'parameters = {"a b" = "x"}',
        "value_malformed",
        f'{IN_B}.parameters."a b"',
        6,
    ),
    "a number as parameter": (
        CLIENT + B + "parameters = {a = 1}",
        "value_malformed",
        f"{IN_B}.parameters.a",
        6,
    ),
    "parameters of a source without request": (
        B + 'source = "api-key"\nsecret = "env:S"\nparameters = {a = "1"}',
        "key_unused",
        f"{IN_B}.parameters",
        4,
    ),
    "a vault without connection": (
        CLIENT + B + 'source = "auth0-token-vault"',
        "value_missing",
        f"{IN_B}.parameters.connection",
        5,
    ),
    "a token type that is none": (
        CLIENT + B + 'subject_token_type = "saml"',
        "value_malformed",
        f"{IN_B}.subject_token_type",
        6,
    ),
    "an id for a client without one": (
        A + 'client_id = "c"\nclient_auth = "anonymous"',
        "value_conflict",
        "issuers.acme.client_id",
        3,
    ),
    # values
    "a number for text": ("[agent]\nname = 3", "value_malformed", "agent.name", 2),
    "text for a number": ('[http]\nbody_limit = "3"', "value_malformed", "http.body_limit", 2),
    "a fraction for a whole number": (
        "[http]\nbody_limit = 3.5",
        "value_malformed",
        "http.body_limit",
        2,
    ),
    "text for a list": (A + 'trust = "subjects"', "value_malformed", "issuers.acme.trust", 3),
    "a word that isn't known": (A + 'trust = ["all"]', "value_malformed", "issuers.acme.trust", 3),
    "a table for text": ("[agent.name]\nx = 1", "value_malformed", "agent.name", 1),
    "text for a table": ('agent = "a"', "value_malformed", "agent", 1),
    "nothing for text": ('[agent]\nname = ""', "value_malformed", "agent.name", 2),
    "no algorithm": (A + "algorithms = []", "value_malformed", "issuers.acme.algorithms", 3),
    "no time": ("[session]\nlifetime = 0", "value_malformed", "session.lifetime", 2),
    "a time before now": ("[http]\ndeadline = -1.0", "value_malformed", "http.deadline", 2),
    "endless time": ("[http]\ndeadline = inf", "value_malformed", "http.deadline", 2),
    "no such time": (
        "[session]\ngrant_lifetime = nan",
        "value_malformed",
        "session.grant_lifetime",
        2,
    ),
    "truth for a number": (
        "[session]\nmax_depth = true",
        "value_malformed",
        "session.max_depth",
        2,
    ),
    "too deep": ("[session]\nmax_depth = 8", "value_malformed", "session.max_depth", 2),
    "less than flat": ("[session]\nmax_depth = -1", "value_malformed", "session.max_depth", 2),
    "a date in a detail": (
        CLIENT + B + "authorization_details = [{at = 1979-05-27}]",
        "value_malformed",
        f"{IN_B}.authorization_details",
        6,
    ),
    "an unknown ledger": ('[ledger]\nurl = "mysql://x"', "value_malformed", "ledger.url", 2),
    "a ledger of nothing": ('[ledger]\nurl = "sqlite:///"', "value_malformed", "ledger.url", 2),
    "two scopes in one": (CLIENT + B + 'scopes = ["a b"]', "value_malformed", f"{IN_B}.scopes", 6),
    # the agent
    "an owner of two lines": (
        '[agent]\nname = "a"\nowner = "o\\np"',
        "value_malformed",
        "agent.owner",
        3,
    ),
    "an agent without name": ('[agent]\nowner = "o"', "value_missing", "agent.name", 1),
    "an impossible name": ('[agent]\nname = "a b"', "value_malformed", "agent.name", 2),
    "an id that's no URI": ('[agent]\nid = "a"', "value_malformed", "agent.id", 2),
    "two places of hop 0": (
        ANCHOR + '[agent]\nname = "a"\ngrants = "acme"\nsigner = "env:S"',
        "value_conflict",
        "agent.signer",
        9,
    ),
    "the name of no signer": (
        ANCHOR + '[agent]\nname = "a"\ngrants = "acme"\nsigner_id = "urn:s"',
        "key_unused",
        "agent.signer_id",
        9,
    ),
    # issuers
    "an issuer without address": ("[issuers.acme]", "value_missing", "issuers.acme.issuer", 1),
    "an issuer over http": (
        '[issuers.acme]\nissuer = "http://a.example"',
        "url_insecure",
        "issuers.acme.issuer",
        2,
    ),
    "an issuer with a query": (
        '[issuers.acme]\nissuer = "https://a.example?x=1"',
        "value_malformed",
        "issuers.acme.issuer",
        2,
    ),
    "an issuer that's no URL": (
        '[issuers.acme]\nissuer = "a.example"',
        "value_malformed",
        "issuers.acme.issuer",
        2,
    ),
    "keys over http": (A + 'jwks = "http://a.example/j"', "url_insecure", "issuers.acme.jwks", 3),
    "keys in no file": (A + 'jwks = "file:"', "reference_malformed", "issuers.acme.jwks", 3),
    "an origin with a path": (
        A + 'endpoint_origins = ["https://a.example/x"]',
        "value_malformed",
        "issuers.acme.endpoint_origins",
        3,
    ),
    "an origin over http": (
        A + 'endpoint_origins = ["http://a.example"]',
        "url_insecure",
        "issuers.acme.endpoint_origins",
        3,
    ),
    **{
        f"a sign-in that comes back to {uri}": (
            A + f'redirect_uri = "{uri}"',
            "value_malformed",
            "issuers.acme.redirect_uri",
            3,
        )
        for uri in (
            "https://127.0.0.1:8400/callback",
            "http://agent.example/callback",
            "http://127.0.0.1:8400",
            "http://127.0.0.1:8400/callback?x=1",
            "http://user@127.0.0.1/callback",
            "http://127.0.0.1:99999/callback",
            "callback",
        )
    },
    "metadata over http": (
        A + 'metadata = "http://a.example/m"',
        "url_insecure",
        "issuers.acme.metadata",
        3,
    ),
    "an endpoint over http": (
        A + 'endpoints = {token_endpoint = "http://a.example/t"}',
        "url_insecure",
        "issuers.acme.endpoints.token_endpoint",
        3,
    ),
    "an endpoint without a name": (
        A + 'endpoints = {token = "https://a.example/t"}',
        "unknown_key",
        "issuers.acme.endpoints.token",
        3,
    ),
    "no metadata and no keys": (
        A + 'trust = ["subjects"]\naudience = "x"\nmetadata = "none"',
        "value_missing",
        "issuers.acme.jwks",
        1,
    ),
    "no metadata and no token endpoint": (
        CLIENT + 'metadata = "none"\n[resources."https://r.example"]',
        "value_missing",
        "issuers.acme.endpoints.token_endpoint",
        1,
    ),
    "subjects for whom": (A + 'trust = ["subjects"]', "value_missing", "issuers.acme.audience", 1),
    "a secret and a key": (
        A + 'client_id = "c"\nclient_key = "env:K"\nclient_secret = "env:S"',
        "value_conflict",
        "issuers.acme.client_secret",
        5,
    ),
    "a secret beside private_key_jwt": (
        CLIENT + 'client_secret = "env:S"\nclient_auth = "private_key_jwt"',
        "value_conflict",
        "issuers.acme.client_secret",
        5,
    ),
    "a key beside client_secret_post": (
        CLIENT + 'client_secret = "env:S"\nclient_auth = "client_secret_post"',
        "value_conflict",
        "issuers.acme.client_key",
        4,
    ),
    "private_key_jwt without key": (
        A + 'client_id = "c"\nclient_auth = "private_key_jwt"',
        "value_missing",
        "issuers.acme.client_key",
        1,
    ),
    "client_secret_basic without secret": (
        A + 'client_id = "c"\nclient_auth = "client_secret_basic"',
        "value_missing",
        "issuers.acme.client_secret",
        1,
    ),
    "tls_client_auth without certificate": (
        A + 'client_id = "c"\nclient_auth = "tls_client_auth"',
        "value_missing",
        "issuers.acme.client_certificate",
        1,
    ),
    "a document that's no URL": (
        CLIENT + 'registration = "cimd"',
        "value_missing",
        "issuers.acme.client_id",
        3,
    ),
    "a document with a secret": (
        A + 'client_id = "https://c.example"\nclient_secret = "env:S"',
        "value_conflict",
        "issuers.acme.client_secret",
        4,
    ),
    "a configured client without id": (
        A + 'registration = "configured"',
        "value_missing",
        "issuers.acme.client_id",
        1,
    ),
    "an id before registering": (
        A + 'client_id = "c"\nregistration = "dynamic"',
        "key_unused",
        "issuers.acme.client_id",
        3,
    ),
    "a registration token for nothing": (
        CLIENT + 'registration_token = "env:T"',
        "key_unused",
        "issuers.acme.registration_token",
        5,
    ),
    "an issuer asked by nobody": (
        A + 'client_auth = "none"\n' + B,
        "value_missing",
        "issuers.acme.client_id",
        1,
    ),
    "a client without proof": (
        A + 'client_id = "c"\n' + B,
        "value_missing",
        "issuers.acme.client_auth",
        1,
    ),
    # resources
    "a resource in capitals": (
        '[resources."https://B.example"]',
        "resource_malformed",
        'resources."https://B.example"',
        1,
    ),
    "an unknown issuer": (CLIENT + B + 'issuer = "acne"', "unknown_issuer", f"{IN_B}.issuer", 6),
    "an unknown first leg": (
        CLIENT + B + 'source = "id-jag"\nvia = "x"',
        "unknown_issuer",
        f"{IN_B}.via",
        7,
    ),
    "an unknown token service": (
        CLIENT + B + 'transaction_token = {issuer = "x", audience = "t"}',
        "unknown_issuer",
        f"{IN_B}.transaction_token.issuer",
        6,
    ),
    "an unknown anchor": (
        '[agent]\nname = "a"\ngrants = "x"',
        "unknown_issuer",
        "agent.grants",
        3,
    ),
    "an unknown provider": (
        B + 'source = "workload-token"\nprovider = "x"',
        "value_malformed",
        f"{IN_B}.provider",
        3,
    ),
    "token exchange with nobody": (
        B + 'source = "token-exchange"',
        "value_missing",
        f"{IN_B}.issuer",
        1,
    ),
    "id-jag in one leg": (CLIENT + B + 'source = "id-jag"', "value_missing", f"{IN_B}.via", 5),
    "identity chaining in one leg": (
        CLIENT + B + 'source = "identity-chaining"',
        "value_missing",
        f"{IN_B}.via",
        5,
    ),
    "no API key": (B + 'source = "api-key"', "value_missing", f"{IN_B}.secret", 1),
    "no password": (
        B + 'source = "basic"\nusername = "u"',
        "value_missing",
        f"{IN_B}.password",
        1,
    ),
    "no username": (
        B + 'source = "basic"\npassword = "env:P"',
        "value_missing",
        f"{IN_B}.username",
        1,
    ),
    "no token": (B + 'source = "static"', "value_missing", f"{IN_B}.token", 1),
    "no certificate": (
        B + 'source = "client-certificate"',
        "value_missing",
        f"{IN_B}.certificate",
        1,
    ),
    "no refresh token": (
        CLIENT + B + 'source = "refresh-token"',
        "value_missing",
        f"{IN_B}.refresh_token",
        5,
    ),
    "a secret and no source": (B + 'secret = "env:S"', "value_missing", f"{IN_B}.source", 1),
    "a secret for token exchange": (
        CLIENT + B + 'source = "token-exchange"\nsecret = "env:S"',
        "key_unused",
        f"{IN_B}.secret",
        7,
    ),
    "an issuer of an API key": (
        CLIENT + B + 'source = "api-key"\nsecret = "env:S"\nissuer = "acme"',
        "key_unused",
        f"{IN_B}.issuer",
        8,
    ),
    "details of an API key": (
        B + 'source = "api-key"\nsecret = "env:S"\nauthorization_details = [{type = "x"}]',
        "key_unused",
        f"{IN_B}.authorization_details",
        4,
    ),
    "a platform for nothing": (
        CLIENT + B + 'source = "token-exchange"\nprovider = "aws"',
        "key_unused",
        f"{IN_B}.provider",
        7,
    ),
    "a token file without path": (
        B + 'source = "workload-token"\nprovider = "file"',
        "value_missing",
        f"{IN_B}.path",
        1,
    ),
    "a path for a cloud": (
        B + 'source = "workload-token"\nprovider = "aws"\npath = "/x"',
        "key_unused",
        f"{IN_B}.path",
        4,
    ),
    "a bound API key": (
        B + 'source = "api-key"\nsecret = "env:S"\nbinding = "dpop"',
        "value_conflict",
        f"{IN_B}.binding",
        4,
    ),
    "a certificate-bound token without certificate": (
        CLIENT + B + 'binding = "mtls"',
        "value_missing",
        "issuers.acme.client_certificate",
        1,
    ),
    # secrets
    "a secret in clear": (
        A + 'client_id = "c"\nclient_secret = "s3cret"',
        "secret_in_clear",
        "issuers.acme.client_secret",
        4,
    ),
    "a secret in clear that has a colon": (
        A + 'client_id = "c"\nclient_secret = "environment:s3cret"',
        "secret_in_clear",
        "issuers.acme.client_secret",
        4,
    ),
    "a variable with an impossible name": (
        A + 'client_id = "c"\nclient_secret = "env:A B"',
        "reference_malformed",
        "issuers.acme.client_secret",
        4,
    ),
    "a vault nobody configured": (
        A + 'client_id = "c"\nclient_secret = "vault:a/b"',
        "vault_unconfigured",
        "issuers.acme.client_secret",
        4,
    ),
    # policy
    "a policy without engine": ("[policy]\nobserve = false", "value_missing", "policy.engine", 1),
    "policies for grants-only": (
        '[policy]\nengine = "grants-only"\nfiles = ["x"]',
        "key_unused",
        "policy.files",
        3,
    ),
    # not yet
    "Cedar": ('[policy]\nengine = "cedar"\nfiles = ["x"]', "not_supported", "policy.engine", 2),
    "AuthZEN": (
        '[policy]\nengine = "authzen"\nurl = "https://p.example"',
        "not_supported",
        "policy.engine",
        2,
    ),
    "OPA": (
        '[policy]\nengine = "opa"\nurl = "http://127.0.0.1:8181"\npath = "x"',
        "not_supported",
        "policy.engine",
        2,
    ),
    "observing": (
        '[policy]\nengine = "grants-only"\nobserve = true',
        "not_supported",
        "policy.observe",
        3,
    ),
    "approval": ('[approval]\nchannel = "console"', "not_supported", "approval", 1),
    "a shared store": ('[shared]\nurl = "redis://x"', "not_supported", "shared.url", 2),
    "signals": (
        '[signals.a]\nissuer = "https://a.example"\naudience = "b"',
        "not_supported",
        "signals",
        1,
    ),
    "a budget": ("[session.budget]\ncalls = 3", "not_supported", "session.budget", 1),
    "PostgreSQL": ('[ledger]\nurl = "postgresql://x/y"', "not_supported", "ledger.url", 2),
    # what nothing would read
    "details of an embedded resource": (
        B + 'authorization_details = [{type = "x"}]',
        "key_unused",
        f"{IN_B}.authorization_details",
        2,
    ),
    "an unbound token of the embedded authority": (
        B + 'binding = "none"',
        "key_unused",
        f"{IN_B}.binding",
        2,
    ),
    "a certificate-bound token of the embedded authority": (
        B + 'binding = "mtls"',
        "key_unused",
        f"{IN_B}.binding",
        2,
    ),
    "an audience of an embedded resource": (
        B + 'audience = "x"',
        "key_unused",
        f"{IN_B}.audience",
        2,
    ),
    "an actor of an embedded resource": (B + 'actor = "grant"', "key_unused", f"{IN_B}.actor", 2),
    "details of jwt-bearer": (
        CLIENT + B + 'source = "jwt-bearer"\nauthorization_details = [{type = "x"}]',
        "key_unused",
        f"{IN_B}.authorization_details",
        7,
    ),
    "details of a refresh token": (
        CLIENT
        + B
        + 'source = "refresh-token"\nrefresh_token = "file:t"\nauthorization_details = [{type = "x"}]',
        "key_unused",
        f"{IN_B}.authorization_details",
        8,
    ),
    "a host of GitHub's tokens for another platform": (
        B + 'source = "workload-token"\nprovider = "aws"\ntoken_host = "x.example"',
        "key_unused",
        f"{IN_B}.token_host",
        4,
    ),
    "evidence of an issuer": (
        CLIENT + 'evidence = "asserted"',
        "not_supported",
        "issuers.acme.evidence",
        5,
    ),
    "an audience of an issuer that isn't believed": (
        CLIENT + 'audience = "x"',
        "key_unused",
        "issuers.acme.audience",
        5,
    ),
    "algorithms of an issuer that isn't believed": (
        CLIENT + 'algorithms = ["ES256"]',
        "key_unused",
        "issuers.acme.algorithms",
        5,
    ),
    "a token type of an issuer that isn't believed": (
        CLIENT + 'token_type = "jwt"',
        "key_unused",
        "issuers.acme.token_type",
        5,
    ),
    "a key beside registering": (
        A + 'registration = "dynamic"\nclient_key = "env:K"',
        "key_unused",
        "issuers.acme.client_key",
        4,
    ),
    "a secret beside registering": (
        A + 'registration = "dynamic"\nclient_secret = "env:S"',
        "key_unused",
        "issuers.acme.client_secret",
        4,
    ),
    "a certificate beside registering": (
        A + 'registration = "dynamic"\nclient_certificate = "env:C"',
        "key_unused",
        "issuers.acme.client_certificate",
        4,
    ),
    "a method beside registering": (
        A + 'registration = "dynamic"\nclient_auth = "private_key_jwt"',
        "key_unused",
        "issuers.acme.client_auth",
        4,
    ),
    "a key of a public client": (
        CLIENT + 'client_auth = "none"',
        "key_unused",
        "issuers.acme.client_key",
        4,
    ),
    "a key of a client that shows its SVID": (
        CLIENT + 'client_auth = "spiffe_jwt"',
        "key_unused",
        "issuers.acme.client_key",
        4,
    ),
    "the id of no key": (
        A + 'client_id = "c"\nclient_auth = "none"\nclient_key_id = "k"',
        "key_unused",
        "issuers.acme.client_key_id",
        5,
    ),
    "the audience of no assertion": (
        A
        + 'client_id = "c"\nclient_secret = "env:S"\nclient_assertion_audience = "token-endpoint"',
        "key_unused",
        "issuers.acme.client_assertion_audience",
        5,
    ),
    "a place of a policy for grants-only": (
        '[policy]\nengine = "grants-only"\nurl = "https://p.example"',
        "key_unused",
        "policy.url",
        3,
    ),
    "a rule for grants-only": (
        '[policy]\nengine = "grants-only"\npath = "a/b"',
        "key_unused",
        "policy.path",
        3,
    ),
    "words for grants-only": (
        '[policy]\nengine = "grants-only"\nmapping = "coaz"',
        "key_unused",
        "policy.mapping",
        3,
    ),
    "how old revocations may be": (
        "[shared]\nmax_staleness = 1.0",
        "not_supported",
        "shared.max_staleness",
        2,
    ),
    "a variable for a token that rotates": (
        CLIENT + B + 'source = "refresh-token"\nrefresh_token = "env:T"',
        "reference_read_only",
        f"{IN_B}.refresh_token",
        7,
    ),
    # what contradicts itself
    "an anchor that isn't trusted": (
        CLIENT + '[agent]\nname = "a"\ngrants = "acme"',
        "value_missing",
        "issuers.acme.trust",
        1,
    ),
    "two believed tables of one issuer": (
        CLIENT
        + 'trust = ["subjects"]\n'
        + A.replace("acme", "acme2")
        + 'trust = ["subjects"]\naudience = "x"',
        "value_conflict",
        "issuers.acme2.trust",
        8,
    ),
    "people of a table that isn't believed": (
        CLIENT + A.replace("acme", "b").replace("a.ex", "b.ex") + 'subjects_of = ["acme"]',
        "key_unused",
        "issuers.b.subjects_of",
        7,
    ),
    "people of an unknown table": (
        CLIENT + 'subjects_of = ["acne"]',
        "unknown_issuer",
        "issuers.acme.subjects_of",
        5,
    ),
    "an algorithm that nobody has": (
        A + 'trust = ["subjects"]\naudience = "x"\nalgorithms = ["ES-256"]',
        "value_malformed",
        "issuers.acme.algorithms",
        5,
    ),
    "an algorithm of shared secrets": (
        A + 'trust = ["subjects"]\naudience = "x"\nalgorithms = ["HS256"]',
        "value_malformed",
        "issuers.acme.algorithms",
        5,
    ),
    "a type that no token has": (
        A + 'trust = ["subjects"]\naudience = "x"\ntoken_type = "saml2"',
        "value_malformed",
        "issuers.acme.token_type",
        5,
    ),
    "an agent that is an issuer": (
        CLIENT + '[agent]\nid = "https://a.example"',
        "value_conflict",
        "agent.id",
        6,
    ),
    "an audience where the resource isn't named": (
        CLIENT + "resource_indicators = false\n" + B,
        "value_missing",
        f"{IN_B}.audience",
        6,
    ),
    "a vault without role": (
        '[vault]\naddress = "https://v.example"',
        "value_missing",
        "vault.role",
        1,
    ),
    "a signer of the vault without its mount": (
        CLIENT
        + '[vault]\naddress = "https://v.example"\nrole = "r"\n[agent]\nname = "a"\nsigner = "vault:b"',
        "reference_malformed",
        "agent.signer",
        10,
    ),
    "a field of a key that never leaves the vault": (
        CLIENT
        + '[vault]\naddress = "https://v.example"\nrole = "r"\n[agent]\nname = "a"\nsigner = "vault:a/b#key"',
        "reference_malformed",
        "agent.signer",
        10,
    ),
    "a signer in a vault that is nowhere": (
        CLIENT + '[agent]\nname = "a"\nsigner = "vault:transit/b"',
        "vault_unconfigured",
        "agent.signer",
        7,
    ),
    "an agent's key in a vault": (
        CLIENT
        + '[vault]\naddress = "https://v.example"\nrole = "r"\n[agent]\nname = "a"\nkey = "vault:a/b"',
        "not_supported",
        "agent.key",
        10,
    ),
}


@pytest.mark.parametrize(("text", "code", "key", "line"), REFUSED.values(), ids=REFUSED.keys())
def test_what_can_not_be_is_refused_where_it_stands(refuse, text, code, key, line) -> None:
    assert [(one.code, one.key, one.line) for one in refuse(text)] == [(code, key, line)]


FINE = {
    "http on this machine": '[issuers.a]\nissuer = "http://127.0.0.1:8600"',
    "a way that was said among several": CLIENT
    + 'client_certificate = "env:C"\nclient_auth = "private_key_jwt"\n'
    + B
    + 'binding = "mtls"',
    "an SVID as certificate": CLIENT + B + 'binding = "mtls"\n[spiffe]\nsocket = "unix:///s"',
    "a client that registers with the agent's key": A
    + 'registration = "dynamic"\nregistration_token = "env:T"\n'
    + B,
    "a public client": A + 'client_id = "c"\nclient_auth = "none"\n' + B,
    "an issuer that is believed and never asked": A + 'trust = ["subjects"]\naudience = "x"',
    "a vault": CLIENT.replace("env:K", "vault:k")
    + '[vault]\naddress = "https://v.example"\nrole = "r"',
    "a key that stays in a vault": CLIENT
    + '[vault]\naddress = "https://v.example"\nrole = "r"\n[agent]\nname = "a"\nsigner = "vault:team/transit/a"',
    "plain text by name": CLIENT.replace("env:K", "keyring+plaintext:k"),
    "a resource that is no URL": CLIENT + '[resources."urn:example:thing"]',
    "an agent by its URI": '[agent]\nid = "https://agents.example/bot"',
    "flat sessions": "[session]\nmax_depth = 0",
    "the deepest sessions": "[session]\nmax_depth = 7",
    "two tables of one issuer": CLIENT + CLIENT.replace("acme", "acme2") + B + 'issuer = "acme2"',
    "an anchor": ANCHOR + '[agent]\nname = "a"\ngrants = "acme"',
    "nothing said with an embedded resource": B + 'binding = "dpop"\nassertion = "omit"',
    "a key that signs for jwt-bearer alone": CLIENT
    + 'client_auth = "none"\nclient_key_id = "k"\n'
    + B
    + 'source = "jwt-bearer"',
    "a secret for the client and a key for jwt-bearer": CLIENT
    + 'client_secret = "env:S"\nclient_auth = "client_secret_basic"\n'
    + B
    + 'source = "jwt-bearer"',
    "the key of a certificate": CLIENT + 'client_auth = "none"\nclient_certificate = "env:C"',
    "a token type by its URN": A
    + 'trust = ["subjects"]\naudience = "x"\ntoken_type = "urn:ietf:params:oauth:token-type:jwt"',
    "people of another table": CLIENT
    + 'trust = ["subjects"]\n'
    + A.replace("acme", "b").replace("a.ex", "b.ex")
    + 'subjects_of = ["acme"]',
    "a resource by its audience alone": CLIENT
    + "resource_indicators = false\n"
    + B
    + 'audience = "x"',
    "nothing at all": "",
}


@pytest.mark.parametrize("text", FINE.values(), ids=FINE.keys())
def test_what_can_be_is_read(read, text) -> None:
    assert read(text) is not None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (A + 'client_idd = "c"', "client_id"),
        (CLIENT + B + 'isuer = "acme"', "issuer"),
        (CLIENT + B + 'issuer = "acne"', "acme"),
        ("[sesion]\nlifetime = 1", "session"),
        ("[session.budget]\ncals = 1", "calls"),
        ('[signals.x]\nisuer = "a"', "issuer"),
    ],
)
def test_a_misspelt_name_is_told_the_nearest(refuse, text, meant) -> None:
    assert any(one.message.endswith(f"did you mean {meant}?") for one in refuse(text))


def test_a_name_like_no_other_is_told_none(refuse) -> None:
    (problem,) = refuse("[agent]\nname = 'a'\nzzz = 1")
    assert problem.message == "unknown key"


def test_all_problems_are_one_error_in_the_order_of_their_lines(write) -> None:
    file = write(
        """\
[agent]
nam = "a"
[issuers.acme]
issuer = "http://a.example"
client_id = "c"
client_secret = "s3cret"
[resources."https://b.example"]
isuer = "acme"
[session]
lifetime = -1
"""
    )
    with pytest.raises(InvalidConfigurationError) as caught:
        read_configuration(file)
    assert str(caught.value).splitlines() == [
        f"{file}:2: agent.nam: unknown key, did you mean name?",
        f"{file}:4: issuers.acme.issuer: plain http is allowed on loopback only",
        f"{file}:6: issuers.acme.client_secret: must be a reference, never the secret itself",
        f'{file}:8: resources."https://b.example".isuer: unknown key, did you mean issuer?',
        f"{file}:10: session.lifetime: must be more than 0.0",
        f"{file}: policy: no policy is configured",
    ]
    assert caught.value.code == "unknown_key"
    assert isinstance(caught.value, ConfigurationError)


def test_a_misspelt_key_is_not_called_missing_too(refuse) -> None:
    (problem,) = refuse('[issuers.acme]\nisuer = "https://a.example"')
    assert problem.code == "unknown_key"


def test_what_depends_on_a_misshapen_source_is_not_complained_of(refuse) -> None:
    (problem,) = refuse(CLIENT + B + 'source = "api_key"\nsecret = "env:S"')
    assert (problem.code, problem.key) == ("value_malformed", f"{IN_B}.source")


def test_an_error_survives_a_copy(refuse, write) -> None:
    import pickle

    with pytest.raises(InvalidConfigurationError) as caught:
        read_configuration(write("x = 1"))
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert again.problems == caught.value.problems
    assert caught.value.copy().problems == caught.value.problems


@pytest.mark.parametrize("escape", ["001b[31m", "009b31m", "202e", "0007"])
def test_a_key_can_not_write_to_the_terminal(refuse, escape) -> None:
    (problem,) = refuse(f'"\\u{escape}x" = 1')
    assert problem.key.isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[agent]\nname = 1", "must be text"),
        ("[cli]\nautonomous = 1", "must be true or false"),
        ("[session]\nmax_depth = 1.5", "must be a whole number"),
        ("[session]\nmax_depth = 9", "must be at most 7"),
        ("[session]\nmax_depth = -1", "must be at least 0"),
        ('[http]\ndeadline = ""', "must be a number"),
        ("[http]\ndeadline = inf", "must be a finite number"),
        ("[http]\nbody_limit = 0", "must be more than 0"),
        ("[http]\nallow_private = 1", "must be a list"),
        ("cli = 1", "must be a table"),
        (B + "expect = 1", "must be a table"),
        ('[ledger]\ndurability = ""', "must be one of process, power"),
        ('[ledger]\nurl = ""', "must not be empty"),
        (
            B + "authorization_details = [{x = 1979-05-27}]",
            "must be text, a number, true or false, or lists and tables of those",
        ),
    ],
)
def test_a_misshapen_value_is_told_its_shape(refuse, text, message) -> None:
    assert message in [one.message for one in refuse(text)]


def test_the_providers_are_those_that_exist() -> None:
    known = typing.get_args(ProviderName)
    for name in known:
        provider(name, path="/token" if name == "file" else None)
    with pytest.raises(ConfigurationError) as caught:
        provider("none-of-them")
    assert caught.value.remedy == f"use one of {', '.join(sorted(known))}"


@pytest.mark.parametrize("text", [CLIENT, B], ids=["issuers", "resources"])
def test_who_asks_has_a_name(write, text) -> None:
    with pytest.raises(InvalidConfigurationError) as caught:
        read_configuration(write(text), needs_policy=False)
    assert [(one.code, one.key) for one in caught.value.problems] == [
        ("value_missing", "agent.name")
    ]


def test_what_follows_from_nothing_written_is_not_complained_of(refuse) -> None:
    """A client that registers has no other proof, whatever could be inferred from its key."""
    text = A + 'registration = "dynamic"\nclient_key = "env:K"\nclient_id = "c"'
    assert [one.key for one in refuse(text)] == [
        "issuers.acme.client_key",
        "issuers.acme.client_id",
    ]


def test_the_algorithms_are_those_that_tokens_are_verified_with() -> None:
    from agent_identity.keys.algorithms import ALGORITHMS, Algorithm

    assert set(typing.get_args(Algorithm)) == ALGORITHMS


def test_the_token_of_a_vault_is_below_the_folder_of_the_file(read, tmp_path) -> None:
    text = '[vault]\naddress = "https://v.example"\nrole = "r"\nprovider = "file"\npath = "t.jwt"'
    assert read(text).vault.path == str(tmp_path / "t.jwt")
    variable = text.replace("file", "gitlab").replace("t.jwt", "TOKEN")
    assert read(variable).vault.path == "TOKEN"


@pytest.mark.parametrize(
    "name",
    [
        *("grant_type", "client_id", "client_secret", "client_assertion", "client_assertion_type"),
        *("subject_token", "subject_token_type", "actor_token", "actor_token_type", "resource"),
        *("requested_token_type", "requested_token_use", "requested_subject", "audience", "scope"),
        *("code", "code_verifier", "code_challenge", "code_challenge_method", "redirect_uri"),
        *("refresh_token", "assertion", "authorization_details", "state", "nonce", "request"),
        *("request_uri", "dpop_jkt", "username", "password", "login_hint", "login_hint_token"),
        *("id_token_hint", "response_type", "response_mode", "acr_values", "max_age", "user_code"),
        *("device_code", "auth_req_id", "binding_message", "requested_expiry", "api_key"),
        *("client_notification_token", "Grant_Type", "SCOPE", "my_secret"),
    ],
)
def test_no_parameter_is_sent_anyway_or_changes_who_is_asked_for(refuse, name) -> None:
    (problem,) = refuse(CLIENT + B + f'parameters = {{{name} = "x"}}')
    assert (problem.code, problem.key) == ("parameter_reserved", f"{IN_B}.parameters.{name}")
    assert problem.remedy


@pytest.mark.parametrize(
    "name", ["connection", "subject_issuer", "requested_issuer", "access_type", "organization"]
)
def test_any_other_parameter_is_taken(read, name) -> None:
    text = CLIENT + B + f'parameters = {{{name} = "x"}}'
    assert read(text).resources["https://b.example"].parameters == {name: "x"}


def test_a_client_without_any_name_needs_no_client_id(read) -> None:
    assert read(A + 'client_auth = "anonymous"\n' + B).issuers["acme"].client_id is None
