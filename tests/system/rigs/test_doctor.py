# SPDX-License-Identifier: Apache-2.0
"""What `doctor` says when a real server refuses: the code, what to check, and the server's own words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent_identity.cli.app import app

from .authorization_server import AuthorizationServer
from .conftest import AGENT_TABLE, PREAMBLE, Started

pytestmark = pytest.mark.system

TOOLS = "https://mcp.example.com/tools"
OPAQUE = "https://mcp.example.com/opaque"
SECRET = "s3cret %&+:"

Doctor = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Writes a file and runs doctor with it; with a resource, a dry run for it."""
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CLIENT_SECRET", SECRET)

    def run(issuer: str, resource: str, *options: str) -> tuple[int, dict[str, Any]]:
        path = tmp_path / "agent-identity.toml"
        cli = "\n[cli]\nautonomous = true\n"
        path.write_text(AGENT_TABLE + PREAMBLE + issuer + resource + cli)
        path.chmod(0o600)
        command = ["doctor", "--json", "--config", str(path), *options]
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        return done.exit_code, json.loads(done.stdout)

    return run


def acme(server: AuthorizationServer, client_id: str = "basic", *lines: str) -> str:
    proof = lines or ('client_secret = "env:CLIENT_SECRET"',)
    return "\n".join(
        ("[issuers.acme]", f'issuer = "{server.issuer}"', f'client_id = "{client_id}"', *proof, "")
    )


def resource(uri: str = TOOLS, *lines: str) -> str:
    own = lines or ('source = "client-credentials"', 'scopes = ["tool:read"]')
    return "\n".join((f'[resources."{uri}"]', *own, ""))


def test_a_dry_run_gets_a_token_of_a_real_issuer_and_gives_it_back(
    server: AuthorizationServer, doctor: Doctor
) -> None:
    code, told = doctor(acme(server), resource(OPAQUE), "--resource", OPAQUE)
    assert (code, told["ok"]) == (0, True)
    assert told["obtained"]["token_type"] == "DPoP"
    assert told["obtained"]["scopes"] == ["tool:read"]
    assert told["obtained"]["revoked"]
    (revoked,) = server.seen("/token/revocation")[-1:]
    assert revoked["form"]["token"] not in json.dumps(told)


def test_a_real_issuer_that_revokes_no_jwt_is_a_warning(
    server: AuthorizationServer, doctor: Doctor
) -> None:
    code, told = doctor(acme(server), resource(), "--resource", TOOLS)
    assert (code, told["obtained"]["revoked"]) == (0, False)
    assert "(unsupported_token_type)" in told["checks"][-1]["message"]


def refused(told: dict[str, Any]) -> dict[str, Any]:
    (check,) = told["checks"]
    assert (check["status"], told["obtained"]) == ("failed", None)
    return check


@pytest.mark.parametrize(
    ("client_id", "secret", "uri", "scopes", "code", "remedy", "words"),
    [
        ("basic", "another", TOOLS, "tool:read", "invalid_client", "client_auth", "authentication"),
        (
            "basic",
            SECRET,
            "https://forbidden.example.com",
            "tool:read",
            "invalid_target",
            "audience",
            "resource",
        ),
        ("limited", SECRET, TOOLS, "tool:write", "invalid_scope", "scopes", "scope"),
        (
            "inspector-only",
            SECRET,
            TOOLS,
            "tool:read",
            "invalid_request",
            "parameter",
            "grant type",
        ),
    ],
)
def test_each_refusal_of_a_real_server_says_what_to_check(
    server: AuthorizationServer,
    doctor: Doctor,
    monkeypatch: pytest.MonkeyPatch,
    client_id: str,
    secret: str,
    uri: str,
    scopes: str,
    code: str,
    remedy: str,
    words: str,
) -> None:
    monkeypatch.setenv("CLIENT_SECRET", secret)
    own = ('source = "client-credentials"', f'scopes = ["{scopes}"]')
    left, told = doctor(acme(server, client_id), resource(uri, *own), "--resource", uri)
    check = refused(told)
    assert left == 1
    assert check["message"].endswith(f"({code})")
    assert remedy in check["remedy"]
    assert words in check["detail"]
    assert check["detail"] not in check["message"]
    assert secret not in json.dumps(told)


def test_a_grant_type_that_a_real_server_doesnt_know_is_named(
    started: Started, doctor: Doctor
) -> None:
    with started(WITHOUT_CLIENT_CREDENTIALS="1") as server:
        issuer = acme(server, "front-end", 'client_auth = "none"')
        _, told = doctor(issuer, resource(), "--resource", TOOLS)
        assert refused(told)["message"].endswith("(unsupported_grant_type)")
        assert "source" in refused(told)["remedy"]
        _, told = doctor(issuer, resource())
    (difference,) = [check for check in told["checks"] if "grant types" in check["message"]]
    assert difference["message"].endswith("wants client_credentials")


def test_a_token_that_a_real_server_doesnt_take_is_an_invalid_grant(
    server: AuthorizationServer, other: AuthorizationServer, doctor: Doctor, monkeypatch: Any
) -> None:
    """The other domain's server doesn't trust tokens that nobody issued there."""
    monkeypatch.setenv("ALICE", other.sign_in()["access_token"])
    issuers = acme(server) + "\n".join(
        (
            "[issuers.people]",
            f'issuer = "{other.issuer}"',
            'trust = ["subjects"]',
            'audience = "https://agent.example/"',
            "",
        )
    )
    own = ('issuer = "acme"', 'scopes = ["tool:read"]')
    options = ("--resource", TOOLS, "--subject-token", "env:ALICE")
    _, told = doctor(issuers, resource(TOOLS, *own), *options)
    check = refused(told)
    assert check["message"].endswith("(invalid_grant)")
    assert "fresh token" in check["remedy"]
    assert check["detail"]


def test_the_metadata_of_a_real_server_is_compared_with_the_file(
    server: AuthorizationServer, doctor: Doctor
) -> None:
    _, told = doctor(acme(server), resource())
    messages = [check["message"] for check in told["checks"] if check["check"] == "issuer acme"]
    assert "its metadata offers what the file wants" in messages
    _, told = doctor(
        acme(server), resource(TOOLS, 'source = "client-credentials"', 'scopes = ["x"]')
    )
    (difference,) = [check for check in told["checks"] if "lists the scopes" in check["message"]]
    assert difference["message"].endswith(f'resources."{TOOLS}" wants x')
