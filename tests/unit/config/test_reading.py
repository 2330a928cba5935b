# SPDX-License-Identifier: Apache-2.0
"""Which file is read, who may have written it, and what becomes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from agent_identity.config import read_configuration
from agent_identity.errors import ConfigurationError

CANARY = "hunter2-canary"

TEN_LINES = """\
[agent]
name = "invoice-bot"
[issuers.acme]
issuer = "https://idp.acme.example"
trust = ["subjects"]
client_id = "invoice-bot"
client_key = "file:keys/client.pem"
[resources."https://billing.example"]
[policy]
engine = "grants-only"
"""


def test_a_one_issuer_file_is_ten_lines(write) -> None:
    found = read_configuration(write(TEN_LINES))
    assert TEN_LINES.count("\n") <= 10
    resource = found.resources["https://billing.example"]
    assert (resource.source, resource.issuer, resource.binding) == (
        "token-exchange",
        "acme",
        "dpop",
    )
    assert found.issuers["acme"].client_auth == "private_key_jwt"
    assert found.issuers["acme"].audience == "invoice-bot"


def test_an_empty_file_is_what_embedded_has(read) -> None:
    found = read("")
    assert (found.ledger.url, found.shared.url) == ("sqlite:", "memory:")
    assert (found.session.lifetime, found.session.grant_lifetime) == (3600, 900)
    assert (found.session.max_depth, found.http.deadline) == (3, 10)
    assert (found.issuers, found.resources, found.policy, found.inferred) == ({}, {}, None, ())


def test_a_file_without_policy_is_refused_and_told_the_explicit_way_out(refuse) -> None:
    (problem,) = refuse('[agent]\nname = "a"\n', needs_policy=True)
    assert problem.code == "policy_missing"
    assert "grants-only" in (problem.remedy or "")


def test_who_brings_a_policy_needs_none_in_the_file(read) -> None:
    assert read("", needs_policy=False).policy is None


def test_no_file_is_read_that_nobody_named(write, monkeypatch) -> None:
    monkeypatch.chdir(write(TEN_LINES).parent)
    monkeypatch.delenv("AGENT_IDENTITY_CONFIG", raising=False)
    with pytest.raises(ConfigurationError) as caught:
        read_configuration()
    assert caught.value.code == "not_configured"


def test_the_environment_names_the_file(write, monkeypatch) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_CONFIG", str(write(TEN_LINES)))
    assert read_configuration().agent.name == "invoice-bot"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(write, mode) -> None:
    file = write(TEN_LINES)
    file.chmod(mode)
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(file)
    assert caught.value.code == "config_unsafe"


def test_a_file_that_others_may_read_is_fine(write) -> None:
    file = write(TEN_LINES)
    file.chmod(0o644)
    assert read_configuration(file).agent.name == "invoice-bot"


def test_a_file_of_another_user_is_refused(write, monkeypatch) -> None:
    file = write(TEN_LINES)
    owner = file.stat().st_uid
    if owner == 0:  # we are root, whose files everybody trusts
        os.chown(file, 4242, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(file)
    assert caught.value.code == "config_unsafe"


def test_a_file_that_is_not_there_is_an_error(tmp_path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(tmp_path / "nothing.toml")
    assert caught.value.code == "config_missing"


def test_a_folder_and_a_pipe_are_no_file(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigurationError) as caught:
            read_configuration(place)
        assert caught.value.code == "config_unreadable"


def test_a_file_beyond_a_mebibyte_is_not_read(write) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(write("#" * (1024 * 1024 + 1)))
    assert caught.value.code == "config_unreadable"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[agent]\nname = "a\n', 2),
        ('[agent]\nname = "a"\nname = "b"\n', 3),
        ("[agent\n", 1),
        ("[http]\ndeadline =", 2),
        ("x = " + "[" * 3000 + "]" * 3000, 1),
        ("x = " + "1" * 5000, 1),
        ("x = '''\n\n\n", 4),
    ],
)
def test_what_is_not_toml_is_refused_with_its_line(refuse, text, line) -> None:
    (problem,) = refuse(text)
    assert (problem.code, problem.line) == ("config_malformed", line)


def test_what_is_not_utf8_is_refused(tmp_path) -> None:
    file = tmp_path / "latin.toml"
    file.write_bytes(b'name = "\xff"')
    file.chmod(0o600)
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(file)
    assert caught.value.code == "config_malformed"


def test_relative_paths_are_below_the_folder_of_the_file(write, monkeypatch) -> None:
    monkeypatch.chdir("/")
    file = write(
        """\
