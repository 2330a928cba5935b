# SPDX-License-Identifier: Apache-2.0
"""`agent-identity authority serve` before an identity provider: the command itself, sessions against it, a service that verifies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from agent_identity import (
    AgentIdentity,
    CredentialRejectedError,
    CredentialUnavailableError,
    InvalidSubjectError,
    VerificationError,
    current_credential,
    tool,
)
from agent_identity.cli.app import app
from agent_identity.cli.authority.configured import organisations_authority
from agent_identity.config import read_configuration
from agent_identity.jose import loads_object, unverified
from agent_identity.keys.signing import SigningKey, public_signing_jwk
from agent_identity.testing import FakeIssuer, FakeWeb
from agent_identity.testing.web import FakeResponse, Received
from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, Verifier

AUDIENCE = "https://agents.acme.example"


class Service(FakeWeb):
    """A service that takes calls whose chain the anchor began."""

    def __init__(self) -> None:
        self.verifier: Verifier | None = None
        self.calls: list[Any] = []
        super().__init__()

    def answer(self, request: Received) -> FakeResponse:
        assert self.verifier is not None
        try:
            call = self.verifier.verify_request(
                request.method,
                f"{self.url}{request.path}",
                request.headers,
                request.body,
                scopes=["invoices:read"],
            )
        except VerificationError as error:
            return FakeResponse(403, {"X-Code": error.code}, b"{}")
        self.calls.append(call)
        return FakeResponse(200, {}, b"{}")


class Anchor:
    """The command in a process of its own, and what its operator has: its configuration and its state directory."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.config = folder / "anchor.toml"
        self.config.write_text(config)
        self.config.chmod(0o600)
        self.state = folder / "anchor-state"
        self.lines: list[str] = []
        self.port = 0
        self.start()

    def start(self) -> None:
        run = "from agent_identity.cli import main; main()"
        command = [sys.executable, "-c", run, "authority", "serve"]
        options = ["--config", self.config, "--state-dir", self.state, "--port", self.port]
        self.process = subprocess.Popen(
            [*command, *map(str, options)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline() for _ in range(3)]
        self.url = self.lines[0].split()[1]
        self.port = int(self.url.rpartition(":")[2])
        assert not self.lines[0].startswith("register")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=20)

    def operator(self, *command: str) -> None:
        """What the operator types, beside the process that serves."""
        group = [] if command[0] in ("revoke", "reinstate") else ["authority"]
        done = CliRunner().invoke(app, [*group, *command, "--state-dir", str(self.state)])
        assert done.exit_code == 0, done.output

    def jwks(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/jwks", trust_env=False).json())


@pytest.fixture
def idp() -> Iterator[FakeIssuer]:
    with FakeIssuer() as issuer:
        yield issuer


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as web:
        yield web


def write_jwks(path: Path, *keys: SigningKey) -> None:
    path.write_text(json.dumps({"keys": [public_signing_jwk(key) for key in keys]}))
    path.chmod(0o600)


def anchor_file(idp: FakeIssuer, service: Service) -> str:
    return f"""\
[authority]
audiences = ["{AUDIENCE}"]
[authority.clients.invoice-bot]
jwks = "file:invoice-bot.jwks.json"
subject_clients = ["web-app"]
resources = ["{service.url}"]
scopes = ["invoices:read"]
[authority.clients.mail-bot]
jwks = "file:invoice-bot.jwks.json"
subject_clients = ["mail-app"]
resources = ["{service.url}"]
scopes = ["invoices:read"]
[authority.clients.ci-bot]
auth = "workload_token"
issuer = "idp"
subject = "project_path:acme/bot"
claims = {{ ref = "main" }}
subject_clients = ["web-app"]
resources = ["{service.url}"]
scopes = ["invoices:read"]
[issuers.idp]
issuer = "{idp.url}"
trust = ["subjects"]
"""


@pytest.fixture
def anchor(tmp_path: Path, idp: FakeIssuer, service: Service) -> Iterator[Anchor]:
    key = SigningKey.generate()
    (tmp_path / "client.pem").write_bytes(key.to_pem())
    (tmp_path / "client.pem").chmod(0o600)
    write_jwks(tmp_path / "invoice-bot.jwks.json", key)
    served = Anchor(tmp_path, anchor_file(idp, service))
    try:
        service.verifier = verifier(served, idp, service)
        yield served
    finally:
        served.stop()


def verifier(anchor: Anchor, idp: FakeIssuer, service: Service) -> Verifier:
    trust = TrustAnchor(
        anchor.url,
        jwks=anchor.jwks(),
        evidence="issuer",
        subjects=[idp.url],
        revocations=UnsafeNoRevocations(),
    )
    return Verifier([trust], audience=service.url)


Agents = Callable[..., AgentIdentity]


@pytest.fixture
def agent(
    tmp_path: Path,
    anchor: Anchor,
    idp: FakeIssuer,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Agents]:
    """An agent's own configuration: the anchor signs its first grants, the identity provider gives its tokens."""
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "agent-state"))
    made: list[AgentIdentity] = []

    def make(name: str = "invoice-bot", **more: object) -> AgentIdentity:
        path = tmp_path / "agent.toml"
        path.write_text(f"""\
[agent]
name = "{name}"
grants = "anchor"
[issuers.anchor]
issuer = "{anchor.url}"
trust = ["grants"]
client_id = "{more.get("client_id", name)}"
{more.get("proof", 'client_key = "file:client.pem"')}
[issuers.idp]
issuer = "{idp.url}"
trust = ["subjects"]
audience = "{AUDIENCE}"
client_id = "{name}"
client_key = "file:client.pem"
[resources."{service.url}"]
issuer = "idp"
scopes = ["invoices:read", "invoices:pay"]
[policy]
engine = "grants-only"
[ledger]
url = "memory:"
""")
        path.chmod(0o600)
        made.append(AgentIdentity.from_config(path))
        return made[-1]

    yield make
    for identity in made:
        identity.close()


