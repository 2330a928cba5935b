# SPDX-License-Identifier: Apache-2.0
"""What an authority keeps: keys that turn over, names that stay, files that nobody else can read."""

from __future__ import annotations

import gc
import os
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import pytest

from agent_identity.authority import Authority, ClientRecord, Terms
from agent_identity.authority.clients import dump_client, load_client
from agent_identity.authority.store import open_store
from agent_identity.errors import ConfigurationError
from agent_identity.flow import HttpRequest
from agent_identity.keys.private_files import locked_file
from agent_identity.keys.signing import SigningKey

BILLING = "https://billing.example/api"
CLIENT_CREDENTIALS = {"grant_type": "client_credentials", "resource": BILLING}


def kids(authority: Authority) -> list[str]:
    return [key["kid"] for key in authority.jwks()["keys"]]


# --- rotation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_new_key_signs_and_the_old_one_verifies_for_an_hour(
    make_rig, tmp_path, clock, on_disk
) -> None:
    rig = make_rig(tmp_path if on_disk else None)
    bot = rig.client()
    (old,) = kids(rig.authority)
    before = bot.root()
    rig.authority.rotate()
    new, kept = kids(rig.authority)
    assert kept == old != new
    rig.claims(bot.root(), typ="agent-grant+jwt")  # by the new key
    assert bot.exchange([before]).status == 200  # by the old one
    clock.now += 3599
    assert kids(rig.authority) == [new, old]
    clock.now += 1
    assert kids(rig.authority) == [new]
    assert rig.refusal(bot.exchange([before]))[1] == "invalid_grant"
    rig.authority.rotate()
    assert old not in kids(rig.authority)
    if on_disk:  # the old one's file is gone
        assert len(list((tmp_path / "authority-keys").iterdir())) == 2


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("rotations", [1, 3])
def test_a_clock_that_was_ahead_for_a_while_ends_no_key(
    make_rig, tmp_path, clock, on_disk, rotations: int
) -> None:
    rig = make_rig(tmp_path if on_disk else None)
    bot = rig.client()
    before = bot.root()
    for _ in range(rotations):
        rig.authority.rotate()
    published = kids(rig.authority)
    assert len(published) == rotations + 1
    clock.now += 7200
    assert kids(rig.authority) == published[:1]
    restarted = make_rig(tmp_path).authority if on_disk else rig.authority
    assert kids(restarted) == published[:1]
    clock.now -= 7200
    assert kids(rig.authority) == kids(restarted) == published
    assert bot.exchange([before]).status == 200


def test_a_private_key_never_shows_in_the_jwks(rig) -> None:
    rig.authority.rotate()
    for key in rig.authority.jwks()["keys"]:
        assert key.keys() == {"kty", "crv", "x", "y", "kid", "use", "alg"}


def test_keys_names_and_clients_survive_a_restart(make_rig, tmp_path) -> None:
    first = make_rig(tmp_path)
    bot = first.client()
    first.authority.rotate()
    token = first.authority.registration_token()
    root, published = bot.root(), first.authority.jwks()
    first.authority.revoke("user:bob")
    first.authority.close()

    second = make_rig(tmp_path)
    assert second.issuer == first.issuer
    assert second.authority.jwks() == published
    assert second.authority.registration_token() == token
    bot.rig = second
    assert bot.exchange([root]).status == 200
    assert second.refusal(bot.grant(subject=bot.subject("bob")))[2] == "revoked"


def test_one_process_sees_what_another_rotated(make_rig, tmp_path) -> None:
    here, there = make_rig(tmp_path), make_rig(tmp_path)
    bot = here.client()
    for _ in range(3):
        there.authority.rotate()
        assert kids(here.authority) == kids(there.authority)
    assert here.claims(bot.root(), typ="agent-grant+jwt")
    assert len(kids(here.authority)) == 4


def test_a_rotation_that_left_no_trace_in_the_folders_time_is_seen(make_rig, tmp_path) -> None:
    """File systems tell time in ticks; what changed within one looks unchanged."""
    here, there = make_rig(tmp_path), make_rig(tmp_path)
    folder = tmp_path / "authority-keys"
    before = folder.stat()
    there.authority.rotate()
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(kids(here.authority)) == 2


# --- one state directory, many processes --------------------------------------------------------------------------------


START = """
import sys
from pathlib import Path
from agent_identity.authority import Authority
sys.stdin.readline()
authority = Authority(Path(sys.argv[1]))
kids = [key["kid"] for key in authority.jwks()["keys"]]
print(authority.issuer, kids, authority.registration_token().reveal())
"""


def test_processes_that_start_together_are_one_authority(tmp_path) -> None:
    command = [sys.executable, "-c", START, str(tmp_path / "state")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for process in processes:
        process.stdin.write("go\n")  # whoever is still importing finds it waiting
        process.stdin.flush()
    found = {process.communicate(timeout=60)[0] for process in processes}
    assert {process.returncode for process in processes} == {0}
    assert len(found) == 1


def test_threads_that_start_together_are_one_authority(tmp_path) -> None:
    for round_ in range(5):
        folder = tmp_path / str(round_)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(Authority, [folder] * 8))
        assert len({(one.issuer, *kids(one)) for one in found}) == 1
        for one in found:
            one.close()


