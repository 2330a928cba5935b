# SPDX-License-Identifier: Apache-2.0
"""How a client proves itself to a real authorization server, and what its tokens are bound to."""

from __future__ import annotations

import json
from urllib.parse import quote_plus

import pytest

from agent_identity import AgentIdentity
from agent_identity.errors import CredentialRejectedError

from .authorization_server import AuthorizationServer
from .certificates import Keys, jkt_of
from .conftest import Configured, Started

pytestmark = pytest.mark.system

TOOLS = "https://mcp.example.com/tools"
SECRET = "s3cret %&+:"


def resource(binding: str = "dpop", uri: str = TOOLS) -> str:
    return f"""
[resources."{uri}"]
source = "client-credentials"
binding = "{binding}"
scopes = ["tool:read", "tool:write"]
"""


def issuer(server: AuthorizationServer, client_id: str, *lines: str) -> str:
    return "\n".join(
        ("[issuers.acme]", f'issuer = "{server.issuer}"', f'client_id = "{client_id}"', *lines)
    )


def token_of(identity: AgentIdentity, *, uri: str = TOOLS) -> str:
    with identity.autonomous(trigger="cron:nightly", purpose="close the books") as session:
        return session.credential(uri, ["tool:read"]).reveal()


@pytest.mark.parametrize(
    ("client_id", "method"), [("basic", "client_secret_basic"), ("post", "client_secret_post")]
)
def test_a_shared_secret_buys_a_token_bound_to_the_agents_key(
    server: AuthorizationServer,
    configured: Configured,
    monkeypatch: pytest.MonkeyPatch,
    client_id: str,
    method: str,
) -> None:
    monkeypatch.setenv("CLIENT_SECRET", SECRET)
    lines = ('client_secret = "env:CLIENT_SECRET"', f'client_auth = "{method}"')
    identity = configured(issuer(server, client_id, *lines) + resource())
    claims = server.claims(token_of(identity), TOOLS)
    assert claims["client_id"] == client_id
    assert claims["scope"] == "tool:read"
    assert claims["cnf"] == {"jkt": jkt_of(identity)}


