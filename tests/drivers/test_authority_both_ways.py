# SPDX-License-Identifier: Apache-2.0
"""The authority's rules, for the identity of its own process that calls it and for a client elsewhere that sends requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest

from agent_identity import AgentIdentity, Principal, current_credential, tool
from agent_identity.authority import Authority, Terms
from agent_identity.credentials.source import Wanted
from agent_identity.delegation.grant import Grant, mint_child
from agent_identity.errors import CredentialError, CredentialUnavailableError, DeniedError
from agent_identity.flow import HttpRequest, run
from agent_identity.keys.signing import SigningKey
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.values import LOCAL

BILLING = "https://billing.example/api"
MAIL = "https://mail.example"


class Served:
    """A port of loopback behind which an authority answers."""

    def __init__(self) -> None:
        self.authority: Authority | None = None
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = HttpRequest(self.command, served.url + self.path, headers, body)
                assert served.authority is not None
                answer = served.authority.handle(request)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(params=["called", "over HTTP"])
def make(
    request: pytest.FixtureRequest, client_elsewhere: type[AgentIdentity]
) -> Iterator[Callable[..., AgentIdentity]]:
    """Makes an identity; the options are its authority's."""
    made: list[AgentIdentity] = []
    served = Served() if request.param == "over HTTP" else None

    def make(**options: Any) -> AgentIdentity:
        authority = Authority(issuer=None if served is None else served.url, **options)
        kind = AgentIdentity
        if served is not None:
            served.authority, kind = authority, client_elsewhere
        identity = kind("invoice-bot", authority=authority, ledger=MemoryLedger())
        made.append(identity)
        return identity

    yield make
    for identity in made:
        identity.close()
    if served is not None:
        served.close()


def claims_of(compact: str) -> dict[str, Any]:
    return jwt.decode(compact, options={"verify_signature": False})


def acquire(identity: AgentIdentity, resource: str = BILLING, scope: str = "invoices:read") -> str:
    @tool(resource=resource, scopes=[scope])
    def token() -> str:
        return current_credential().reveal()

    return token()


def refused(identity: AgentIdentity, **options: Any) -> CredentialError:
    with identity.on_behalf_of("user:alice", purpose="close the books", **options):
        with pytest.raises(CredentialError) as caught:
            acquire(identity)
        assert identity.authority.issued["access_token"] == 0
        return caught.value


def leaf(identity: AgentIdentity, session: Any) -> tuple[Grant, ...]:
    """The chain of a session, for the resource and scope of `acquire`."""
    from agent_identity.runtime.grants import make_chain

    flow = make_chain(session._state, frozenset({BILLING}), frozenset({"invoices:read"}))
    return run(flow, identity._parts.world.answer)


def fetch(identity: AgentIdentity, session: Any, chain: tuple[Grant, ...], **changed: Any) -> Any:
    """Ask the source of the resource directly, as nothing in the library would."""
    source = identity._parts.resources.get(BILLING).source_for(is_handed=False)
    state = session._state
    wanted = {
        "resource": BILLING,
        "scopes": frozenset({"invoices:read"}),
        "principal": state.principal,
        "subject": state.subject,
        "chain": chain,
        "agent": chain[0].agent,
        "proof_key": state.agent.proof_key,
        "txn": state.txn,
        "purpose": state.purpose,
    }
    return run(source.fetch(Wanted(**(wanted | changed))), identity._parts.world.answer)


def test_a_grant_says_who_acts_for_whom_and_for_what(make: Any) -> None:
    identity = make()
    options = {"purpose": "close the books", "task": "read them", "max_depth": 2, "expires_in": 60}
    with identity.on_behalf_of("user:alice", **options) as session:
        (grant,) = leaf(identity, session)
        claims = claims_of(grant.compact)
    issuer = identity.authority.issuer
    assert (claims["iss"], claims["sub"], claims["sub_profile"]) == (issuer, "alice", "user")
    assert claims["act"]["sub"] == "urn:agent-identity:agent:invoice-bot"
    assert claims["cnf"]["jkt"] == session._state.agent.key.thumbprint
    assert (claims["purpose"], claims["task"]) == ("close the books", "read them")
    assert (claims["aud"], claims["scope"]) == ([BILLING, LOCAL], "invoices:read")
    assert claims["txn"] == session.id
    assert 55 <= claims["exp"] - claims["iat"] <= 60
    assert (grant.max_depth, grant.evidence) == (2, "issuer")
    assert identity.authority.issued == {"grant": 1}


