# SPDX-License-Identifier: Apache-2.0
"""A real OpenBao: the workload's token logs in, and secrets of the configuration are read there when they are needed."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from agent_identity import AgentIdentity, current_credential, tool
from agent_identity.cli.app import app
from agent_identity.errors import (
    AgentIdentityError,
    CredentialError,
    CredentialUnavailableError,
    VerificationError,
)
from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, VerifiedCall, Verifier

from . import servers
from .conftest import Configured

pytestmark = pytest.mark.system

PLATFORM, AUDIENCE = "https://gitlab.example", "openbao"
SAAS = "https://saas.example"
PURPOSE = "close the books"


class OpenBao:
    """One running server, as its operator sees it, and the platform whose tokens it takes."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.root = httpx.Client(
            base_url=f"{address}/v1", headers={"X-Vault-Token": "root"}, trust_env=False
        )

    def set_up(self) -> None:
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        role = {
            "role_type": "jwt",
            "user_claim": "sub",
            "bound_audiences": [AUDIENCE],
            "token_policies": ["agent"],
            "token_ttl": "60s",
        }
        rules = """
path "secret/data/agent/*" { capabilities = ["create", "read", "update"] }
path "transit/keys/anchor-*" { capabilities = ["read"] }
path "transit/sign/anchor-*" { capabilities = ["update"] }
"""
        self.put("sys/auth/jwt", {"type": "jwt"})
        self.put("sys/mounts/transit", {"type": "transit"})
        keys = {"jwt_validation_pubkeys": [public.decode()], "bound_issuer": PLATFORM}
        self.put("auth/jwt/config", keys)
        self.put("sys/policies/acl/agent", {"policy": rules})
        self.put("auth/jwt/role/invoice-bot", role)

    def put(self, path: str, body: dict[str, Any]) -> None:
        self.root.post(f"/{path}", json=body).raise_for_status()

    def keep(self, path: str, **fields: str) -> None:
        """Write a secret, a new version of it."""
        self.put(f"secret/data/{path}", {"data": fields})

    def kept(self, path: str) -> dict[str, str]:
        found = self.root.get(f"/secret/data/{path}").raise_for_status().json()
        fields: dict[str, str] = found["data"]["data"]
        return fields

    def token(self, **claims: object) -> str:
        """What the platform gives a job of its."""
        now = int(time.time())
        said = {"iss": PLATFORM, "sub": "job:7", "aud": AUDIENCE, "iat": now, "exp": now + 300}
        return jwt.encode(said | claims, self._key, "ES256", headers={"kid": "k"})


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with running(tmp_path_factory.mktemp("openbao")) as server:
        yield server


@contextmanager
def running(folder: Path) -> Iterator[OpenBao]:
    port = servers.free_port()
    address = f"http://127.0.0.1:{port}"
    command: list[str | Path] = [servers.openbao(), "server", "-dev", "-dev-root-token-id=root"]
    command.append(f"-dev-listen-address=127.0.0.1:{port}")
    env = {"HOME": str(folder), "BAO_ADDR": address}  # it writes a file into HOME
    ready = servers.answers(f"{address}/v1/sys/health")
    with servers.process(command, ready=ready, log=folder / "log", env=env):
        server = OpenBao(address)
        server.set_up()
        with closing(server.root):
            yield server


