# SPDX-License-Identifier: Apache-2.0
"""An identity that a file describes, against issuers on loopback: what each kind of resource is sent."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from cryptography import x509
from typer.testing import CliRunner

from agent_identity import (
    AgentIdentity,
    ConfigurationError,
    CredentialRejectedError,
    DeniedError,
    InvalidSubjectError,
    NoSessionError,
    current_credential,
    tool,
)
from agent_identity.assembly.configured import svids_of
from agent_identity.cli.app import app
from agent_identity.credentials import SubjectTokens
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN, ID_TOKEN
from agent_identity.flow import Flow, run
from agent_identity.jose import encode_header, loads_object, unverified
from agent_identity.keys.signing import SigningKey
from agent_identity.signers import MemorySigner
from agent_identity.testing import FakeIssuer, FakeWeb, play
from agent_identity.testing.web import FakeResponse
from agent_identity.values import Certificate, Secret, scrub
from agent_identity.verify import Verifier

BILLING = "https://billing.example"


@pytest.fixture
def idp() -> Iterator[FakeIssuer]:
    with FakeIssuer() as issuer:
        yield issuer


@pytest.fixture
def other(idp: FakeIssuer) -> Iterator[FakeIssuer]:
    with FakeIssuer(trusts=[idp]) as issuer:
        yield issuer


@pytest.fixture
def web() -> Iterator[FakeWeb]:
    with FakeWeb() as server:
        yield server


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "client.pem"
    path.write_bytes(SigningKey.generate().to_pem())
    path.chmod(0o600)
    return path


Configured = Callable[..., AgentIdentity]


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Configured]:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    made: list[AgentIdentity] = []

    def make(text: str, **how: object) -> AgentIdentity:
        path = tmp_path / "agent-identity.toml"
        rest = '[policy]\nengine = "grants-only"\n[ledger]\nurl = "memory:"\n'
        path.write_text(f'[agent]\nname = "invoice-bot"\n{rest}{text}')
        path.chmod(0o600)
        identity = AgentIdentity.from_config(path, **how)
        made.append(identity)
        return identity

    yield make
    for identity in made:
        identity.close()


def issuer_table(issuer: FakeIssuer, name: str = "acme", *more: str) -> str:
    lines = [f"[issuers.{name}]", f'issuer = "{issuer.url}"', *more]
    return "\n".join([*lines, ""])


def acme(idp: FakeIssuer) -> str:
    return issuer_table(
        idp,
        "acme",
        'trust = ["subjects"]',
        'client_id = "invoice-bot"',
        'client_key = "file:client.pem"',
    )


def claims(token: str) -> dict[str, object]:
    return dict(loads_object(unverified(token).payload))


def test_a_one_issuer_file_exchanges_the_principals_token_for_one_bound_to_the_agents_key(
    configured: Configured, idp: FakeIssuer, key: Path, web: FakeWeb
) -> None:
    identity = configured(acme(idp) + f'[resources."{web.url}"]\nscopes = ["invoices:read"]\n')

    @tool(resource=web.url)
    def read() -> int:
        return httpx.get(f"{web.url}/invoices", auth=current_credential()).status_code

    token = idp.token("alice", audience="invoice-bot")
    with identity.on_behalf_of(token, purpose="close the books") as session:
        assert str(session.principal) == f"user:{idp.url}#alice"
        assert read() == 200
        sent = web.received[-1].headers
        got = claims(sent["authorization"].removeprefix("DPoP "))
        assert got["cnf"] == {"jkt": session._state.agent.key.thumbprint}
        assert (got["sub"], got["aud"], got["scope"]) == ("alice", web.url, "invoices:read")
        assert "agent-assertion" in sent
        assert "agent-delegation" in sent
        root = claims(sent["agent-delegation"].split(", ")[-1])
        assert (root["sub"], root["sub_iss"], root["evidence"]) == ("alice", idp.url, "issuer")
        assert str(root["iss"]).startswith("urn:agent-identity:signer:")
    assert identity.who_triggered(session).verified
    assert idp.issued == 1


BOT = "spiffe://acme.example/invoice-bot"


def over_tls(idp: FakeIssuer, ca: Any) -> list[Any]:
    """Serve an issuer over TLS; returns the certificate that the client of each connection shows."""
    shown: list[Any] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca.issue("server", x509.IPAddress(ip_address("127.0.0.1"))))
    context.load_verify_locations(ca.file)
    context.verify_mode = ssl.CERT_OPTIONAL
    accept = idp._server.get_request

    def accept_tls() -> tuple[ssl.SSLSocket, Any]:
        connection, address = accept()
        secured = context.wrap_socket(connection, server_side=True)
        shown.append(secured.getpeercert())
        return secured, address

    idp._server.get_request = accept_tls
    idp.url = idp.url.replace("http:", "https:")
    return shown


def test_a_certificate_authenticates_the_client_at_an_issuer_and_its_key_shows_nowhere(
    configured: Configured,
    idp: FakeIssuer,
    make_ca: Callable[[], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    ca = make_ca()
    pem = ca.issue("client", x509.UniformResourceIdentifier(BOT)).read_text()
    shown = over_tls(idp, ca)
    client = (
        'client_id = "invoice-bot"',
        'client_certificate = "file:client.pem"',
        'client_auth = "tls_client_auth"',
    )
    identity = configured(
        issuer_table(idp, "acme", 'trust = ["subjects"]', *client)
        + f'[http]\nca = "ca.pem"\n[resources."{BILLING}"]\nscopes = ["invoices:read"]\n'
    )
    token = idp.token("alice", audience="invoice-bot")
    with identity.on_behalf_of(token, purpose="close the books") as session:
        assert session.credential(BILLING, ["invoices:read"]).scopes == {"invoices:read"}
        assert shown[-1]["subjectAltName"] == (("URI", BOT),)
        assert idp.received[-1].path == "/token"
        form = dict(parse_qsl(idp.received[-1].body.decode()))
    assert form["client_id"] == "invoice-bot"
    assert "client_assertion" not in form
    key = pem.partition("PRIVATE KEY-----\n")[2][:60]
    assert key
    assert key not in caplog.text + repr(identity)


async def test_in_async_code_it_is_the_same(
    configured: Configured, idp: FakeIssuer, key: Path, web: FakeWeb
) -> None:
    identity = configured(acme(idp) + f'[resources."{web.url}"]\n')

    @tool(resource=web.url, scopes=["x"])
    async def read() -> int:
        async with httpx.AsyncClient(auth=current_credential()) as client:
            return (await client.get(web.url)).status_code

    async with identity.on_behalf_of(
        idp.token("alice", audience="invoice-bot"), purpose="p"
    ) as session:
        assert await asyncio.gather(*(read() for _ in range(20))) == [200] * 20
        assert session.principal.sub == "alice"
    assert idp.issued == 1


def test_leaving_a_session_gives_its_tokens_back(
    configured: Configured, idp: FakeIssuer, key: Path
) -> None:
    identity = configured(acme(idp) + f'[resources."{BILLING}"]\n')
    token = idp.token("alice", audience="invoice-bot")
    with identity.on_behalf_of(token, purpose="p") as session:
        held = session.credential(BILLING, ["a"]).reveal()
        assert idp.revoked == []
    assert idp.revoked == [held]
    kinds = [record.kind for record in session.records()]
    assert "credential.revoked" in kinds


def test_what_cannot_be_given_back_is_on_record_with_its_end(
    configured: Configured, idp: FakeIssuer, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = idp.metadata()
    del whole["revocation_endpoint"]
    monkeypatch.setattr(idp, "metadata", lambda: whole)
    identity = configured(acme(idp) + f'[resources."{BILLING}"]\n')
    token = idp.token("alice", audience="invoice-bot")
    with identity.on_behalf_of(token, purpose="p") as session:
        session.credential(BILLING, ["a"])
    (found,) = [
        record.to_dict() for record in session.records() if record.kind == "credential.revoked"
    ]
    assert found["revoked"] is False
    assert "expires_at" in found


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"audience": "somebody-else"}, "audience_mismatch"),
        ({"claims": {"aud": ["invoice-bot", "somebody-else"]}}, "audience_mismatch"),
        ({"claims": {"iss": "https://evil.example"}}, "issuer_unknown"),
        ({"typ": "dpop+jwt"}, "wrong_typ"),
        ({"typ": "agent-grant+jwt"}, "wrong_typ"),
        ({"claims": {"exp": 1}}, "expired"),
        ({"claims": {"sub": ""}}, "claim_missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_a_principals_token_that_is_none_says_which_rule_it_broke(
    configured: Configured, idp: FakeIssuer, key: Path, change: dict[str, object], code: str
) -> None:
    identity = configured(acme(idp) + f'[resources."{BILLING}"]\n')
    made = {"audience": "invoice-bot", **change}
    token = idp.token("alice", **made)
    session = identity.on_behalf_of(token, purpose="p")
    with pytest.raises(InvalidSubjectError) as caught, session:
        pytest.fail("no session opens for it")
    assert caught.value.code == code
    with pytest.raises(NoSessionError):
        _ = session.principal
    assert idp.issued == 0


def test_a_token_of_another_key_opens_no_session(
    configured: Configured, idp: FakeIssuer, other: FakeIssuer, key: Path
) -> None:
    identity = configured(acme(idp) + f'[resources."{BILLING}"]\n')
    forged = other.token("alice", audience="invoice-bot", claims={"iss": idp.url})
    with pytest.raises(InvalidSubjectError) as caught:
        identity.on_behalf_of(forged, purpose="p").__enter__()
    assert caught.value.code == "key_unknown"


def test_a_name_proves_nothing_where_issuers_are_configured(
    configured: Configured, idp: FakeIssuer, key: Path
) -> None:
    identity = configured(acme(idp))
    with pytest.raises(ConfigurationError) as caught:
        identity.on_behalf_of("user:alice", purpose="p")
    assert caught.value.code == "principal_unproven"
    with pytest.raises(ConfigurationError):
        _ = identity.authority


def test_a_resource_that_nobody_described_is_denied_before_any_request(
    configured: Configured, idp: FakeIssuer, key: Path
) -> None:
    identity = configured(acme(idp) + f'[resources."{BILLING}"]\nscopes = ["a"]\n')
    token = idp.token("alice", audience="invoice-bot")
    with identity.on_behalf_of(token, purpose="p") as session:
        asked = len(idp.received)
        for resource, scopes in ((BILLING + "/x", ["a"]), (BILLING, ["b"]), (BILLING, ["a", "b"])):
            with pytest.raises(DeniedError):
                session.credential(resource, scopes)
        assert len(idp.received) == asked


def test_an_autonomous_run_uses_the_clients_own_credentials(
    configured: Configured, idp: FakeIssuer, key: Path
) -> None:
    identity = configured(
        acme(idp)
        + f'[resources."{BILLING}"]\nsource = "client-credentials"\n'
        + '[resources."https://mail.example"]\n'
    )
    with identity.autonomous(trigger="cron:nightly-close", purpose="p") as session:
        assert claims(session.credential(BILLING, ["a"]).reveal())["sub"] == "invoice-bot"
        with pytest.raises(CredentialRejectedError) as caught:
            session.credential("https://mail.example", ["a"])
        assert caught.value.code == "subject_token_missing"


def test_id_jag_and_identity_chaining_reach_another_domain(
    configured: Configured, idp: FakeIssuer, other: FakeIssuer, key: Path
) -> None:
    text = acme(idp) + issuer_table(
        other, "saas", 'client_id = "invoice-bot"', 'client_key = "file:client.pem"'
    )
    for uri, source in (
        ("https://a.example", "id-jag"),
        ("https://b.example", "identity-chaining"),
    ):
        text += f'[resources."{uri}"]\nsource = "{source}"\nvia = "acme"\nissuer = "saas"\n'
    identity = configured(text)
    tokens = SubjectTokens(
        access_token=idp.token("alice", audience="invoice-bot"),
        id_token=idp.token("alice", audience="invoice-bot", typ="JWT", claims={"auth_time": 1}),
    )
    with identity.on_behalf_of(tokens, purpose="p") as session:
        for uri in ("https://a.example", "https://b.example"):
            got = claims(session.credential(uri, ["a"]).reveal())
            assert (got["iss"], got["sub"], got["aud"]) == (other.url, "alice", uri)
    assert other.issued == 2
    assert idp.issued == 0


def test_a_transaction_token_rides_beside_the_credential_and_is_found_again(
    configured: Configured, idp: FakeIssuer, key: Path, web: FakeWeb
) -> None:
    identity = configured(
        acme(idp)
        + f'[resources."{web.url}"]\n'
        + 'transaction_token = { issuer = "acme", audience = "trust.example" }\n'
    )

    @tool(resource=web.url, scopes=["a"])
    def read() -> None:
        httpx.get(web.url, auth=current_credential())

    with identity.on_behalf_of(idp.token("alice", audience="invoice-bot"), purpose="p"):
        read()
        read()
    tokens = [claims(request.headers["txn-token"]) for request in web.received]
    assert [token["aud"] for token in tokens] == ["trust.example"] * 2
    assert len({token["txn"] for token in tokens}) == 2
    assert idp.issued == 1
    for token in tokens:
        assert identity.who_triggered(str(token["txn"])).purpose == "p"


def test_I07_the_token_that_came_in_goes_to_its_own_issuer_and_to_nobody_else(
    configured: Configured, idp: FakeIssuer, other: FakeIssuer, key: Path, web: FakeWeb
) -> None:
    text = acme(idp) + issuer_table(
        other, "saas", 'client_id = "invoice-bot"', 'client_auth = "none"'
    )
    for path, lines in {
        "a": 'issuer = "acme"',
        "b": 'source = "id-jag"\nvia = "acme"\nissuer = "saas"',
        "c": 'source = "client-credentials"\nissuer = "saas"',
        "d": 'source = "jwt-bearer"\nissuer = "acme"\nassertion_from = "client"',
    }.items():
        text += f'[resources."{web.url}/{path}"]\n{lines}\n'
    identity = configured(text)
    tokens = SubjectTokens(
        access_token=idp.token("alice", audience="invoice-bot"),
        id_token=idp.token("alice", audience="invoice-bot", typ="JWT", claims={"auth_time": 1}),
    )
    inbound = [tokens.access_token.reveal(), tokens.id_token.reveal()]
    with identity.on_behalf_of(tokens, purpose="p") as session:
        for path in "abcd":
            with session.http(f"{web.url}/{path}") as client:
                assert client.get("").status_code == 200
            assert session.credential(f"{web.url}/{path}").reveal() not in inbound
    for request in (*web.received, *other.received):
        sent = f"{request.path} {request.headers}".encode() + request.body
        assert not any(token.encode() in sent for token in inbound)
    assert len(web.received) == 4


def test_legacy_resources_get_their_secret_and_no_delegation_data(
    configured: Configured, web: FakeWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("canary-api-key\n")
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv("PASSWORD", "canary-password")
    identity = configured(
        f'[resources."{web.url}/a"]\nsource = "api-key"\nsecret = "file:key"\nheader = "X-Api-Key"\n'
        f'[resources."{web.url}/b"]\nsource = "basic"\nusername = "bot"\npassword = "env:PASSWORD"\n'
        f'[resources."{web.url}/c"]\nsource = "static"\ntoken = "env:PASSWORD"\n'
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        for path in ("a", "b", "c"):
            with session.http(f"{web.url}/{path}") as client:
                assert client.get("").status_code == 200
    by_path = {request.path.strip("/"): request.headers for request in web.received}
    assert by_path["a"]["x-api-key"] == "canary-api-key"
    assert "authorization" not in by_path["a"]
    assert by_path["b"]["authorization"] == "Basic Ym90OmNhbmFyeS1wYXNzd29yZA=="
    assert by_path["c"]["authorization"] == "Bearer canary-password"
    for headers in by_path.values():
        assert not any(name.startswith(("agent-", "dpop")) for name in headers)


def test_what_a_session_was_handed_is_scrubbed_while_it_lasts_whoever_holds_it_still(
    configured: Configured, web: FakeWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret that was replaced in its place, and that no cache holds any more."""
    identity = configured(
        f'[resources."{web.url}/a"]\nsource = "api-key"\nsecret = "env:KEY"\n'
        f'[resources."{web.url}/b"]\nsource = "basic"\nusername = "the-bot"\npassword = "env:PASSWORD"\n'
    )
    old, new = (
        [f"{which}-{what}" for what in ("key-7Hq2", "password-4Tm")] for which in ("old", "new")
    )
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        for values in (old, new):
            for name, value in zip(("KEY", "PASSWORD"), values, strict=True):
                monkeypatch.setenv(name, value)
            for path in "ab":
                session.credential(f"{web.url}/{path}")
            for cached in list(identity._parts.world.cache._entries):
                identity._parts.world.drop(cached)
            session._state.reaches.clear()
        gc.collect()
        for secret in (*old, *new, b64encode(f"the-bot:{old[1]}".encode()).decode()):
            assert scrub(f"it was {secret}.") == "it was <secret>."
        assert scrub("the-bot wrote it") == "the-bot wrote it"
    identity.close()
    del session, identity


