# SPDX-License-Identifier: Apache-2.0
"""A principal's own tokens at a real issuer: verified before the session opens, exchanged, carried along, given back."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

import pytest

from agent_identity import AgentIdentity, Session, current_credential, tool
from agent_identity.credentials.principal_tokens import SubjectTokens
from agent_identity.errors import CredentialRejectedError, DeniedError, InvalidSubjectError

from .authorization_server import AGENT, AuthorizationServer
from .certificates import Keys, jkt_of
from .conftest import Configured, Started

pytestmark = pytest.mark.system

TOOLS = "https://mcp.example.com/tools"
OPAQUE = "https://opaque.example.com/"
PURPOSE = "close the books"


def issuer(server: AuthorizationServer, keys: Keys, *, name: str = "acme", more: str = "") -> str:
    return f"""
[issuers.{name}]
issuer = "{server.issuer}"
client_id = "key"
client_key = "file:{keys.assertion_file}"
{more}
"""


def trusting(server: AuthorizationServer, keys: Keys, *, audience: str = AGENT) -> str:
    more = f'trust = ["subjects"]\naudience = "{audience}"\n'
    return issuer(server, keys, more=more)


def resource(uri: str = TOOLS, *, of: str = "acme", more: str = "") -> str:
    return f"""
[resources."{uri}"]
source = "token-exchange"
issuer = "{of}"
scopes = ["tool:read", "tool:write"]
{more}
"""


def token_of(identity: AgentIdentity, subject: Any, uri: str = TOOLS) -> str:
    with identity.on_behalf_of(subject, purpose=PURPOSE) as session:
        return session.credential(uri, ["tool:read"]).reveal()


# -- verified first -------------------------------------------------------------------------------------------------------


def test_whoever_signed_in_is_the_sessions_principal(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    identity = configured(trusting(server, keys))
    tokens = server.sign_in()
    with identity.on_behalf_of(tokens["access_token"], purpose=PURPOSE) as session:
        principal = session.principal
        assert (principal.sub, principal.iss, principal.profile) == ("alice", server.issuer, "user")
        assert session.expires_at <= time.time() + tokens["expires_in"]


def test_a_token_made_for_another_service_opens_no_session(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    identity = configured(trusting(server, keys))
    stolen = server.sign_in(resource="https://another.example/")["access_token"]
    with pytest.raises(InvalidSubjectError) as refused:
        identity.on_behalf_of(stolen, purpose=PURPOSE).__enter__()
    assert refused.value.code == "audience_mismatch"


def test_a_token_of_another_issuer_opens_no_session(
    server: AuthorizationServer, other: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    identity = configured(trusting(server, keys))
    with pytest.raises(InvalidSubjectError) as refused:
        identity.on_behalf_of(other.sign_in()["access_token"], purpose=PURPOSE).__enter__()
    assert refused.value.code == "issuer_unknown"


def test_a_changed_token_opens_no_session(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    identity = configured(trusting(server, keys))
    head, _, signature = server.sign_in()["access_token"].split(".")
    _, claims, _ = server.sign_in(scope="openid tool:read")["access_token"].split(".")
    with pytest.raises(InvalidSubjectError) as refused:
        identity.on_behalf_of(f"{head}.{claims}.{signature}", purpose=PURPOSE).__enter__()
    assert refused.value.code == "bad_signature"


def test_an_opaque_token_is_asked_about_at_its_issuer(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    """RFC 7662."""
    identity = configured(trusting(server, keys, audience=OPAQUE))
    token = server.sign_in(resource=OPAQUE)["access_token"]
    assert "." not in token
    with identity.on_behalf_of(token, purpose=PURPOSE) as session:
        assert session.principal.sub == "alice"


def test_an_opaque_token_that_was_taken_back_opens_no_session(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    identity = configured(trusting(server, keys, audience=OPAQUE))
    token = server.sign_in(resource=OPAQUE)["access_token"]
    form = {"token": token, "client_id": "front-end"}
    assert server.post("revocation_endpoint", form).status_code == 200
    with pytest.raises(InvalidSubjectError) as refused:
        identity.on_behalf_of(token, purpose=PURPOSE).__enter__()
    assert refused.value.code == "inactive"


def test_an_id_token_and_an_access_token_of_one_sign_in_open_a_session(
    server: AuthorizationServer, configured: Configured
) -> None:
    """An ID token is for the client (OpenID Connect Core §2), an access token for its resource (RFC 9068 §2.2)."""
    identity = configured(f"""
