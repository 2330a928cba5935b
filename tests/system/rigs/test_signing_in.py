# SPDX-License-Identifier: Apache-2.0
"""Sources in which a person signs in, at a real issuer: browser, device, CIBA, and the refresh tokens that they leave."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import jwt
import pytest
from joserfc.jwk import ECKey

from agent_identity import AgentIdentity
from agent_identity.errors import CredentialRejectedError, CredentialUnavailableError
from agent_identity.values import Prompt

from .authorization_server import AGENT, AuthorizationServer, follow
from .certificates import jkt_of
from .conftest import Configured, Started

pytestmark = pytest.mark.system

TOOLS = "https://mcp.example.com/tools"
MAIL = "https://mail.example.com/"
PURPOSE = "close the books"


def public(server: AuthorizationServer, client_id: str) -> str:
    return f"""
[issuers.acme]
issuer = "{server.issuer}"
trust = ["subjects"]
audience = "{AGENT}"
client_id = "{client_id}"
client_auth = "none"
"""


def resource(source: str, uri: str = TOOLS, *, more: str = "") -> str:
    return f"""
[resources."{uri}"]
source = "{source}"
issuer = "acme"
scopes = ["tool:read", "tool:write"]
{more}
"""


class Browser:
    """A person with a browser: opens what is shown, signs in, and comes back to whoever waits."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []
        self.came_back: list[httpx.Response] = []

    def __call__(self, prompt: Prompt) -> None:
        self.prompts.append(prompt)
        threading.Thread(target=self._visit, args=(prompt.authorization_url or "",)).start()

    def _visit(self, url: str) -> None:
        back = follow(url, until="http://127.0.0.1:", and_path="/callback")
        self.came_back.append(httpx.get(back, trust_env=False))


def token_of(identity: AgentIdentity, server: AuthorizationServer, uri: str = TOOLS) -> str:
    with identity.on_behalf_of(server.sign_in()["access_token"], purpose=PURPOSE) as session:
        return session.credential(uri, ["tool:read"]).reveal()


# -- in a browser ---------------------------------------------------------------------------------------------------------


def test_a_person_signs_in_in_a_browser(
    server: AuthorizationServer, configured: Configured
) -> None:
    """RFC 7636, RFC 8252, RFC 9126, RFC 9207."""
    browser = Browser()
    text = public(server, "app") + resource("authorization-code")
    identity = configured(text, on_interaction=browser)
    claims = server.claims(token_of(identity, server), TOOLS)
    assert (claims["sub"], claims["client_id"], claims["scope"]) == ("alice", "app", "tool:read")
    assert claims["cnf"] == {"jkt": jkt_of(identity)}
    assert [answer.status_code for answer in browser.came_back] == [200]
    [prompt] = browser.prompts
    shown = httpx.URL(prompt.authorization_url or "")
    assert set(shown.params) == {"client_id", "request_uri"}  # all else was pushed
    pushed = server.seen("/request")[-1]["form"]
    assert pushed["code_challenge_method"] == "S256"
    assert pushed["dpop_jkt"] == jkt_of(identity)
    assert pushed["resource"] == TOOLS
    assert server.metadata["authorization_response_iss_parameter_supported"] is True


async def test_async_code_waits_for_the_browser_too(
    server: AuthorizationServer, configured: Configured
) -> None:
    text = public(server, "app") + resource("authorization-code")
    identity = configured(text, on_interaction=Browser())
    subject = server.sign_in()["access_token"]
    async with identity.on_behalf_of(subject, purpose=PURPOSE) as session:
        credential = await session.acredential(TOOLS, ["tool:read"])
        assert server.claims(credential.reveal(), TOOLS)["sub"] == "alice"


def test_details_are_asked_for_in_the_pushed_request(
    server: AuthorizationServer, configured: Configured
) -> None:
    """RFC 9396 §7, through sign-in."""
    more = 'authorization_details = [{type = "urn:example:calls", actions = ["call"]}]'
    text = public(server, "app") + resource("authorization-code", more=more)
    identity = configured(text, on_interaction=Browser())
    claims = server.claims(token_of(identity, server), TOOLS)
    assert claims["authorization_details"] == [{"type": "urn:example:calls", "actions": ["call"]}]