def test_a_transaction_token_is_scrubbed_after_its_call(
    configured: Configured, idp: FakeIssuer, key: Path, web: FakeWeb
) -> None:
    identity = configured(
        acme(idp)
        + f'[resources."{web.url}"]\n'
        + 'transaction_token = { issuer = "acme", audience = "trust.example" }\n'
    )

    @tool(resource=web.url, scopes=["a"])
    def read() -> None:
        httpx.get(web.url, auth=current_credential())

    with identity.on_behalf_of(idp.token("alice", audience="invoice-bot"), purpose="p"):
        read()
        read()
        gc.collect()
        for request in web.received:
            signature = request.headers["txn-token"].rpartition(".")[2]
            assert scrub(f"it was {signature}.") == "it was <secret>."


def test_a_secret_that_isnt_there_says_where_it_was_looked_for(
    configured: Configured, web: FakeWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ABSENT", raising=False)
    identity = configured(f'[resources."{web.url}"]\nsource = "api-key"\nsecret = "env:ABSENT"\n')
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(ConfigurationError) as caught:
            session.credential(web.url)
    assert caught.value.code == "secret_missing"
    assert "env:ABSENT" in str(caught.value.remedy)


def test_a_person_signs_in_once_and_a_refresh_token_serves_from_then_on(
    configured: Configured, idp: FakeIssuer, key: Path, tmp_path: Path
) -> None:
    shown: list[str] = []

    def browser(prompt: object) -> None:
        shown.append(prompt.kind)
        httpx.get(prompt.authorization_url, follow_redirects=True)

    identity = configured(
        acme(idp)
        + f'[resources."{BILLING}"]\nsource = "authorization-code"\nrefresh_token = "file:refresh"\n',
        on_interaction=browser,
    )
    for _ in range(2):
        token = idp.token("alice", audience="invoice-bot")
        with identity.on_behalf_of(token, purpose="p") as session:
            assert claims(session.credential(BILLING, ["a"]).reveal())["sub"] == "alice"
    assert shown == ["authorization-code"]
    (kept,) = tmp_path.glob("refresh.*")
    assert kept.stat().st_mode & 0o777 == 0o600


def test_E12_a_link_that_is_opened_again_elsewhere_changes_nothing(
    configured: Configured, idp: FakeIssuer, key: Path
) -> None:
    """In another browser, by somebody else, while the first is under way and after it."""
    links: list[str] = []
    again: list[int] = []

    def browser(prompt: Any) -> None:
        links.append(prompt.authorization_url)
        httpx.get(prompt.authorization_url, follow_redirects=True)
        idp.sub = "mallory"
        again.append(httpx.get(links[0], follow_redirects=True).status_code)

    identity = configured(
        acme(idp) + f'[resources."{BILLING}"]\nsource = "authorization-code"\n',
        on_interaction=browser,
    )
    with identity.on_behalf_of(idp.token("alice", audience="invoice-bot"), purpose="p") as session:
        assert claims(session.credential(BILLING, ["a"]).reveal())["sub"] == "alice"
        with pytest.raises(httpx.HTTPError):
            httpx.get(links[0], follow_redirects=True).raise_for_status()
    assert again[0] >= 400
    assert [token["sub"] for token in idp.tokens] == ["alice"]


def test_whoever_else_signs_in_is_refused(
    configured: Configured, idp: FakeIssuer, key: Path
) -> None:
    idp.sub = "mallory"

    def browser(prompt: object) -> None:
        httpx.get(prompt.authorization_url, follow_redirects=True)

    identity = configured(
        acme(idp) + f'[resources."{BILLING}"]\nsource = "authorization-code"\n',
        on_interaction=browser,
    )
    with identity.on_behalf_of(idp.token("alice", audience="invoice-bot"), purpose="p") as session:
        with pytest.raises(CredentialRejectedError) as caught:
            session.credential(BILLING, ["a"])
    assert caught.value.code == "subject_mismatch"


def test_a_token_source_keeps_a_session_going_beyond_its_first_token(
    configured: Configured, idp: FakeIssuer, key: Path, clock: object
) -> None:
    asked: list[str] = []

    class Source:
        def token(self, token_type: str, /) -> str | None:
            asked.append(token_type)
            return (
                idp.token("alice", audience="invoice-bot") if token_type == ACCESS_TOKEN else None
            )

    identity = configured(acme(idp) + f'[resources."{BILLING}"]\n')
    with identity.on_behalf_of(Source(), purpose="p") as session:
        session.credential(BILLING, ["a"])
        assert session.expires_at - identity._clock() > 3000
    assert set(asked) == {ACCESS_TOKEN, ID_TOKEN}


def test_a_session_ends_with_the_principals_token(
    configured: Configured, idp: FakeIssuer, key: Path
) -> None:
    idp.lifetime = 120
    identity = configured(acme(idp))
    with identity.on_behalf_of(idp.token("alice", audience="invoice-bot"), purpose="p") as session:
        assert session.expires_at - identity._clock() <= 120


def test_the_signer_is_made_once_and_kept_private(
    configured: Configured, idp: FakeIssuer, key: Path, tmp_path: Path
) -> None:
    first, second = configured(acme(idp)), configured(acme(idp))
    assert first.jwks() == second.jwks()
    assert (tmp_path / "state" / "signer.pem").stat().st_mode & 0o777 == 0o600


def test_a_service_can_check_the_chain_by_the_identitys_verifier(
    configured: Configured, idp: FakeIssuer, key: Path, web: FakeWeb
) -> None:
    identity = configured(acme(idp) + f'[resources."{web.url}"]\n')

    @tool(resource=web.url, scopes=["a"])
    def read() -> None:
        httpx.get(web.url, auth=current_credential())

    with identity.on_behalf_of(idp.token("alice", audience="invoice-bot"), purpose="p"):
        read()
    sent = web.received[-1]
    call = identity.verifier(web.url).verify_request(
        "GET", web.url + "/", list(sent.headers.items()), b"", scopes=["a"]
    )
    assert (call.principal.sub, call.principal.iss) == ("alice", idp.url)


def test_on_behalf_of_uses_the_file_that_the_environment_names(
    tmp_path: Path, idp: FakeIssuer, key: Path
) -> None:
    """And never one that merely lies in the working directory (G17)."""
    path = tmp_path / "agent-identity.toml"
    path.write_text(
        '[agent]\nname = "bot"\n[policy]\nengine = "grants-only"\n[ledger]\nurl = "memory:"\n'
        + acme(idp)
    )
    path.chmod(0o600)
    code = (
        "import os, sys; from agent_identity import on_behalf_of\n"
        "with on_behalf_of(sys.argv[1], purpose='p') as session: print(session.principal)"
    )
    token = idp.token("alice", audience="invoice-bot")
    environment = {**os.environ, "AGENT_IDENTITY_STATE_DIR": str(tmp_path / "s")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, token],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**environment, **more},
        )

    there = run(AGENT_IDENTITY_CONFIG=str(path))
    assert there.stdout == f"user:{idp.url}#alice\n", there.stderr
    asked = len(idp.received)
    absent = run()
    assert "AGENT_IDENTITY_CONFIG doesn't name a configuration" in absent.stderr
    assert len(idp.received) == asked


