# SPDX-License-Identifier: Apache-2.0
"""Sign-in at the authorization servers of MCP servers: that of the mcp package, and FastMCP's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agent_identity import AgentIdentity, AgentIdentityError, CredentialError, DeniedError
from agent_identity.jose import loads_object, unverified
from agent_identity.values import Prompt
from agent_identity_mcp import CallAuth, auth, connect, guard
from agent_identity_mcp.generations import IS_SECOND, http, is_error

from .conftest import add_tool, free_origin
from .example_issuer import SCOPE, ExampleProvider

PURPOSE = "close the October books"
FASTMCP = find_spec("fastmcp") is not None
CONFIGURED = """
[agent]
name = "invoice-bot"
[policy]
engine = "grants-only"
[ledger]
url = "memory:"
[resources."{url}"]
issuer = "discovered"
{more}
"""


class Person:
    """Who opens the links of sign-ins, in order. `opened` are the links."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    async def __call__(self, prompt: Prompt) -> None:
        self.opened.append(prompt.authorization_url or "")
        async with http.AsyncClient(trust_env=False) as browser:
            answer = await browser.get(self.opened[-1])
            await browser.get(answer.headers["location"])


@pytest.fixture
def person() -> Person:
    return Person()


@pytest.fixture
def signing_in(tmp_path: Path, person: Person) -> Iterator[AgentIdentity]:
    """An identity that knows nothing of the server's issuer."""
    with AgentIdentity.embedded(
        "invoice-bot", state_dir=tmp_path / "state", ledger="memory:", on_interaction=person
    ) as identity:
        yield identity


@pytest.fixture
def configured(tmp_path: Path, person: Person) -> Iterator[Callable[..., AgentIdentity]]:
    with contextlib.ExitStack() as stack:

        def make(url: str, *lines: str) -> AgentIdentity:
            file = tmp_path / "agent-identity.toml"
            file.write_text(CONFIGURED.format(url=url, more="\n".join(lines)))
            file.chmod(0o600)
            identity = AgentIdentity.from_config(
                file, state_dir=tmp_path / "state", on_interaction=person
            )
            return stack.enter_context(identity)

        yield make


@pytest.fixture
def of_fastmcp(start: Any) -> Any:
    """A server with the authorization server of FastMCP."""
    fastmcp = pytest.importorskip("fastmcp", reason="needs mcp 1.30 or newer")
    from fastmcp.server.auth.auth import ClientRegistrationOptions, RevocationOptions
    from fastmcp.server.auth.providers.in_memory import InMemoryOAuthProvider

    origin, port = free_origin()
    issuer = InMemoryOAuthProvider(
        base_url=origin,
        client_registration_options=ClientRegistrationOptions(enabled=True, valid_scopes=[SCOPE]),
        revocation_options=RevocationOptions(enabled=True),
        required_scopes=[SCOPE],
    )
    server = fastmcp.FastMCP("billing", auth=issuer)
    add_tool(server)
    watched = start(server.http_app(stateless_http=True, json_response=True), port)
    watched.issuer = issuer
    return watched


@contextlib.asynccontextmanager
async def called(identity: AgentIdentity, url: str, user: str = "user:alice") -> AsyncIterator[Any]:
    """A call of a session in which the connection is opened."""
    async with (
        identity.on_behalf_of(user, purpose=PURPOSE) as session,
        connect(url, identity=identity) as client,
    ):
        result = await client.call_tool("list_invoices", {"customer": "ACME"})
        assert result.content[0].text.endswith("invoices of ACME")
        assert not is_error(result)
        yield session


def check_sign_in(watched: Any, link: str) -> None:
    query = http.URL(link).params
    assert query["code_challenge_method"] == "S256"
    assert query["resource"] == watched.url
    assert query["scope"] == SCOPE
    place = query["redirect_uri"]
    (registration,) = [each for each in watched.seen if "client_name" in each.message]
    assert registration.message["redirect_uris"] == [place]
    assert registration.message["application_type"] == "native"
    first, *others = [
        each for each in watched.seen if each.rpc in ("initialize", "tools/list", "server/discover")
    ]
    assert first.token is None
    assert {each.token for each in others if each.token} != set()


