# SPDX-License-Identifier: Apache-2.0
"""Secrets in their places: read as they are, kept whole, and told apart from places that are broken."""

from __future__ import annotations

import builtins
import os
import stat
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.backends import fail, null

from agent_identity.config import References
from agent_identity.errors import ConfigurationError
from agent_identity.values import Secret

CANARY = "hunter2-canary"


class Memory(KeyringBackend):
    """A keyring that is one."""

    priority = 1  # type: ignore[assignment]  # a class property there, a plain value in backends

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.held[service, username]


class PlaintextKeyring(Memory):
    """As keyrings.alt has them."""


class Chain(Memory):
    """As keyring's own chainer is."""

    def __init__(self, *backends: KeyringBackend) -> None:
        super().__init__()
        self.backends = backends


class Locked(Memory):
    def get_password(self, service: str, username: str) -> str | None:
        raise RuntimeError(CANARY)

    set_password = get_password  # type: ignore[assignment]  # fails alike


@pytest.fixture
def use():
    """Make a backend the one of this process."""
    before = keyring.get_keyring()
    yield keyring.set_keyring
    keyring.set_keyring(before)


@pytest.fixture
def memory(use) -> Memory:
    backend = Memory()
    use(backend)
    return backend


def code_of(call) -> str:
    with pytest.raises(ConfigurationError) as caught:
        call()
    assert CANARY not in repr((caught.value.args, caught.value.remedy, caught.value.__notes__))
    return caught.value.code


def place(path: Path, data: bytes = b"s3cret\n", mode: int = 0o600) -> str:
    path.write_bytes(data)
    path.chmod(mode)
    return f"file:{path}"


# -- what a reference is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    [
        CANARY,
        f"https://{CANARY}",
        f"ENV:{CANARY}",
        "",
        "env:",
        "file:",
        "keyring:",
        f"env:{CANARY}",
        f"env:1{CANARY}",
        f"file:{CANARY}",
        f"file:/{CANARY}\0",
        f"keyring:{CANARY}\n",
    ],
)
def test_what_is_no_reference_is_refused_unnamed(reference) -> None:
    assert code_of(lambda: References().read(reference)) == "reference_malformed"
    assert code_of(lambda: References().keep(reference, None)) == "reference_malformed"


def test_a_vault_that_is_not_configured_is_said_so() -> None:
    assert code_of(lambda: References().read("vault:a/b")) == "vault_unconfigured"
    assert code_of(lambda: References().keep("vault:a/b", None)) == "vault_unconfigured"


def test_a_vault_that_is_there_is_asked() -> None:
    class Held:
        def __init__(self) -> None:
            self.kept: list[tuple[str, Secret | None]] = []

        def read(self, path: str, /) -> Secret | None:
            return Secret(f"at {path}")

        def keep(self, path: str, secret: Secret | None, /) -> None:
            self.kept.append((path, secret))

    vault = Held()
    assert References(vault=vault).read("vault:a/b#c") == Secret("at a/b#c")
    References(vault=vault).keep("vault:a", Secret("x"))
    assert vault.kept == [("a", Secret("x"))]


# -- variables --------------------------------------------------------------------------------------------------------


def test_a_variable_is_read_as_it_is(monkeypatch) -> None:
    monkeypatch.setenv("BILLING_SECRET", " s3cret\n")
    assert References().read("env:BILLING_SECRET") == Secret(" s3cret\n")


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_says_nothing_is_nothing(monkeypatch, value) -> None:
    monkeypatch.delenv("BILLING_SECRET", raising=False)
    if value is not None:
        monkeypatch.setenv("BILLING_SECRET", value)
    assert References().read("env:BILLING_SECRET") is None


def test_a_variable_that_is_no_text_is_an_error(monkeypatch) -> None:
    monkeypatch.setitem(os.environ, "BILLING_SECRET", os.fsdecode(CANARY.encode() + b"\xff"))
    assert code_of(lambda: References().read("env:BILLING_SECRET")) == "secret_unreadable"


