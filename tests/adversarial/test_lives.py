# SPDX-License-Identifier: Apache-2.0
"""How long what was acquired lives: clocks that jump, machines that sleep, tables that fill, herds at the end of a life."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from agent_identity import AgentIdentity, AgentIdentityError, current_credential, tool
from agent_identity.credentials.cache import Cache, Refusals, digest_of
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN
from agent_identity.errors import CredentialRejectedError, CredentialUnavailableError
from agent_identity.flow import HttpRequest, HttpResponse, Shared, http, run
from agent_identity.http.world import World
from agent_identity.testing import FakeIssuer
from agent_identity.values import Secret

KEY = b"key"


class FakeClock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Token:
    issued_at: float
    expires_at: float


class NoLedger:
    def append(self, draft: object) -> None:
        raise AssertionError

    async def aappend(self, draft: object) -> None:
        raise AssertionError


class FakeNetwork:
    """Answers at once, and moves a clock while it does, where a test says so."""

    def __init__(self) -> None:
        self.asked = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def exchange(self, request: HttpRequest, deadline: float) -> HttpResponse:
        self.asked += 1
        self.meanwhile()
        return HttpResponse(200)

    def close(self) -> None:
        pass


class Life:
    """A world whose clocks a test moves, and a token of five minutes in it."""

    def __init__(self) -> None:
        self.wall, self.monotonic = FakeClock(1_795_518_000.0), FakeClock(1000.0)
        self.network = FakeNetwork()
        self.world = World(
            lambda: self.network, NoLedger(), clock=self.wall, monotonic=self.monotonic
        )

    def pass_by(self, seconds: float) -> None:
        self.wall.now += seconds
        self.monotonic.now += seconds

    def token(self) -> Token:
        def fetch():
            asked_at = self.wall()
            yield from http(HttpRequest("POST", "https://idp.example/token"))
            return Token(asked_at, asked_at + 300)

        return self.world.answer(Shared(KEY, fetch))


@pytest.fixture
def life() -> Life:
    return Life()


@pytest.mark.parametrize("jump", [3600, 10 * 365 * 86400])
def test_C12_a_wall_clock_that_jumps_ahead_costs_one_more_request_and_no_storm(
    life: Life, jump: float
) -> None:
    life.token()
    life.wall.now += jump
    for _ in range(50):
        life.token()
    assert life.network.asked == 2


@pytest.mark.parametrize("jump", [3600, 10 * 365 * 86400])
def test_C12_a_wall_clock_that_jumps_back_keeps_nothing_alive(life: Life, jump: float) -> None:
    life.token()
    life.wall.now -= jump
    for _ in range(50):
        life.token()
    assert life.network.asked == 1
    life.pass_by(301)
    life.token()
    assert life.network.asked == 2


@pytest.mark.parametrize("jump", [-86400, -3600, 3600, 86400])
def test_C12_a_jump_while_the_request_is_under_way_lengthens_no_life(
    life: Life, jump: float
) -> None:
    def jumped() -> None:
        life.wall.now += jump
        life.network.meanwhile = lambda: None

    life.network.meanwhile = jumped
    life.token()
    life.pass_by(301)
    before = life.network.asked
    for _ in range(50):
        life.token()
    assert life.network.asked == before + 1


def test_C13_after_two_hours_of_sleep_the_first_call_refreshes(life: Life) -> None:
    """The monotonic clock of some systems stands still meanwhile."""
    life.token()
    life.wall.now += 7200
    fresh = life.token()
    assert life.network.asked == 2
    assert fresh.expires_at > life.wall()


def test_C15_a_hundred_thousand_keys_stay_within_bounds_and_evicted_secrets_are_gone() -> None:
    cache, refusals = Cache(size=1000), Refusals()
    first = Secret("canary")
    gone = weakref.ref(first)

    @dataclass(frozen=True)
    class Holding:
        secret: Secret
        issued_at: float = 0.0
        expires_at: float = 1e9

    cache.put(b"first", Holding(first), now=0.0, monotonic=0.0)
    del first
    for number in range(100_000):
        key = digest_of((str(number),))
        cache.put(key, Token(0.0, 300.0), now=0.0, monotonic=0.0)
        refusals.note(key, CredentialRejectedError("x", "x"), 0.0)
    gc.collect()
    assert len(cache._entries) == 1000
    assert len(refusals._entries) == 1024
    assert gone() is None


def test_C17_refreshes_of_a_thousand_processes_are_spread_over_the_window() -> None:
    moments = []
    for _ in range(1000):
        cache = Cache()
        entry = cache.put(KEY, Token(0.0, 1000.0), now=0.0, monotonic=0.0)
        moments.append(entry.fresh)
    window = 1000.0 * 0.2
    assert max(moments) - min(moments) >= 0.1 * window
    # and evenly: no tenth of the spread holds more than a fifth of them
    low, width = min(moments), (max(moments) - min(moments)) / 10
    counts = [sum(low + n * width <= m < low + (n + 1) * width for m in moments) for n in range(10)]
    assert max(counts) < 200


def test_a_refusal_stands_for_five_seconds_and_no_longer(life: Life) -> None:
    def refused():
        yield from http(HttpRequest("POST", "https://idp.example/token"))
        raise CredentialRejectedError("access_denied", "no")

    def ask() -> None:
        with pytest.raises(CredentialRejectedError):
            life.world.answer(Shared(KEY, refused))

    for _ in range(10):
        ask()
    assert life.network.asked == 1
    life.pass_by(5.1)
    ask()
    assert life.network.asked == 2


@pytest.mark.parametrize(("said", "kept"), [(7.0, 7), (1e9, 3600)])
def test_D09_come_back_later_stands_until_then_an_hour_at_most(
    life: Life, said: float, kept: float
) -> None:
    def busy():
        yield from http(HttpRequest("POST", "https://idp.example/token"))
        raise CredentialUnavailableError("issuer_busy", "busy", retry_after=said)

    def ask() -> None:
        with pytest.raises(CredentialUnavailableError):
            life.world.answer(Shared(KEY, busy))

    ask()
    life.pass_by(kept - 0.1)
    ask()
    assert life.network.asked == 1
    life.pass_by(0.2)
    ask()
    assert life.network.asked == 2


# -- through an identity ---------------------------------------------------------------------------------------------------


@pytest.fixture
def idp() -> Iterator[FakeIssuer]:
    with FakeIssuer() as issuer:
        yield issuer


@pytest.fixture
def configured(
    idp: FakeIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AgentIdentity]:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "agent-identity.toml"
    path.write_text(
        f'[agent]\nname = "bot"\n[issuers.acme]\nissuer = "{idp.url}"\ntrust = ["subjects"]\n'
        f'client_id = "bot"\nclient_auth = "none"\n[resources."{BILLING}"]\n'
        '[policy]\nengine = "grants-only"\n[ledger]\nurl = "memory:"\n'
    )
    path.chmod(0o600)
    with AgentIdentity.from_config(path) as identity:
        yield identity


BILLING = "https://billing.example"


@tool(resource=BILLING, scopes=["read"])
def billed() -> str:
    return current_credential().token_type


@tool(resource=BILLING, scopes=["read"])
async def abilled() -> str:
    return current_credential().token_type


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_C22_a_tool_used_on_the_way_to_its_own_credential_is_an_error_at_once(
    idp: FakeIssuer, configured: AgentIdentity, colour: str
) -> None:
    failures: list[str] = []

    class Circular:
        """Gives a first token, and asks the tool itself when it is to give a fresh one."""

        given = 0

        def token(self, token_type: str, /) -> str | None:
            if token_type != ACCESS_TOKEN:
                return None
            self.given += 1
            if self.given > 1:
                try:
                    billed()
                except AgentIdentityError as error:
                    failures.append(error.code)
                    raise
            token = idp.token("alice", audience="bot", claims={"exp": int(time.time()) + 4})
            return token if self.given == 1 else idp.token("alice", audience="bot")

    async def inside() -> None:
        async with configured.on_behalf_of(Circular(), purpose="p"):
            await abilled()

    def sync() -> None:
        with configured.on_behalf_of(Circular(), purpose="p"):
            billed()

    with pytest.raises(AgentIdentityError) as caught:
        sync() if colour == "sync" else asyncio.run(inside())
    assert caught.value.code == "credential_cycle"
    assert failures == ["credential_cycle"]


def test_C20_what_a_caller_does_to_its_own_lists_and_headers_changes_nothing(
    idp: FakeIssuer, configured: AgentIdentity
) -> None:
    scopes = ["read"]
    with configured.on_behalf_of(
        idp.token("alice", audience="bot"), purpose="p", scopes=scopes
    ) as session:
        asked = ["read"]
        credential = session.credential(BILLING, asked)
        headers = credential.headers("GET", BILLING)
        headers["Authorization"] = "Bearer mine"
        asked.append("admin")
        scopes.append("admin")
        again = session.credential(BILLING, ["read"])
        assert again.scopes == {"read"}
        assert again.headers("GET", BILLING)["Authorization"] != "Bearer mine"
        assert session._state.limits.scopes == {"read"}
    assert idp.issued == 1


def test_E04_what_one_issuer_gave_is_never_shown_to_another(
    idp: FakeIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two issuers keep refresh tokens under one reference; a kept one is that of its issuer and client alone."""
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "agent-identity.toml"

    def browser(prompt: object) -> None:
        httpx.get(prompt.authorization_url, follow_redirects=True)

    with FakeIssuer() as other:
        text = (
            '[agent]\nname = "bot"\n[policy]\nengine = "grants-only"\n[ledger]\nurl = "memory:"\n'
        )
        for name, issuer in (("acme", idp), ("evil", other)):
            trust = 'trust = ["subjects"]\n' if name == "acme" else ""
            text += f'[issuers.{name}]\nissuer = "{issuer.url}"\n{trust}'
            text += 'client_id = "bot"\nclient_auth = "none"\n'
            text += f'[resources."https://{name}.example"]\nissuer = "{name}"\n'
            text += 'source = "authorization-code"\nrefresh_token = "file:kept"\n'
        path.write_text(text)
        path.chmod(0o600)
        with AgentIdentity.from_config(path, on_interaction=browser) as identity:
            for _ in range(2):
                token = idp.token("alice", audience="bot")
                with identity.on_behalf_of(token, purpose="p") as session:
                    session.credential("https://acme.example", ["a"])
                    session.credential("https://evil.example", ["a"])
        shown = [request.body for request in other.received if request.path == "/token"]
        assert [b"grant_type=refresh_token" in body for body in shown] == [False, True]
        assert len(list(tmp_path.glob("kept.*"))) == 2


