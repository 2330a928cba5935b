# SPDX-License-Identifier: Apache-2.0
"""No key is read and forgotten: whatever the file may say, something acts on it, or it is refused by name."""

from __future__ import annotations

import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_identity import AgentIdentity
from agent_identity.cli.authority.configured import organisations_authority
from agent_identity.cli.tokens import TokenRequest, check_may_act
from agent_identity.config import read_configuration
from agent_identity.config.model import Configuration, EndpointsTable, Table
from agent_identity.config.problems import InvalidConfigurationError
from agent_identity.keys.signing import SigningKey

Path_ = tuple[str, ...]

NAMED = {"issuers", "resources", "signals", "clients"}
B = "https://b.example"

AGENT = '[agent]\nname = "bot"\n'
ISSUER = '[issuers.a]\nissuer = "https://a.example"\nclient_id = "c"\n'
KEY = 'client_key = "file:key.pem"\n'
BELIEVED = ISSUER + KEY + 'trust = ["subjects"]\n'
OTHER = '[issuers.o]\nissuer = "https://o.example"\nclient_id = "c"\nclient_auth = "none"\n'
RESOURCE = f'[resources."{B}"]\n'
ASKED = ISSUER + KEY + RESOURCE
FOUND = AGENT + RESOURCE + 'issuer = "discovered"\n'
VAULT = '[vault]\naddress = "https://v.example"\nrole = "r"\n'
CLIENT = f'[authority.clients.a]\njwks = "file:jwks"\nresources = ["{B}"]\n'
ANCHOR = BELIEVED + CLIENT
PLATFORM = ANCHOR.replace('jwks = "file:jwks"', 'auth = "workload_token"\nissuer = "a"')
POLICY = '[policy]\nengine = "grants-only"\n'