def test_a_variable_keeps_nothing() -> None:
    assert code_of(lambda: References().keep("env:X", Secret(CANARY))) == "reference_read_only"


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"s3cret", "s3cret"),
        (b"s3cret\n", "s3cret"),
        (b"s3cret\r\n", "s3cret"),
        (b"s3cret\n\n", "s3cret\n"),
        (b" s3cret ", " s3cret "),
        ("gehëim".encode(), "gehëim"),
        (b"", ""),
        (b"x" * 65_536, "x" * 65_536),
    ],
)
def test_a_file_is_read_less_one_line_end(tmp_path, data, text) -> None:
    found = References().read(place(tmp_path / "secret", data))
    assert found is not None
    assert found.reveal() == text


def test_a_file_that_is_not_there_is_nothing(tmp_path) -> None:
    assert References().read(f"file:{tmp_path}/nothing") is None
    assert References().read(f"{place(tmp_path / 'file')}/below") is None


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a\0b", b"a\x1bb", b"a\x7fb", b"x" * 65_537])
def test_a_file_that_holds_no_secret_is_an_error(tmp_path, data) -> None:
    reference = place(tmp_path / "secret", CANARY.encode() + data)
    with pytest.raises(ConfigurationError) as caught:
        References().read(reference)
    assert caught.value.code == "secret_unreadable"
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_a_folder_and_a_pipe_hold_no_secret(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        assert code_of(lambda at=path: References().read(f"file:{at}")) == "secret_unreadable"


def test_a_file_that_this_user_may_not_open_is_an_error(tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "no")

    reference = place(tmp_path / "secret")
    monkeypatch.setattr(os, "open", refuse)
    assert code_of(lambda: References().read(reference)) == "secret_unreadable"


@pytest.mark.parametrize(
    ("mode", "is_read"), [(0o644, True), (0o440, True), (0o660, False), (0o602, False)]
)
def test_a_file_may_be_read_by_others_and_written_by_none(tmp_path, mode, is_read) -> None:
    """A mounted secret of Kubernetes has mode 0644."""
    reference = place(tmp_path / "secret", mode=mode)
    if is_read:
        assert References().read(reference) == Secret("s3cret")
    else:
        assert code_of(lambda: References().read(reference)) == "secret_unsafe"


def test_a_link_is_followed_to_its_file(tmp_path) -> None:
    """As a mounted secret of Kubernetes is one."""
    place(tmp_path / "data")
    (tmp_path / "secret").symlink_to("data")
    assert References().read(f"file:{tmp_path}/secret") == Secret("s3cret")


def test_a_kept_secret_is_this_users_alone_and_whole(tmp_path) -> None:
    references, reference = References(), f"file:{tmp_path}/secret"
    references.keep(reference, Secret("first"))
    references.keep(reference, Secret("second"))
    assert references.read(reference) == Secret("second")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("text", ["s3cret", "s3cret\n", "s3cret\n\n", "", "gehëim", "a\nb"])
def test_what_was_kept_is_read_as_it_was(tmp_path, text) -> None:
    References().keep(f"file:{tmp_path}/secret", Secret(text))
    assert References().read(f"file:{tmp_path}/secret") == Secret(text)


@pytest.mark.parametrize("more", ["\ud800", "\0", "x" * 65_536])
@pytest.mark.parametrize("scheme", ["file", "keyring"])
def test_what_could_not_be_read_again_is_not_kept(memory, tmp_path, scheme, more) -> None:
    with pytest.raises(ConfigurationError) as caught:
        References().keep(f"{scheme}:{tmp_path}/secret", Secret(CANARY + more))
    assert caught.value.code == "secret_unwritable"
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert (memory.held, list(tmp_path.iterdir())) == ({}, [])


def test_a_secret_that_can_not_be_kept_leaves_the_old_one(tmp_path, monkeypatch) -> None:
    references, reference = References(), f"file:{tmp_path}/secret"
    references.keep(reference, Secret("first"))

    def fail_to_sync(_: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", fail_to_sync)
    assert code_of(lambda: references.keep(reference, Secret(CANARY))) == "secret_unwritable"
    monkeypatch.undo()
    assert references.read(reference) == Secret("first")
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_kept_secret_is_durable_before_it_counts(tmp_path, monkeypatch) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    References().keep(f"file:{tmp_path}/secret", Secret("s"))
    assert steps == ["file", "rename", "folder"]


def test_nothing_kept_takes_the_file_away(tmp_path) -> None:
    references, reference = References(), place(tmp_path / "secret")
    references.keep(reference, None)
    references.keep(reference, None)
    assert references.read(reference) is None


def test_a_folder_that_is_not_there_is_not_made(tmp_path) -> None:
    reference = f"file:{tmp_path}/nothing/secret"
    assert code_of(lambda: References().keep(reference, Secret(CANARY))) == "secret_unwritable"


# -- the keyring ------------------------------------------------------------------------------------------------------


def test_a_keyring_keeps_and_gives(memory) -> None:
    references = References()
    assert references.read("keyring:refresh") is None
    references.keep("keyring:refresh", Secret("s3cret"))
    assert memory.held == {("agent-identity", "refresh"): "s3cret"}
    assert references.read("keyring:refresh") == Secret("s3cret")
    references.keep("keyring:refresh", None)
    references.keep("keyring:refresh", None)
    assert memory.held == {}


def test_F12_a_machine_without_keyring_is_told_where_else_a_secret_can_be(use) -> None:
    use(fail.Keyring())
    with pytest.raises(ConfigurationError) as caught:
        References().read("keyring:refresh")
    assert caught.value.code == "keyring_missing"
    assert all(scheme in str(caught.value.remedy) for scheme in ("file:", "env:", "vault:"))


def test_F12_nothing_is_kept_without_keyring(use, tmp_path, monkeypatch) -> None:
    use(fail.Keyring())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert code_of(lambda: References().keep("keyring:r", Secret(CANARY))) == "keyring_missing"
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    "backend",
    [null.Keyring(), Chain(), Chain(fail.Keyring()), Chain(Memory(), PlaintextKeyring())],
    ids=["null", "an empty chain", "a chain of nothing", "a chain that ends in plain text"],
)
def test_F12_what_only_looks_like_a_keyring_is_none(use, backend) -> None:
    use(backend)
    assert code_of(lambda: References().keep("keyring:r", Secret(CANARY))) == "keyring_missing"
    assert code_of(lambda: References().read("keyring:r")) == "keyring_missing"


def test_F12_without_the_package_there_is_no_keyring(monkeypatch) -> None:
    real = builtins.__import__

    def without_keyring(name: str, *rest: object) -> object:
        if name == "keyring":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]  # handed on as it came

    monkeypatch.setattr(builtins, "__import__", without_keyring)
    assert code_of(lambda: References().read("keyring:r")) == "keyring_missing"


