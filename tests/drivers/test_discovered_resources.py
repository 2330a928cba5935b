# SPDX-License-Identifier: Apache-2.0
"""Calls to a resource that names its issuer itself: what a demand leads to, what it doesn't widen, and where it moves (RFC 9728)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from agent_identity import AgentIdentity, DeniedError, tool
from agent_identity.adapters import ServerAccess
from agent_identity.runtime.acquire import acquire_demanded
from agent_identity.session import current_session
from agent_identity.testing.web import FakeResponse, FakeWeb, Received

PLACE = "/.well-known/oauth-protected-resource"
CONFIGURED = """
[agent]
name = "invoice-bot"
[policy]
engine = "grants-only"
[ledger]
url = "memory:"
"""


class FakeIdp(FakeWeb):
    """An issuer that registers everybody. `forms` are the token requests, `registered` the ids that it gave."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.forms: list[dict[str, str]] = []
        self.registered: list[str] = []

    def answer(self, request: Received) -> FakeResponse:
        if "/.well-known/" in request.path:
            return say(
                issuer=self.url,
                token_endpoint=f"{self.url}/token",
                registration_endpoint=f"{self.url}/register",
                token_endpoint_auth_methods_supported=["none"],
                grant_types_supported=["client_credentials"],
            )
        if request.path == "/register":
            self.registered.append(f"{self.name}-{len(self.registered)}")
            return say(201, client_id=self.registered[-1], token_endpoint_auth_method="none")
        form = {name: value for name, (value,) in parse_qs(request.body.decode()).items()}
        self.forms.append(form)
        token = f"{self.name}-token-{len(self.forms)}"
        return say(access_token=token, token_type="Bearer", expires_in=600)


class FakeServer(FakeWeb):
    """A resource that accepts the tokens of its issuer. `scope` is that of its challenge, `refuses` every request."""

    def __init__(self) -> None:
        super().__init__()
        self.issuer: FakeIdp | None = None
        self.scope: str | None = None
        self.refuses = False
        self.revoked = set[str | None]()

    @property
    def tokens(self) -> list[str | None]:
        return [
            each.headers.get("authorization") for each in self.received if PLACE not in each.path
        ]

    def answer(self, request: Received) -> FakeResponse:
        if request.path.startswith(PLACE):
            if self.issuer is None or request.path != PLACE:
                return FakeResponse(404, {}, b"{}")
            return say(resource=self.url, authorization_servers=[self.issuer.url])
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        is_ours = self.issuer is not None and token.startswith(f"{self.issuer.name}-")
        is_revoked = self.refuses or request.headers.get("authorization") in self.revoked
        if self.issuer is None or (is_ours and not is_revoked):
            return FakeResponse(200, {}, b"{}")
        scope = "" if self.scope is None else f' scope="{self.scope}",'
        challenge = f'Bearer{scope} resource_metadata="{self.url}{PLACE}"'
        return FakeResponse(401, {"WWW-Authenticate": challenge}, b"{}")


def say(status: int = 200, /, **members: Any) -> FakeResponse:
    return FakeResponse(status, {}, json.dumps(members).encode())


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as started, FakeIdp("first") as started.issuer:
        yield started


Calls = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def calling(request: pytest.FixtureRequest, tmp_path: Path, server: FakeServer) -> Iterator[Calls]:
    """Posts to the server in `count` calls of one session, and returns the last status, and the session's records."""

    with contextlib.ExitStack() as stack:

        def make(*lines: str) -> AgentIdentity:
            file = tmp_path / "agent-identity.toml"
            table = [f'[resources."{server.url}"]', *(lines or _DISCOVERED)]
            file.write_text(CONFIGURED + "\n".join(table))
            file.chmod(0o600)
            return stack.enter_context(
                AgentIdentity.from_config(file, state_dir=tmp_path / "state")
            )

        def run(
            *lines: str,
            count: int = 1,
            scopes: list[str] | None = None,
            between: Callable[[], None] = lambda: None,
            limit: list[str] | None = None,
        ) -> Any:
            identity = make(*lines)
            limits: dict[str, Any] = {} if limit is None else {"scopes": limit}

            @tool(name="posts", resource=server.url, scopes=scopes)
            def posts() -> int:
                with current_session().http(server.url) as client:
                    return client.post("/", json={}).status_code

            @tool(name="posts", resource=server.url, scopes=scopes)
            async def aposts() -> int:
                async with current_session().ahttp(server.url) as client:
                    return (await client.post("/", json={})).status_code

            async def in_loop() -> Any:
                async with identity.autonomous(trigger="t", purpose="p", **limits) as session:
                    for number in range(count):
                        status = await aposts()
                        if number == 0:
                            between()
                    return status, session.records()

            if request.param == "async":
                return asyncio.run(in_loop())
            with identity.autonomous(trigger="t", purpose="p", **limits) as session:
                for number in range(count):
                    status = posts()
                    if number == 0:
                        between()
                return status, session.records()

        yield run