SAID: dict[str, str] = {
    "agent.name": AGENT,
    "agent.id": '[agent]\nid = "urn:x:bot"\n',
    "agent.owner": AGENT + 'owner = "o"\n',
    "agent.grants": AGENT + 'grants = "a"\n' + ISSUER + KEY + 'trust = ["grants"]\n',
    "agent.signer": AGENT + 'signer = "file:key.pem"\n' + ISSUER + KEY,
    "agent.signer_id": AGENT + 'signer = "file:key.pem"\nsigner_id = "urn:x:s"\n' + ISSUER + KEY,
    "agent.key": AGENT + 'key = "file:key.pem"\n',
    "issuers.issuer": ISSUER,
    "issuers.trust": BELIEVED,
    "issuers.jwks": BELIEVED + 'jwks = "https://a.example/jwks"\n',
    "issuers.audience": BELIEVED + 'audience = "x"\n',
    "issuers.algorithms": BELIEVED + 'algorithms = ["ES256"]\n',
    "issuers.evidence": BELIEVED + 'evidence = "key"\n',
    "issuers.token_type": BELIEVED + 'token_type = "jwt"\n',
    "issuers.subjects_of": BELIEVED + OTHER + 'subjects_of = ["a"]\n',
    "issuers.client_id": ISSUER,
    "issuers.client_auth": ISSUER + 'client_auth = "none"\n',
    "issuers.client_key": ISSUER + KEY,
    "issuers.client_key_id": ISSUER + KEY + 'client_key_id = "k"\n',
    "issuers.client_secret": ISSUER + 'client_secret = "env:S"\n',
    "issuers.client_certificate": ISSUER + 'client_certificate = "file:key.pem"\n',
    "issuers.client_assertion_audience": ISSUER
    + KEY
    + 'client_assertion_audience = "token-endpoint"\n',
    "issuers.registration": ISSUER + 'registration = "configured"\n',
    "issuers.registration_token": ISSUER.replace('client_id = "c"', "")
    + 'registration = "dynamic"\nregistration_token = "env:T"\n',
    "issuers.resource_indicators": ISSUER + "resource_indicators = false\n",
    "issuers.endpoint_origins": ISSUER + 'endpoint_origins = ["https://o.example"]\n',
    "issuers.metadata": ISSUER + 'metadata = "https://a.example/metadata"\n',
    **{
        f"issuers.endpoints.{name}": f'{ISSUER}endpoints = {{{name} = "https://a.example/e"}}\n'
        for name in EndpointsTable.model_fields
    },
    "issuers.redirect_uri": ISSUER + 'redirect_uri = "http://127.0.0.1:8400/callback"\n',
    "issuers.pkce": ISSUER + 'pkce = "assume"\n',
    "issuers.revoke": ISSUER + 'revoke = "none"\n',
    "issuers.allow_several_audiences": ISSUER + "allow_several_audiences = true\n",
    "issuers.allow_missing_audience": ISSUER + "allow_missing_audience = true\n",
    "issuers.allow_client_audience": ISSUER + "allow_client_audience = true\n",
    "issuers.allow_extra_scopes": ISSUER + "allow_extra_scopes = true\n",
    "issuers.allow_other_subject": ISSUER + "allow_other_subject = true\n",
    "issuers.allow_bearer_grants": ISSUER + "allow_bearer_grants = true\n",
    "issuers.longest_life": ISSUER + "longest_life = 172800.0\n",
    "resources.source": ASKED + 'source = "client-credentials"\n',
    "resources.issuer": ASKED + 'issuer = "a"\n',
    "resources.via": OTHER + ASKED + 'issuer = "a"\nsource = "id-jag"\nvia = "o"\n',
    "resources.binding": ASKED + 'binding = "none"\n',
    "resources.scopes": ASKED + 'scopes = ["x"]\n',
    "resources.assertion": ASKED + 'assertion = "omit"\n',
    "resources.audience": ASKED + 'audience = "x"\n',
    "resources.actor": ASKED + 'actor = "grant"\n',
    "resources.subject_token_type": ASKED + 'subject_token_type = "jwt"\n',
    "resources.parameters": ASKED + 'parameters = {connection = "x"}\n',
    "resources.authorization_details": ASKED + 'authorization_details = [{type = "x"}]\n',
    "resources.transaction_token.issuer": ASKED
    + 'transaction_token = {issuer = "a", audience = "t"}\n',
    "resources.transaction_token.audience": ASKED
    + 'transaction_token = {issuer = "a", audience = "t"}\n',
    "resources.secret": RESOURCE + 'source = "api-key"\nsecret = "env:S"\n',
    "resources.header": RESOURCE + 'source = "api-key"\nsecret = "env:S"\nheader = "X-Key"\n',
    "resources.scheme": RESOURCE + 'source = "api-key"\nsecret = "env:S"\nscheme = "Token"\n',
    "resources.username": RESOURCE + 'source = "basic"\nusername = "u"\npassword = "env:S"\n',
    "resources.password": RESOURCE + 'source = "basic"\nusername = "u"\npassword = "env:S"\n',
    "resources.token": RESOURCE + 'source = "static"\ntoken = "env:S"\n',
    "resources.certificate": RESOURCE
    + 'source = "client-certificate"\ncertificate = "env:C"\nkey = "env:K"\n',
    "resources.key": RESOURCE
    + 'source = "client-certificate"\ncertificate = "env:C"\nkey = "env:K"\n',
    "resources.refresh_token": ASKED + 'source = "refresh-token"\nrefresh_token = "file:rt"\n',
    "resources.provider": RESOURCE + 'source = "workload-token"\nprovider = "aws"\n',
    "resources.path": RESOURCE + 'source = "workload-token"\nprovider = "file"\npath = "t"\n',
    "resources.token_host": RESOURCE
    + 'source = "workload-token"\nprovider = "github"\ntoken_host = "x.example"\n',
    "resources.expect": RESOURCE
    + 'source = "workload-token"\nprovider = "github"\nexpect = {repository = "a/b"}\n',
    "resources.assertion_from": ASKED + 'source = "jwt-bearer"\nassertion_from = "subject"\n',
    "resources.login_hint_from": ASKED + 'source = "ciba"\nlogin_hint_from = "sub"\n',
    "policy.engine": '[policy]\nengine = "cedar"\nfiles = ["x"]\n',
    "policy.files": POLICY + 'files = ["x"]\n',
    "policy.url": POLICY + 'url = "https://p.example"\n',
    "policy.path": POLICY + 'path = "a"\n',
    "policy.mapping": POLICY + 'mapping = "coaz"\n',
    "policy.observe": POLICY + "observe = true\n",
    "ledger.url": '[ledger]\nurl = "memory:"\n',
    "ledger.durability": '[ledger]\nurl = "memory:"\ndurability = "power"\n',
    "shared.url": '[shared]\nurl = "redis://x"\n',
    "shared.max_staleness": "[shared]\nmax_staleness = 1.0\n",
    "session.lifetime": "[session]\nlifetime = 60.0\n",
    "session.grant_lifetime": "[session]\ngrant_lifetime = 60.0\n",
    "session.max_depth": "[session]\nmax_depth = 1\n",
    "session.budget.calls": "[session.budget]\ncalls = 1\n",
    "session.budget.cost": "[session.budget]\ncost = 1.0\n",
    "session.budget.rate": '[session.budget]\nrate = "1/s"\n',
    "approval.channel": '[approval]\nchannel = "c"\n',
    "approval.url": '[approval]\nurl = "https://p.example"\n',
    "approval.roles": "[approval]\nroles = {}\n",
    "http.deadline": "[http]\ndeadline = 5.0\n",
    "http.interaction_timeout": ASKED + 'source = "device"\n[http]\ninteraction_timeout = 5.0\n',
    "http.body_limit": "[http]\nbody_limit = 5000\n",
    "http.header_limit": "[http]\nheader_limit = 5000\n",
    "http.ca": '[http]\nca = "ca.pem"\n',
    "http.allow_private": '[http]\nallow_private = ["h"]\n',
    "spiffe.socket": '[spiffe]\nsocket = "unix:///s"\n',
    "spiffe.trust_domain": '[spiffe]\nsocket = "unix:///s"\ntrust_domain = "example.org"\n',
    "signals.issuer": '[signals.s]\nissuer = "https://a.example"\naudience = "x"\n',
    "signals.audience": '[signals.s]\nissuer = "https://a.example"\naudience = "x"\n',
    "signals.delivery": '[signals.s]\nissuer = "https://a.example"\naudience = "x"\ndelivery = "push"\n',
    "vault.address": VAULT,
    "vault.auth_mount": VAULT + 'auth_mount = "k8s"\n',
    "vault.role": VAULT,
    "vault.kv_mount": VAULT + 'kv_mount = "kv"\n',
    "vault.audience": VAULT + 'audience = "x"\n',
    "vault.provider": VAULT + 'provider = "aws"\n',
    "vault.path": VAULT + 'provider = "file"\npath = "t"\n',
    "vault.namespace": VAULT + 'namespace = "n"\n',
    "authority.issuer": ANCHOR + '[authority]\nissuer = "https://agents.example"\n',
    "authority.audiences": ANCHOR + '[authority]\naudiences = ["x"]\n',
    "authority.registration": ANCHOR + "[authority]\nregistration = true\n",
    "authority.rate": ANCHOR + "[authority]\nrate = 5\n",
    "authority.clients.agent": ANCHOR + 'agent = "urn:x:bot"\n',
    "authority.clients.auth": ANCHOR + 'auth = "private_key_jwt"\n',
    "authority.clients.jwks": ANCHOR,
    "authority.clients.subject": PLATFORM + 'subject = "s"\n',
    "authority.clients.issuer": PLATFORM + 'subject = "s"\n',
    "authority.clients.claims": PLATFORM + 'claims = {ref = "main"}\n',
    "authority.clients.subject_issuers": ANCHOR + 'subject_issuers = ["a"]\n',
    "authority.clients.subject_clients": ANCHOR + 'subject_clients = ["web"]\n',
    "authority.clients.resources": ANCHOR,
    "authority.clients.scopes": ANCHOR + 'scopes = ["x"]\n',
    "authority.clients.max_depth": ANCHOR + "max_depth = 1\n",
    "operator.key": '[operator]\nkey = "file:key.pem"\n' + ISSUER + KEY,
    "mcp.pins": '[mcp]\npins = "required"\n',
    "mcp.client_id": FOUND + '[mcp]\nclient_id = "c"\n',
    "mcp.client_key": FOUND + '[mcp]\nclient_id = "c"\n' + KEY,
    "mcp.client_key_id": FOUND + '[mcp]\nclient_id = "c"\nclient_key_id = "k"\n' + KEY,
    "mcp.redirect_uri": FOUND + '[mcp]\nredirect_uri = "http://127.0.0.1:8400/callback"\n',
    "cli.autonomous": "[cli]\nautonomous = true\n",
}


