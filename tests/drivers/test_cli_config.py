# SPDX-License-Identifier: Apache-2.0
"""The commands that a configuration is for: `init`, `doctor`, `config`, `token`, `exec`, against issuers on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from agent_identity.cli.app import app
from agent_identity.cli.doctor import remote
from agent_identity.cli.init import KINDS, template_text
from agent_identity.config import configuration_schema, read_configuration
from agent_identity.jose import loads_object, unverified
from agent_identity.keys.signing import SigningKey
from agent_identity.provenance.ledger import open_ledger
from agent_identity.testing import FakeIssuer, FakeWeb, hostile
from agent_identity.testing.web import FakeResponse, Received

BILLING = "https://billing.example"
MAIL = "https://mail.example"
WITHOUT_SCRIPT = [sys.executable, "-c", "from agent_identity.cli import main; main()"]
CANARY = "canary-8c1f-secret"


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGENT_IDENTITY_CONFIG", "SPIFFE_ENDPOINT_SOCKET", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def idp() -> Iterator[FakeIssuer]:
    with FakeIssuer() as issuer:
        yield issuer


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "client.pem"
    path.write_bytes(SigningKey.generate().to_pem())
    path.chmod(0o600)
    return path


Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(text: str, rest: str = '[policy]\nengine = "grants-only"\n') -> Path:
        path = tmp_path / "agent-identity.toml"
        path.write_text(f'[agent]\nname = "invoice-bot"\n{rest}{text}')
        path.chmod(0o600)
        return path

    return write


def acme(idp: FakeIssuer) -> str:
    return (
        f'[issuers.acme]\nissuer = "{idp.url}"\ntrust = ["subjects"]\n'
        'client_id = "invoice-bot"\nclient_key = "file:client.pem"\n'
    )


def two_resources(idp: FakeIssuer, *, autonomous: bool = True) -> str:
    """One whose token nothing binds, and one with DPoP."""
    return (
        acme(idp)
        + f'[resources."{BILLING}"]\nsource = "client-credentials"\nscopes = ["a", "b"]\nbinding = "none"\n'
        + f'[resources."{MAIL}"]\nsource = "client-credentials"\nscopes = ["a"]\n'
        + f"[cli]\nautonomous = {str(autonomous).lower()}\n"
    )


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def process(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WITHOUT_SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(**more),
    )


def environment(**more: str) -> dict[str, str]:
    paths = [str(Path(path).resolve()) for path in sys.path if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


TERMINAL = """
import json, os, pty, sys
after, typed, *command = sys.argv[1:]
pid, terminal = pty.fork()
if not pid:
    os.execv(command[0], command)