@pytest.fixture
def in_a_job(bao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform's token is where GitLab puts it."""
    monkeypatch.setenv("GITLAB_OIDC_TOKEN", bao.token())
    monkeypatch.setenv("SAAS_TOKEN", "opaque")


def vault(bao: OpenBao, provider: str = "gitlab") -> str:
    return f"""
[vault]
address = "{bao.address}"
role = "invoice-bot"
audience = "{AUDIENCE}"
provider = "{provider}"
"""


def api_key(reference: str) -> str:
    return f"""
[resources."{SAAS}"]
source = "api-key"
secret = "{reference}"
header = "X-Api-Key"
"""


def header_of(identity: AgentIdentity) -> str:
    with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
        return session.credential(SAAS).headers("GET", f"{SAAS}/v1")["X-Api-Key"]


@pytest.mark.usefixtures("in_a_job")
def test_the_platforms_token_opens_the_vault_and_a_key_comes_out(
    bao: OpenBao, configured: Configured
) -> None:
    bao.keep("agent/saas", key="k-123", other="x")
    assert header_of(configured(vault(bao) + api_key("vault:agent/saas#key"))) == "k-123"


@pytest.mark.usefixtures("in_a_job")
async def test_async_code_opens_it_alike(bao: OpenBao, configured: Configured) -> None:
    bao.keep("agent/saas", key="k-123")
    identity = configured(vault(bao) + api_key("vault:agent/saas#key"))
    async with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
        assert (await session.acredential(SAAS)).reveal() == "k-123"


@pytest.mark.usefixtures("in_a_job")
def test_a_stranger_is_given_no_delegation_data(bao: OpenBao, configured: Configured) -> None:
    bao.keep("agent/saas", key="k-123")
    identity = configured(vault(bao) + api_key("vault:agent/saas#key"))
    with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
        headers = session.credential(SAAS).headers("GET", f"{SAAS}/v1")
    assert headers == {"X-Api-Key": "k-123"}


@pytest.mark.usefixtures("in_a_job")
def test_a_rotated_key_is_picked_up_within_five_minutes(
    bao: OpenBao, configured: Configured
) -> None:
    ahead = 0.0
    bao.keep("agent/saas", key="old")
    text = vault(bao) + api_key("vault:agent/saas#key")
    identity = configured(text, clock=lambda: time.time() + ahead)
    assert header_of(identity) == "old"
    bao.keep("agent/saas", key="new")
    assert header_of(identity) == "old"  # read a moment ago
    ahead = 301.0
    os.environ["GITLAB_OIDC_TOKEN"] = bao.token(exp=int(time.time()) + 600)
    assert header_of(identity) == "new"


@pytest.mark.usefixtures("in_a_job")
def test_a_key_that_isnt_there_says_what_to_do(bao: OpenBao, configured: Configured) -> None:
    identity = configured(vault(bao) + api_key("vault:agent/nothing#key"))
    with pytest.raises(AgentIdentityError) as refused:
        header_of(identity)
    assert refused.value.code == "secret_missing"
    assert "vault:agent/nothing#key" in f"{refused.value} {refused.value.remedy}"


@pytest.mark.usefixtures("in_a_job")
def test_what_the_role_may_not_read_says_what_to_do(bao: OpenBao, configured: Configured) -> None:
    bao.keep("somebody-elses/saas", key="k-456")
    identity = configured(vault(bao) + api_key("vault:somebody-elses/saas#key"))
    with pytest.raises(CredentialError) as refused:
        header_of(identity)
    assert refused.value.code == "vault_forbidden"
    assert "role invoice-bot" in (refused.value.remedy or "")


@pytest.mark.parametrize("wrong", [{"iss": "https://evil.example"}, {"exp": 1, "iat": 0}])
def test_a_token_that_the_vault_refuses_says_what_to_do(
    bao: OpenBao,
    configured: Configured,
    monkeypatch: pytest.MonkeyPatch,
    wrong: dict[str, object],
) -> None:
    bao.keep("agent/saas", key="k-123")
    monkeypatch.setenv("GITLAB_OIDC_TOKEN", bao.token(**wrong))
    identity = configured(vault(bao) + api_key("vault:agent/saas#key"))
    with pytest.raises(CredentialError) as refused:
        header_of(identity)
    assert refused.value.code in {"vault_login_refused", "token_expired"}
    assert refused.value.remedy


@pytest.mark.usefixtures("in_a_job")
def test_no_secret_shows_in_an_error_or_a_record(bao: OpenBao, configured: Configured) -> None:
    bao.keep("agent/saas", key="k-canary-123")
    identity = configured(vault(bao) + api_key("vault:agent/saas#key"))
    with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
        credential = session.credential(SAAS)
        records = json.dumps([record.to_dict() for record in session.records()])
    assert "k-canary-123" not in f"{credential!r} {records}"


def test_a_token_file_opens_the_vault(bao: OpenBao, configured: Configured, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(bao.token())
    bao.keep("agent/saas", key="k-123")
    text = vault(bao, "file") + f'path = "{token}"\n' + api_key("vault:agent/saas#key")
    assert header_of(configured(text)) == "k-123"


# -- a key that stays there -------------------------------------------------------------------------------------------

FINANCE = "urn:agent-identity:signer:finance"


@pytest.fixture(params=["ecdsa-p256", "ed25519"])
def anchor(bao: OpenBao, request: pytest.FixtureRequest) -> str:
    """A key of transit, made for one test."""
    name = f"anchor-{secrets.token_hex(4)}"
    bao.put(f"transit/keys/{name}", {"type": request.param})
    return name


def signing(bao: OpenBao, configured: Configured, name: str, **parts: Any) -> AgentIdentity:
    """An identity whose first grants that key signs; its one resource is told the chain."""
    agent = f'signer = "vault:transit/{name}"\nsigner_id = "{FINANCE}"\n'
    static = (
        f'[resources."{SAAS}"]\nsource = "static"\ntoken = "env:SAAS_TOKEN"\nassertion = "send"\n'
    )
    return configured(vault(bao) + static, agent=agent, **parts)


def called(identity: AgentIdentity) -> dict[str, str]:
    """The headers of one call's request, in a session of its own."""

    @tool(resource=SAAS)
    def close() -> dict[str, str]:
        return current_credential().headers("GET", f"{SAAS}/v1", b"")

    with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE):
        return close()


def kid_of(headers: dict[str, str]) -> str:
    kid: str = jwt.get_unverified_header(headers["Agent-Delegation"])["kid"]
    return kid


def service(jwks: dict[str, Any]) -> Verifier:
    """A service that was given those keys, and nothing else."""
    anchor = TrustAnchor(FINANCE, jwks, UnsafeNoRevocations(), evidence="agent")
    return Verifier([anchor], audience=SAAS, evidence="agent")


def verified(verifier: Verifier, headers: dict[str, str]) -> VerifiedCall:
    return verifier.verify_request("GET", f"{SAAS}/v1", list(headers.items()), b"", scopes=())


@pytest.mark.usefixtures("in_a_job")
def test_a_key_of_the_vault_signs_first_grants(
    bao: OpenBao, configured: Configured, anchor: str
) -> None:
    identity = signing(bao, configured, anchor)
    verifier = service(identity.jwks())
    call = verified(verifier, called(identity))
    assert (call.principal.sub, call.purpose) == ("cron:nightly", PURPOSE)
    assert identity.who_triggered(call.call.id).verified


@pytest.mark.usefixtures("in_a_job")
async def test_async_code_signs_there_alike(
    bao: OpenBao, configured: Configured, anchor: str
) -> None:
    identity = signing(bao, configured, anchor)

    @tool(resource=SAAS)
    async def close() -> dict[str, str]:
        return current_credential().headers("GET", f"{SAAS}/v1", b"")

    async with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE):
        headers = await close()
    assert kid_of(headers) == (await identity.ajwks())["keys"][0]["kid"]
    verified(service(await identity.ajwks()), headers)
    with pytest.raises(
        VerificationError
    ) as short:  # it wants an issuer's word, and a trigger has none
        verified(await identity.averifier(SAAS), headers)
    assert short.value.code == "evidence_too_low"


