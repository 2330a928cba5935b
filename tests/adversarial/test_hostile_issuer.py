# SPDX-License-Identifier: Apache-2.0
"""An issuer that misbehaves in every way that we know, asked through a configured identity, in both colours."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_identity import (
    AgentIdentity,
    AgentIdentityError,
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.keys.signing import SigningKey, thumbprint
from agent_identity.testing import FakeIssuer, FakeWeb, assert_no_leak, hostile
from agent_identity.testing.web import Script

RESOURCE = "https://billing.example"
SECRET = "canary-client-secret-0123456789"


@pytest.fixture
def idp() -> Iterator[FakeIssuer]:
    with FakeIssuer() as issuer:
        yield issuer


@pytest.fixture
def elsewhere() -> Iterator[FakeWeb]:
    with FakeWeb() as web:
        yield web


@pytest.fixture
def bot(
    idp: FakeIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AgentIdentity]:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CLIENT_SECRET", SECRET)
    path = tmp_path / "agent-identity.toml"
    path.write_text(
        f"""
[agent]
name = "bot"
[issuers.acme]
issuer = "{idp.url}"
trust = ["subjects"]
client_id = "bot"
client_secret = "env:CLIENT_SECRET"
client_auth = "client_secret_post"
[resources."{RESOURCE}"]
scopes = ["read"]
[policy]
engine = "grants-only"
[ledger]
url = "memory:"
[http]
deadline = 2.0
"""
    )
    path.chmod(0o600)
    with AgentIdentity.from_config(path) as identity:
        yield identity


def in_sync(bot: AgentIdentity, token: str) -> None:
    with bot.on_behalf_of(token, purpose="p") as session:
        session.credential(RESOURCE)


def in_async(bot: AgentIdentity, token: str) -> None:
    async def ask() -> None:
        async with bot.on_behalf_of(token, purpose="p") as session:
            await session.acredential(RESOURCE)

    asyncio.run(ask())


@pytest.fixture(params=[in_sync, in_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Callable[[AgentIdentity, str], None]:
    return request.param


def good(idp: FakeIssuer, bot: AgentIdentity, **change: Any) -> dict[str, Any]:
    bound = {"jkt": thumbprint(bot.public_jwk)}
    claims = {"scope": "read", "cnf": bound} | change.pop("claims", {})
    return {
        "access_token": idp.token("alice", audience=RESOURCE, claims=claims),
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "token_type": "DPoP",
        "expires_in": 300,
    } | change


FakeResponse = Callable[[FakeIssuer, AgentIdentity], dict[str, Any]]

ANSWERS: dict[str, tuple[FakeResponse, str]] = {
    "token_type mac": (lambda i, b: good(i, b, token_type="mac"), "binding_missing"),
    "a plain bearer": (lambda i, b: good(i, b, token_type="Bearer"), "binding_missing"),
    "wider scope": (lambda i, b: good(i, b, scope="read admin"), "scope_widened"),
    "wider scope inside": (
        lambda i, b: good(i, b, claims={"scope": "read admin"}),
        "scope_widened",
    ),
    "no cnf": (lambda i, b: good(i, b, claims={"cnf": None}), "binding_missing"),
    "another cnf": (
        lambda i, b: good(i, b, claims={"cnf": {"jkt": SigningKey.generate().thumbprint}}),
        "binding_missing",
    ),
    "another audience": (
        lambda i, b: good(i, b, claims={"aud": "https://evil.example"}),
        "audience_mismatch",
    ),
    "two audiences": (
        lambda i, b: good(i, b, claims={"aud": [RESOURCE, "https://evil.example"]}),
        "audience_mismatch",
    ),
    "another principal": (lambda i, b: good(i, b, claims={"sub": "mallory"}), "subject_mismatch"),
    "negative life": (lambda i, b: good(i, b, expires_in=-5), "already_expired"),
    "life as text": (lambda i, b: good(i, b, expires_in="an hour"), "malformed_answer"),
    "a list of tokens": (lambda i, b: good(i, b, access_token=["a"]), "malformed_answer"),
    "no token": (lambda i, b: {"token_type": "DPoP"}, "malformed_answer"),
    "an id token": (
        lambda i, b: good(i, b, issued_token_type="urn:ietf:params:oauth:token-type:id_token"),
        "wrong_token_type",
    ),
    "a long dead token": (lambda i, b: good(i, b, claims={"exp": 1}), "already_expired"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_isnt_what_was_asked_for_is_refused(
    idp: FakeIssuer, bot: AgentIdentity, ask: Callable[..., None], name: str
) -> None:
    said, code = ANSWERS[name]
    token = idp.token("alice", audience="bot")
    idp.scripts["/token"] = hostile.answers(200, said(idp, bot))
    with pytest.raises(CredentialRejectedError) as caught:
        ask(bot, token)
    assert caught.value.code == code
    assert_no_leak([SECRET, token], caught.value)


def test_the_good_answer_of_these_tests_is_taken(
    idp: FakeIssuer, bot: AgentIdentity, ask: Callable[..., None]
) -> None:
    idp.scripts["/token"] = hostile.answers(200, good(idp, bot))
    ask(bot, idp.token("alice", audience="bot"))


@pytest.mark.parametrize("expires_in", [1e308, 10**12, 315_360_000])
def test_an_absurd_life_is_cut_to_the_tokens_own(
    idp: FakeIssuer, bot: AgentIdentity, expires_in: float
) -> None:
    idp.scripts["/token"] = hostile.answers(200, good(idp, bot, expires_in=expires_in))
    with bot.on_behalf_of(idp.token("alice", audience="bot"), purpose="p") as session:
        assert session.credential(RESOURCE).expires_at <= time.time() + 301


SCRIPTS: dict[str, tuple[Callable[[], Script], type[AgentIdentityError], str]] = {
    "html": (
        lambda: hostile.answers(200, b"<html>", content_type="text/html"),
        CredentialRejectedError,
        "not_json",
    ),
    "truncated": (hostile.truncates, CredentialUnavailableError, "issuer_unreachable"),
    "truncated JSON": (
        lambda: hostile.answers(200, b'{"access_token": "a'),
        CredentialRejectedError,
        "malformed_answer",
    ),
    "an echo, 400": (lambda: hostile.echoes(400), CredentialRejectedError, "unknown_error"),
    "an echo, 200": (lambda: hostile.echoes(200), CredentialRejectedError, "malformed_answer"),
    "an echo, 503": (lambda: hostile.echoes(503), CredentialUnavailableError, "issuer_busy"),
    "a byte every half second": (
        lambda: hostile.drips(0.5),
        CredentialUnavailableError,
        "issuer_unreachable",
    ),
    "silence": (
        lambda: hostile.says_nothing(5),
        CredentialUnavailableError,
        "issuer_unreachable",
    ),
    "100 MiB": (
        lambda: hostile.floods(100 * 1024 * 1024),
        CredentialUnavailableError,
        "issuer_unreachable",
    ),
    "busy": (
        lambda: hostile.answers(429, {"error": "temporarily_unavailable"}),
        CredentialUnavailableError,
        "issuer_busy",
    ),
    "busy for an hour": (
        lambda: hostile.answers(503, {}, {"Retry-After": "3600"}),
        CredentialUnavailableError,
        "issuer_busy",
    ),
    "a nonce for ever": (hostile.wants_nonces, CredentialRejectedError, "use_dpop_nonce"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_misbehaving_issuer_is_a_typed_error_and_no_secret_shows(
    idp: FakeIssuer,
    bot: AgentIdentity,
    ask: Callable[..., None],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    script, kind, code = SCRIPTS[name]
    token = idp.token("alice", audience="bot")
    idp.scripts["/token"] = script()
    with pytest.raises(kind) as caught:
        ask(bot, token)
    assert caught.value.code in {code, "deadline_exceeded"}
    assert_no_leak([SECRET, token], caught.value, caplog.text)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "path", ["/token", "/jwks", "/.well-known/oauth-authorization-server", "/revoke"]
)
def test_D08_no_redirect_is_followed_and_not_a_byte_of_a_secret_gets_elsewhere(
    idp: FakeIssuer,
    elsewhere: FakeWeb,
    bot: AgentIdentity,
    ask: Callable[..., None],
    path: str,
    status: int,
) -> None:
    token = idp.token("alice", audience="bot")
    idp.scripts[path] = hostile.redirects(f"{elsewhere.url}{path}", status)
    if path == "/revoke":
        ask(bot, token)
    else:
        with pytest.raises(AgentIdentityError) as caught:
            ask(bot, token)
        assert_no_leak([SECRET, token], caught.value)
    assert elsewhere.received == []


def test_E01_metadata_that_names_another_issuer_is_refused(
    idp: FakeIssuer, bot: AgentIdentity, ask: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = idp.metadata() | {"issuer": "https://evil.example"}
    monkeypatch.setattr(idp, "metadata", lambda: wrong)
    with pytest.raises(AgentIdentityError) as caught:
        ask(bot, idp.token("alice", audience="bot"))
    assert caught.value.code in {"issuer_mismatch", "key_unknown"}
    assert not any(request.path == "/token" for request in idp.received)


def test_C07_every_follower_of_a_refused_leader_gets_the_same_error_of_one_request(
    idp: FakeIssuer, bot: AgentIdentity
) -> None:
    """And for five seconds nobody asks again."""
    idp.scripts["/token"] = hostile.answers(400, {"error": "access_denied"})

    async def all_at_once() -> list[object]:
        async with bot.on_behalf_of(idp.token("alice", audience="bot"), purpose="p") as session:
            first = await asyncio.gather(
                *(session.acredential(RESOURCE) for _ in range(50)), return_exceptions=True
            )
            with pytest.raises(CredentialRejectedError) as caught:
                await session.acredential(RESOURCE)
            return [*first, caught.value]

    failures = asyncio.run(all_at_once())
    assert {getattr(failure, "code", failure) for failure in failures} == {"access_denied"}
    assert len({id(failure) for failure in failures}) == len(failures)
    assert sum(request.path == "/token" for request in idp.received) == 1


def test_five_failures_in_a_row_give_the_issuer_thirty_seconds_of_peace(
    idp: FakeIssuer, bot: AgentIdentity
) -> None:
    idp.scripts["/token"] = hostile.answers(500)
    token = idp.token("alice", audience="bot")
    codes = []
    for _ in range(4):
        with pytest.raises(CredentialUnavailableError) as caught:
            in_sync(bot, token)
        codes.append(caught.value.code)
    assert codes[-1] == "issuer_unavailable"
    assert sum(request.path == "/token" for request in idp.received) == 5
    del idp.scripts["/token"]
    with pytest.raises(CredentialUnavailableError):
        in_sync(bot, token)
    assert idp.issued == 0


def test_E14_a_resource_that_asks_for_more_gets_one_step_up_within_what_is_allowed(
    idp: FakeIssuer, elsewhere: FakeWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "agent-identity.toml"
    path.write_text(
        f'[agent]\nname = "bot"\n[issuers.acme]\nissuer = "{idp.url}"\ntrust = ["subjects"]\n'
        f'client_id = "bot"\nclient_auth = "none"\n[resources."{elsewhere.url}"]\n'
        'scopes = ["read", "write"]\n'
        '[policy]\nengine = "grants-only"\n[ledger]\nurl = "memory:"\n'
    )
    path.chmod(0o600)

    def wants(scope: str) -> Script:
        challenge = f'DPoP error="insufficient_scope", scope="{scope}"'
        return hostile.answers(403, {}, {"WWW-Authenticate": challenge})

    with AgentIdentity.from_config(path) as identity:
        with identity.on_behalf_of(idp.token("alice", audience="bot"), purpose="p") as session:
            elsewhere.scripts["/"] = wants("write")
            credential = session.credential(elsewhere.url, ["read"])
            with httpx.Client(auth=credential) as client:
                assert client.post(elsewhere.url, content=b"x").status_code == 403
            assert len(elsewhere.received) == 2
            assert [token["scope"] for token in idp.tokens] == ["read", "read write"]
            elsewhere.scripts["/"] = wants("admin")
            with httpx.Client(auth=session.credential(elsewhere.url, ["read"])) as client:
                with pytest.raises(AgentIdentityError) as caught:
                    client.post(elsewhere.url, content=b"x")
            assert caught.value.code == "scope_not_configured"
            assert len(elsewhere.received) == 3
            assert idp.issued == 2


def test_D09_a_busy_issuers_own_time_is_kept_for_that_key_alone(
    idp: FakeIssuer, bot: AgentIdentity
) -> None:
    idp.scripts["/token"] = hostile.in_turn(
        hostile.answers(503, {}, {"Retry-After": "1800"}),
        hostile.answers(200, good(idp, bot)),
    )
    with bot.on_behalf_of(idp.token("alice", audience="bot"), purpose="p") as session:
        for _ in range(3):
            with pytest.raises(CredentialUnavailableError) as caught:
                session.credential(RESOURCE)
            assert caught.value.retry_after == pytest.approx(1800, abs=5)
        assert sum(request.path == "/token" for request in idp.received) == 1
    with bot.on_behalf_of(idp.token("alice", audience="bot"), purpose="p") as session:
        session.credential(RESOURCE)


def test_a_timeout_is_the_cause_of_the_error_that_a_tool_gets(
    idp: FakeIssuer, bot: AgentIdentity
) -> None:
    """Also where the wait before another try doesn't fit the deadline any more."""
    idp.scripts["/token"] = hostile.drips(0.5, json.dumps(good(idp, bot)).encode())
    for ask in (in_sync, in_async):
        with pytest.raises(CredentialUnavailableError) as caught:
            ask(bot, idp.token("alice", audience="bot"))
        assert isinstance(caught.value.__cause__, TransportError)
        assert caught.value.__cause__.code == "deadline_exceeded"


def test_a_dripping_answer_says_so_in_plain_words(idp: FakeIssuer, bot: AgentIdentity) -> None:
    idp.scripts["/token"] = hostile.drips(0.5, json.dumps(good(idp, bot)).encode())
    with pytest.raises(CredentialUnavailableError) as caught:
        in_sync(bot, idp.token("alice", audience="bot"))
    assert "deadline" in str(caught.value)