def test_a_keyring_of_plain_text_is_used_only_by_name(use) -> None:
    backend = PlaintextKeyring()
    use(backend)
    assert code_of(lambda: References().keep("keyring:r", Secret(CANARY))) == "keyring_missing"
    assert backend.held == {}
    References().keep("keyring+plaintext:r", Secret("s3cret"))
    assert References().read("keyring+plaintext:r") == Secret("s3cret")


def test_a_foreign_keyring_of_plain_text_is_known_by_its_home(use, monkeypatch) -> None:
    monkeypatch.setattr(Memory, "__module__", "keyrings.alt.file")
    use(Memory())
    assert code_of(lambda: References().read("keyring:r")) == "keyring_missing"


def test_plain_text_by_name_needs_a_keyring_too(use) -> None:
    use(fail.Keyring())
    assert code_of(lambda: References().read("keyring+plaintext:r")) == "keyring_missing"


def test_a_chain_of_sound_keyrings_is_one(use) -> None:
    chain = Chain(Memory())
    use(chain)
    References().keep("keyring:r", Secret("s3cret"))
    assert References().read("keyring:r") == Secret("s3cret")


def test_a_locked_keyring_is_an_error_without_its_own(use) -> None:
    use(Locked())
    with pytest.raises(ConfigurationError) as caught:
        References().read("keyring:r")
    assert caught.value.code == "keyring_unusable"
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert code_of(lambda: References().keep("keyring:r", Secret(CANARY))) == "keyring_unusable"