told, is_typed = b"", False
while True:
    try:
        told += os.read(terminal, 1024)
    except OSError:
        break
    if not is_typed and after.encode() in told:
        is_typed = bool(os.write(terminal, typed.encode()))
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps([code, told.decode()]))
"""


def in_terminal(*arguments: object, after: str, typed: str) -> tuple[int, str]:
    """Run a command as whoever sits at a terminal does; `typed` is keyed in when `after` was said."""
    done = subprocess.run(
        [sys.executable, "-c", TERMINAL, after, typed, *WITHOUT_SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment(TERM="dumb"),
    )
    code, told = json.loads(done.stdout)
    return code, told


def claims(token: str) -> dict[str, object]:
    return dict(loads_object(unverified(token).payload))


def child(code: str) -> list[str]:
    return ["--", sys.executable, "-c", code]


# -- init --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_init_writes_can_be_read_as_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    done = run("init", "--kind", kind, "--output", path, "--name", "invoice-bot")
    assert (done.exit_code, done.stderr) == (0, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    configuration = read_configuration(path)
    assert configuration.agent.name == "invoice-bot"
    assert configuration.resources
    assert any("#" in line for line in path.read_text().splitlines())
    assert f"export AGENT_IDENTITY_CONFIG={path}" in done.stdout
    assert "agent-identity doctor" in done.stdout
    assert "@" not in path.read_text().replace("team@example.com", "")


@pytest.mark.parametrize(
    "kind", ["keycloak", "okta", "entra", "auth0", "github-actions", "kubernetes"]
)
def test_what_nobody_ran_against_the_vendor_says_so(kind: str) -> None:
    assert "# Not run against" in template_text(kind)


def test_each_kind_gets_its_credentials_in_its_own_way(tmp_path: Path) -> None:
    ways: dict[str, list[str | None]] = {}
    for kind in KINDS:
        run("init", "--kind", kind, "--output", tmp_path / f"{kind}.toml")
        resources = read_configuration(tmp_path / f"{kind}.toml").resources
        ways[kind] = [table.source for table in resources.values()]
    assert ways == {
        "embedded": [None],
        "oidc": ["token-exchange"],
        "sign-in": ["authorization-code"],
        "keycloak": ["token-exchange"],
        "okta": ["id-jag"],
        "entra": ["entra-obo", "workload-token"],
        "auth0": ["token-exchange"],
        "spiffe": ["token-exchange", "spiffe-jwt"],
        "github-actions": ["jwt-bearer"],
        "kubernetes": ["jwt-bearer"],
    }


def test_the_issuer_that_is_said_stands_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    done = run(
        "init", "--kind", "auth0", "--output", path, "--issuer", "https://x.auth0.com/", "--json"
    )
    assert read_configuration(path).issuers["auth0"].issuer == "https://x.auth0.com/"
    told = json.loads(done.stdout)
    assert (told["kind"], told["path"]) == ("auth0", str(path))
    assert told["next"][-1] == "agent-identity doctor"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--kind", "oidc", "--issuer", "http://idp.example"], "issuer_malformed"),
        (
            ["--kind", "oidc", "--issuer", 'https://x"\n[cli]\nautonomous = true'],
            "issuer_malformed",
        ),
        (["--kind", "oidc", "--name", 'x"\n[cli]'], "agent_name"),
        (["--kind", "embedded", "--issuer", "https://idp.example"], "issuer_unused"),
        (["--kind", "saml"], "unknown_kind"),
        ([], "kind_missing"),
    ],
)
def test_what_cannot_stand_in_the_file_is_refused_with_2(
    tmp_path: Path, arguments: list[str], code: str
) -> None:
    done = run("init", "--output", tmp_path / "new.toml", *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(code)
    assert not (tmp_path / "new.toml").exists()
    if code in ("unknown_kind", "kind_missing"):
        assert all(kind in done.stderr for kind in KINDS)


def test_a_file_that_is_there_is_kept_unless_force_is_said(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    path.write_text("mine")
    done = run("init", "--kind", "oidc", "--output", path)
    assert (done.exit_code, path.read_text()) == (2, "mine")
    assert "config_exists" in done.stderr
    assert run("init", "--kind", "oidc", "--output", path, "--force").exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_configuration(path).issuers
    assert [each.name for each in tmp_path.glob("*new*")] == ["new.toml"]


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_link_is_not_followed(tmp_path: Path, force: list[str]) -> None:
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "new.toml").symlink_to(tmp_path / "victim")
    run("init", "--kind", "oidc", "--output", tmp_path / "new.toml", *force)
    assert (tmp_path / "victim").read_text() == "theirs"


def test_init_asks_for_the_kind_where_a_person_can_answer(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    code, told = in_terminal("init", "--output", path, after="kind of issuer", typed="spiffe\n")
    assert (code, "a SPIFFE workload" in told) == (0, True)
    assert "spiffe-jwt" in path.read_text()


# -- config ------------------------------------------------------------------------------------------------------------


def test_config_schema_is_the_schema() -> None:
    done = run("config", "schema")
    assert (done.exit_code, json.loads(done.stdout)) == (0, configuration_schema())


def test_config_show_says_what_was_inferred_and_holds_no_secret(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    path = written(acme(idp) + f'[resources."{BILLING}"]\n')
    done = run("config", "show", "--config", path)
    assert done.exit_code == 0
    told = tomllib.loads(done.stdout)
    assert told["issuers"]["acme"]["client_key"] == f"file:{key}"
    assert 'client_auth = "private_key_jwt"  # inferred: there is a client_key' in done.stdout
    assert 'issuer = "acme"  # inferred: it is the only issuer' in done.stdout
    assert "lifetime = 3600.0  # default" in done.stdout
    assert "PRIVATE KEY" not in done.stdout
    as_json = json.loads(run("config", "show", "--json", "--config", path).stdout)
    assert as_json["effective"]["resources"][BILLING]["source"] == "token-exchange"
    assert {found["key"] for found in as_json["inferred"]} >= {"issuers.acme.client_auth"}


# -- doctor ------------------------------------------------------------------------------------------------------------


def checks(done: Any) -> list[tuple[str, str]]:
    return [(each["check"], each["status"]) for each in json.loads(done.stdout)["checks"]]


def messages(done: Any, status: str) -> str:
    found = json.loads(done.stdout)["checks"]
    return "\n".join(
        f"{each['message']} | {each['remedy']}" for each in found if each["status"] == status
    )


def test_doctor_of_a_sound_configuration_leaves_with_0_and_asks_for_no_token(
    idp: FakeIssuer, key: Path, written: Written, tmp_path: Path
) -> None:
    with FakeWeb() as web:
        web.scripts["/.well-known/oauth-protected-resource"] = hostile.answers(404)
        path = written(acme(idp) + f'[resources."{web.url}"]\n')
        done = run("doctor", "--json", "--config", path)
    assert done.exit_code == 0, done.stdout
    told = json.loads(done.stdout)
    assert (told["ok"], told["config"]) == (True, str(path))
    assert {each["status"] for each in told["checks"]} == {"ok"}
    assert {name for name, _ in checks(done)} == {
        *("issuers.acme.client_key", "issuer acme", f"resource {web.url}"),
        *("state directory", "ledger", "policy"),
    }
    assert told["inferred"][0].keys() == {"key", "value", "reason"}
    assert {request.method for request in idp.received} == {"GET"}
    assert idp.issued == 0
    assert not (tmp_path / "state").exists()  # a look makes nothing


def test_doctor_tells_people_what_was_inferred_and_why(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    done = run("doctor", "--config", written(acme(idp) + f'[resources."{BILLING}"]\n'))
    assert done.exit_code == 0
    assert "issuers.acme.client_auth = private_key_jwt  there is a client_key" in done.stdout
    assert "ok       issuer acme: " in done.stdout
    assert "\x1b[" not in done.stdout + done.stderr


def test_doctor_says_all_that_is_wrong_with_a_file_at_once_with_lines(written: Written) -> None:
    path = written('[issuers.acme]\nissuer = "ftp://x"\nclient_idd = "x"\n[frobnicate]\n')
    done = run("doctor", "--config", path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{path}:6: " in done.stderr
    assert f"{path}:7: " in done.stderr
    assert f"{path}:8: " in done.stderr
    told = json.loads(run("doctor", "--json", "--config", path).stdout)
    assert told["ok"] is False
    assert [problem["line"] for problem in told["problems"]] == [6, 7, 8]


def test_doctor_of_a_file_that_is_not_there_leaves_with_2(tmp_path: Path) -> None:
    done = run("doctor", "--config", tmp_path / "absent.toml")
    assert (done.exit_code, "config_missing" in done.stderr) == (2, True)


def test_doctor_finds_what_is_missing_and_shows_no_secret(
    idp: FakeIssuer, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRESENT", CANARY)
    monkeypatch.delenv("ABSENT", raising=False)
    (tmp_path / "empty").write_text("")
    (tmp_path / "open").write_text(CANARY)
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "client.pem").write_text(CANARY)
    (tmp_path / "client.pem").chmod(0o600)
    places = {"a": "env:PRESENT", "b": "env:ABSENT", "c": "file:empty", "d": "file:open"}
    text = acme(idp) + "".join(
        f'[resources."https://{name}.example"]\nsource = "static"\ntoken = "{place}"\n'
        for name, place in places.items()
    )
    path = written(text)
    done = run("doctor", "--json", "--config", path)
    assert done.exit_code == 1
    by_check: dict[str, set[str]] = {}
    for name, status in checks(done):
        by_check.setdefault(name, set()).add(status)
    assert by_check['resources."https://a.example".token'] == {"ok"}
    assert by_check['resources."https://b.example".token'] == {"failed"}
    assert by_check['resources."https://c.example".token'] == {"failed"}
    assert by_check['resources."https://d.example".token'] == {"ok", "warning"}
    assert by_check["issuers.acme.client_key"] == {"failed"}
    assert CANARY not in done.stdout + done.stderr
    assert CANARY not in run("doctor", "--config", path).output


def certificate(path: Path, days: float) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(private, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    data = private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(signed.public_bytes(encoding) + data)
    path.chmod(0o600)


@pytest.mark.parametrize(
    ("days", "status", "said"),
    [(90.5, "ok", "90 days left"), (3.5, "warning", "days left"), (-1, "failed", "has expired")],
)
def test_doctor_counts_the_days_of_a_certificate(
    idp: FakeIssuer, written: Written, tmp_path: Path, days: float, status: str, said: str
) -> None:
    certificate(tmp_path / "client.pem", days)
    text = acme(idp).replace("client_key", "client_certificate")
    done = run("doctor", "--json", "--config", written(text))
    assert ("issuers.acme.client_certificate", status) in checks(done)
    assert said in messages(done, status)
    assert done.exit_code == (1 if status == "failed" else 0)


@pytest.mark.parametrize(("ahead", "said"), [(-90, "s ahead of"), (90, "s behind")])
def test_doctor_warns_of_clocks_that_differ(
    idp: FakeIssuer, key: Path, written: Written, ahead: int, said: str
) -> None:
    shown = formatdate(time.time() + ahead, usegmt=True).encode()
    body = json.dumps(idp.metadata()).encode()

    def late(_: object, write: Callable[[bytes], None]) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        write(head % (shown, len(body)) + body)

    idp.scripts["/.well-known/oauth-authorization-server"] = late
    done = run("doctor", "--json", "--config", written(acme(idp)))
    assert done.exit_code == 0
    assert said in messages(done, "warning")


def test_doctor_finds_an_issuer_that_names_itself_otherwise_or_is_not_there(
    idp: FakeIssuer, key: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idp, "metadata", lambda: {"issuer": "https://other.example"})
    done = run("doctor", "--json", "--config", written(acme(idp)))
    assert (done.exit_code, "issuer_mismatch" in messages(done, "failed")) == (1, True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        text = acme(idp).replace(idp.url, f"http://127.0.0.1:{free.getsockname()[1]}")
        done = run("doctor", "--json", "--config", written(text))
    assert (done.exit_code, "could not be reached" in messages(done, "failed")) == (1, True)


def test_doctor_says_that_a_certificate_is_not_trusted(
    written: Written, key: Path, tmp_path: Path, idp: FakeIssuer
) -> None:
    certificate(tmp_path / "server.pem", 90)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        plain, _ = server.accept()
        with contextlib.suppress(OSError), plain:  # whoever doesn't trust us breaks off
            context.wrap_socket(plain, server_side=True).read()

    thread = threading.Thread(target=serve)
    thread.start()
    text = acme(idp).replace(idp.url, f"https://localhost:{server.getsockname()[1]}")
    done = run("doctor", "--json", "--config", written(text))
    thread.join()
    server.close()
    assert done.exit_code == 1
    assert "certificate isn't trusted: self-signed certificate" in messages(done, "failed")


def test_doctor_counts_the_days_of_an_issuers_certificate(
    written: Written, key: Path, tmp_path: Path, idp: FakeIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate(tmp_path / "server.pem", 30.5)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    trusting = ssl.create_default_context(cafile=tmp_path / "server.pem")
    monkeypatch.setattr(remote, "tls", lambda _: trusting)
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        plain, _ = server.accept()
        server.close()
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as secured:
            secured.recv(1)  # whoever only looks breaks off

    thread = threading.Thread(target=serve)
    thread.start()
    text = acme(idp).replace(idp.url, f"https://localhost:{server.getsockname()[1]}")
    done = run("doctor", "--json", "--config", written(text))
    thread.join()
    assert "TLS 1.3, the certificate of localhost is trusted, 30 days left" in messages(done, "ok")


def test_doctor_looks_at_issuers_side_by_side(key: Path, written: Written) -> None:
    together = threading.Barrier(3)

    def slow(request: object, write: Callable[[bytes], None]) -> None:
        together.wait(60)  # passes where all three are asked at the same time

    with FakeIssuer() as one, FakeIssuer() as two, FakeIssuer() as three:
        issuers = [one, two, three]
        for issuer in issuers:
            issuer.scripts["/.well-known/oauth-authorization-server"] = slow
        text = "".join(
            acme(issuer).replace("acme", f"n{number}") for number, issuer in enumerate(issuers)
        )
        run("doctor", "--json", "--config", written(text))
        assert not together.broken


def test_doctor_looks_at_state_ledger_and_policy(written: Written, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    open_ledger("sqlite:", state_dir=state).close()
    state.chmod(0o755)
    done = run("doctor", "--json", "--config", written("", rest=""))
    assert done.exit_code == 0
    found = dict(checks(done))
    assert (found["state directory"], found["ledger"], found["policy"]) == (
        "warning",
        "ok",
        "warning",
    )
    (state / "ledger.db").write_bytes(b"no database " * 1000)
    done = run("doctor", "--json", "--config", written(""))
    assert (done.exit_code, dict(checks(done))["ledger"]) == (1, "failed")


def test_doctor_asks_whether_the_vault_is_open(written: Written) -> None:
    with FakeWeb() as vault:
        path = written(f'[vault]\naddress = "{vault.url}"\nrole = "r"\n')
        assert ("vault", "ok") in checks(run("doctor", "--json", "--config", path))
        assert [request.path for request in vault.received] == ["/v1/sys/health"]
        vault.scripts["/v1/sys/health"] = lambda _, write: write(
            b"HTTP/1.1 503 Sealed\r\nContent-Length: 0\r\n\r\n"
        )
        done = run("doctor", "--json", "--config", path)
        assert (done.exit_code, "is sealed" in messages(done, "failed")) == (1, True)


def test_doctor_looks_for_the_workload_api(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda name: object())
    path = written(f'[spiffe]\nsocket = "unix:{tmp_path}/api.sock"\n')
    done = run("doctor", "--json", "--config", path)
    assert ("spiffe", "failed") in checks(done)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/api.sock")
        server.listen()
        done = run("doctor", "--json", "--config", path)
        assert ("spiffe", "ok") in checks(done)


# -- token -------------------------------------------------------------------------------------------------------------


def test_token_prints_a_token_that_goes_on_living(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    path = written(two_resources(idp))
    done = run("token", "--resource", BILLING, "--scope", "a", "--json", "--config", path)
    assert (done.exit_code, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert list(told) == ["resource", "token_type", "access_token", "expires_at", "scopes"]
    assert (told["resource"], told["token_type"], told["scopes"]) == (BILLING, "Bearer", ["a"])
    assert claims(told["access_token"])["aud"] == BILLING
    left = datetime.fromisoformat(told["expires_at"]) - datetime.now(UTC)
    assert 0 < left.total_seconds() <= 300
    assert told["expires_at"].endswith("Z")
    assert idp.revoked == []
    assert idp.issued == 1


def test_token_in_words_and_with_all_configured_scopes(
    idp: FakeIssuer, key: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_CONFIG", str(written(two_resources(idp))))
    lines = dict(
        line.split(": ", 1) for line in run("token", "--resource", BILLING).stdout.splitlines()
    )
    assert list(lines) == ["resource", "token_type", "access_token", "expires_at", "scopes"]
    assert lines["scopes"] == "a b"


def test_a_token_of_a_process_of_its_own_is_not_taken_back_when_it_ends(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    path = written(two_resources(idp))
    done = process("token", "--resource", BILLING, "--json", "--config", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert idp.revoked == []


def test_token_acts_for_the_principal_whose_token_a_reference_names(
    idp: FakeIssuer, key: Path, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(acme(idp) + f'[resources."{BILLING}"]\nbinding = "none"\nscopes = ["a"]\n')
    mine = idp.token("alice", audience="invoice-bot")
    monkeypatch.setenv("MINE", mine)
    Path("token").write_text(mine + "\n")  # in the working directory: whoever types a path means it
    for reference in ("env:MINE", "file:token", f"file:{Path('token').absolute()}"):
        done = run(
            "token", "--resource", BILLING, "--subject-token", reference, "--json", "--config", path
        )
        assert done.exit_code == 0, done.stderr
        assert claims(json.loads(done.stdout)["access_token"])["sub"] == "alice"
    with open_ledger("sqlite:", state_dir=tmp_path / "state") as ledger:
        opened = [
            record.to_dict() for record in ledger.records() if record.kind == "session.opened"
        ]
    assert {each["purpose"] for each in opened} == {"a token for the command line"}


def test_a_subject_token_that_fails_is_a_no(
    idp: FakeIssuer, key: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(acme(idp) + f'[resources."{BILLING}"]\nbinding = "none"\n')
    monkeypatch.setenv("MINE", idp.token("alice", audience="somebody-else"))
    done = run("token", "--resource", BILLING, "--subject-token", "env:MINE", "--config", path)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "audience_mismatch" in done.stderr


@pytest.mark.parametrize(
    "reference",
    [
        "{token}",
        "Bearer {token}",
        "env:{token}",
        "keyring-like:{token}",
        f"env:{CANARY.replace('-', '_')}",
        f"file:{CANARY}",
        "vault:{token}",
    ],
)
@pytest.mark.parametrize("command", ["token", "exec"])
def test_a_token_on_the_command_line_is_refused_and_not_repeated(
    idp: FakeIssuer, key: Path, written: Written, reference: str, command: str
) -> None:
    token = idp.token("alice", audience="invoice-bot")
    path = written(acme(idp) + f'[resources."{BILLING}"]\nbinding = "none"\n')
    rest = child("print('ran')") if command == "exec" else []
    given = reference.format(token=token)
    done = run(command, "--resource", BILLING, "--subject-token", given, "--config", path, *rest)
    assert done.exit_code == 2
    for part in (token, CANARY, CANARY.replace("-", "_")):
        assert part not in done.output
    assert idp.issued == 0


def test_a_subject_token_of_a_vault_is_refused_by_name(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    path = written(acme(idp) + f'[resources."{BILLING}"]\nbinding = "none"\n')
    given = "vault:agents/alice#token"
    done = run("token", "--resource", BILLING, "--subject-token", given, "--config", path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--subject-token can't be read from a vault" in done.stderr


class KeptKey(FakeWeb):
    """A vault that holds one private key."""

    def __init__(self, pem: str) -> None:
        self.pem = pem
        super().__init__()

    def answer(self, request: Received) -> FakeResponse:
        if request.path == "/v1/auth/jwt/login":
            assert json.loads(request.body) == {"role": "r", "jwt": "token-of-the-platform"}
            body: object = {"auth": {"client_token": "t", "lease_duration": 60}}
        else:
            body = {"data": {"data": {"value": self.pem}, "metadata": {"version": 1}}}
        return FakeResponse(200, {}, json.dumps(body).encode())


def test_a_clients_document_has_its_key_wherever_that_is_kept(
    written: Written, tmp_path: Path
) -> None:
    key = SigningKey.generate()
    (tmp_path / "platform").write_text("token-of-the-platform")
    (tmp_path / "platform").chmod(0o600)
    with KeptKey(key.to_pem().decode()) as vault:
        path = written(
            f'[vault]\naddress = "{vault.url}"\nrole = "r"\nprovider = "file"\npath = "platform"\n'
            '[issuers.acme]\nissuer = "https://idp.example"\n'
            'client_id = "https://agents.example/bot"\nclient_key = "vault:agents/bot"\n'
            'client_key_id = "key-1"\n'
        )
        done = run("config", "client-document", "acme", "--config", path)
    assert done.exit_code == 0, done.stderr
    [jwk] = json.loads(done.stdout)["jwks"]["keys"]
    assert (jwk["x"], jwk["kid"]) == (key.public_jwk["x"], "key-1")


def test_without_a_subject_nothing_is_done_unless_the_configuration_allows_it(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    path = written(two_resources(idp, autonomous=False))
    for command, rest in (("token", []), ("exec", child("print('ran')"))):
        done = run(command, "--resource", BILLING, "--config", path, *rest)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "[cli] autonomous = true" in done.stderr
    assert idp.received == []


def test_an_autonomous_session_says_that_the_command_line_triggered_it(
    idp: FakeIssuer, key: Path, written: Written, tmp_path: Path
) -> None:
    run("token", "--resource", BILLING, "--config", written(two_resources(idp)))
    with open_ledger("sqlite:", state_dir=tmp_path / "state") as ledger:
        session = next(record for record in ledger.records() if record.kind == "session.opened")
    done = run("why", session.session_id, "--json")
    assert json.loads(done.stdout)["trigger"] == "cli"


def test_a_bound_credential_is_headers_for_one_request(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    path = written(two_resources(idp))
    done = run("token", "--resource", MAIL, "--json", "--config", path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--method and --url" in done.stderr
    assert idp.received == []
    aim = ("--method", "GET", "--url", f"{MAIL}/inbox?x=1")
    done = run("token", "--resource", MAIL, *aim, "--json", "--config", path)
    told = json.loads(done.stdout)
    assert list(told) == ["resource", "token_type", "headers", "expires_at", "scopes"]
    assert told["token_type"] == "DPoP"
    assert told["headers"]["Authorization"].startswith("DPoP ")
    proof = claims(told["headers"]["DPoP"])
    assert (proof["htm"], proof["htu"]) == ("GET", f"{MAIL}/inbox")
    words = run("token", "--resource", MAIL, *aim, "--config", path).stdout
    assert "\nAuthorization: DPoP " in words
    assert idp.revoked == []


def test_headers_are_made_for_the_resource_alone_and_what_was_not_printed_is_taken_back(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    aim = ("--method", "GET", "--url", "https://elsewhere.example/")
    done = run("token", "--resource", MAIL, *aim, "--config", written(two_resources(idp)))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "foreign_url" in done.stderr
    assert len(idp.revoked) == 1


def test_method_and_url_belong_together(idp: FakeIssuer, key: Path, written: Written) -> None:
    path = written(two_resources(idp))
    done = run("token", "--resource", MAIL, "--method", "GET", "--config", path)
    assert (done.exit_code, "request_incomplete" in done.stderr) == (2, True)


def test_an_embedded_identity_serves_the_command_line_too(written: Written) -> None:
    path = written(f'[resources."{BILLING}"]\nscopes = ["a"]\n[cli]\nautonomous = true\n')
    aim = ("--method", "GET", "--url", f"{BILLING}/x")
    done = run("token", "--resource", BILLING, *aim, "--json", "--config", path)
    assert done.exit_code == 0
    assert {"Authorization", "DPoP"} <= json.loads(done.stdout)["headers"].keys()


def test_an_issuer_that_says_no_is_1_and_one_that_is_not_there_is_2(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    path = written(two_resources(idp))
    denied = run("token", "--resource", BILLING, "--scope", "c", "--config", path)
    assert denied.exit_code == 1
    unknown = run("token", "--resource", "https://unknown.example", "--config", path)
    assert unknown.exit_code == 1
    idp.close()
    gone = run("token", "--resource", BILLING, "--config", path)
    assert (gone.exit_code, gone.stdout) == (2, "")
    assert "Traceback" not in gone.stderr


def test_a_state_directory_that_is_named_goes_before_the_environments(
    idp: FakeIssuer, key: Path, written: Written, tmp_path: Path
) -> None:
    path, named = written(two_resources(idp)), tmp_path / "named"
    common = ("--resource", BILLING, "--config", path, "--state-dir", named)
    assert run("token", *common).exit_code == 0
    assert run("exec", *common, "--", "true").exit_code == 0
    with open_ledger("sqlite:", state_dir=named) as ledger:
        opened = [record for record in ledger.records() if record.kind == "session.opened"]
    assert len(opened) == 2
    assert not (tmp_path / "state").exists()
    looked = json.loads(run("doctor", "--json", "--config", path, "--state-dir", named).stdout)
    assert any(str(named) in check["message"] for check in looked["checks"])
    shown = json.loads(
        run("config", "show", "--json", "--config", path, "--state-dir", named).stdout
    )
    assert shown["state_dir"] == str(named)


def test_init_exports_the_state_directory_that_it_was_given(tmp_path: Path) -> None:
    done = run(
        *("init", "--kind", "embedded", "--output", tmp_path / "a.toml", "--json"),
        *("--state-dir", tmp_path / "my state"),
    )
    steps = json.loads(done.stdout)["next"]
    assert f"export AGENT_IDENTITY_STATE_DIR='{tmp_path / 'my state'}'" in steps


# -- exec --------------------------------------------------------------------------------------------------------------

ECHO = "import os, sys; sys.stdout.write(os.environ['AGENT_IDENTITY_TOKEN'])"


def test_exec_gives_the_program_a_token_and_takes_it_back(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    done = process(
        "exec", "--resource", BILLING, "--scope", "a", "--config", written(two_resources(idp)),
        *child(ECHO),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert claims(done.stdout)["scope"] == "a"
    assert idp.revoked == [done.stdout]


def test_the_rest_of_the_programs_environment_is_as_it_was(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    path = written(two_resources(idp))
    command = ("exec", "--resource", BILLING, "--config", path, "--env", "BILLING_TOKEN")
    done = process(*command, *child(code), MARK="x y")
    found = json.loads(done.stdout)
    token = found.pop("BILLING_TOKEN")
    assert claims(token)["aud"] == BILLING
    found.pop("LC_CTYPE", None)  # Python's own, of whichever process begins with the C locale
    assert found == {
        name: value for name, value in environment(MARK="x y").items() if name != "LC_CTYPE"
    }


@pytest.mark.parametrize("code", [0, 7, 255])
def test_the_programs_exit_code_is_passed_on_and_its_token_taken_back(
    idp: FakeIssuer, key: Path, written: Written, code: int
) -> None:
    path = written(two_resources(idp))
    command = child(f"raise SystemExit({code})")
    done = process("exec", "--resource", BILLING, "--config", path, *command)
    assert (done.returncode, len(idp.revoked)) == (code, 1)


def test_the_programs_own_options_are_its_own(idp: FakeIssuer, key: Path, written: Written) -> None:
    path = written(two_resources(idp))
    code = "import sys; print(sys.argv[1:])"
    command = [*child(code), "--json", "--", "-x"]
    done = process("exec", "--resource", BILLING, "--config", path, *command)
    assert done.stdout == "['--json', '--', '-x']\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_go_on_to_the_program_and_its_token_is_taken_back(
    idp: FakeIssuer, key: Path, written: Written, number: signal.Signals
) -> None:
    code = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(42))\n"
        "print('ready', flush=True)\ntime.sleep(30)"
    )
    with counting(number):
        running = subprocess.Popen(
            [*WITHOUT_SCRIPT, "exec", "--resource", BILLING, "--config",
             str(written(two_resources(idp))), *child(code)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        try:
            running.wait(timeout=20)
        finally:
            running.kill()
    assert (running.returncode, len(idp.revoked)) == (42, 1)


@contextlib.contextmanager
def counting(number: signal.Signals) -> Iterator[None]:
    """Programs that are started meanwhile aren't deaf to a signal, as those below `nohup` are to SIGHUP."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_a_key_of_the_terminal_reaches_the_program_once(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    """The terminal sends it to both; passed on, it would come twice."""
    code = (
        "import signal, time\ncame = []\nsignal.signal(2, lambda *_: came.append(1))\n"
        "print('ready', flush=True)\ntime.sleep(0.7)\nraise SystemExit(40 + len(came))"
    )
    path = written(two_resources(idp))
    command = ("exec", "--resource", BILLING, "--config", path, *child(code))
    ended, _ = in_terminal(*command, after="ready", typed="\x03")
    assert (ended, len(idp.revoked)) == (41, 1)