def alices(idp: FakeIssuer, **claims: Any) -> str:
    return idp.token("alice", audience=AUDIENCE, claims={"azp": "web-app", **claims})


def test_it_says_where_it_is_and_who_may_ask(anchor: Anchor) -> None:
    assert anchor.lines[1].split() == [
        "metadata",
        f"{anchor.url}/.well-known/oauth-authorization-server",
    ]
    assert anchor.lines[2].split() == ["client", "ci-bot", "(workload_token)"]


def test_a_session_opened_with_a_principals_token_calls_a_service_that_trusts_the_anchor(
    agent: Agents, anchor: Anchor, idp: FakeIssuer, service: Service
) -> None:
    identity = agent()

    @tool(resource=service.url, scopes=["invoices:read"])
    def read() -> int:
        return httpx.get(f"{service.url}/invoices", auth=current_credential()).status_code

    with identity.on_behalf_of(alices(idp), purpose="close the books") as session:
        assert read() == 200
        with session.delegate("archive-bot", scopes=["invoices:read"]):
            assert read() == 200
    first, second = service.calls
    for call in service.calls:
        assert (call.principal.sub, call.principal.iss) == ("alice", idp.url)
    assert [actor.agent for actor in first.chain] == ["urn:agent-identity:agent:invoice-bot"]
    assert len(second.chain) == 2
    root = loads_object(unverified(sent_roots(service)[0]).payload)
    assert (root["iss"], root["sub_iss"], root["evidence"]) == (anchor.url, idp.url, "issuer")
    assert root["txn"] == session.id
    assert identity.who_triggered(session).verified


def sent_roots(service: Service) -> list[str]:
    return [
        each.headers["agent-delegation"].split(", ")[-1]
        for each in service.received
        if "agent-delegation" in each.headers
    ]


async def test_in_async_code_it_is_the_same(
    agent: Agents, idp: FakeIssuer, service: Service
) -> None:
    identity = agent()

    @tool(resource=service.url, scopes=["invoices:read"])
    async def read() -> int:
        async with httpx.AsyncClient(auth=current_credential()) as client:
            return (await client.get(f"{service.url}/invoices")).status_code

    async with identity.on_behalf_of(alices(idp), purpose="close the books"):
        assert await read() == 200
    assert service.calls[0].principal.sub == "alice"
    await identity.aclose()