def test_a_wrong_secret_is_refused_with_the_issuers_code(
    server: AuthorizationServer, configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIENT_SECRET", "another")
    lines = ('client_secret = "env:CLIENT_SECRET"',)
    identity = configured(issuer(server, "basic", *lines) + resource())
    with pytest.raises(CredentialRejectedError) as refused:
        token_of(identity)
    assert refused.value.code == "invalid_client"


def test_a_signed_assertion_proves_the_client_once(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    lines = (f'client_key = "file:{keys.assertion_file}"',)
    identity = configured(issuer(server, "key", *lines) + resource())
    claims = server.claims(token_of(identity), TOOLS)
    assert claims["client_id"] == "key"
    form = server.seen()[-1]["form"]
    again = {**form, "scope": "tool:read"}
    answer = server.post("token_endpoint", again)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


def test_each_request_carries_an_assertion_of_its_own(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    lines = (f'client_key = "file:{keys.assertion_file}"',)
    identity = configured(issuer(server, "key", *lines) + resource())
    token_of(identity)
    token_of(identity)
    first, second = (entry["form"]["client_assertion"] for entry in server.seen()[-2:])
    assert first != second


@pytest.mark.usefixtures("trusting_the_rig")
@pytest.mark.parametrize(
    ("client_id", "method", "pair"),
    [
        ("self-signed", "self_signed_tls_client_auth", "own"),
        ("of-a-ca", "tls_client_auth", "workload"),
    ],
)
def test_a_certificate_proves_the_client_and_binds_the_token(
    secure: AuthorizationServer,
    configured: Configured,
    keys: Keys,
    client_id: str,
    method: str,
    pair: str,
) -> None:
    shown = getattr(keys, pair)
    lines = (
        f'client_auth = "{method}"',
        f'client_certificate = "file:{shown.certificate}"',
        f'client_key = "file:{shown.key}"',
        f'endpoint_origins = ["{secure.mtls}"]',
    )
    identity = configured(issuer(secure, client_id, *lines) + resource("mtls"))
    claims = secure.claims(token_of(identity), TOOLS)
    assert claims["client_id"] == client_id
    assert claims["cnf"] == {"x5t#S256": shown.thumbprint}


def test_aliases_elsewhere_dont_matter_to_a_client_without_certificate(
    secure: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    """RFC 8705 §5: the aliases are on another host or port, and everybody's metadata has them."""
    lines = (f'client_key = "file:{keys.assertion_file}"',)
    identity = configured(issuer(secure, "key", *lines) + resource())
    assert secure.claims(token_of(identity), TOOLS)["client_id"] == "key"


def test_a_server_that_wants_its_nonce_is_given_it(
    strict: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    lines = (f'client_key = "file:{keys.assertion_file}"',)
    identity = configured(issuer(strict, "key", *lines) + resource())
    before = len(strict.seen())
    assert strict.claims(token_of(identity), TOOLS)["cnf"] == {"jkt": jkt_of(identity)}
    refused, answered = strict.seen()[before:][:2]
    assert (refused["status"], answered["status"]) == (400, 200)
    assert refused["form"]["client_assertion"] != answered["form"]["client_assertion"]


async def test_async_code_meets_the_nonce_too(
    strict: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    lines = (f'client_key = "file:{keys.assertion_file}"',)
    identity = configured(issuer(strict, "key", *lines) + resource())
    async with identity.autonomous(trigger="cron:nightly", purpose="close the books") as session:
        credential = await session.acredential(TOOLS, ["tool:read"])
        assert strict.claims(credential.reveal(), TOOLS)["cnf"] == {"jkt": jkt_of(identity)}


def test_an_instance_registers_itself_with_its_own_key(
    started: Started, configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 7591: a client for each instance, known by the agent's key, and a record of it."""
    monkeypatch.setenv("REGISTRATION_TOKEN", "may-register")
    with started(REGISTRATION="may-register") as open_to_all:
        identity = configured(f"""
[issuers.acme]
issuer = "{open_to_all.issuer}"
registration = "dynamic"
registration_token = "env:REGISTRATION_TOKEN"
{resource()}
""")
        first = open_to_all.claims(token_of(identity), TOOLS)
        second = open_to_all.claims(token_of(identity), TOOLS)
        [registered] = open_to_all.seen("/reg")
    assert first["client_id"] == second["client_id"]
    assert registered["form"]["token_endpoint_auth_method"] == "private_key_jwt"
    assert registered["form"]["jwks"]["keys"][0]["x"] == identity.public_jwk["x"]


def test_a_proof_is_good_once(
    server: AuthorizationServer, configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9449 §11.1, by the issuer: what was seen on the wire can't be sent again."""
    monkeypatch.setenv("CLIENT_SECRET", SECRET)
    lines = ('client_secret = "env:CLIENT_SECRET"',)
    token_of(configured(issuer(server, "basic", *lines) + resource()))
    seen = server.seen()[-1]
    answer = server.http.post(
        server.metadata["token_endpoint"],
        data=seen["form"],
        auth=("basic", quote_plus(SECRET)),
        headers={"DPoP": seen["dpop"]},
    )
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")
    assert answer.json()["error_description"] == "grant request is invalid"


def test_a_resource_that_the_issuer_doesnt_serve_is_refused(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    elsewhere = "https://forbidden.example"
    lines = (f'client_key = "file:{keys.assertion_file}"',)
    identity = configured(issuer(server, "key", *lines) + resource(uri=elsewhere))
    with pytest.raises(CredentialRejectedError) as refused:
        token_of(identity, uri=elsewhere)
    assert refused.value.code == "invalid_target"


def test_details_are_asked_for_and_come_back(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    """RFC 9396."""
    lines = (f'client_key = "file:{keys.assertion_file}"',)
    details = 'authorization_details = [{type = "urn:example:calls", actions = ["call"], tools = ["search"]}]\n'
    identity = configured(issuer(server, "key", *lines) + resource() + details)
    asked = [{"type": "urn:example:calls", "actions": ["call"], "tools": ["search"]}]
    assert server.claims(token_of(identity), TOOLS)["authorization_details"] == asked
    assert json.loads(server.seen()[-1]["form"]["authorization_details"]) == asked