_DISCOVERED = ('issuer = "discovered"', 'source = "client-credentials"')


def test_a_demand_leads_to_the_issuer_and_the_request_is_sent_again(
    calling: Calls, server: FakeServer
) -> None:
    status, records = calling(count=3)
    assert status == 200
    assert server.tokens == [None, *["Bearer first-token-1"] * 3]
    assert server.issuer is not None
    assert server.issuer.registered == ["first-0"]
    (form,) = server.issuer.forms
    assert (form["grant_type"], form["resource"]) == ("client_credentials", server.url)
    assert "scope" not in form
    acquired = [each.to_dict() for each in records if each.kind == "credential.acquired"]
    assert [each["issuer"] for each in acquired] == [server.issuer.url]


def test_a_resource_that_demands_nothing_is_asked_nothing(
    calling: Calls, server: FakeServer
) -> None:
    server.issuer = None
    assert calling()[0] == 200
    assert [each.path for each in server.received] == ["/"]


def test_a_resource_that_is_never_satisfied_is_asked_twice(
    calling: Calls, server: FakeServer
) -> None:
    """And a token that it refuses leads to no other one, which could mean another sign-in for each call."""
    server.refuses = True
    assert calling(count=3)[0] == 401
    assert server.tokens == [None, *["Bearer first-token-1"] * 5]
    assert server.issuer is not None
    assert len(server.issuer.forms) == 1