[issuers.acme]
issuer = "{server.issuer}"
trust = ["subjects"]
audience = "{AGENT}"
client_id = "front-end"
client_auth = "none"
""")
    tokens = server.sign_in()
    both = SubjectTokens(access_token=tokens["access_token"], id_token=tokens["id_token"])
    with identity.on_behalf_of(both, purpose=PURPOSE) as session:
        assert session.principal.sub == "alice"


@pytest.mark.parametrize("scope", ["tool:read", "openid tool:read"])
def test_a_principals_refresh_token_outlasts_their_access_token(
    started: Started, configured: Configured, keys: Keys, scope: str
) -> None:
    """The first access token ends while the session is open; the exchange shows the next one."""
    with started(ACCESS_TTL="6") as brief:
        people = f"""
[issuers.people]
issuer = "{brief.issuer}"
trust = ["subjects"]
audience = "{AGENT}"
client_id = "front-end"
client_auth = "none"
"""
        identity = configured(people + issuer(brief, keys) + resource())
        tokens = brief.sign_in(scope=scope)
        given = SubjectTokens(
            access_token=tokens["access_token"], refresh_token=tokens["refresh_token"]
        )
        ends = brief.claims(tokens["access_token"], AGENT)["exp"]
        with identity.on_behalf_of(given, purpose=PURPOSE) as session:
            while time.time() < ends - 5:  # it isn't handed out in its last five seconds
                time.sleep(0.05)
            token = session.credential(TOOLS, ["tool:read"]).reveal()
            assert brief.claims(token, TOOLS)["sub"] == "alice"
        shown = brief.seen()[-1]["form"]["subject_token"]
        assert brief.claims(shown, AGENT)["exp"] > ends
        assert given.refresh_token is not None
        assert given.refresh_token.reveal() != tokens["refresh_token"]


# -- exchanged ------------------------------------------------------------------------------------------------------------


def test_an_exchanged_token_names_the_principal_and_is_bound_to_the_agents_key(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    """RFC 8693, RFC 9449."""
    identity = configured(trusting(server, keys) + resource())
    claims = server.claims(token_of(identity, server.sign_in()["access_token"]), TOOLS)
    assert (claims["sub"], claims["client_id"], claims["scope"]) == ("alice", "key", "tool:read")
    assert claims["cnf"] == {"jkt": jkt_of(identity)}


async def test_async_code_exchanges_alike(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    identity = configured(trusting(server, keys) + resource())
    subject = server.sign_in()["access_token"]
    async with identity.on_behalf_of(subject, purpose=PURPOSE) as session:
        credential = await session.acredential(TOOLS, ["tool:read"])
        assert server.claims(credential.reveal(), TOOLS)["sub"] == "alice"


def test_an_issuer_of_another_domain_takes_the_principals_token(
    server: AuthorizationServer, other: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    text = trusting(server, keys) + issuer(other, keys, name="partner") + resource(of="partner")
    claims = other.claims(token_of(configured(text), server.sign_in()["access_token"]), TOOLS)
    assert (claims["iss"], claims["sub"]) == (other.issuer, "alice")


def test_a_grant_as_actor_token_puts_the_agent_into_the_token(
    started: Started, configured: Configured, keys: Keys
) -> None:
    """RFC 8693 §4.1, with the leaf of the chain where the issuer understands it, proven by the key that it is bound to."""
    signer = "urn:agent-identity:signer:finance"
    jwk = keys.signer.as_dict(private=False) | {"kid": keys.signer.thumbprint(), "alg": "ES256"}
    with started(TRUSTED=json.dumps([{"issuer": signer, "jwks": {"keys": [jwk]}}])) as knowing:
        text = trusting(knowing, keys) + resource(more='actor = "grant"')
        agent = f'signer = "file:{keys.signer_file}"\nsigner_id = "{signer}"\n'
        identity = configured(text, agent=agent)
        claims = knowing.claims(token_of(identity, knowing.sign_in()["access_token"]), TOOLS)
    assert claims["sub"] == "alice"
    assert claims["act"]["sub"] == "urn:agent-identity:agent:invoice-bot"
    assert claims["cnf"] == {"jkt": jkt_of(identity)}


def test_more_than_the_principal_has_is_refused(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    identity = configured(trusting(server, keys) + resource())
    subject = server.sign_in(scope="openid tool:read")["access_token"]
    with identity.on_behalf_of(subject, purpose=PURPOSE) as session:
        with pytest.raises(CredentialRejectedError) as refused:
            session.credential(TOOLS, ["tool:write"])
        assert refused.value.code == "invalid_scope"


def test_more_than_the_configuration_allows_asks_nobody(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    identity = configured(trusting(server, keys) + resource())
    with identity.on_behalf_of(server.sign_in()["access_token"], purpose=PURPOSE) as session:
        before = len(server.seen())
        with pytest.raises(DeniedError):
            session.credential(TOOLS, ["tool:admin"])
        assert len(server.seen()) == before


def test_one_session_asks_once(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    identity = configured(trusting(server, keys) + resource())
    with identity.on_behalf_of(server.sign_in()["access_token"], purpose=PURPOSE) as session:
        before = len(server.seen())
        first = session.credential(TOOLS, ["tool:read"]).reveal()
        assert session.credential(TOOLS, ["tool:read"]).reveal() == first
        assert len(server.seen()) == before + 1


# -- carried along --------------------------------------------------------------------------------------------------------


def test_a_transaction_token_rides_beside_the_credential(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    more = 'transaction_token = {issuer = "acme", audience = "trust-domain.example"}'
    identity = configured(trusting(server, keys) + resource(more=more))
    sent: list[dict[str, str]] = []

    @tool(resource=TOOLS, scopes=["tool:read"])
    def search(query: str) -> None:
        sent.append(current_credential().headers("GET", f"{TOOLS}/search", b""))

    with identity.on_behalf_of(server.sign_in()["access_token"], purpose=PURPOSE) as session:
        search("invoices")
        calls = [record for record in session.records() if record.kind == "call.completed"]
    claims = server.claims(sent[0]["Txn-Token"], "trust-domain.example")
    assert (claims["sub"], claims["scope"], claims["req_wl"]) == ("alice", "tool:read", "key")
    assert claims["tctx"] == {"tool": "search", "purpose": PURPOSE}
    assert sent[0]["Authorization"] != f"DPoP {sent[0]['Txn-Token']}"
    trace = identity.who_triggered(claims["txn"])
    assert [call.call_id for call in trace.calls] == [record.call_id for record in calls]


# -- given back -----------------------------------------------------------------------------------------------------------


def revoked(session: Session) -> list[dict[str, Any]]:
    return [r.to_dict() for r in session.records() if r.kind == "credential.revoked"]


def end_of(record: dict[str, Any]) -> float:
    return datetime.fromisoformat(record["expires_at"]).timestamp()


def test_leaving_a_session_takes_its_token_back(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    """RFC 7009, as the issuer says it afterwards."""
    identity = configured(trusting(server, keys) + resource(OPAQUE))
    with identity.on_behalf_of(server.sign_in()["access_token"], purpose=PURPOSE) as session:
        token = session.credential(OPAQUE, ["tool:read"]).reveal()
        said = server.introspected(token)
        assert (said["active"], said["cnf"]) == (True, {"jkt": jkt_of(identity)})
    assert server.introspected(token) == {"active": False}
    [record] = revoked(session)
    assert record["revoked"] is True
    assert end_of(record) == said["exp"]


def test_what_cant_be_taken_back_is_on_record_with_its_end(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    """This issuer keeps no signed tokens, and says so when one is to be revoked."""
    identity = configured(trusting(server, keys) + resource())
    with identity.on_behalf_of(server.sign_in()["access_token"], purpose=PURPOSE) as session:
        token = session.credential(TOOLS, ["tool:read"]).reveal()
    [record] = revoked(session)
    assert (record["revoked"], record["code"]) == (False, "unsupported_token_type")
    assert end_of(record) == server.claims(token, TOOLS)["exp"]


def test_a_revoked_session_gives_back_at_once(
    server: AuthorizationServer, configured: Configured, keys: Keys
) -> None:
    identity = configured(trusting(server, keys) + resource(OPAQUE))
    with identity.on_behalf_of(server.sign_in()["access_token"], purpose=PURPOSE) as session:
        token = session.credential(OPAQUE, ["tool:read"]).reveal()
        session.revoke("the laptop was stolen")
        assert server.introspected(token) == {"active": False}


def test_a_server_that_is_gone_keeps_nobody_from_leaving(
    started: Started, configured: Configured, keys: Keys
) -> None:
    with started() as brief:
        identity = configured(trusting(brief, keys) + resource(OPAQUE))
        session = identity.on_behalf_of(brief.sign_in()["access_token"], purpose=PURPOSE)
        session.__enter__()
        session.credential(OPAQUE, ["tool:read"])
    session.__exit__(None, None, None)
    [record] = revoked(session)
    assert (record["revoked"], record["code"]) == (False, "issuer_unreachable")
    assert end_of(record) > time.time()