async def test_a_person_signs_in_at_the_issuer_of_the_mcp_package(
    signing_in: AgentIdentity, reference: Any, provider: ExampleProvider, person: Person
) -> None:
    watched = reference()
    async with called(signing_in, watched.url) as session:
        kinds = [each.kind for each in session.records()]
    (link,) = person.opened
    check_sign_in(watched, link)
    (request,) = provider.requests
    assert request.resource == watched.url
    (call,) = watched.calls()
    token = call.token.partition(" ")[2]
    assert token.startswith("access-")
    assert token not in call.body.decode()
    assert call.meta["dev.agent-identity/assertion"]
    assert provider.revoked == [token]
    assert {"agent.registered", "credential.acquired", "call.completed"} <= {
        *kinds,
        "agent.registered",
    }


@pytest.mark.skipif(not FASTMCP, reason="needs mcp 1.30 or newer")
async def test_a_person_signs_in_at_the_issuer_of_fastmcp(
    signing_in: AgentIdentity, of_fastmcp: Any, person: Person
) -> None:
    async with called(signing_in, of_fastmcp.url):
        pass
    (link,) = person.opened
    check_sign_in(of_fastmcp, link)
    (call,) = of_fastmcp.calls()
    assert call.token.startswith("Bearer ")


async def test_a_configured_resource_may_leave_its_issuer_to_the_server(
    configured: Any, reference: Any, person: Person
) -> None:
    watched = reference()
    identity = configured(watched.url, f'scopes = ["{SCOPE}"]')
    async with called(identity, watched.url):
        pass
    assert len(person.opened) == 1


async def test_configured_scopes_limit_what_a_server_asks_for(
    configured: Any, reference: Any, person: Person
) -> None:
    watched = reference()
    identity = configured(watched.url, "scopes = []")
    with contextlib.suppress(Exception):
        async with called(identity, watched.url):
            pass
    assert all("scope" not in http.URL(link).params for link in person.opened)


async def test_a_refused_sign_in_ends_the_connection_with_its_reason(
    signing_in: AgentIdentity, reference: Any, provider: ExampleProvider
) -> None:
    provider.refuses = True
    watched = reference()
    with pytest.raises(CredentialError) as caught:
        async with called(signing_in, watched.url):
            pass
    assert caught.value.code == "access_denied"
    assert [each for each in watched.seen if each.token] == []


async def test_nobody_signs_in_for_a_connection_outside_of_all_sessions(
    signing_in: AgentIdentity, reference: Any, person: Person
) -> None:
    watched = reference()
    with pytest.raises(DeniedError) as caught:
        async with connect(watched.url, identity=signing_in):
            pass
    assert caught.value.code == "interaction_without_principal"
    assert person.opened == []


async def test_each_principal_has_a_sign_in_and_a_token_of_their_own(
    signing_in: AgentIdentity, reference: Any, provider: ExampleProvider, person: Person
) -> None:
    watched = reference()
    for user in ("user:alice", "user:bob"):
        async with called(signing_in, watched.url, user):
            pass
    assert len(person.opened) == 2
    tokens = [each.token for each in watched.calls()]
    assert len(set(tokens)) == 2
    listings = [each for each in watched.seen if each.rpc == "tools/list" and each.token]
    assert {each.token for each in listings} <= set(tokens)


async def test_principals_who_sign_in_at_once_take_turns_at_the_port(
    signing_in: AgentIdentity, reference: Any, person: Person
) -> None:
    watched = reference()

    async def turn(user: str) -> None:
        async with called(signing_in, watched.url, user):
            pass

    await asyncio.gather(*(turn(f"user:{name}") for name in ("alice", "bob", "carol")))
    assert len(person.opened) == 3
    assert len({http.URL(link).params["redirect_uri"] for link in person.opened}) == 1
    assert len({each.token for each in watched.calls()}) == 3