def test_a_token_that_is_refused_after_a_while_is_replaced(
    calling: Calls, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget() -> None:
        monkeypatch.setattr("agent_identity.runtime.acquire._NEW", 0.0)
        server.revoked.add("Bearer first-token-1")

    assert calling(count=2, between=forget)[0] == 200
    assert server.tokens == [
        None,
        *["Bearer first-token-1"] * 2,
        "Bearer first-token-2",
    ]


def test_a_resource_that_moves_gets_a_token_and_a_client_of_its_new_issuer(
    calling: Calls, server: FakeServer
) -> None:
    first = server.issuer
    assert first is not None
    with FakeIdp("second") as second:

        def move() -> None:
            server.issuer = second

        assert calling(count=3, between=move)[0] == 200
        shown = ["first-token-1", "first-token-1", "second-token-1", "second-token-1"]
        assert server.tokens == [None, *(f"Bearer {each}" for each in shown)]
        assert (first.registered, second.registered) == (["first-0"], ["second-0"])
        assert second.forms[0]["client_id"] == "second-0"
        assert not any(b"first" in each.body for each in second.received)


@pytest.mark.parametrize(
    ("challenge", "configured", "session", "own", "requested"),
    [
        ("a b", None, None, None, "a b"),
        ("a b", ["a"], None, None, "a"),
        ("a b", None, ["b"], None, "b"),
        ("a b", ["a"], ["a", "b"], None, "a"),
        ("c", ["a"], None, None, None),
        (None, ["a"], None, None, "a"),
        ("b", None, None, ["a"], "a"),
        ("b", ["a", "b"], None, ["a"], "a"),
        ("b", None, None, [], None),
    ],
)
def test_a_challenge_widens_no_limit(
    calling: Calls,
    server: FakeServer,
    challenge: str | None,
    configured: list[str] | None,
    session: list[str] | None,
    own: list[str] | None,
    requested: str | None,
) -> None:
    """A tool's own scopes come first; without them those of the challenge, within configuration and session."""
    server.scope = challenge
    limits = {} if configured is None else {"scopes": configured}
    lines = [*_DISCOVERED, *(f"scopes = {json.dumps(each)}" for each in limits.values())]
    calling(*lines, scopes=own, limit=session)
    assert server.issuer is not None
    assert server.issuer.forms[-1].get("scope") == requested


def test_without_discovery_a_refusal_reads_no_metadata_and_repeats_no_post(
    calling: Calls, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", "key-canary")
    assert calling('source = "static"', 'token = "env:SERVER_KEY"')[0] == 401
    assert [each.path for each in server.received] == ["/"]


def test_an_undescribed_resource_of_an_embedded_identity_may_name_its_issuer(
    identity: AgentIdentity, server: FakeServer
) -> None:
    """Only for a connection whose server demands it: tools go on with the embedded authority's tokens."""
    from agent_identity.credentials.source import Demand
    from agent_identity.flow import run
    from agent_identity.session import state_of

    with identity.on_behalf_of("user:alice", purpose="p") as session:
        parts = state_of(session).parts
        before = parts.resources.get(server.url)
        with identity.autonomous(trigger="t", purpose="p") as nobody:
            flow = acquire_demanded(state_of(nobody), server.url, Demand())
            with pytest.raises(DeniedError) as caught:  # no person can sign in for a trigger
                run(flow, parts.world.answer)
        assert caught.value.code == "interaction_without_principal"
        after = parts.resources.get(server.url)
        assert (before.discovery, before.source) != (after.discovery, after.source)
        assert after.discovery is not None
        assert after.discovery.url == getattr(server.issuer, "url", None)


# -- the requests of a connection that belong to no tool ------------------------------------------------------------------


def demand_of(server: FakeServer) -> tuple[int, dict[str, str]]:
    return 401, {"www-authenticate": f'Bearer resource_metadata="{server.url}{PLACE}"'}


@pytest.fixture
def discovering(tmp_path: Path, server: FakeServer) -> Iterator[AgentIdentity]:
    file = tmp_path / "agent-identity.toml"
    file.write_text("\n".join((CONFIGURED, f'[resources."{server.url}"]', *_DISCOVERED)))
    file.chmod(0o600)
    with AgentIdentity.from_config(file, state_dir=tmp_path / "state") as identity:
        yield identity


async def test_a_connection_has_no_credential_until_its_server_demands_one(
    discovering: AgentIdentity, server: FakeServer
) -> None:
    access = ServerAccess(discovering, server.url)
    assert await access.acredential() is None
    assert await access.ademanded(200, {}) is None
    assert await access.ademanded(401, {"www-authenticate": "Basic"}) is None
    assert server.received == []
    async with discovering.autonomous(trigger="t", purpose="p") as session:
        credential = await access.ademanded(*demand_of(server))
        assert credential is not None
        assert credential.headers("POST", server.url)["Authorization"] == "Bearer first-token-1"
        assert await access.acredential() is credential
        assert access.opener is not None
        assert access.opener.id == session.id


async def test_each_session_has_a_credential_of_its_own(
    discovering: AgentIdentity, server: FakeServer
) -> None:
    access = ServerAccess(discovering, server.url)
    found: list[Any] = []
    for _ in range(2):
        async with discovering.autonomous(trigger="t", purpose="p"):
            found.append(await access.ademanded(*demand_of(server)))
    assert found[0] is not found[1]
    with pytest.raises(DeniedError):  # its session has ended
        found[0].headers("POST", server.url)


async def test_outside_of_all_sessions_the_connection_has_a_session_that_ends_with_it(
    discovering: AgentIdentity, server: FakeServer, identity: AgentIdentity
) -> None:
    access = ServerAccess(discovering, server.url)
    async with identity.on_behalf_of("user:alice", purpose="p"):  # of another identity
        credential = await access.ademanded(*demand_of(server))
    assert credential is not None
    assert await access.acredential() is credential
    assert access.opener is None
    trace = discovering.who_triggered(next(iter(discovering.ledger.records())).session_id or "")
    assert (trace.principal.profile, trace.principal.sub) == ("trigger", "mcp:connection")
    await access.aclose()
    with pytest.raises(DeniedError):
        credential.headers("POST", server.url)
    assert await access.acredential() is not credential
    await access.aclose()