@pytest.mark.usefixtures("in_a_job")
def test_a_key_that_is_rotated_there_signs_the_next_grant_and_the_older_one_verifies_on(
    bao: OpenBao, configured: Configured, anchor: str
) -> None:
    identity = signing(bao, configured, anchor)
    before = called(identity)
    known = identity.jwks()
    bao.put(f"transit/keys/{anchor}/rotate", {})
    after = called(identity)
    assert kid_of(before) != kid_of(after)
    jwks = identity.jwks()
    assert [key["kid"] for key in jwks["keys"]] == [kid_of(after), kid_of(before)]
    verifier = service(jwks)
    for headers in (before, after):
        verified(verifier, headers)
    with pytest.raises(VerificationError):  # a service has to be told of the new key
        verified(service(known), after)


@pytest.mark.usefixtures("in_a_job")
def test_a_key_that_can_t_sign_or_isnt_there_says_what_to_do(
    bao: OpenBao, configured: Configured
) -> None:
    bao.put("transit/keys/anchor-aes", {})
    bao.put("transit/keys/somebody-elses", {"type": "ecdsa-p256"})
    for name, code in (
        ("anchor-aes", "vault_key_unusable"),
        ("anchor-nothing", "vault_key_missing"),
        ("somebody-elses", "vault_forbidden"),
    ):
        identity = signing(bao, configured, name)
        with pytest.raises(CredentialError) as refused:
            called(identity)
        assert refused.value.code == code
        assert refused.value.remedy
        with pytest.raises(CredentialError):
            identity.jwks()


