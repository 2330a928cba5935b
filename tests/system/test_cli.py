# SPDX-License-Identifier: Apache-2.0
"""The installed command as a user runs it: real processes, real sockets, exit codes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import select
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import typer
from typer.testing import CliRunner

from agent_identity import AgentIdentity, current_credential, tool
from agent_identity.authority import Authority
from agent_identity.cli.app import app
from agent_identity.credentials.agent import Agent
from agent_identity.credentials.oauth.issuer import Issuer
from agent_identity.credentials.oauth.registration import InstanceRegistration
from agent_identity.credentials.root_grants import IssuedGrants, RootWanted
from agent_identity.credentials.source import Wanted
from agent_identity.credentials.sources.token_exchange import TokenExchange
from agent_identity.flow import Flow, Shared, pure, run
from agent_identity.http.transport import Transport
from agent_identity.provenance.ledger import open_ledger
from agent_identity.provenance.signatures import SignatureCheck
from agent_identity.provenance.trace import trace_of
from agent_identity.testing import KnownIssuer
from agent_identity.values import Principal, Secret

pytestmark = pytest.mark.system

BESIDE = Path(sys.executable).with_name("agent-identity")
WITHOUT_SCRIPT = [sys.executable, "-c", "from agent_identity.cli import main; main()"]
COMMAND = [str(BESIDE)] if BESIDE.exists() else WITHOUT_SCRIPT
ROOT = Path(__file__).parents[2]
JWS = re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}")
ANSI = "\x1b["


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would find another ledger or colour the output."""
    kept = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    return kept | {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), **more}


UNWANTED = {
    *("AGENT_IDENTITY_STATE_DIR", "AGENT_IDENTITY_CONFIG", "FORCE_COLOR", "NO_COLOR", "COLUMNS"),
}