def test_a_state_directory_is_opened_by_one_at_a_time(tmp_path) -> None:
    entered = Event()

    def enter() -> None:
        with locked_file(tmp_path / "lock"):
            entered.set()

    with locked_file(tmp_path / "lock"):
        other = Thread(target=enter)
        other.start()
        assert not entered.wait(0.05)
    other.join(10)
    assert entered.is_set()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on(make_rig, tmp_path) -> None:
    rig = make_rig(tmp_path)
    bot = rig.client()
    parents = rig.authority._store._database.current
    child = os.fork()
    if child == 0:
        works = bot.post("/token", CLIENT_CREDENTIALS).status == 200
        rig.authority.revoke("user:bob")
        os._exit(0 if works and rig.authority._store._database.current is not parents else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bot.post("/token", CLIENT_CREDENTIALS).status == 200
    assert rig.refusal(bot.grant(subject=bot.subject("bob")))[2] == "revoked"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of others, too
@pytest.mark.parametrize("on_disk", [False, True])
def test_an_authority_that_is_dropped_leaves_nothing_open(tmp_path, on_disk) -> None:
    authority = Authority(tmp_path if on_disk else None)
    connection = authority._store._database.current
    del authority
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_keeps_what_a_store_in_memory_remembers() -> None:
    store = open_store(None)
    store.revoke("user:bob", 1)
    child = os.fork()
    if child == 0:
        os._exit(0 if store.is_revoked(["user:bob"], 1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.is_revoked(["user:bob"], 1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_write_during_a_fork_is_noticed_after_it(tmp_path) -> None:
    """SQLite counts the writes of others for each connection, and a fork makes a new one."""
    store = open_store(tmp_path)
    before = store.version()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert store.version() != before


def test_a_child_that_drops_the_parents_store_leaves_its_connection_alone(tmp_path) -> None:
    store = open_store(tmp_path)
    connection = store._database.current
    store._database.after_fork_in_child()
    del store
    gc.collect()
    connection.execute("SELECT 1")
    connection.close()


def test_many_threads_count_every_token(rig, bot) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: bot.post("/token", CLIENT_CREDENTIALS), range(64)))
    tokens = {rig.body(answer)["access_token"] for answer in answers}
    assert len(tokens) == rig.authority.issued["access_token"] == 64


# --- files --------------------------------------------------------------------------------------------------------------


def test_files_are_private_under_any_umask(make_rig, tmp_path) -> None:
    folder = tmp_path / "state"
    previous = os.umask(0)
    try:
        rig = make_rig(folder, require_nonce=True)
        rig.client()
        rig.authority.registration_token()
        rig.authority.rotate()
    finally:
        os.umask(previous)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    names = {path.name for path in found}
    assert names >= {
        *("authority.db", "authority.db-wal", "authority-issuer", "authority-registration-token"),
        *("authority-nonce-key", "00000001.pem", "00000002.pem"),
    }
    for path, mode in found.items():
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_database_that_others_could_read_is_closed_to_them(make_rig, tmp_path) -> None:
    (tmp_path / "authority.db").touch()
    (tmp_path / "authority.db").chmod(0o644)
    tmp_path.chmod(0o755)
    make_rig(tmp_path)
    assert stat.S_IMODE((tmp_path / "authority.db").stat().st_mode) == 0o600
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_no_half_written_file_is_left(make_rig, tmp_path) -> None:
    make_rig(tmp_path).authority.rotate()
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]
    assert {path.name for path in (tmp_path / "authority-keys").iterdir()} == {
        "00000001.pem",
        "00000002.pem",
    }


def spoil_key(folder: Path) -> None:
    (folder / "authority-keys" / "00000001.pem").write_bytes(b"1\nnonsense")


def spoil_stamp(folder: Path) -> None:
    (folder / "authority-keys" / "00000001.pem").write_bytes(SigningKey.generate().to_pem())


def spoil_name(folder: Path) -> None:
    (folder / "authority-keys" / "aaaaaaaa.pem").write_bytes(b"")


def spoil_database(folder: Path) -> None:
    (folder / "authority.db").write_bytes(b"nonsense" * 1000)


def link_key(folder: Path) -> None:
    path = folder / "authority-keys" / "00000001.pem"
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")


def link_database(folder: Path) -> None:
    (folder / "authority.db").rename(folder / "elsewhere")
    (folder / "authority.db").symlink_to(folder / "elsewhere")


def spoil_issuer(folder: Path) -> None:
    (folder / "authority-issuer").write_bytes(b"http://evil.example")


@pytest.mark.parametrize(
    "spoil",
    [spoil_key, spoil_stamp, spoil_name, spoil_database, link_key, link_database, spoil_issuer],
)
def test_a_damaged_state_directory_is_a_clear_error(tmp_path, spoil) -> None:
    Authority(tmp_path).close()
    for left in tmp_path.glob("authority.db-*"):
        left.unlink()
    spoil(tmp_path)
    with pytest.raises(ConfigurationError):
        Authority(tmp_path)


# --- outages ------------------------------------------------------------------------------------------------------------


def test_a_store_that_is_away_is_a_refusal(make_rig, tmp_path) -> None:
    rig = make_rig(tmp_path)
    bot = rig.client()
    rig.authority.close()
    response = bot.post("/token", CLIENT_CREDENTIALS)
    assert rig.refusal(response) == (503, "temporarily_unavailable", "state_unavailable")
    assert response.headers["retry-after"] == "5"


def test_a_key_that_is_damaged_while_we_run_is_a_refusal(make_rig, tmp_path) -> None:
    rig = make_rig(tmp_path)
    bot = rig.client()
    (tmp_path / "authority-keys" / "00000002.pem").write_bytes(b"nonsense")
    assert bot.post("/token", CLIENT_CREDENTIALS).status == 503
    assert not rig.authority.issued


def test_a_locked_store_is_a_refusal_and_nothing_is_registered(
    make_rig, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("agent_identity.storage.sqlite.BUSY_SECONDS", 0.05)
    rig = make_rig(tmp_path)
    other = sqlite3.connect(tmp_path / "authority.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    response = rig.registration(SigningKey.generate())
    assert response.status == 503
    other.execute("ROLLBACK")
    assert other.execute("SELECT count(*) FROM clients").fetchone() == (0,)
    other.close()
    assert rig.registration(SigningKey.generate()).status == 201


def test_a_full_replay_memory_is_a_refusal(make_rig, bot, rig) -> None:
    rig.authority._replay._limit = 1
    assert bot.post("/token", CLIENT_CREDENTIALS).status == 200
    assert bot.post("/token", CLIENT_CREDENTIALS).status == 503
    assert rig.authority.issued == {"access_token": 1}


# --- records ------------------------------------------------------------------------------------------------------------


def test_a_client_is_read_as_it_was_written() -> None:
    jwk = SigningKey.generate().public_jwk
    for client in (
        ClientRecord("cli_1", "urn:a:b", (jwk,), 1, 2),
        ClientRecord(
            "cli_1",
            "urn:a:b",
            (jwk, jwk),
            1,
            2,
            name="é",
            owner="o",
            grant_types=frozenset({"client_credentials"}),
            terms=Terms(False, frozenset({BILLING}), frozenset(), 0, 60),
        ),
    ):
        assert load_client(dump_client(client)) == client


# --- issuers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("issuer", "metadata", "token"),
    [
        (
            "https://as.example",
            "https://as.example/.well-known/oauth-authorization-server",
            "https://as.example/token",
        ),
        (
            "https://as.example/",
            "https://as.example/.well-known/oauth-authorization-server",
            "https://as.example/token",
        ),
        (
            "https://as.example:8443/tenants/a",
            "https://as.example:8443/.well-known/oauth-authorization-server/tenants/a",
            "https://as.example:8443/tenants/a/token",
        ),
        (
            "http://127.0.0.1:8600",
            "http://127.0.0.1:8600/.well-known/oauth-authorization-server",
            "http://127.0.0.1:8600/token",
        ),
    ],
)
def test_metadata_is_found_where_rfc_8414_puts_it(make_rig, issuer, metadata, token) -> None:
    rig = make_rig(issuer=issuer)
    response = rig.get(metadata)
    assert response.status == 200
    assert response.headers["cache-control"] == "public, max-age=300"
    document = rig.body(response)
    assert (document["issuer"], document["token_endpoint"]) == (issuer, token)
    assert document["token_endpoint_auth_methods_supported"] == ["private_key_jwt"]
    assert "ES256" in document["dpop_signing_alg_values_supported"]
    assert "none" not in document["token_endpoint_auth_signing_alg_values_supported"]
    assert rig.body(rig.get(document["jwks_uri"])) == rig.authority.jwks()
    for name in ("introspection_endpoint", "revocation_endpoint", "registration_endpoint"):
        request = HttpRequest("POST", document[name], {}, b"")
        assert rig.authority.handle(request).status in {400, 401}


@pytest.mark.parametrize(
    "issuer",
    [
        "http://as.example",
        "https://as.example?x",
        "https://as.example#x",
        "https://AS.example",
        "https://as.example:443",
        "https://u@as.example",
        "https://as.example/a b",
        "https://as.example//",
        "https://as.example/%2e%2e",
        "urn:x",
    ],
)
def test_an_issuer_that_could_be_written_two_ways_is_a_configuration_error(issuer) -> None:
    with pytest.raises(ConfigurationError):
        Authority(issuer=issuer)


def test_an_unserved_authority_has_a_name_of_its_own(make_rig) -> None:
    first, second = make_rig(), make_rig()
    assert first.issuer != second.issuer
    host = first.issuer.removeprefix("https://").removesuffix(".agent-identity.invalid")
    assert len(bytes.fromhex(host)) == 8