def keys(model: type[Table], path: Path_ = ()) -> Iterator[tuple[str, type[Table], str]]:
    """Every key of the file that holds a value, with the table's model and the field."""
    for name, field in model.model_fields.items():
        below = next(_tables(field.annotation), None)
        if below is None:
            yield ".".join((*path, name)), model, name
        else:
            yield from keys(below, (*path, name))


def _tables(annotation: object) -> Iterator[type[Table]]:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _tables(part)


KEYS = {key: (model, name) for key, model, name in keys(Configuration)}


def test_no_key_is_left_out() -> None:
    assert sorted(KEYS) == sorted(SAID)


def says(text: str, key: str) -> bool:
    found: object = tomllib.loads(text)
    for step in key.split("."):
        found = found.get(step) if isinstance(found, dict) else None
        if step in NAMED and isinstance(found, dict):
            found = {name: value for table in found.values() for name, value in table.items()}
    return found is not None


def refusals(file: Path) -> list[str]:
    """The keys that are refused, without the names of their tables."""
    try:
        read_configuration(file, needs_policy=False)
    except InvalidConfigurationError as error:
        keys = [problem.key.replace(f'"{B}".', "") for problem in error.problems]
        return [".".join(part for part in key.split(".") if part not in "aos") for key in keys]
    return []


