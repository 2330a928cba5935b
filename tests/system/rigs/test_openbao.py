# SPDX-License-Identifier: Apache-2.0
"""A real OpenBao: the workload's token logs in, and secrets of the configuration are read there when they are needed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent_identity import AgentIdentity
from agent_identity.errors import AgentIdentityError, CredentialError

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
        rules = 'path "secret/data/agent/*" { capabilities = ["create", "read", "update"] }'
        self.put("sys/auth/jwt", {"type": "jwt"})
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
    folder = tmp_path_factory.mktemp("openbao")
    port = servers.free_port()
    address = f"http://127.0.0.1:{port}"
    command: list[str | Path] = [servers.openbao(), "server", "-dev", "-dev-root-token-id=root"]
    command.append(f"-dev-listen-address=127.0.0.1:{port}")
    env = {"HOME": str(folder), "BAO_ADDR": address}  # it writes a file into HOME
    ready = servers.answers(f"{address}/v1/sys/health")
    with servers.process(command, ready=ready, log=folder / "log", env=env):
        running = OpenBao(address)
        running.set_up()
        with closing(running.root):
            yield running


@pytest.fixture
def in_a_job(bao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform's token is where GitLab puts it."""
    monkeypatch.setenv("GITLAB_OIDC_TOKEN", bao.token())


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