def test_an_unattended_run_is_evidence_of_the_agent_alone(make: Any) -> None:
    identity = make()
    with identity.autonomous(trigger="cron:nightly", purpose="close the books") as session:
        (grant,) = leaf(identity, session)
    agent = "urn:agent-identity:agent:invoice-bot"
    assert (grant.sub, grant.sub_profile, grant.sub_iss) == ("cron:nightly", "trigger", agent)
    assert grant.evidence == "agent"


def test_a_token_is_for_one_resource_one_key_and_one_principal(make: Any) -> None:
    identity = make()
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        token = acquire(identity)
        with session.delegate("archive-bot", scopes=["invoices:read"]) as child:
            below = acquire(identity)
            key = child._state.agent.key.thumbprint
    claims, narrower = claims_of(token), claims_of(below)
    assert (claims["sub"], claims["aud"], claims["scope"]) == ("alice", BILLING, "invoices:read")
    assert claims["txn"] == narrower["txn"] == session.id
    assert claims["cnf"]["jkt"] == session._state.agent.key.thumbprint
    assert narrower["cnf"]["jkt"] == key != claims["cnf"]["jkt"]
    assert narrower["act"]["sub"] == "urn:agent-identity:agent:archive-bot"
    assert narrower["act"]["act"]["sub"] == "urn:agent-identity:agent:invoice-bot"
    assert claims["exp"] - claims["iat"] == 300
    assert identity.authority.issued == {"grant": 1, "access_token": 2}


def test_both_ways_leave_the_same_records(make: Any) -> None:
    identity = make()
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        acquire(identity)
    records = identity.ledger.find(session.id)
    assert [record.kind for record in records] == [
        *("session.opened", "grant.made", "credential.acquired"),
        *("call.intended", "call.completed", "credential.revoked", "session.closed"),
    ]
    acquired = next(record.body for record in records if record.kind == "credential.acquired")
    assert acquired["source"] == "token-exchange"
    assert acquired["issuer"] == identity.authority.issuer
    assert (acquired["scope"], acquired["token_type"]) == (["invoices:read"], "DPoP")
    assert (acquired["bound"], acquired["opaque"]) == (True, False)
    revoked = next(record.body for record in records if record.kind == "credential.revoked")
    assert (revoked["revoked"], revoked["code"]) == (True, None)


def test_the_end_of_a_session_ends_its_tokens(make: Any) -> None:
    identity = make()
    with identity.on_behalf_of("user:alice", purpose="close the books"):
        claims = claims_of(acquire(identity))
        assert not identity.authority.is_revoked([claims["jti"]], claims["iat"])
    assert identity.authority.is_revoked([claims["jti"]], claims["iat"])


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        (Terms(scopes=frozenset({"journal:read"})), "invalid_scope"),
        (Terms(resources=frozenset({MAIL})), "invalid_target"),
        (Terms(max_depth=1), "invalid_request"),
        (Terms(directory=False), "invalid_grant"),
    ],
    ids=["scope", "resource", "depth", "directory"],
)
def test_terms_hold(make: Any, terms: Terms, code: str) -> None:
    assert refused(make(terms=terms)).code == code


@pytest.mark.parametrize("reference", ["urn:agent-identity:agent:invoice-bot", "user:alice", "*"])
def test_what_the_authority_revoked_gets_nothing(make: Any, reference: str) -> None:
    identity = make()
    identity.authority.revoke(reference)
    assert refused(identity).code == "invalid_grant"


def test_a_revoked_client_gets_nothing(make: Any) -> None:
    identity = make()
    with identity.on_behalf_of("user:alice", purpose="close the books"):
        acquire(identity)
    store = identity.authority.store
    (client_id,) = [
        row[0] for row in store._database.connection().execute("SELECT client_id FROM clients")
    ]
    identity.authority.revoke(client_id)
    with (
        identity.on_behalf_of("user:alice", purpose="close the books"),
        pytest.raises(CredentialError) as caught,
    ):
        acquire(identity)
    assert caught.value.code == "invalid_grant"


def test_a_client_that_is_gone_is_no_client(make: Any) -> None:
    identity = make()
    with identity.on_behalf_of("user:alice", purpose="close the books"):
        acquire(identity)
    identity.authority.store._database.connection().execute("DELETE FROM clients")
    with (
        identity.on_behalf_of("user:alice", purpose="close the books"),
        pytest.raises(CredentialError) as caught,
    ):
        acquire(identity)
    assert caught.value.code == "invalid_client"


