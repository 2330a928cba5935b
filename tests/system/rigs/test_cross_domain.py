# SPDX-License-Identifier: Apache-2.0
"""Two domains: a grant of the principal's issuer becomes a token of the resource's, by ID-JAG and by identity chaining."""

from __future__ import annotations

import jwt
import pytest

from agent_identity import AgentIdentity
from agent_identity.credentials.principal_tokens import SubjectTokens
from agent_identity.errors import CredentialRejectedError

from .authorization_server import AGENT, AuthorizationServer, proof_of
from .certificates import Keys, jkt_of
from .conftest import Configured

pytestmark = pytest.mark.system

TOOLS = "https://mcp.example.com/tools"
PURPOSE = "close the books"


def domains(
    home: AuthorizationServer,
    there: AuthorizationServer,
    keys: Keys,
    source: str,
    *,
    audience: str,
    binding: str = "dpop",
) -> str:
    return f"""
[issuers.home]
issuer = "{home.issuer}"
trust = ["subjects"]
audience = "{audience}"
client_id = "key"
client_key = "file:{keys.assertion_file}"

[issuers.there]
issuer = "{there.issuer}"
client_id = "key"
client_key = "file:{keys.assertion_file}"

[resources."{TOOLS}"]
source = "{source}"
via = "home"
issuer = "there"
binding = "{binding}"
scopes = ["tool:read", "tool:write"]
"""


def token_of(identity: AgentIdentity, subject: SubjectTokens | str) -> str:
    with identity.on_behalf_of(subject, purpose=PURPOSE) as session:
        return session.credential(TOOLS, ["tool:read"]).reveal()


@pytest.mark.parametrize("binding", ["dpop", "none"])
def test_an_id_jag_crosses_into_the_other_domain(
    server: AuthorizationServer,
    other: AuthorizationServer,
    configured: Configured,
    keys: Keys,
    binding: str,
) -> None:
    """draft-ietf-oauth-identity-assertion-authz-grant, both legs; with DPoP the grant is bound too."""
    text = domains(server, other, keys, "id-jag", audience="front-end", binding=binding)
    identity = configured(text)
    subject = SubjectTokens(id_token=server.sign_in()["id_token"])
    claims = other.claims(token_of(identity, subject), TOOLS)
    assert (claims["iss"], claims["sub"], claims["scope"]) == (other.issuer, "alice", "tool:read")
    bound = {"jkt": jkt_of(identity)}
    assert claims.get("cnf") == (bound if binding == "dpop" else None)
    first, second = server.seen()[-1]["form"], other.seen()[-1]["form"]
    assert first["subject_token_type"].endswith(":id_token")
    assert (first["audience"], first["resource"]) == (other.issuer, TOOLS)
    grant = server.claims(second["assertion"], other.issuer)
    assert jwt.get_unverified_header(second["assertion"])["typ"] == "oauth-id-jag+jwt"
    assert grant.get("cnf") == claims.get("cnf")
    assert grant["client_id"] == "key"


def test_an_id_jag_needs_an_id_token(
    server: AuthorizationServer, other: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    identity = configured(domains(server, other, keys, "id-jag", audience=AGENT))
    tokens = server.sign_in()
    before = len(server.seen())
    with pytest.raises(CredentialRejectedError) as refused:
        token_of(identity, tokens["access_token"])
    assert refused.value.code == "subject_token_missing"
    assert len(server.seen()) == before


def test_identity_is_chained_into_the_other_domain(
    server: AuthorizationServer, other: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    """draft-ietf-oauth-identity-chaining."""
    identity = configured(domains(server, other, keys, "identity-chaining", audience=AGENT))
    claims = other.claims(token_of(identity, server.sign_in()["access_token"]), TOOLS)
    assert (claims["iss"], claims["sub"], claims["scope"]) == (other.issuer, "alice", "tool:read")
    assert claims["cnf"] == {"jkt": jkt_of(identity)}


def test_identity_chaining_names_the_other_authorization_server_alone(
    server: AuthorizationServer, other: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    """draft-ietf-oauth-identity-chaining §2.3: `resource` or `audience` is the authorization server of the other domain."""
    identity = configured(domains(server, other, keys, "identity-chaining", audience=AGENT))
    token_of(identity, server.sign_in()["access_token"])
    form = server.seen()[-1]["form"]
    assert {form.get("resource"), form.get("audience")} <= {None, other.issuer}


@pytest.mark.parametrize(
    ("source", "audience"), [("id-jag", "front-end"), ("identity-chaining", AGENT)]
)
def test_a_grant_is_redeemed_once(
    server: AuthorizationServer,
    other: AuthorizationServer,
    configured: Configured,
    keys: Keys,
    source: str,
    audience: str,
) -> None:
    """Two sessions need two grants, and what was seen on the wire buys nothing."""
    text = domains(server, other, keys, source, audience=audience, binding="none")
    identity = configured(text)
    tokens = server.sign_in()
    subject = (
        SubjectTokens(id_token=tokens["id_token"]) if source == "id-jag" else tokens["access_token"]
    )
    token_of(identity, subject)
    token_of(identity, subject)
    first, second = (entry["form"]["assertion"] for entry in other.seen()[-2:])
    assert first != second
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": second}
    answer = other.post("token_endpoint", form | proof_of(keys, "key", other.issuer))
    assert answer.json()["error"] == "invalid_grant"