@pytest.mark.usefixtures("in_a_job")
def test_a_signature_that_the_role_may_not_have_runs_no_tool(
    bao: OpenBao, configured: Configured
) -> None:
    bao.put("transit/keys/anchor-seen", {"type": "ecdsa-p256"})
    bao.put(
        "sys/policies/acl/seen",
        {"policy": 'path "transit/sign/anchor-seen/*" { capabilities = ["deny"] }'},
    )
    role = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": [AUDIENCE]}
    bao.put("auth/jwt/role/seeing", role | {"token_policies": ["agent", "seen"]})
    identity = signing(
        bao,
        lambda text, **how: configured(text.replace("invoice-bot", "seeing"), **how),
        "anchor-seen",
    )
    assert identity.jwks()["keys"]
    with pytest.raises(CredentialError) as refused:
        called(identity)
    assert refused.value.code == "vault_forbidden"


@pytest.mark.usefixtures("in_a_job")
def test_a_vault_that_dies_runs_no_tool(
    tmp_path_factory: pytest.TempPathFactory, configured: Configured, bao: OpenBao
) -> None:
    ran: list[bool] = []

    @tool(resource=SAAS)
    def close() -> None:
        ran.append(True)

    with running(tmp_path_factory.mktemp("dying")) as dying:
        dying.put("transit/keys/anchor-x", {"type": "ecdsa-p256"})
        os.environ["GITLAB_OIDC_TOKEN"] = dying.token()
        identity = signing(dying, configured, "anchor-x")
        with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE):
            close()
        session = identity.autonomous(trigger="cron:nightly", purpose=PURPOSE)
    assert ran == [True]
    with session:
        with pytest.raises(CredentialUnavailableError):
            close()
        kinds = [record.kind for record in session.records()]
    assert ran == [True]
    assert "grant.made" not in kinds


@pytest.mark.usefixtures("in_a_job")
def test_the_command_line_looks_at_the_key_and_prints_it(
    bao: OpenBao, configured: Configured, anchor: str, tmp_path: Path
) -> None:
    identity = signing(bao, configured, anchor)
    path = tmp_path / "agent-identity-0.toml"
    printed = CliRunner().invoke(app, ["authority", "jwks", "--config", str(path)])
    assert json.loads(printed.stdout) == identity.jwks()
    looked = CliRunner().invoke(app, ["doctor", "--config", str(path), "--json"])
    [found] = [
        each for each in json.loads(looked.stdout)["checks"] if each["check"] == "agent.signer"
    ]
    assert found["status"] == "ok"
    assert identity.jwks()["keys"][0]["kid"] in found["message"]