def test_json_metadata_of_the_fake_is_what_an_issuer_publishes(idp: FakeIssuer) -> None:
    found = json.loads(httpx.get(f"{idp.url}/.well-known/oauth-authorization-server").text)
    assert found["issuer"] == idp.url


CIMD = 'client_id = "https://agents.example/bot.json"\nclient_key = "file:client.pem"\n'


def test_a_client_known_by_its_document_asks_an_issuer_that_reads_them(
    configured: Configured, idp: FakeIssuer, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f'[issuers.acme]\nissuer = "{idp.url}"\n{CIMD}'
    text += f'[resources."{BILLING}"]\nsource = "client-credentials"\n'
    identity = configured(text)
    with identity.autonomous(trigger="cron:x", purpose="p") as session:
        session.credential(BILLING, ["a"])
    assert idp.tokens[0]["sub"] == "https://agents.example/bot.json"
    whole = idp.metadata() | {"client_id_metadata_document_supported": False}
    monkeypatch.setattr(idp, "metadata", lambda: whole)
    with configured(text).autonomous(trigger="cron:x", purpose="p") as session:
        with pytest.raises(CredentialRejectedError) as caught:
            session.credential(BILLING, ["a"])
    assert caught.value.code == "metadata_document_unsupported"


def test_the_document_of_a_client_says_all_and_holds_no_secret(
    tmp_path: Path, idp: FakeIssuer, key: Path
) -> None:
    path = tmp_path / "agent-identity.toml"
    path.write_text(
        f'[agent]\nname = "bot"\n[issuers.acme]\nissuer = "{idp.url}"\n{CIMD}'
        f'[resources."{BILLING}"]\nsource = "authorization-code"\n'
    )
    path.chmod(0o600)
    done = CliRunner().invoke(app, ["config", "client-document", "acme", "--config", str(path)])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["client_id"] == "https://agents.example/bot.json"
    assert document["token_endpoint_auth_method"] == "private_key_jwt"
    assert document["grant_types"] == ["authorization_code", "refresh_token"]
    assert document["redirect_uris"] == ["http://127.0.0.1/callback"]
    assert document["jwks"]["keys"][0]["kid"] == SigningKey.from_pem(key.read_bytes()).thumbprint
    assert "d" not in document["jwks"]["keys"][0]
    wrong = CliRunner().invoke(app, ["config", "client-document", "other", "--config", str(path)])
    assert wrong.exit_code == 2


def test_a_client_that_is_its_own_actor_registers_for_client_credentials(
    tmp_path: Path, idp: FakeIssuer, key: Path
) -> None:
    path = tmp_path / "agent-identity.toml"
    path.write_text(
        f'[agent]\nname = "bot"\n[issuers.acme]\nissuer = "{idp.url}"\n{CIMD}'
        f'[resources."{BILLING}"]\nactor = "client"\n'
    )
    path.chmod(0o600)
    done = CliRunner().invoke(app, ["config", "client-document", "acme", "--config", str(path)])
    grants = json.loads(done.stdout)["grant_types"]
    assert grants == ["client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"]


@pytest.mark.parametrize(
    "source", ["token-exchange", "entra-obo", 'auth0-token-vault"\nparameters.connection = "c']
)
def test_a_session_that_was_handed_over_has_no_token_to_trade(
    configured: Configured, idp: FakeIssuer, key: Path, source: str
) -> None:
    identity = configured(acme(idp) + f'[resources."{BILLING}"]\nsource = "{source}"\n')
    with identity.on_behalf_of(idp.token("alice", audience="invoice-bot"), purpose="p") as session:
        place = session._state.parts.resources.get(BILLING)
    assert place.source_for(is_handed=True).described.kind == "chain"
    assert place.source_for(is_handed=False).described.issuer == idp.url


def test_an_issuer_that_refuses_resource_indicators_is_sent_none(
    configured: Configured, idp: FakeIssuer, key: Path
) -> None:
    identity = configured(
        acme(idp)
        + 'resource_indicators = false\nclient_key_id = "key-1"\n'
        + f'[resources."{BILLING}"]\naudience = "api://billing"\n'
    )
    with identity.on_behalf_of(idp.token("alice", audience="invoice-bot"), purpose="p") as session:
        session.credential(BILLING, ["a"])
    body = dict(
        pair.split("=", 1)
        for request in idp.received
        if request.path == "/token"
        for pair in request.body.decode().split("&")
    )
    assert "resource" not in body
    assert unverified(body["client_assertion"]).header["kid"] == "key-1"
    assert idp.tokens[0]["aud"] == "api://billing"


def test_an_id_token_may_be_made_for_the_client_and_an_access_token_may_not(
    configured: Configured, idp: FakeIssuer, key: Path
) -> None:
    text = issuer_table(
        idp,
        "acme",
        'trust = ["subjects"]',
        'client_id = "invoice-bot"',
        'client_key = "file:client.pem"',
        'audience = "https://agents.example"',
    )
    identity = configured(text)
    id_token = idp.token("alice", audience="invoice-bot", typ="JWT", claims={"auth_time": 1})
    good = SubjectTokens(
        access_token=idp.token("alice", audience="https://agents.example"), id_token=id_token
    )
    with identity.on_behalf_of(good, purpose="p") as session:
        assert session.principal.sub == "alice"
    with pytest.raises(InvalidSubjectError) as caught:
        identity.on_behalf_of(idp.token("alice", audience="invoice-bot"), purpose="p").__enter__()
    assert caught.value.code == "audience_mismatch"


# -- what is said is kept ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "sent"), [('assertion = "omit"', False), ("", True)])
def test_an_embedded_resource_gets_the_chain_unless_the_file_says_otherwise(
    configured: Configured, web: FakeWeb, said: str, sent: bool
) -> None:
    identity = configured(f'[resources."{web.url}"]\n{said}\n')
    with (
        identity.on_behalf_of("user:alice", purpose="not for strangers") as session,
        session.http(web.url) as client,
    ):
        client.get(f"{web.url}/x")
    headers = web.received[-1].headers
    assert ("agent-delegation" in headers) is sent
    assert headers["authorization"].startswith("DPoP ")


class Confused(FakeIssuer):
    """An issuer that answers about somebody else."""

    def _issue_access_token(self, sub: str, form: dict[str, str], jkt: str | None) -> FakeResponse:
        return super()._issue_access_token("bob", form, jkt)


def test_another_table_of_the_principals_issuer_does_not_switch_the_check_off(
    configured: Configured, key: Path
) -> None:
    with Confused() as idp:
        asker = issuer_table(idp, "asker", 'client_id = "bot2"', 'client_key = "file:client.pem"')
        identity = configured(acme(idp) + asker + f'[resources."{BILLING}"]\nissuer = "asker"\n')
        token = idp.token("alice", audience="invoice-bot")
        with identity.on_behalf_of(token, purpose="p") as session:
            with pytest.raises(CredentialRejectedError) as caught:
                session.credential(BILLING, ["x"])
        assert caught.value.code == "subject_mismatch"


def test_people_that_two_issuers_share_are_known_by_their_sub(
    configured: Configured, idp: FakeIssuer, other: FakeIssuer, key: Path
) -> None:
    there = issuer_table(
        other, "there", 'client_id = "invoice-bot"', 'client_key = "file:client.pem"'
    )
    resource = f'[resources."{BILLING}"]\nsource = "jwt-bearer"\nissuer = "there"\n'
    token = idp.token("alice", audience="invoice-bot")
    with configured(acme(idp) + there + resource).on_behalf_of(token, purpose="p") as session:
        with pytest.raises(CredentialRejectedError) as caught:
            session.credential(BILLING, ["x"])
    assert caught.value.code == "principal_unknown_there"
    shared = configured(acme(idp) + there + 'subjects_of = ["acme"]\n' + resource)
    with shared.on_behalf_of(token, purpose="p") as session:
        assert claims(session.credential(BILLING, ["x"]).reveal())["sub"] == "alice"


def test_an_assertion_about_somebody_names_the_key_as_the_issuer_knows_it(
    configured: Configured, idp: FakeIssuer, key: Path
) -> None:
    identity = configured(
        acme(idp) + f'client_key_id = "key-1"\n[resources."{BILLING}"]\nsource = "jwt-bearer"\n'
    )
    with identity.on_behalf_of(idp.token("alice", audience="invoice-bot"), purpose="p") as session:
        session.credential(BILLING, ["x"])
    [form] = [dict(parse_qsl(r.body.decode())) for r in idp.received if r.path == "/token"]
    assert unverified(form["assertion"]).header["kid"] == "key-1"


def test_an_opaque_token_of_the_platform_is_no_jwt_as_actor(
    configured: Configured, idp: FakeIssuer, key: Path, tmp_path: Path
) -> None:
    (tmp_path / "platform").write_text("opaque-token-of-the-platform")
    identity = configured(
        acme(idp)
        + f'[resources."{BILLING}"]\nsource = "token-exchange"\nactor = "workload"\nprovider = "file"\npath = "platform"\n'
    )
    with identity.on_behalf_of(idp.token("alice", audience="invoice-bot"), purpose="p") as session:
        session.credential(BILLING, ["x"])
    [form] = [dict(parse_qsl(r.body.decode())) for r in idp.received if r.path == "/token"]
    assert form["actor_token_type"] == ACCESS_TOKEN


def certificate_of_a_workload(name: str = "spiffe://prod.example/agent") -> Certificate:
    later = time.time() + 3600
    return Certificate("chain", Secret("key"), "thumb", later, (name,), "bundle")


def test_a_token_is_bound_to_the_svid_where_the_client_has_no_certificate_of_its_own(
    configured: Configured, idp: FakeIssuer, key: Path
) -> None:
    svid = certificate_of_a_workload()
    text = acme(idp) + '[spiffe]\nsocket = "unix:///nowhere"\n' + f'[resources."{BILLING}"]\n'
    bound = configured(text + 'binding = "mtls"\n')._assembled.issuers["acme"]
    assert play(bound.certificate(), svids={None: svid}) is svid
    plain = configured(text)._assembled.issuers["acme"]
    assert play(plain.certificate(), svids={None: svid}) is None


class FakeWorkloadApi:
    """What is used of the package `spiffe`."""

    def __init__(self, name: str) -> None:
        key = SigningKey.generate()
        body = json.dumps({"sub": name}).encode()
        self.token = key.compact(encode_header(key.alg, typ="JWT", kid="k"), body)

    def fetch_jwt_svid(self, audience: set[str], timeout: float) -> FakeWorkloadApi:
        return self

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("spiffe://prod.example/agent", None),
        ("spiffe://evil.example/agent", "trust_domain_mismatch"),
        ("alice", "spiffe_id_malformed"),
    ],
)
def test_no_svid_of_another_trust_domain_comes_in(
    configured: Configured, monkeypatch: pytest.MonkeyPatch, name: str, code: str | None
) -> None:
    identity = configured(
        '[spiffe]\nsocket = "unix:///nowhere"\ntrust_domain = "prod.example"\n'
        f'[resources."{BILLING}"]\nsource = "workload-token"\nprovider = "spiffe"\n'
    )
    api = svids_of(identity._configuration)
    monkeypatch.setattr("agent_identity.http.svids._client", lambda _: FakeWorkloadApi(name))
    monkeypatch.setattr(api, "_source", lambda _: FakeContext())
    monkeypatch.setattr(
        "agent_identity.http.svids.certificate_of", lambda *_: certificate_of_a_workload(name)
    )
    for ask in (lambda: api.jwt(BILLING), api.certificate):
        if code is None:
            assert ask() is not None
            continue
        with pytest.raises(CredentialRejectedError) as caught:
            ask()
        assert caught.value.code == code