def test_a_grant_that_was_revoked_earns_no_token(make: Any) -> None:
    identity = make()
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        chain = leaf(identity, session)
        identity.authority.revoke(chain[0].jti)
        with pytest.raises(CredentialError) as caught:
            fetch(identity, session, chain)
    assert caught.value.code == "invalid_grant"


def test_a_token_needs_the_key_that_the_grant_names(make: Any) -> None:
    from agent_identity.credentials.oauth.dpop import ProofKey

    identity = make()
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        chain = leaf(identity, session)
        with pytest.raises(CredentialError) as caught:
            fetch(identity, session, chain, proof_key=ProofKey(SigningKey.generate()))
    assert caught.value.code == "invalid_grant"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"scopes": frozenset({"invoices:write"})}, "invalid_scope"),
        ({"resource": MAIL}, "invalid_target"),
    ],
    ids=["scope", "resource"],
)
def test_a_token_is_within_its_grant(make: Any, changed: Any, code: str) -> None:
    identity = make()
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        chain = leaf(identity, session)
        with pytest.raises(CredentialError) as caught:
            fetch(identity, session, chain, **changed)
    assert caught.value.code == code


def test_another_sessions_chain_earns_no_token(make: Any) -> None:
    identity = make()
    with identity.on_behalf_of("user:bob", purpose="close the books") as bob:
        bobs = leaf(identity, bob)
        with identity.on_behalf_of("user:alice", purpose="close the books") as alice:
            for changed in ({}, {"principal": Principal("bob")}):
                with pytest.raises((CredentialError, DeniedError)) as caught:
                    fetch(identity, alice, bobs, **changed)
                assert caught.value.code in {"invalid_grant", "spliced"}
    assert identity.authority.issued["access_token"] == 0


@pytest.mark.parametrize("make", ["over HTTP"], indirect=True)
def test_a_forged_hop_earns_no_token(make: Any) -> None:
    """In its own process the authority gets the grants that were minted there, and verifies no signature again."""
    identity, forger = make(), SigningKey.generate()
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        chain = leaf(identity, session)
        hop = mint_child(
            forger,
            chain[0],
            agent=chain[0].agent + ":x",
            jkt=session._state.agent.key.thumbprint,
            aud=frozenset({BILLING}),
            scopes=frozenset({"invoices:read"}),
            details=None,
            task=None,
            now=chain[0].iat,
            expires_at=chain[0].exp,
        )
        with pytest.raises(CredentialError) as caught:
            fetch(identity, session, (hop, *chain))
    assert caught.value.code == "invalid_grant"


def test_a_chain_of_another_authority_earns_no_token(make: Any) -> None:
    identity, elsewhere = make(), AgentIdentity("x", authority=Authority(), ledger=MemoryLedger())
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        with elsewhere.on_behalf_of("user:alice", purpose="close the books") as other:
            foreign = leaf(elsewhere, other)
        mine = replace(leaf(identity, session)[0], compact=foreign[0].compact, iss=foreign[0].iss)
        with pytest.raises(CredentialError) as caught:
            fetch(identity, session, (mine,))
    elsewhere.close()
    assert caught.value.code == "invalid_grant"


def test_an_authority_whose_store_fails_is_unavailable(make: Any) -> None:
    identity = make()
    identity.authority.store.close()
    error = refused(identity)
    assert isinstance(error, CredentialUnavailableError)
    assert error.code == "issuer_busy"


async def test_async_code_gets_the_same(make: Any) -> None:
    identity = make()

    @tool(resource=BILLING, scopes=["invoices:read"])
    async def token() -> str:
        return current_credential().reveal()

    async with identity.on_behalf_of("user:alice", purpose="close the books"):
        claims = claims_of(await token())
    assert claims["sub"] == "alice"
    assert identity.authority.is_revoked([claims["jti"]], claims["iat"])


def test_a_key_of_the_authority_is_found_by_its_name(make: Any) -> None:
    identity = make()
    with identity.on_behalf_of("user:alice", purpose="close the books") as session:
        (grant,) = leaf(identity, session)
    anchor = identity._parts.anchor
    key = run(anchor.key(grant.kid), identity._parts.world.answer)
    assert key in identity.authority.jwks()["keys"]
    with pytest.raises(CredentialError) as caught:
        run(anchor.key("another"), identity._parts.world.answer)
    assert caught.value.code == "unknown_key"