def test_a_program_that_a_signal_ended_is_128_and_its_number(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    path = written(two_resources(idp))
    command = child("import os; os.kill(os.getpid(), 9)")
    done = process("exec", "--resource", BILLING, "--config", path, *command)
    assert (done.returncode, len(idp.revoked)) == (137, 1)


def test_a_signal_before_the_program_runs_ends_it_all(
    idp: FakeIssuer, key: Path, written: Written, tmp_path: Path
) -> None:
    came = threading.Event()
    go_on = threading.Event()

    def wait(_: object, write: Callable[[bytes], None]) -> None:
        came.set()
        go_on.wait(20)

    idp.scripts["/token"] = wait
    mark = tmp_path / "ran"
    running = subprocess.Popen(
        [*WITHOUT_SCRIPT, "exec", "--resource", BILLING, "--config",
         str(written(two_resources(idp))), *child(f"open({str(mark)!r}, 'w')")],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert came.wait(20)
    running.send_signal(signal.SIGTERM)
    _, stderr = running.communicate(timeout=20)
    go_on.set()
    assert running.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in stderr
    assert not mark.exists()


def test_exec_as_json_leaves_standard_output_to_the_program_and_tells_of_the_run_at_the_end(
    idp: FakeIssuer, key: Path, written: Written, tmp_path: Path
) -> None:
    path = written(two_resources(idp))
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    command = ("exec", "--resource", BILLING, "--config", path, "--json", *child(code))
    done = process(*command)
    assert (done.returncode, done.stdout) == (3, "out\n")
    *_, last = done.stderr.splitlines()
    told = json.loads(last)
    assert (told["exit_code"], told["resource"]) == (3, BILLING)
    assert json.loads(run("why", told["session"], "--json").stdout)["trigger"] == "cli"
    missing = run(
        "exec", "--resource", BILLING, "--config", path, "--json", "--", "no-such-program"
    )
    assert (missing.exit_code, missing.stdout) == (127, "")
    assert json.loads(missing.stderr)["code"] == "program_not_run"


def test_exec_refuses_a_bound_credential_before_it_asks_for_one(
    idp: FakeIssuer, key: Path, written: Written, tmp_path: Path
) -> None:
    command = child(f"open({str(tmp_path / 'ran')!r}, 'w')")
    path = written(two_resources(idp))
    done = run("exec", "--resource", MAIL, "--config", path, *command)
    assert (done.exit_code, "credential_bound" in done.stderr) == (2, True)
    assert idp.received == []
    assert not (tmp_path / "ran").exists()


def test_a_program_that_is_not_there_is_127_and_nothing_is_asked_for(
    idp: FakeIssuer, key: Path, written: Written
) -> None:
    path = written(two_resources(idp))
    done = run("exec", "--resource", BILLING, "--config", path, "--", "no-such-program-here")
    assert (done.exit_code, idp.received) == (127, [])


def test_the_name_of_the_variable_is_a_name(idp: FakeIssuer, key: Path, written: Written) -> None:
    path = written(two_resources(idp))
    for name in ("A=B", "", "A B", "1A"):
        done = run("exec", "--resource", BILLING, "--config", path, "--env", name, "--", "true")
        assert (done.exit_code, "variable_malformed" in done.stderr) == (2, True)


def test_the_token_stands_in_no_command_line(idp: FakeIssuer, key: Path, written: Written) -> None:
    code = (
        "import os, pathlib\n"
        "for pid in ('self', str(os.getppid())):\n"
        "    print(pathlib.Path(f'/proc/{pid}/cmdline').read_text())\n"
    )
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("no /proc here")
    path = written(two_resources(idp))
    done = process("exec", "--resource", BILLING, "--config", path, *child(code))
    assert done.returncode == 0
    assert idp.revoked[0] not in done.stdout
    assert "eyJ" not in done.stdout


# -- finding the ledger ------------------------------------------------------------------------------------------------


def test_why_and_verify_find_the_ledger_of_the_configuration(
    idp: FakeIssuer, key: Path, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(two_resources(idp) + '[ledger]\nurl = "sqlite:///books/my ledger.db"\n')
    (tmp_path / "books").mkdir(mode=0o700)
    run("token", "--resource", BILLING, "--config", path)
    assert (tmp_path / "books" / "my ledger.db").exists()
    done = run("ledger", "verify", "--json", "--config", path)
    assert (done.exit_code, json.loads(done.stdout)["ok"]) == (0, True)
    assert json.loads(done.stdout)["records"] > 0
    with open_ledger(
        f"sqlite:///{tmp_path}/books/my ledger.db", state_dir=tmp_path / "state"
    ) as ledger:
        session = next(record for record in ledger.records() if record.session_id)
    assert run("why", session.session_id, "--config", path).exit_code == 0
    # the variable of the state folder goes before that of the configuration, what is said before both
    monkeypatch.setenv("AGENT_IDENTITY_CONFIG", str(path))
    assert run("ledger", "verify").exit_code == 2
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("AGENT_IDENTITY_STATE_DIR")
    assert run("ledger", "verify").exit_code == 0
    assert run("ledger", "verify", "--state-dir", tmp_path / "nowhere").exit_code == 2


def test_a_ledger_in_memory_is_gone(written: Written) -> None:
    path = written('[ledger]\nurl = "memory:"\n')
    done = run("ledger", "verify", "--config", path)
    assert (done.exit_code, "no_ledger" in done.stderr) == (2, True)


def test_doctor_says_where_a_resource_publishes_something_else_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    with FakeIssuer() as issuer, FakeWeb() as web:
        published = {
            "resource": web.url,
            "authorization_servers": ["https://other.example"],
            "scopes_supported": ["read"],
            "dpop_bound_access_tokens_required": True,
        }
        web.scripts["/.well-known/oauth-protected-resource"] = hostile.answers(200, published)
        path = tmp_path / "agent-identity.toml"
        path.write_text(
            f'[agent]\nname = "bot"\n[issuers.acme]\nissuer = "{issuer.url}"\nclient_id = "bot"\n'
            f'client_auth = "none"\n[resources."{web.url}"]\nsource = "client-credentials"\n'
            'binding = "none"\nscopes = ["read", "write"]\n[policy]\nengine = "grants-only"\n'
        )
        path.chmod(0o600)
        done = CliRunner().invoke(app, ["doctor", "--config", str(path), "--json"])
    checks = json.loads(done.stdout)["checks"]
    told = [check["message"] for check in checks if check["check"] == f"resource {web.url}"]
    assert told == [
        f"it doesn't name {issuer.url} among the issuers whose tokens it accepts",
        "it accepts only DPoP-bound tokens",
        "it doesn't know the scope write",
    ]
    assert done.exit_code == 0