[agent]
name = "a"
key = "file:keys/agent.pem"
signer = "env:SIGNER"
signer_id = "urn:signer"
[issuers.acme]
issuer = "https://idp.acme.example"
jwks = "file:keys/acme.jwks"
client_id = "a"
client_key = "file:/etc/client.pem"
[resources."https://billing.example"]
source = "workload-token"
provider = "file"
path = "token"
[resources."https://ci.example"]
source = "workload-token"
provider = "gitlab"
path = "ID_TOKEN"
[ledger]
url = "sqlite:///my%20ledger.db"
[vault]
address = "https://vault.example"
role = "bot"
[http]
ca = "ca.pem"
"""
    )
    found, base = read_configuration(file, needs_policy=False), file.parent
    assert found.agent.key == f"file:{base}/keys/agent.pem"
    assert found.agent.signer == "env:SIGNER"
    assert found.issuers["acme"].jwks == f"file:{base}/keys/acme.jwks"
    assert found.issuers["acme"].client_key == "file:/etc/client.pem"
    assert found.resources["https://billing.example"].path == f"{base}/token"
    assert found.resources["https://ci.example"].path == "ID_TOKEN"
    assert found.ledger.url == f"sqlite:///{base}/my%20ledger.db"
    assert found.http.ca == f"{base}/ca.pem"


def test_a_relative_ledger_opens_where_the_configuration_lies(write, tmp_path) -> None:
    from agent_identity.provenance.ledger import open_ledger

    found = read_configuration(
        write('[ledger]\nurl = "sqlite:///my%20ledger.db"'), needs_policy=False
    )
    with open_ledger(found.ledger.url, state_dir=tmp_path / "state"):
        assert (tmp_path / "my ledger.db").exists()


def test_a_relative_ledger_lies_in_the_folder_whatever_its_name(tmp_path) -> None:
    from urllib.parse import unquote

    from agent_identity.config.model import LedgerTable
    from agent_identity.config.reading import with_absolute_paths

    url = with_absolute_paths(LedgerTable(url="sqlite:///a%3Fb.db"), tmp_path / "50%41?").url
    assert unquote(url.removeprefix("sqlite:///")) == f"{tmp_path}/50%41?/a?b.db"


@pytest.mark.parametrize(
    "url", ["memory:", "sqlite:", "sqlite:////var/lib/ledger.db", "sqlite:////a%3Fb.db"]
)
def test_an_absolute_ledger_stays_as_it_is(read, url) -> None:
    assert read(f'[ledger]\nurl = "{url}"').ledger.url == url


def test_policy_files_are_patterns_below_the_folder_whatever_its_name(tmp_path) -> None:
    from agent_identity.config.model import PolicyTable
    from agent_identity.config.reading import with_absolute_paths

    folder = tmp_path / "a[b]*"
    folder.mkdir()
    (folder / "one.cedar").touch()
    (pattern,) = with_absolute_paths(PolicyTable(files=("*.cedar",)), folder).files
    import glob

    assert glob.glob(pattern) == [str(folder / "one.cedar")]  # noqa: PTH207 - patterns are absolute


def held_by(error: BaseException) -> str:
    """Everything that somebody who has an error can see of it."""
    seen: list[str] = ["".join(traceback.format_exception(error))]
    todo: list[BaseException] = [error]
    while todo:
        one = todo.pop()
        seen += [str(one), repr(one), repr(one.args), repr(getattr(one, "__notes__", ""))]
        seen.append(repr(vars(one)))
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(seen)


LEAKS = {
    "in clear": f'[issuers.a]\nissuer = "https://a.example"\nclient_id = "b"\nclient_secret = "{CANARY}"',
    "in a reference": f'[issuers.a]\nissuer = "https://a.example"\nclient_id = "b"\nclient_secret = "env:{CANARY}!"',
    "of another type": f'[issuers.a]\nissuer = "https://a.example"\nclient_secret = ["{CANARY}"]',
    "under an unknown key": f'[agent]\nname = "a"\npasswrd = "{CANARY}"',
    "instead of a word": f'[resources."https://a.example"]\nsource = "{CANARY}"',
    "instead of a number": f'[http]\ndeadline = "{CANARY}"',
    "instead of a table": f'issuers = "{CANARY}"',
    "instead of an address": f'[issuers.a]\nissuer = "https://u:{CANARY}@a.example"',
    "in a resource": f'[resources."https://u:{CANARY}@a.example"]\n',
    "in the query of a resource": f'[resources."https://A.example?k={CANARY}"]\n',
    "instead of an issuer": f'[resources."https://a.example"]\nsource = "device"\nissuer = "{CANARY}"',
    "in a ledger": f'[ledger]\nurl = "postgresql://u:{CANARY}@db/x"',
    "in a ledger nobody knows": f'[ledger]\nurl = "mysql://u:{CANARY}@db/x"',
    "in a scope": f'[resources."https://a.example"]\nscopes = ["{CANARY} x"]',
    "as a name": f'[agent]\nname = "{CANARY} !"',
    "in broken TOML": f'[agent]\nname = "{CANARY}\n',
    "in a key given twice": f'[agent]\nname = "{CANARY}"\nname = "{CANARY}"',
    "in a detail": f'[resources."https://a.example"]\nauthorization_details = [{{a = 1979-05-27, b = "{CANARY}"}}, "{CANARY}"]',
    "in what is expected": f'[resources."https://a.example"]\nexpect = {{sub = ["{CANARY}"]}}',
}


@pytest.mark.parametrize("text", LEAKS.values(), ids=LEAKS.keys())
def test_no_value_of_the_file_gets_into_an_error(write, text) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(write(text), needs_policy=False)
    assert CANARY not in held_by(caught.value)


def test_no_byte_of_a_file_that_is_not_utf8_gets_into_an_error(tmp_path) -> None:
    file = tmp_path / "latin.toml"
    file.write_bytes(CANARY.encode() + b"\xff")
    file.chmod(0o600)
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(file)
    assert CANARY not in held_by(caught.value)
    assert caught.value.__context__ is None


def test_an_error_of_a_parser_is_neither_cause_nor_context(write) -> None:
    for text in ('[http]\ndeadline = "x"', "[agent\n"):
        with pytest.raises(ConfigurationError) as caught:
            read_configuration(write(text), needs_policy=False)
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_importing_the_package_loads_no_parser() -> None:
    code = (
        "import json, sys; from agent_identity.config import configuration_file, state_directory;"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert not {"pydantic", "httpx", "tomllib", "keyring"} & set(loaded)


def test_every_public_name_is_there() -> None:
    from agent_identity import config

    assert all(getattr(config, name) is not None for name in config.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        config.nothing  # noqa: B018 - asking is the test


def test_a_relative_state_directory_in_the_environment_is_refused(monkeypatch) -> None:
    from agent_identity.config import state_directory

    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", "state")
    with pytest.raises(ConfigurationError) as caught:
        state_directory()
    assert caught.value.code == "state_dir_relative"
    assert state_directory("state") == Path("state").absolute()