def cli(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(**more),
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A state directory with the demo's ledger in it, and what the demo printed."""
    state = tmp_path_factory.mktemp("demo") / "state"
    return state, cli("demo", "--state-dir", state)


@pytest.fixture
def ledger_copy(demo: Any, tmp_path: Path) -> Path:
    """The demo's ledger in a folder of its own, to be damaged."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    for name in ("ledger.db", "subjects.db", "subjects.key"):
        (state / name).write_bytes((demo[0] / name).read_bytes())
        (state / name).chmod(0o600)
    return state


# -- demo ------------------------------------------------------------------------------------------------------------


def test_the_demo_tells_who_what_for_what_was_permitted_denied_and_who_triggered_it(demo) -> None:
    _, done = demo
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    assert "invoice-bot acts for user:alice" in out
    assert "close the October books" in out
    assert re.search(r"✔ list_invoices\(\"ACME\"\)", out)
    assert re.search(r"✘ pay_invoice\(\"2026-1041\"\)\n +policy_denied", out)
    assert re.search(r"✘ book_total\(\"Globex\", …\)\n +scope_not_granted", out)
    answer = out.partition("Who triggered this?")[2]
    assert answer.split("\n")[1] == "user:alice: close the October books"
    assert "archive-bot" in answer
    assert "by invoice-bot, denied by no-payments" in answer
    assert "every link of the ledger is intact" in answer


@pytest.mark.skipif(
    bool(importlib.metadata.entry_points(group="agent_identity.adapters", name="langchain")),
    reason="the adapter for LangChain is installed, whose tests run its demo",
)
def test_the_demo_of_an_adapter_that_is_not_installed_says_what_to_install(tmp_path: Path) -> None:
    done = cli("demo", "--langchain", "--json", "--state-dir", tmp_path / "state")
    assert done.returncode == 2
    told = json.loads(done.stderr or done.stdout)
    assert told["code"] == "extra_missing"
    assert "./integrations/langchain[demo]" in told["remedy"]
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("columns", [60, 80])
def test_the_demo_breaks_no_word_and_its_commands_can_be_pasted(
    tmp_path: Path, columns: int
) -> None:
    state = tmp_path / "a b"
    done = cli("demo", "--state-dir", state, COLUMNS=str(columns))
    told, _, commands = done.stdout.partition("Ask for one call alone, or for all of it\n")
    assert max(map(len, told.splitlines())) <= columns
    for call_id in call_ids(state):
        assert call_id in told.split()
    first, last = re.findall(r"^  \S+ (why (?:\\\n|.)+)$", commands, re.MULTILINE)
    for command, expected in ((first, "no-payments"), (last, "archive-bot")):
        shown = cli(*shlex.split(command.replace("\\\n", "")))
        assert (shown.returncode, expected in shown.stdout) == (0, True)


def test_the_demo_prints_no_token_and_no_colour_where_no_terminal_is(demo) -> None:
    _, done = demo
    assert JWS.search(done.stdout + done.stderr) is None
    assert ANSI not in done.stdout + done.stderr
    made = jwt.encode({"sub": "alice"}, "k" * 32, algorithm="HS256")
    assert JWS.search(f"Authorization: DPoP {made}")  # the pattern isn't blind


def test_the_demo_as_json_is_json_alone_and_its_calls_can_be_asked_for(tmp_path: Path) -> None:
    done = cli("demo", "--json", AGENT_IDENTITY_STATE_DIR=str(tmp_path / "state"))
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["ledger_ok"], told["state_dir"]) == (True, str(tmp_path / "state/demo"))
    assert not (tmp_path / "state" / "ledger.db").exists()  # which is that of `embedded()`
    assert [call["call"] for call in told["calls"] if call["outcome"] == "denied"] == [
        *('pay_invoice("2026-1041")', 'book_total("Globex", …)')
    ]
    assert told["trace"]["principal"] == {"sub": "alice", "iss": None, "profile": "user"}
    one = told["trace"]["calls"][0]
    asked = cli("why", one["call_id"], "--json", "--state-dir", told["state_dir"])
    assert asked.returncode == 0
    answer = json.loads(asked.stdout)
    assert answer["calls"] == [one]
    assert JWS.search(done.stdout + done.stderr + asked.stdout) is None


# -- why -------------------------------------------------------------------------------------------------------------


def call_ids(state: Path) -> list[str]:
    with open_ledger("sqlite:", state_dir=state) as ledger:
        found = [record.call_id for record in ledger.records() if record.call_id]
    return list(dict.fromkeys(found))


def test_why_prints_the_trace_of_a_call_as_the_contract_has_it(demo) -> None:
    state, _ = demo
    for call_id in call_ids(state):
        done = cli("why", call_id, "--json", "--state-dir", state)
        assert (done.returncode, done.stderr) == (0, "")
        answer = json.loads(done.stdout)
        with open_ledger("sqlite:", state_dir=state) as ledger:
            assert answer == trace_of(ledger, call_id, check=SignatureCheck(ledger)).to_dict()
        assert list(answer) == [
            *("ref", "verified", "witnessed", "principal", "trigger", "purpose", "chain", "calls")
        ]
        assert list(answer["chain"][0]) == ["agent", "depth", "scope", "evidence"]
        (call,) = answer["calls"]
        assert list(call) == [
            *("call_id", "parent", "agent", "tool", "resource", "labels", "decision", "policy_id"),
            *("code", "reason", "approval", "credential", "outcome", "error"),
            *("started", "ended", "trace_id", "span_id"),
        ]
        assert (answer["ref"], call["call_id"], answer["verified"]) == (call_id, call_id, True)
        assert answer["purpose"] == "close the October books"


def test_why_of_a_session_a_span_and_a_trace_finds_the_same_call(demo) -> None:
    state, _ = demo
    with open_ledger("sqlite:", state_dir=state) as ledger:
        intent = next(r for r in ledger.records() if r.kind == "call.intended")
    for ref in (intent.session_id, intent.span_id, intent.trace_id, intent.call_id):
        done = cli("why", ref, "--state-dir", state)
        assert done.returncode == 0
        assert intent.call_id in done.stdout
        assert ANSI not in done.stdout


@pytest.mark.parametrize("columns", [60, 80, None])
def test_why_breaks_no_word_and_no_id_on_a_terminal_of_any_width_or_in_a_file(
    demo, columns: int | None
) -> None:
    """Without COLUMNS and a terminal, as in a pipe, lines have up to 80 columns."""
    state, _ = demo
    with open_ledger("sqlite:", state_dir=state) as ledger:
        session = next(record for record in ledger.records() if record.kind == "session.opened")
        trace = trace_of(ledger, session.session_id, check=SignatureCheck(ledger))
    environment = {} if columns is None else {"COLUMNS": str(columns)}
    done = cli("why", session.session_id, "--state-dir", state, **environment)
    assert done.stdout == trace.to_text(columns or 80) + "\n"
    assert max(map(len, done.stdout.splitlines())) <= (columns or 80)
    assert {call.call_id for call in trace.calls} <= set(done.stdout.split())


def test_why_of_something_unknown_says_so_and_leaves_with_1(demo) -> None:
    done = cli("why", "call_unknown", "--json", "--state-dir", demo[0])
    assert (done.returncode, done.stdout) == (1, "")
    assert "unknown_reference" in done.stderr
    assert "Traceback" not in done.stderr


def test_why_takes_the_beginning_of_an_id_that_only_one_id_has(demo) -> None:
    state, _ = demo
    call_id = call_ids(state)[0]
    done = cli("why", call_id[:20], "--json", "--state-dir", state)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert (answer["ref"], answer["calls"][0]["call_id"]) == (call_id, call_id)


def test_why_of_a_beginning_that_several_ids_have_lists_some(demo) -> None:
    state, _ = demo
    done = cli("why", "call_", "--state-dir", state)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ambiguous_reference: several ids begin with call_: call_")
    listed = set(re.findall(r"call_[0-9a-f]{32}", done.stderr))
    assert len(listed) == 5
    assert listed < set(call_ids(state))


def test_why_last_is_the_newest_session_with_what_was_delegated_from_it(demo) -> None:
    state, _ = demo
    done = cli("why", "--last", "--json", "--state-dir", state)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert [call["call_id"] for call in answer["calls"]] == call_ids(state)
    assert {call["agent"].rpartition(":")[2] for call in answer["calls"]} == {
        *("invoice-bot", "archive-bot")
    }


@pytest.mark.parametrize("arguments", [[], ["call_x", "--last"]])
def test_why_takes_a_reference_or_last_and_not_both(demo, arguments: list[str]) -> None:
    done = cli("why", *arguments, "--state-dir", demo[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert "reference_missing" in done.stderr


# -- ledger verify ---------------------------------------------------------------------------------------------------


def test_a_sound_ledger_verifies_with_0(demo) -> None:
    done = cli("ledger", "verify", "--json", "--state-dir", demo[0])
    assert done.returncode == 0
    report = json.loads(done.stdout)
    with open_ledger("sqlite:", state_dir=demo[0]) as ledger:
        records = len([*ledger.records()])
    assert report == {
        "ok": True,
        "records": records,
        "writers": 1,
        "checkpoint": None,
        "first_bad": None,
    }


@pytest.mark.parametrize("column", ["body", "sealed", "hash"])
def test_one_flipped_byte_is_named_by_writer_and_number_and_leaves_with_1(
    ledger_copy: Path, column: str
) -> None:
    database = sqlite3.connect(ledger_copy / "ledger.db")
    with database:
        name, number, seq, data = database.execute(
            f"SELECT w.name, r.id, r.seq, r.{column} FROM records r JOIN writers w ON w.id = r.writer"  # noqa: S608
            " WHERE r.kind = 'call.intended' ORDER BY r.id DESC LIMIT 1"
        ).fetchone()
        at = len(data) // 2
        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        database.execute(f"UPDATE records SET {column} = ? WHERE id = ?", (data, number))  # noqa: S608
    database.close()
    done = cli("ledger", "verify", "--json", "--state-dir", ledger_copy)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["ok"] is False
    assert (report["first_bad"]["writer"], report["first_bad"]["seq"]) == (name, seq)
    told = cli("ledger", "verify", "--state-dir", ledger_copy)
    assert (told.returncode, "unsound" in told.stdout) == (1, True)


def test_a_file_that_is_no_ledger_or_none_at_all_leaves_with_2(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database, but a text of some length\n" * 200)
    (tmp_path / "ledger.db").chmod(0o600)
    for command in (("ledger", "verify", "--json"), ("why", "call_x")):
        done = cli(*command, "--state-dir", tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr
        assert "Traceback" not in done.stderr
    done = cli("ledger", "verify", "--state-dir", tmp_path / "nowhere")
    assert (done.returncode, "no_ledger" in done.stderr) == (2, True)


# -- authority serve -------------------------------------------------------------------------------------------------


class Served:
    """`authority serve` in a process of its own."""

    def __init__(self, state: Path) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "authority", "serve", "--port", "0", "--state-dir", str(state)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 20)[0], "it never said where it is"
        said = [self.process.stdout.readline() for _ in range(3)]
        found = re.fullmatch(r"authority (http://127\.0\.0\.1:\d+) .*\n", said[0])
        assert found is not None, said
        self.url = found[1]
        assert said[1].split() == ["metadata", f"{self.url}/.well-known/oauth-authorization-server"]
        assert str(state) in said[2]

    def stop(self, how: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(how)
        _, stderr = self.process.communicate(timeout=15)
        return self.process.returncode, stderr


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path / "state")
    yield one
    if one.process.poll() is None:
        one.process.kill()
        one.process.communicate()


BILLING = "https://billing.example"
BOT = "urn:agent-identity:agent:invoice-bot"


def test_another_process_gets_a_grant_and_a_token_from_a_served_authority(
    served: Served, tmp_path: Path, directory_subject: Any
) -> None:
    """The library's own flows, with nothing but the URL and the registration token of the state directory."""
    transport = Transport()

    def ask(flow: Flow[Any]) -> Any:
        def world(asked: Any) -> Any:
            if isinstance(asked, Shared):
                return run(asked.start(), world)
            return transport.exchange(asked, time.monotonic() + 10)

        return run(flow, world)

    (token_file,) = (tmp_path / "state").rglob("*registration-token")
    initial = Secret(token_file.read_text().strip())
    instance = Agent(BOT)

    issuer = Issuer(
        served.url,
        clients=InstanceRegistration(
            "invoice-bot",
            instance,
            owner=None,
            initial_token=lambda: pure(initial),
            recorded=lambda: pure(None),
        ),
        clock=time.time,
    )
    endpoints = ask(issuer.endpoints())
    assert endpoints.issuer == served.url
    client = ask(issuer.client())
    issuer = KnownIssuer(endpoints, client, clock=time.time)
    common: dict[str, Any] = {
        "principal": Principal("alice"),
        "subject": directory_subject(
            Principal("alice"), instance, txn="ses_1", expires_at=time.time() + 600
        ),
        "agent": BOT,
        "scopes": frozenset({"invoices:read"}),
        "purpose": "close the October books",
        "txn": "ses_1",
        "proof_key": instance.proof_key,
    }
    grant = ask(
        IssuedGrants(issuer).grant(
            RootWanted(
                resources=frozenset({BILLING}),
                task=None,
                max_depth=3,
                lifetime=900,
                evidence="issuer",
                **common,
            )
        )
    )
    source = TokenExchange(issuer, actor="grant", names_principal=True)
    issued = ask(source.fetch(Wanted(resource=BILLING, chain=(grant,), **common)))
    transport.close()
    keys = {
        key["kid"]: jwt.PyJWK(key)
        for key in httpx.get(endpoints.jwks, trust_env=False).json()["keys"]
    }
    token = issued.token.reveal()
    claims = jwt.decode(
        token,
        keys[jwt.get_unverified_header(token)["kid"]],
        algorithms=["ES256"],
        audience=BILLING,
        issuer=served.url,
    )
    assert (claims["sub"], claims["act"]["sub"], claims["scope"]) == ("alice", BOT, "invoices:read")
    printed = cli("authority", "jwks", "--state-dir", tmp_path / "state")
    assert {key["kid"] for key in json.loads(printed.stdout)["keys"]} == keys.keys()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_served_authority_stops_when_it_is_told_to(served: Served, how: signal.Signals) -> None:
    url = f"{served.url}/.well-known/oauth-authorization-server"
    assert httpx.get(url, trust_env=False).json()["issuer"] == served.url
    code, stderr = served.stop(how)
    assert code in (0, 130, -how)
    assert "Traceback" not in stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_the_billing_api_tells_of_what_it_verified_and_of_what_it_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    process = subprocess.Popen(
        [*COMMAND, "billing", "--port", "0", "--state-dir", str(state)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
    )
    assert process.stdout is not None
    found = re.match(r"billing API at (http://127\.0\.0\.1:\d+) ", process.stdout.readline())
    assert found is not None
    assert process.stdout.readline() == f"trusts the authority in {state}\n"
    url = found[1]

    @tool(resource=url, scopes=["invoices:read"])
    def list_invoices(customer: str) -> list[dict[str, str]]:
        auth = current_credential()
        asked = {"customer": customer}
        return httpx.get(f"{url}/invoices", params=asked, auth=auth, trust_env=False).json()

    try:
        assert httpx.get(f"{url}/invoices", trust_env=False).status_code == 403
        with AgentIdentity.embedded("other-bot", state_dir=tmp_path / "elsewhere") as stranger:
            with stranger.on_behalf_of("user:mallory", purpose="read what isn't hers"):
                assert list_invoices("ACME")["code"] == "unknown_anchor"
        with AgentIdentity.embedded("invoice-bot", state_dir=state) as identity:
            with identity.on_behalf_of("user:alice", purpose="close the books") as session:
                assert len(list_invoices("ACME")) == 2
                (call,) = identity.who_triggered(session).calls
    finally:
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=15)
    lines = told.splitlines()
    assert [line.startswith("refused: ") for line in lines[:2]] == [True, True]
    assert lines[2:] == [
        *("list_invoices for alice by invoice-bot, depth 0, bound token", f"  {call.call_id}")
    ]


def test_a_port_in_use_is_said_with_2(served: Served, tmp_path: Path) -> None:
    port = served.url.rpartition(":")[2]
    done = cli("authority", "serve", "--port", port, "--state-dir", tmp_path / "other")
    assert (done.returncode, "port_in_use" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_a_served_authority_says_where_it_is_in_one_line_of_json(tmp_path: Path) -> None:
    state = tmp_path / "state"
    process = subprocess.Popen(
        [*COMMAND, "authority", "serve", "--port", "0", "--json", "--state-dir", str(state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        metadata = httpx.get(told["metadata"], trust_env=False).json()
        assert metadata["issuer"] == told["issuer"] == told["url"]
        assert (told["clients"], told["registration"]) == ({}, str(state / "authority"))
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=15)
    assert rest == ""


def test_rotate_says_which_key_signs_now(tmp_path: Path) -> None:
    Authority(tmp_path / "authority").close()
    rotated = cli("authority", "rotate", "--json", "--state-dir", tmp_path)
    kid = json.loads(rotated.stdout)["kid"]
    keys = json.loads(cli("authority", "jwks", "--json", "--state-dir", tmp_path).stdout)["keys"]
    assert (len(keys), kid in {key["kid"] for key in keys}) == (2, True)
    told = cli("authority", "rotate", "--state-dir", tmp_path)
    assert "signs with the new key" in told.stdout


# -- what every command has ------------------------------------------------------------------------------------------


def leaves(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, by the words that call it."""
    below = getattr(command, "commands", {})
    for name, one in below.items():
        yield from leaves(one, *path, name)
    if not below:
        yield path, command


EVERY = dict(leaves(typer.main.get_command(app)))


def test_the_walk_finds_commands_of_every_depth() -> None:
    assert {
        ("why",),
        ("exec",),
        ("ledger", "verify"),
        ("config", "client-document"),
    } <= EVERY.keys()


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_command_takes_a_state_directory_and_prints_json(path: tuple[str, ...]) -> None:
    options = {option for one in EVERY[path].params for option in one.opts}
    assert {"--state-dir", "--json"} <= options


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_a_mistake_on_the_command_line_is_one_json_document_on_standard_error(
    path: tuple[str, ...],
) -> None:
    done = CliRunner().invoke(app, [*path, "--json", "--no-such-option"])
    assert (done.exit_code, done.stdout) == (2, "")
    told = json.loads(done.stderr)
    assert [*told] == ["code", "message", "remedy"]
    assert (told["code"], "--no-such-option" in told["message"]) == ("usage", True)


def test_what_stands_behind_two_dashes_is_the_programs_and_asks_for_no_json() -> None:
    done = CliRunner().invoke(app, ["exec", "--no-such-option", "--", "program", "--json"])
    assert (done.exit_code, "No such option" in done.stderr) == (2, True)
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.stderr)


NEEDING_A_CONFIGURATION = [
    ("doctor", "--json"),
    ("token", "--json", "--resource", "https://a.example"),
    ("exec", "--json", "--resource", "https://a.example", "--", "true"),
    ("config", "show", "--json"),
    ("config", "client-document", "idp", "--json"),
]


@pytest.mark.parametrize("arguments", NEEDING_A_CONFIGURATION, ids=" ".join)
def test_an_error_of_the_library_is_one_json_document_on_standard_error(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGENT_IDENTITY_CONFIG", raising=False)
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    told = json.loads(done.stderr)
    assert (told["code"], told["message"]) == ("not_configured", "no configuration is named")
    assert "agent-identity init" in told["remedy"]


def test_the_version_is_printed() -> None:
    done = cli("--version")
    expected = importlib.metadata.version("agent-identity-sdk")
    assert (done.returncode, done.stdout) == (0, f"agent-identity {expected}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown_and_completes_commands(shell: str) -> None:
    asked = {"_AGENT_IDENTITY_COMPLETE": f"source_{shell}"}
    shown = subprocess.run(
        NAMED, capture_output=True, text=True, timeout=60, check=False, env=environment(**asked)
    )
    assert "_AGENT_IDENTITY_COMPLETE" in shown.stdout
    asked = {"COMP_WORDS": "agent-identity au", "COMP_CWORD": "1"}
    asked |= {"_TYPER_COMPLETE_ARGS": "agent-identity au"}
    asked["_AGENT_IDENTITY_COMPLETE"] = f"complete_{shell}"
    if shell == "fish":
        asked["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    done = subprocess.run(
        NAMED, capture_output=True, text=True, timeout=60, check=False, env=environment(**asked)
    )
    assert "authority" in done.stdout
    help_text = cli("--help").stdout
    assert "--install-completion" in help_text
    assert "--show-completion" in help_text


NAMED = [
    *(sys.executable, "-c"),
    "import sys; sys.argv[0] = 'agent-identity'; from agent_identity.cli import main; main()",
]
"""The command under its own name, by which completion finds it."""


# -- help, and what is missing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ["demo", "why", "ledger", "authority"]),
        (("demo",), ["--state-dir", "--json"]),
        (("why",), ["--state-dir", "--json", "REF"]),
        (("ledger",), ["verify"]),
        (("ledger", "verify"), ["--state-dir", "--json"]),
        (("authority",), ["serve", "jwks"]),
        (("authority", "serve"), ["--state-dir", "--port", "with [authority] as"]),
        (("config", "client-document"), ["table of [issuers]"]),
        (("authority", "jwks"), ["--state-dir", "--config"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_command_explains_itself(command: tuple[str, ...], words: list[str]) -> None:
    done = cli(*command, "--help", COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    assert [word for word in words if word.lower() not in done.stdout.lower()] == []


@pytest.mark.parametrize("arguments", [("no-such",), ("why",), ("demo", "--no-such")])
def test_a_command_that_is_no_command_leaves_with_2(arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


@pytest.mark.parametrize(
    ("missing", "arguments", "packages"),
    [
        ("typer", ["demo"], "rich typer"),
        ("rich", ["demo"], "rich typer"),
        ("uvicorn", ["demo"], "uvicorn"),
        ("uvicorn", ["authority", "serve", "--port", "0"], "uvicorn"),
        ("uvicorn", ["billing", "--port", "0"], "uvicorn"),
    ],
)
def test_a_missing_package_is_named_with_2(
    tmp_path: Path, missing: str, arguments: list[str], packages: str
) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv[0] = 'agent-identity'; "
        "from agent_identity.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--state-dir", str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert f"pip install {packages}" in done.stderr
    assert "Traceback" not in done.stderr
    assert arguments == ["demo"] or done.stdout == ""  # it says that it serves only when it does


def test_a_missing_extra_of_the_command_line_is_json_too() -> None:
    program = "import sys; sys.modules['typer'] = None; from agent_identity.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "why", "--last", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert json.loads(done.stderr) == {
        "code": "extra_missing",
        "message": "the command line needs two more packages",
        "remedy": "pip install rich typer",
    }


def test_an_error_of_the_program_itself_is_not_mistaken_for_a_missing_extra(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['orjson'] = None; from agent_identity.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "demo", "--state-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
        cwd=ROOT,
    )
    assert (done.returncode, "orjson" in done.stderr, "[cli]" in done.stderr) == (1, True, False)