def test_an_instance_that_registered_itself_signs_people_in(
    started: Started, configured: Configured
) -> None:
    """RFC 7591 with RFC 8252 §7.3: the port of a loopback address is any, for native clients."""
    with started(REGISTRATION="*") as open_to_all:
        text = f"""
[issuers.acme]
issuer = "{open_to_all.issuer}"
trust = ["subjects"]
audience = "{AGENT}"
registration = "dynamic"
{resource("authorization-code")}
"""
        identity = configured(text, on_interaction=Browser())
        claims = open_to_all.claims(token_of(identity, open_to_all), TOOLS)
        assert claims["sub"] == "alice"


def test_a_callback_of_another_issuer_is_refused(
    server: AuthorizationServer, configured: Configured
) -> None:
    """The mix-up of RFC 9207 §1: everything is right but the issuer."""

    def mix_up(prompt: Prompt) -> None:
        def visit() -> None:
            url = prompt.authorization_url or ""
            back = httpx.URL(follow(url, until="http://127.0.0.1:", and_path="/callback"))
            httpx.get(back.copy_set_param("iss", "https://evil.example"), trust_env=False)

        threading.Thread(target=visit).start()

    text = public(server, "app") + resource("authorization-code")
    identity = configured(text, on_interaction=mix_up)
    before = len(server.seen())
    with pytest.raises(CredentialRejectedError) as refused:
        token_of(identity, server)
    assert refused.value.code == "issuer_mismatch"
    grants = [entry["form"]["client_id"] for entry in server.seen()[before:]]
    assert grants == ["front-end"]  # the principal's own sign-in, and no code of ours


def test_a_person_who_signs_in_as_somebody_else_is_refused(
    server: AuthorizationServer, configured: Configured
) -> None:
    browser = Browser()
    text = public(server, "app") + resource("authorization-code")
    identity = configured(text, on_interaction=browser)
    bob = server.sign_in(login_hint="bob")["access_token"]
    with identity.on_behalf_of(bob, purpose=PURPOSE) as session:
        with pytest.raises(CredentialRejectedError) as refused:
            session.credential(TOOLS, ["tool:read"])
        assert refused.value.code == "subject_mismatch"


def test_nobody_who_comes_is_waited_for_as_long_as_configured(
    server: AuthorizationServer, configured: Configured
) -> None:
    text = public(server, "app") + resource("authorization-code")
    text += "\n[http]\ninteraction_timeout = 1.0\n"
    identity = configured(text, on_interaction=lambda prompt: None)
    with pytest.raises(CredentialUnavailableError) as refused:
        token_of(identity, server)
    assert refused.value.code == "interaction_timeout"


# -- with a refresh token -------------------------------------------------------------------------------------------------


def kept_in(folder: Path) -> list[str]:
    return sorted(path.read_text().strip() for path in folder.glob("refresh.*") if path.is_file())


def test_a_refresh_token_is_used_before_anybody_is_asked_again(
    server: AuthorizationServer, configured: Configured, tmp_path: Path
) -> None:
    """RFC 6749 §6 with rotation: the new one is kept, the old one is worth nothing."""
    browser = Browser()
    more = f'binding = "none"\nrefresh_token = "file:{tmp_path}/refresh"'
    text = public(server, "app") + resource("authorization-code", more=more)
    identity = configured(text, on_interaction=browser)
    first = token_of(identity, server)
    [old] = kept_in(tmp_path)
    second = token_of(identity, server)
    [new] = kept_in(tmp_path)
    assert len(browser.prompts) == 1
    assert new != old
    assert server.claims(first, TOOLS)["jti"] != server.claims(second, TOOLS)["jti"]
    form = {"grant_type": "refresh_token", "client_id": "app", "refresh_token": old}
    answer = server.post("token_endpoint", form)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


def test_another_process_goes_on_with_the_kept_token(
    server: AuthorizationServer, configured: Configured, tmp_path: Path
) -> None:
    browser = Browser()
    more = f'binding = "none"\nrefresh_token = "file:{tmp_path}/refresh"'
    text = public(server, "app") + resource("authorization-code", more=more)
    token_of(configured(text, on_interaction=browser), server)
    token_of(configured(text, on_interaction=browser), server)
    assert len(browser.prompts) == 1


def test_a_refresh_token_that_was_taken_back_asks_the_person_again(
    server: AuthorizationServer, configured: Configured, tmp_path: Path
) -> None:
    browser = Browser()
    more = f'binding = "none"\nrefresh_token = "file:{tmp_path}/refresh"'
    text = public(server, "app") + resource("authorization-code", more=more)
    identity = configured(text, on_interaction=browser)
    token_of(identity, server)
    [held] = kept_in(tmp_path)
    form = {"token": held, "client_id": "app"}
    assert server.post("revocation_endpoint", form).status_code == 200
    token_of(identity, server)
    assert len(browser.prompts) == 2