def test_a_herd_on_a_short_token_asks_once_at_every_refresh(
    idp: FakeIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred callers and a token of sixty seconds, over four of its lives; the clock is the test's."""
    clock = FakeClock(time.time())
    idp._clock = clock
    idp.lifetime = 60
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "agent-identity.toml"
    path.write_text(
        f'[agent]\nname = "bot"\n[issuers.acme]\nissuer = "{idp.url}"\nclient_id = "bot"\n'
        f'client_auth = "none"\n[resources."{BILLING}"]\nsource = "client-credentials"\n'
        '[policy]\nengine = "grants-only"\n[ledger]\nurl = "memory:"\n'
    )
    path.chmod(0o600)
    with AgentIdentity.from_config(path, clock=clock) as identity:
        with identity.autonomous(trigger="cron:x", purpose="p") as session:
            for life_number in range(1, 5):
                barrier = threading.Barrier(200)

                def call(gate: threading.Barrier = barrier) -> None:
                    gate.wait()
                    billed()

                workers = [threading.Thread(target=session.bind(call)) for _ in range(200)]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join(30)
                assert idp.issued == life_number
                clock.now += 61


def test_flows_are_driven_by_nothing_but_the_world(life: Life) -> None:
    assert run(http(HttpRequest("GET", "https://idp.example")), life.world.answer).status == 200