@pytest.mark.parametrize(
    ("name", "claims", "scopes"),
    [
        ("invoice-bot", {"azp": "mail-app"}, ["invoices:read"]),
        ("invoice-bot", {"azp": None}, ["invoices:read"]),
        ("mail-bot", {}, ["invoices:read"]),
        ("invoice-bot", {}, ["invoices:pay"]),
        ("invoice-bot", {"act": {"sub": "urn:x:front-end"}}, ["invoices:read"]),
    ],
    ids=["another application", "no application", "another agent", "more scopes", "somebody acts"],
)
def test_E15_what_the_anchor_refuses_reaches_no_service(
    agent: Agents, idp: FakeIssuer, service: Service, name: str, claims: Any, scopes: list[str]
) -> None:
    identity = agent(name)
    with identity.on_behalf_of(alices(idp, **claims), purpose="p") as session:
        with pytest.raises(CredentialRejectedError):
            session.credential(service.url, scopes)
    assert not service.received
    assert idp.issued == 0


def test_B09_a_token_that_names_another_agent_opens_no_session(
    agent: Agents, idp: FakeIssuer
) -> None:
    token = alices(idp, may_act={"sub": "urn:agent-identity:agent:mail-bot"})
    with pytest.raises(InvalidSubjectError, match="another actor"):
        agent().on_behalf_of(token, purpose="p").__enter__()


def test_an_agent_that_says_it_is_another_gets_no_grant(agent: Agents, idp: FakeIssuer) -> None:
    identity = agent("mail-bot", client_id="invoice-bot")  # the client's table says invoice-bot
    with identity.on_behalf_of(alices(idp), purpose="p") as session:
        with pytest.raises(CredentialRejectedError) as caught:
            session.credential(*reach(identity))
    assert caught.value.code == "grant_mismatch"


def reach(identity: AgentIdentity) -> tuple[str, list[str]]:
    (resource,) = identity._configuration.resources
    return resource, ["invoices:read"]


@pytest.mark.parametrize("reference", ["principal", "agent", "session"])
def test_B15_what_the_operator_revokes_gets_nothing_more(
    agent: Agents, anchor: Anchor, idp: FakeIssuer, reference: str
) -> None:
    identity = agent()
    with identity.on_behalf_of(alices(idp), purpose="p") as session:
        names = {
            "principal": f"user:{idp.url}#alice",
            "agent": "agent:invoice-bot",
            "session": session.id,
        }
        anchor.operator("revoke", names[reference])
        with pytest.raises(CredentialRejectedError):
            session.credential(*reach(identity))


def test_who_is_reinstated_begins_again_with_a_newer_token(
    agent: Agents, anchor: Anchor, idp: FakeIssuer
) -> None:
    identity, name = agent(), f"user:{idp.url}#alice"
    anchor.operator("revoke", name)
    anchor.operator("reinstate", name)
    time.sleep(1.1)  # to the next second
    with identity.on_behalf_of(alices(idp), purpose="p") as session:
        assert session.credential(*reach(identity)).reveal()


def test_a_slip_in_the_folders_name_revokes_nothing_and_says_so(tmp_path: Path) -> None:
    command = ["revoke", "*", "--state-dir", str(tmp_path / "other")]
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, "no_state" in done.output) == (2, True)
    assert not (tmp_path / "other" / "authority").exists()


def test_B22_a_rotated_key_signs_at_once_and_the_old_one_stays_published(
    agent: Agents, anchor: Anchor, idp: FakeIssuer, service: Service
) -> None:
    (old,) = [key["kid"] for key in anchor.jwks()["keys"]]
    anchor.operator("rotate")
    new = [key["kid"] for key in anchor.jwks()["keys"]]
    assert (len(new), new[1]) == (2, old)
    service.verifier = verifier(anchor, idp, service)
    with agent().on_behalf_of(alices(idp), purpose="p") as session:
        credential = session.credential(service.url, ["invoices:read"])
        headers = credential.headers("GET", service.url)
    root = unverified(headers["Agent-Delegation"])
    assert root.header["kid"] == new[0]


def test_an_anchor_that_starts_again_knows_keys_clients_and_revocations(
    agent: Agents, anchor: Anchor, idp: FakeIssuer
) -> None:
    before = anchor.jwks()
    anchor.operator("revoke", f"user:{idp.url}#alice")
    anchor.stop()
    time.sleep(1.1)  # a proof of the second in which it starts could have been used before
    anchor.start()
    assert anchor.jwks() == before
    identity = agent()
    with identity.on_behalf_of(alices(idp), purpose="p") as session:
        with pytest.raises(CredentialRejectedError):
            session.credential(*reach(identity))
    bob = idp.token("bob", audience=AUDIENCE, claims={"azp": "web-app"})
    with identity.on_behalf_of(bob, purpose="p") as session:
        assert session.credential(*reach(identity)).scopes == {"invoices:read"}