def test_a_refresh_token_held_in_memory_goes_with_the_agents_proof(
    server: AuthorizationServer, configured: Configured
) -> None:
    """RFC 9449 §5: a public client's is bound to the key, so this issuer would refuse it without."""
    browser = Browser()
    text = public(server, "app") + resource("authorization-code")
    identity = configured(text, on_interaction=browser)
    token_of(identity, server)
    token_of(identity, server)
    assert len(browser.prompts) == 1
    seen = server.seen()[-1]
    assert seen["form"]["grant_type"] == "refresh_token"
    proof = jwt.get_unverified_header(seen["dpop"])
    assert ECKey.import_key(proof["jwk"]).thumbprint() == jkt_of(identity)


def test_a_token_that_somebody_left_serves_as_a_source_of_its_own(
    server: AuthorizationServer, configured: Configured, tmp_path: Path
) -> None:
    left = tmp_path / "left"
    left.write_text(server.sign_in(resource=TOOLS)["refresh_token"])
    left.chmod(0o600)
    more = f'binding = "none"\nrefresh_token = "file:{left}"'
    identity = configured(public(server, "front-end") + resource("refresh-token", more=more))
    before = left.read_text()
    with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
        token = session.credential(TOOLS, ["tool:read"]).reveal()
    assert server.claims(token, TOOLS)["scope"] == "tool:read"
    assert left.read_text() != before  # rotated, and kept


# -- on another device ----------------------------------------------------------------------------------------------------


def test_a_person_enters_a_code_elsewhere(
    server: AuthorizationServer, configured: Configured
) -> None:
    """RFC 8628."""
    prompts: list[Prompt] = []

    def approve(prompt: Prompt) -> None:
        prompts.append(prompt)
        server.answer_device(prompt.user_code or "")

    text = public(server, "device") + resource("device")
    identity = configured(text, on_interaction=approve)
    claims = server.claims(token_of(identity, server), TOOLS)
    assert (claims["sub"], claims["client_id"]) == ("alice", "device")
    assert claims["cnf"] == {"jkt": jkt_of(identity)}
    assert prompts[0].verification_uri == f"{server.issuer}/device"


def test_a_person_who_says_no_is_not_asked_again(
    server: AuthorizationServer, configured: Configured
) -> None:
    asked: list[Prompt] = []

    def deny(prompt: Prompt) -> None:
        asked.append(prompt)
        server.answer_device(prompt.user_code or "", "deny")

    text = public(server, "device") + resource("device")
    with pytest.raises(CredentialRejectedError) as refused:
        token_of(configured(text, on_interaction=deny), server)
    assert (refused.value.code, len(asked)) == ("access_denied", 1)


# -- by the issuer's own way to them --------------------------------------------------------------------------------------


def ciba(server: AuthorizationServer) -> str:
    return f"""
[issuers.acme]
issuer = "{server.issuer}"
trust = ["subjects"]
audience = "{AGENT}"
client_id = "ciba"
client_secret = "env:CLIENT_SECRET"
""" + resource("ciba", more='binding = "none"')


def test_the_issuer_asks_the_principal_itself(
    server: AuthorizationServer, configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIBA Core 1.0, poll mode."""
    monkeypatch.setenv("CLIENT_SECRET", "s3cret")
    prompts: list[Prompt] = []
    identity = configured(ciba(server), on_interaction=prompts.append)
    claims = server.claims(token_of(identity, server), TOOLS)
    assert (claims["sub"], claims["client_id"]) == ("alice", "ciba")
    assert [prompt.kind for prompt in prompts] == ["ciba"]
    form = server.seen("/backchannel")[-1]["form"]
    assert (form["login_hint"], form["binding_message"]) == ("alice", PURPOSE)


def test_a_principal_who_says_no_to_their_issuer_is_heard(
    server: AuthorizationServer, configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIENT_SECRET", "s3cret")
    identity = configured(ciba(server), on_interaction=lambda prompt: None)
    subject = server.sign_in(login_hint="deny-dora")["access_token"]
    with identity.on_behalf_of(subject, purpose=PURPOSE) as session:
        with pytest.raises(CredentialRejectedError) as refused:
            session.credential(TOOLS, ["tool:read"])
        assert refused.value.code == "access_denied"