class FakeContext:
    """An X.509 context whose every attribute is another one."""

    def __getattr__(self, name: str) -> FakeContext:
        return self

    def __call__(self, *_: object) -> FakeContext:
        return self


def test_a_trust_domain_that_can_be_none_is_refused_at_once(configured: Configured) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured('[spiffe]\nsocket = "unix:///nowhere"\ntrust_domain = "spiffe://Prod/x"\n')
    assert caught.value.code == "trust_domain_malformed"


# -- refresh tokens in a vault -------------------------------------------------------------------------------------------


class Store:
    """A vault that several processes share. `reads` counts."""

    def __init__(self) -> None:
        self.held: dict[str, Secret] = {}
        self.reads = 0

    def read(self, reference: str) -> Flow[Secret | None]:
        yield from ()
        self.reads += 1
        return self.held.get(reference)

    def keep(self, reference: str, secret: Secret | None) -> Flow[None]:
        yield from ()
        if secret is None:
            self.held.pop(reference, None)
        else:
            self.held[reference] = secret


def test_refresh_tokens_are_read_as_the_vault_is_and_api_keys_from_a_cache() -> None:
    from agent_identity.assembly.secrets import Secrets
    from agent_identity.http.world import World
    from agent_identity.provenance.ledger import open_ledger

    store = Store()
    with open_ledger("memory:", state_dir=Path()) as ledger:
        world = World(lambda: None, ledger)
        secrets = Secrets(store, time.time)
        store.held["vault:a#token"] = Secret("first")
        assert run(secrets.read("vault:a#token"), world.answer).reveal() == "first"
        store.held["vault:a#token"] = Secret("second")  # by another process
        assert run(secrets.read("vault:a#token"), world.answer).reveal() == "second"
        store.reads = 0
        for _ in range(3):
            assert run(secrets.optional("vault:a#token")(), world.answer).reveal() == "second"
        assert store.reads == 1
        world.close()