@pytest.mark.filterwarnings("ignore:client assertions for a:UserWarning")
@pytest.mark.parametrize("key", SAID)
def test_something_reads_it_or_it_is_refused(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SAID[key]
    assert says(text, key)
    model, name = KEYS[key]
    read: set[tuple[type, str]] = set()
    plain = Table.__getattribute__

    def watched(table: Table, asked: str) -> object:
        reader = sys._getframe(1).f_globals["__name__"]
        if reader.startswith("agent_identity.") and not reader.startswith("agent_identity.config"):
            read.add((type(table), asked))
        return plain(table, asked)

    file = tmp_path / "agent-identity.toml"
    file.write_text(text if "[agent]" in text else text + AGENT)
    file.chmod(0o600)
    (tmp_path / "key.pem").write_bytes(SigningKey.generate().to_pem())
    (tmp_path / "key.pem").chmod(0o600)
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(Table, "__getattribute__", watched)
    refused = refusals(file)
    if refused:
        assert any(key == one or key.startswith(f"{one}.") for one in refused), refused
        return
    configuration = read_configuration(file, needs_policy=False)
    AgentIdentity.from_config(file, policy=lambda _: None).close()
    if configuration.authority is not None:
        organisations_authority(configuration, None, "http://127.0.0.1:8700").close()
    check_may_act(TokenRequest(B, (), "env:X" if key != "cli.autonomous" else None), configuration)
    assert (model, name) in read
