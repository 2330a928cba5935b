# SPDX-License-Identifier: Apache-2.0
"""What `doctor` says of an issuer: its metadata against the file, and a dry run for one resource."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent_identity.cli.app import app
from agent_identity.keys.signing import SigningKey
from agent_identity.testing import FakeIssuer
from agent_identity.testing.web import FakeResponse, Received

BILLING = "https://billing.example"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"


class Advertising(FakeIssuer):
    """An issuer whose metadata has other members; None takes one away."""

    def __init__(self) -> None:
        self.more: dict[str, Any] = {}
        self.refusal: FakeResponse | None = None
        super().__init__()

    def metadata(self) -> dict[str, Any]:
        found = super().metadata() | self.more
        return {name: value for name, value in found.items() if value is not None}

    def answer(self, request: Received) -> FakeResponse:
        if request.path == "/token" and self.refusal is not None:
            return self.refusal
        return super().answer(request)


@pytest.fixture
def idp() -> Iterator[Advertising]:
    with Advertising() as issuer:
        yield issuer


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, idp: Advertising, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "400")
    key = tmp_path / "client.pem"
    key.write_bytes(SigningKey.generate().to_pem())
    key.chmod(0o600)

    def written(resource: str = "", issuer: str = "", rest: str = "") -> Path:
        path = tmp_path / "agent-identity.toml"
        path.write_text(
            f'[agent]\nname = "invoice-bot"\n[policy]\nengine = "grants-only"\n[issuers.acme]\n'
            f'issuer = "{idp.url}"\ntrust = ["subjects"]\nclient_id = "invoice-bot"\n'
            f'client_key = "file:client.pem"\n{issuer}\n[resources."{BILLING}"]\n{resource}\n{rest}'
        )
        path.chmod(0o600)
        return path

    return written


def doctor(path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(
        app, ["doctor", "--json", "--config", str(path), *options], catch_exceptions=False
    )
    return done.exit_code, json.loads(done.stdout)


def differences(told: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (check["status"], check["message"], check["remedy"])
        for check in told["checks"]
        if check["check"] == "issuer acme" and check["status"] != "ok"
    ]


def test_an_issuer_that_offers_all_or_lists_nothing_has_no_difference(
    idp: Advertising, write: Write
) -> None:
    """RFC 8414 §2: a list that is absent says nothing."""
    path = write('scopes = ["a"]')
    assert differences(doctor(path)[1]) == []
    idp.more = {
        "grant_types_supported": [EXCHANGE],
        "scopes_supported": ["a", "b"],
        "token_endpoint_auth_methods_supported": ["none", "private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["ES256"],
        "dpop_signing_alg_values_supported": ["ES256"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }
    code, told = doctor(path)
    assert (code, differences(told)) == (0, [])
    messages = [check["message"] for check in told["checks"]]
    assert "its metadata offers what the file wants" in messages


@pytest.mark.parametrize(
    ("more", "resource", "issuer", "status", "says", "remedy"),
    [
        (
            {"grant_types_supported": ["authorization_code"]},
            "",
            "",
            "warning",
            f'it offers the grant types authorization_code; resources."{BILLING}" wants {EXCHANGE}',
            "source",
        ),
        (
            {"token_endpoint_auth_methods_supported": ["client_secret_basic"]},
            "",
            "",
            "warning",
            "it offers the client authentication methods client_secret_basic; the file wants private_key_jwt",
            "client_auth",
        ),
        (
            {"token_endpoint_auth_signing_alg_values_supported": ["RS256", "PS256"]},
            "",
            "",
            "warning",
            "it takes client assertions signed with PS256, RS256; client_key signs with ES256",
            "issuers.acme.client_key",
        ),
        (
            {"dpop_signing_alg_values_supported": ["RS256"]},
            "",
            "",
            "warning",
            "it takes DPoP proofs signed with RS256; the agent's key signs with ES256",
            'binding = "none"',
        ),
        (
            {"id_token_signing_alg_values_supported": ["HS256"]},
            "",
            'algorithms = ["ES256"]',
            "warning",
            "it signs ID tokens with HS256; the file accepts ES256",
            "issuers.acme.algorithms",
        ),
        (
            {"scopes_supported": ["openid"]},
            'scopes = ["invoices:read"]',
            "",
            "warning",
            f'it lists the scopes openid; resources."{BILLING}" wants invoices:read',
            "scopes",
        ),
        (
            {"revocation_endpoint": None},
            "",
            "",
            "warning",
            "its metadata has no revocation_endpoint; the file wants tokens revoked when a session ends",
            'revoke = "none"',
        ),
        (
            {"code_challenge_methods_supported": None},
            'source = "authorization-code"\nscopes = ["openid"]',
            "",
            "failed",
            'its metadata lists no PKCE methods; the source "authorization-code" wants S256',
            'pkce = "assume"',
        ),
        (
            {"code_challenge_methods_supported": ["plain"]},
            'source = "authorization-code"\nscopes = ["openid"]',
            "",
            "failed",
            'its metadata lists the PKCE methods plain; the source "authorization-code" wants S256',
            'pkce = "assume"',
        ),
        (
            {"authorization_endpoint": None},
            'source = "authorization-code"\nscopes = ["openid"]',
            "",
            "failed",
            'its metadata has no authorization_endpoint, which the source "authorization-code" wants',
            "issuers.acme.endpoints",
        ),
        (
            {
                "require_pushed_authorization_requests": True,
                "pushed_authorization_request_endpoint": None,
            },
            'source = "authorization-code"\nscopes = ["openid"]',
            "",
            "failed",
            "it requires pushed authorization requests, and its metadata has no pushed_authorization_request_endpoint",
            "issuers.acme.endpoints",
        ),
        (
            {"device_authorization_endpoint": None},
            'source = "device"\nscopes = ["openid"]',
            "",
            "failed",
            'its metadata has no device_authorization_endpoint, which the source "device" wants',
            "issuers.acme.endpoints",
        ),
        (
            {},
            'source = "ciba"\nscopes = ["openid"]',
            "",
            "failed",
            'its metadata has no backchannel_authentication_endpoint, which the source "ciba" wants',
            "issuers.acme.endpoints",
        ),
        (
            {},
            'source = "device"\nscopes = ["a"]',
            "",
            "warning",
            f'its metadata has no introspection_endpoint, and resources."{BILLING}" has no scope openid; an opaque token would not show who signed in',
            "openid",
        ),
    ],
)
def test_each_difference_is_one_line_with_what_is_offered_what_is_wanted_and_what_to_do(
    idp: Advertising,
    write: Write,
    more: dict[str, Any],
    resource: str,
    issuer: str,
    status: str,
    says: str,
    remedy: str,
) -> None:
    idp.more = more
    code, told = doctor(write(resource, issuer))
    ((found, message, advice),) = differences(told)
    assert (found, message) == (status, says)
    assert remedy in advice
    assert code == (1 if status == "failed" else 0)


def test_the_key_that_a_line_names_settles_the_difference(idp: Advertising, write: Write) -> None:
    idp.more = {"code_challenge_methods_supported": None, "revocation_endpoint": None}
    sign_in = 'source = "authorization-code"\nscopes = ["openid"]'
    path = write(sign_in, 'pkce = "assume"\nrevoke = "none"')
    assert differences(doctor(path)[1]) == []


def test_endpoints_of_the_file_count_as_offered(idp: Advertising, write: Write) -> None:
    sign_in = 'source = "ciba"\nscopes = ["openid"]'
    given = f'endpoints = {{backchannel_authentication_endpoint = "{idp.url}/bc"}}'
    assert differences(doctor(write(sign_in, given))[1]) == []


def test_an_issuer_without_metadata_is_compared_by_the_endpoints_of_the_file(
    idp: Advertising, write: Write
) -> None:
    given = f'metadata = "none"\njwks = "{idp.url}/jwks"\nendpoints = {{token_endpoint = "{idp.url}/token"}}'
    ((status, message, _),) = differences(doctor(write("", given))[1])
    assert (status, message.partition(";")[0]) == (
        "warning",
        "its metadata has no revocation_endpoint",
    )


def test_names_in_metadata_cant_break_a_line(idp: Advertising, write: Write) -> None:
    idp.more = {"grant_types_supported": ["a\x1b[31m", "b\nc", "x" * 5000, "\u202e"]}
    ((_, message, _),) = differences(doctor(write())[1])
    assert message.startswith("it offers the grant types none; ")


# -- a dry run for one resource -------------------------------------------------------------------------------------

AUTONOMOUS = "[cli]\nautonomous = true\n"
OWN = 'source = "client-credentials"\nscopes = ["a"]'


def test_a_dry_run_shows_what_was_obtained_and_gives_it_back(
    idp: Advertising, write: Write
) -> None:
    code, told = doctor(write(OWN, rest=AUTONOMOUS), "--resource", BILLING)
    assert code == 0
    assert told["ok"]
    obtained = told["obtained"]
    assert 0 < obtained.pop("lifetime") <= 300
    assert obtained.pop("expires_at") > 1_700_000_000
    assert obtained == {
        "resource": BILLING,
        "issuer": idp.url,
        "source": "client-credentials",
        "token_type": "DPoP",
        "scopes": ["a"],
        "binding": "dpop",
        "opaque": False,
        "revoked": True,
    }
    assert len(idp.revoked) == 1
    assert idp.issued == 1
    assert idp.revoked[0] not in json.dumps(told)


def test_a_dry_run_for_a_principal_takes_a_reference_to_their_token(
    idp: Advertising, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALICE", idp.token("alice", audience="invoice-bot"))
    path = write('scopes = ["a"]')
    code, told = doctor(path, "--resource", BILLING, "--subject-token", "env:ALICE")
    assert (code, told["obtained"]["source"]) == (0, "token-exchange")
    done = CliRunner().invoke(
        app,
        ["doctor", "--config", str(path), "--resource", BILLING, "--subject-token", "env:ALICE"],
    )
    assert re.search(r"type DPoP, for \d+ s, scopes a, bound to the agent's key", done.stdout)
    assert "given back: the issuer revoked it" in done.stdout
    assert not [token for token in idp.revoked if token in done.output]


def test_a_token_that_cant_be_given_back_is_a_warning(idp: Advertising, write: Write) -> None:
    idp.more = {"revocation_endpoint": None}
    code, told = doctor(write(OWN, rest=AUTONOMOUS), "--resource", BILLING)
    assert code == 0
    assert [check["status"] for check in told["checks"]] == ["ok", "warning"]
    assert not told["obtained"]["revoked"]


@pytest.mark.parametrize(
    ("status", "error", "code", "key"),
    [
        (401, "invalid_client", "invalid_client", "client_auth"),
        (400, "invalid_target", "invalid_target", "audience"),
        (400, "invalid_scope", "invalid_scope", "scopes"),
        (400, "unsupported_grant_type", "unsupported_grant_type", "source"),
        (400, "unauthorized_client", "unauthorized_client", "grant type"),
        (403, "E_GATEWAY", "unknown_error", "gateway"),
    ],
)
def test_a_refused_dry_run_shows_code_remedy_and_the_issuers_own_words(
    idp: Advertising, write: Write, status: int, error: str, code: str, key: str
) -> None:
    body = {"error": error, "error_description": "ask \x1b[1mBob in room 5"}
    kind = {"Content-Type": "application/json"}
    idp.refusal = FakeResponse(status, kind, json.dumps(body).encode())
    path = write(OWN, rest=AUTONOMOUS)
    left, told = doctor(path, "--resource", BILLING)
    ((check),) = told["checks"]
    assert (left, told["ok"], told["obtained"]) == (1, False, None)
    assert check["message"].endswith(f"({code})")
    assert key in check["remedy"]
    assert check["detail"].endswith("ask [1mBob in room 5")
    assert "Bob" not in check["message"]
    done = CliRunner().invoke(app, ["doctor", "--config", str(path), "--resource", BILLING])
    assert "the issuer says: " in done.stdout
    token = CliRunner().invoke(
        app,
        [
            "token",
            "--json",
            "--config",
            str(path),
            "--resource",
            BILLING,
            "--method",
            "GET",
            "--url",
            BILLING,
        ],
    )
    assert json.loads(token.stderr)["detail"].endswith("Bob in room 5")


def test_a_dry_run_without_a_principal_is_refused_unless_the_file_allows_it(
    idp: Advertising, write: Write
) -> None:
    code, told = doctor(write(OWN), "--resource", BILLING)
    assert code == 1
    assert "autonomous_not_allowed" in told["checks"][0]["message"]
    assert idp.issued == 0


def test_a_subject_token_without_a_resource_is_an_error(write: Write) -> None:
    done = CliRunner().invoke(
        app, ["doctor", "--json", "--config", str(write()), "--subject-token", "env:X"]
    )
    assert (done.exit_code, json.loads(done.stderr)["code"]) == (2, "request_incomplete")