def test_an_identity_provider_that_is_away_is_an_outage(
    agent: Agents, idp: FakeIssuer, service: Service
) -> None:
    def away(_: Received, write: Callable[[bytes], None]) -> None:
        write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    identity = agent()
    with identity.on_behalf_of(alices(idp), purpose="p") as session:
        idp.scripts["/jwks"] = away  # the agent has its keys, the anchor hasn't
        with pytest.raises(CredentialUnavailableError):
            session.credential(service.url, ["invoices:read"])
    assert not service.received


def test_a_clients_new_key_is_read_from_its_file(
    tmp_path: Path, anchor: Anchor, idp: FakeIssuer, service: Service, agent: Agents
) -> None:
    fresh = SigningKey.generate()
    write_jwks(tmp_path / "invoice-bot.jwks.json", fresh)
    (tmp_path / "client.pem").write_bytes(fresh.to_pem())
    with agent().on_behalf_of(alices(idp), purpose="p") as session:
        assert session.credential(service.url, ["invoices:read"]).reveal()


@pytest.mark.parametrize("ref", ["main", "evil"])
def test_a_job_shows_what_its_platform_says_of_it_and_holds_no_key(
    agent: Agents,
    anchor: Anchor,
    idp: FakeIssuer,
    monkeypatch: pytest.MonkeyPatch,
    ref: str,
) -> None:
    said = idp.token("project_path:acme/bot", audience=anchor.url, typ="JWT", claims={"ref": ref})
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("GITLAB_OIDC_TOKEN", said)
    identity = agent("ci-bot", proof='client_auth = "workload_token"')
    with identity.on_behalf_of(alices(idp), purpose="p") as session:
        if ref == "main":
            assert session.credential(*reach(identity)).reveal()
            return
        with pytest.raises(CredentialRejectedError):
            session.credential(*reach(identity))
    assert idp.issued == 0


# -- keys of trust domains and platforms -------------------------------------------------------------------------------------


def bundle(*keys: tuple[SigningKey, str]) -> bytes:
    return json.dumps(
        {"keys": [public_signing_jwk(key) | {"use": use} for key, use in keys]}
    ).encode()


@pytest.mark.parametrize(
    ("use", "is_taken"), [("jwt-svid", True), ("x509-svid", False), ("enc", False)]
)
def test_a_trust_domains_bundle_gives_the_keys_of_its_svids_alone(
    tmp_path: Path, idp: FakeIssuer, use: str, is_taken: bool
) -> None:
    domain = SigningKey.generate()
    (tmp_path / "bundle.json").write_bytes(bundle((domain, use)))
    (tmp_path / "bundle.json").chmod(0o600)
    file = tmp_path / "anchor.toml"
    file.write_text(f"""\
[authority]
issuer = "{AUDIENCE}"
[authority.clients.bot]
auth = "spiffe_jwt"
subject = "spiffe://acme.example/bot"
jwks = "file:bundle.json"
resources = ["https://billing.example"]
[issuers.idp]
issuer = "{idp.url}"
trust = ["subjects"]
""")
    file.chmod(0o600)
    authority = organisations_authority(read_configuration(file, needs_policy=False), None, "")
    from agent_identity.flow import HttpRequest
    from agent_identity.jose import encode_header

    now = int(time.time())
    svid = domain.compact(
        encode_header(domain.alg, typ="JWT", kid=domain.thumbprint),
        json.dumps(
            {"sub": "spiffe://acme.example/bot", "aud": [AUDIENCE], "iat": now, "exp": now + 60}
        ).encode(),
    )
    form = (
        "client_id=bot&grant_type=urn:ietf:params:oauth:grant-type:token-exchange"
        "&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
        f"&client_assertion={svid}"
    )
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = authority.handle(HttpRequest("POST", f"{AUDIENCE}/token", headers, form.encode()))
    answer = json.loads(response.body)["error_description"]
    # once the client is proven, it is told what else is wrong
    assert answer == ("grants_only" if is_taken else "key_unknown")
    authority.close()