@pytest.mark.skipif(not IS_SECOND, reason="connections of mcp 1 keep state")
async def test_parallel_calls_on_one_connection_have_the_token_of_their_principal(
    signing_in: AgentIdentity, reference: Any, person: Person
) -> None:
    watched = reference()
    users = ("alice", "bob", "carol")

    async def turn(client: Any, user: str) -> None:
        async with signing_in.on_behalf_of(f"user:{user}", purpose=PURPOSE):
            calls = (client.call_tool("list_invoices", {"customer": user}) for _ in range(30))
            for result in await asyncio.gather(*calls):
                assert not is_error(result)

    async with (
        signing_in.on_behalf_of("user:alice", purpose=PURPOSE),
        connect(watched.url, identity=signing_in) as client,
    ):
        await asyncio.gather(*(turn(client, user) for user in users))
    calls = [each for each in watched.calls() if each.token]
    assert len(calls) == 90
    owners: dict[str, str] = {}
    for each in calls:
        user = each.message["params"]["arguments"]["customer"]
        assert owners.setdefault(each.token, user) == user
    assert set(owners.values()) == {*users}


async def test_a_stateful_connection_belongs_to_the_session_that_opened_it(
    signing_in: AgentIdentity, reference: Any
) -> None:
    watched = reference(is_stateful=True)
    options = {"mode": "legacy"} if IS_SECOND else {}
    async with (
        signing_in.on_behalf_of("user:alice", purpose=PURPOSE),
        connect(watched.url, identity=signing_in, **options) as client,
    ):
        async with signing_in.on_behalf_of("user:bob", purpose=PURPOSE):
            refused = await client.call_tool("list_invoices", {"customer": "ACME"})
        own = await client.call_tool("list_invoices", {"customer": "ACME"})
    assert "connection_owned" in refused.content[0].text
    assert not is_error(own)
    assert len(watched.calls()) == 1


async def test_a_connection_that_you_open_yourself_is_authorized_by_auth(
    signing_in: AgentIdentity, reference: Any, person: Person
) -> None:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    watched = reference()
    own: CallAuth = auth(signing_in, watched.url)
    async with (
        signing_in.on_behalf_of("user:alice", purpose=PURPOSE),
        http.AsyncClient(auth=own, trust_env=False) as client,
        streamable_http_client(watched.url, http_client=client) as streams,
        ClientSession(*streams[:2]) as session,
    ):
        guard(session, signing_in, server=watched.url, auth=own)
        await session.initialize()
        result = await session.call_tool("list_invoices", {"customer": "ACME"})
        assert not is_error(result)
    assert len(person.opened) == 1


@pytest.mark.parametrize(
    "place", ["https://169.254.169.254/latest", "https://10.0.0.1/metadata", "http://10.0.0.1/"]
)
async def test_E02_a_server_that_names_a_private_address_leads_nowhere(
    signing_in: AgentIdentity, billing: Any, place: str
) -> None:
    header = {"www-authenticate": f'Bearer resource_metadata="{place}"'}
    billing.instead = lambda request: (401, header, b"")
    with pytest.raises(AgentIdentityError) as caught:
        async with called(signing_in, billing.url):
            pass
    assert caught.value.code in ("issuer_unreachable", "malformed_answer")
    assert {each.token for each in billing.seen} == {None}


async def test_a_server_that_demands_nothing_gets_nothing(
    signing_in: AgentIdentity, billing: Any, person: Person
) -> None:
    async with called(signing_in, billing.url):
        pass
    assert {each.token for each in billing.others()} == {None}
    assert person.opened == []
    assert all(
        each.headers.get("content-type") != "application/x-www-form-urlencoded"
        for each in billing.seen
    )


async def test_our_own_issuers_token_goes_to_a_server_that_accepts_it(
    signing_in: AgentIdentity, billing: Any
) -> None:
    """A server that names our authority, or no issuer, gets that authority's token for its listing too."""

    def demand(request: Any) -> Any:
        if request.method == "POST" and request.token is None:
            return 401, {"www-authenticate": "Bearer"}, b""
        return None if request.method == "POST" else (404, {}, b"")

    billing.instead = demand
    async with called(signing_in, billing.url):
        pass
    (call,) = [each for each in billing.calls() if each.token]
    listing = next(each for each in billing.seen if each.rpc == "tools/list" and each.token)
    for each in (call, listing):
        claims = loads_object(unverified(each.token.removeprefix("DPoP ")).payload)
        assert (claims["sub"], claims["aud"]) == ("alice", billing.url)