# -- arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "code"),
    [
        (None, "subject_malformed"),
        (7, "subject_malformed"),
        (b"x", "subject_malformed"),
        (object(), "subject_malformed"),
        ("", "subject_empty"),
        (SubjectTokens(), "subject_empty"),
    ],
)
def test_what_shows_no_principal_is_an_error_of_the_caller(
    configured: Configured, idp: FakeIssuer, key: Path, subject: object, code: str
) -> None:
    identity = configured(acme(idp))
    with pytest.raises(ConfigurationError) as caught:
        identity.on_behalf_of(subject, purpose="p")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("subject", "code"),
    [
        (SubjectTokens(access_token="a.b.c"), "no_issuer_trusted"),
        *((given, "subject_malformed") for given in (None, 7, b"x", object())),
    ],
    ids=range(5),
)
def test_an_embedded_authority_knows_names_alone(
    configured: Configured, subject: object, code: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured("").on_behalf_of(subject, purpose="p")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"purpose": 5}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"expires_in": "60"}, "expires_in"),
        ({"expires_in": True}, "expires_in"),
        ({"expires_in": float("nan")}, "expires_in"),
        ({"max_depth": "3"}, "max_depth"),
        ({"max_depth": True}, "max_depth"),
        ({"task": 7}, "task"),
        ({"scopes": 5}, "scope_malformed"),
        ({"scopes": "a b"}, "scope_malformed"),
        ({"resources": "https://x.example"}, "resource_malformed"),
        ({"resources": 5}, "resource_malformed"),
    ],
)
def test_an_argument_of_another_kind_is_an_error_of_the_caller(
    configured: Configured, given: dict[str, object], code: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured("").on_behalf_of("user:alice", **{"purpose": "p", **given})
    assert caught.value.code == code


@pytest.mark.parametrize("trigger", ["", "x" * 201, "a\nb", "a\u202eb", "a\0", None, 5])
def test_a_trigger_is_one_line_that_can_be_shown(configured: Configured, trigger: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured("").autonomous(trigger=trigger, purpose="p")
    assert caught.value.code == "trigger"


# -- keys of the state directory -------------------------------------------------------------------------------------------


def test_a_signer_that_others_can_open_is_refused(
    configured: Configured, idp: FakeIssuer, key: Path, tmp_path: Path
) -> None:
    configured(acme(idp))
    assert (tmp_path / "state" / "signer.lock").stat().st_mode & 0o777 == 0o600
    (tmp_path / "state" / "signer.pem").chmod(0o644)
    with pytest.raises(ConfigurationError) as caught:
        configured(acme(idp))
    assert caught.value.code == "state_not_private"


@pytest.mark.parametrize("name", ["signer.lock", "signer.pem"])
def test_a_folder_where_a_key_belongs_is_told(
    configured: Configured, idp: FakeIssuer, key: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "state" / name).mkdir(parents=True)
    with pytest.raises(ConfigurationError) as caught:
        configured(acme(idp))
    assert caught.value.code == "state_unusable"


def test_a_lock_that_leads_elsewhere_is_not_followed(
    configured: Configured, idp: FakeIssuer, key: Path, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "signer.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError) as caught:
        configured(acme(idp))
    assert caught.value.code == "state_unusable"
    assert not (tmp_path / "elsewhere").exists()


# -- who signs first grants -------------------------------------------------------------------------------------------

VAULT = '[vault]\naddress = "https://vault.example"\nrole = "r"\n'


def jwks_of(*arguments: object) -> list[str]:
    done = CliRunner().invoke(app, ["authority", "jwks", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return [key["kid"] for key in json.loads(done.stdout)["keys"]]


def with_agent(tmp_path: Path, lines: str, rest: str) -> Path:
    path = tmp_path / "agent-identity.toml"
    policy = '[policy]\nengine = "grants-only"\n[ledger]\nurl = "memory:"\n'
    path.write_text(f'[agent]\nname = "invoice-bot"\n{lines}{policy}{rest}')
    path.chmod(0o600)
    return path


async def test_a_signer_that_is_passed_goes_before_the_file(
    tmp_path: Path, idp: FakeIssuer, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    own = SigningKey.generate("Ed25519")
    path = with_agent(tmp_path, 'signer_id = "urn:x:finance"\n', acme(idp))
    with AgentIdentity.from_config(path, signer=MemorySigner(own)) as identity:
        assert [one["kid"] for one in identity.jwks()["keys"]] == [own.thumbprint]
        assert await identity.ajwks() == identity.jwks()
        assert isinstance(await identity.averifier(BILLING), Verifier)
        with identity.on_behalf_of(
            idp.token("alice", audience="invoice-bot"), purpose="p"
        ) as session:
            local_call()
            [made] = [one for one in session.records() if one.kind == "grant.made"]
    assert made.to_dict()["anchor"] == "urn:x:finance"
    assert not (tmp_path / "state" / "signer.pem").exists()


@tool()
def local_call() -> None: ...


def test_a_signer_of_ones_own_needs_no_issuer_and_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))

    class Elsewhere:
        def keys(self, /) -> Any: ...
        def sign(self, data: bytes, kid: str, /) -> Any: ...

    with pytest.raises(ConfigurationError) as caught:
        AgentIdentity.from_config(with_agent(tmp_path, "", ""), signer=Elsewhere())
    assert caught.value.code == "value_missing"
    named = with_agent(tmp_path, 'signer_id = "urn:x:s"\n', "")
    with AgentIdentity.from_config(named, signer=Elsewhere()) as identity:
        with pytest.raises(ConfigurationError) as without:
            identity.authority  # noqa: B018 - asking is the test
    assert without.value.code == "no_authority"


def test_a_signer_and_an_issuer_that_both_sign_are_refused(tmp_path: Path) -> None:
    path = with_agent(
        tmp_path,
        'grants = "acme"\n',
        '[issuers.acme]\nissuer = "https://a.example"\ntrust = ["grants"]\nclient_id = "c"\nclient_key = "env:K"\n',
    )
    with pytest.raises(ConfigurationError) as caught:
        AgentIdentity.from_config(path, signer=MemorySigner(SigningKey.generate()))
    assert caught.value.code == "value_conflict"


@pytest.mark.parametrize("grants_elsewhere", [True, False])
async def test_keys_that_an_issuer_publishes_are_not_ours_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grants_elsewhere: bool
) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    issuer = '[issuers.acme]\nissuer = "https://a.example"\ntrust = ["grants"]\nclient_id = "c"\nclient_key = "env:K"\n'
    path = with_agent(tmp_path, 'grants = "acme"\n' if grants_elsewhere else "", issuer)
    with AgentIdentity.from_config(path) as identity:
        if not grants_elsewhere:
            assert identity.jwks() == await identity.ajwks()
            return
        for ask in (identity.ajwks, lambda: identity.averifier(BILLING)):
            with pytest.raises(ConfigurationError) as caught:
                await ask()
            assert caught.value.code == "anchor_keys"
        for now in (identity.jwks, lambda: identity.verifier(BILLING)):
            with pytest.raises(ConfigurationError):
                now()
    done = CliRunner().invoke(app, ["authority", "jwks", "--config", str(path)])
    assert done.exit_code == 2
    assert "anchor_keys" in done.output


def test_the_command_prints_the_keys_of_whoever_signs(
    tmp_path: Path, idp: FakeIssuer, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, other = tmp_path / "state", tmp_path / "other"
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(state))
    monkeypatch.delenv("AGENT_IDENTITY_CONFIG", raising=False)
    authority = jwks_of()
    assert jwks_of("--state-dir", state) == authority != jwks_of("--state-dir", other)
    embedded = with_agent(tmp_path, "", "")
    assert jwks_of("--config", embedded) == authority
    named = SigningKey.from_pem(key.read_bytes()).thumbprint
    assert jwks_of("--config", with_agent(tmp_path, 'signer = "file:client.pem"\n', "")) == [named]
    made = jwks_of("--config", with_agent(tmp_path, "", acme(idp)))
    assert made == [SigningKey.from_pem((state / "signer.pem").read_bytes()).thumbprint]
    path = tmp_path / "agent-identity.toml"
    assert jwks_of("--config", path, "--state-dir", other) != made
    assert (other / "signer.pem").exists()
    monkeypatch.setenv("AGENT_IDENTITY_CONFIG", str(path))
    assert jwks_of() == made
    assert jwks_of("--state-dir", state) == authority


def test_the_name_of_a_key_in_a_vault_is_made_of_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said by `config show`, stays when the key is rotated, and nobody is asked for it."""
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))

    def name(lines: str, vault: str = VAULT) -> str:
        path = with_agent(tmp_path, lines, vault)
        done = CliRunner().invoke(app, ["config", "show", "--config", str(path), "--json"])
        with AgentIdentity.from_config(path) as identity:
            found = str(json.loads(done.stdout)["effective"]["agent"]["signer_id"])
            assert identity._assembled.anchor.name == found
        return found

    first = name('signer = "vault:transit/a"\n')
    assert first.startswith("urn:agent-identity:signer:")
    assert len(first) == len("urn:agent-identity:signer:") + 43
    assert name('signer = "vault:transit/a"\n') == first
    others = {
        name('signer = "vault:transit/b"\n'),
        name('signer = "vault:other/a"\n'),
        name('signer = "vault:transit/a"\n', VAULT + 'namespace = "eu"\n'),
        name('signer = "vault:transit/a"\n', VAULT.replace("vault.ex", "bao.ex")),
    }
    assert len(others | {first}) == 5
    assert name('signer = "vault:transit/a"\nsigner_id = "urn:x:s"\n') == "urn:x:s"


def test_why_the_agents_own_key_stays_in_memory_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AgentIdentity.from_config(with_agent(tmp_path, 'key = "vault:transit/a"\n', VAULT))
    assert caught.value.code == "not_supported"
    assert "signs every call" in str(caught.value)
