# SPDX-License-Identifier: Apache-2.0
"""Read and store secrets by their references.

    env:NAME        an environment variable; never written
    file:PATH       an absolute path; one trailing line end is not part of the secret
    keyring:NAME    the entry NAME of `agent-identity` in the desktop's keyring, which must not store plain text
    vault:PATH      Vault or OpenBao, with a [vault] table; the key that signs first grants is vault:MOUNT/NAME

Reading a place without a secret returns None. A place that can't be read, or has something else than text, is an error.
An error names the place, never its content. A malformed reference may be a secret itself, so no error repeats it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

from agent_identity.errors import ConfigurationError
from agent_identity.keys.private_files import write_private
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

T = TypeVar("T")

LIMIT: Final = 64 * 1024
SERVICE: Final = "agent-identity"
SCHEMES: Final = ("env", "file", "keyring", "keyring+plaintext", "vault")

WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SEGMENT: Final = r"(?!\.\.?(?:/|\Z))[A-Za-z0-9._~@-]+"
"""One segment of a path in a vault; none is `.` or `..`."""

_TRANSIT: Final = re.compile(rf"vault:({SEGMENT}(?:/{SEGMENT})*)/({SEGMENT})")
_FOREIGN: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_NOTHING_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
READING: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class Vault(Protocol):
    """Reads and stores the secrets of `vault:` references."""

    def read(self, path: str, /) -> Secret | None: ...

    def keep(self, path: str, secret: Secret | None, /) -> None: ...


class _Backend(Protocol):
    """The methods of a keyring backend that we use."""

    def get_password(self, service: str, username: str, /) -> str | None: ...

    def set_password(self, service: str, username: str, password: str, /) -> None: ...

    def delete_password(self, service: str, username: str, /) -> None: ...


class Place(NamedTuple):
    """A parsed reference."""

    scheme: str
    name: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}"


def is_reference(text: str) -> bool:
    """Whether a text begins like a reference; any other text may be a secret itself."""
    return text.partition(":")[0] in SCHEMES and ":" in text


def is_in_vault(reference: str) -> bool:
    """Whether a reference is a `vault:` reference."""
    return reference.startswith("vault:")


class TransitKey(NamedTuple):
    """A key that a vault signs with: the mount of the transit engine, and the name of the key."""

    mount: str
    name: str


def transit_key(reference: str) -> TransitKey:
    """Parse `vault:MOUNT/NAME`, for instance `vault:transit/invoice-bot`; a mount may have several segments.

    Raises:
        ConfigurationError: `reference_malformed`: no mount, an empty or relative segment, a field, foreign characters.
    """
    match = _TRANSIT.fullmatch(reference)
    if match is None:
        raise ConfigurationError(
            "reference_malformed",
            "a key that signs in the vault is written vault:MOUNT/NAME",
            remedy="write the mount of the transit engine and the key, for instance vault:transit/invoice-bot",
        )
    return TransitKey(match[1], match[2])


def parse_reference(reference: str) -> Place:
    """Parse and check a reference.

    Raises:
        ConfigurationError: `reference_malformed`.
    """
    scheme, _, name = reference.partition(":")
    if not is_reference(reference):
        raise ConfigurationError(
            "reference_malformed",
            "the reference has no known scheme",
            remedy="write env:NAME, file:PATH, keyring:NAME or vault:PATH",
        )
    if not name or not name.isprintable() or (scheme == "env" and not _VARIABLE.fullmatch(name)):
        raise ConfigurationError(
            "reference_malformed",
            f"the name after {scheme}: is empty or malformed",
            remedy=f"write {scheme}: and a name, not the secret itself",
        )
    if scheme == "file" and not os.path.isabs(name):  # noqa: PTH117 - for each token
        raise ConfigurationError(
            "reference_malformed",
            "a file: reference outside of the configuration needs an absolute path",
            remedy="write the whole path",
        )
    return Place(scheme, name)


class References:
    """Reads and stores secrets. `vault` handles `vault:` references."""

    def __init__(self, *, vault: Vault | None = None) -> None:
        self._vault = vault
        self._last: dict[Place, Secret] = {}

    def read(self, reference: str) -> Secret | None:
        """The secret of a reference, or None. An empty file is an empty secret: it may be half-written.

        Raises:
            ConfigurationError: the reference is malformed, or its place can't be read or holds no text.
        """
        place = parse_reference(reference)
        match place.scheme:
            case "env":
                return self._secret(os.environ.get(place.name) or None, place)
            case "file":
                return self._secret(_read_file(place), place)
            case "vault":
                return self._in_vault().read(place.name)
            case _:
                return self._secret(_read_keyring(place), place)

    def _secret(self, text: str | None, place: Place) -> Secret | None:
        """The same `Secret` as before while its text is the same: each new one has to be searched for."""
        if text is None:
            return None
        last = self._last.get(place)
        if last is not None and last.reveal() == text:
            return last
        if _FOREIGN.search(text):
            raise _unreadable(place, "contains control characters")
        self._last[place] = secret = Secret(text)
        return secret

    def keep(self, reference: str, secret: Secret | None) -> None:
        """Store a secret, whole and durable; None removes it.

        Raises:
            ConfigurationError: the reference is malformed, or its place can't be written.
        """
        place = parse_reference(reference)
        _check_keepable(place, secret)
        match place.scheme:
            case "env":
                raise ConfigurationError(
                    "reference_read_only",
                    "an environment variable can't keep a secret",
                    remedy="keep it by file: or keyring:",
                )
            case "file":
                _keep_file(place, secret)
            case "vault":
                self._in_vault().keep(place.name, secret)
            case _:
                _keep_keyring(place, secret)

    def _in_vault(self) -> Vault:
        if self._vault is None:
            raise ConfigurationError(
                "vault_unconfigured",
                "a vault: reference needs a [vault] table",
                remedy="add a [vault] table with its address",
            )
        return self._vault


def _check_keepable(place: Place, secret: Secret | None) -> None:
    """Refuse a secret that could not be read back; an encoding error would contain it."""
    if secret is None:
        return
    if _FOREIGN.search(secret.reveal()) or len(secret.reveal().encode()) >= LIMIT:
        raise ConfigurationError(
            "secret_unwritable",
            f"the secret for {place} has characters or a length that can't be read back",
            remedy="check where it came from",
        )


def _unreadable(place: Place, what: str) -> ConfigurationError:
    return ConfigurationError(
        "secret_unreadable",
        f"{place} {what}",
        remedy="check what that reference names, and who may read it",
    )


def _read_file(place: Place) -> str | None:
    data = _bytes_of(place)
    if data is None:
        return None
    text = decode_text(data)
    if text is None:
        raise _unreadable(place, "doesn't contain text")
    return text.removesuffix("\n").removesuffix("\r")


def _bytes_of(place: Place) -> bytes | None:
    try:
        descriptor = os.open(place.name, READING)
        try:  # without a file object, which takes twice the time
            _check_file(place, os.fstat(descriptor))
            data = b""
            while len(data) <= LIMIT and (more := os.read(descriptor, LIMIT + 1)):
                data += more
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return None
        raise _unreadable(place, "can't be read") from error
    if len(data) > LIMIT:
        raise _unreadable(place, "is larger than 64 KiB")
    return data


def _check_file(place: Place, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(place, "is not a regular file")
    if os.name == "posix" and status.st_mode & WRITABLE_BY_OTHERS:
        raise ConfigurationError(
            "secret_unsafe",
            f"its group or all users can write {place}",
            remedy="chmod go-w that file",
        )


def decode_text(data: bytes) -> str | None:
    """The text, or None; an error of the codec would contain the bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _keep_file(place: Place, secret: Secret | None) -> None:
    path = Path(place.name)
    try:
        if secret is None:
            path.unlink(missing_ok=True)
        else:
            # reading takes one line end off
            write_private(path, f"{secret.reveal()}\n".encode())
        _sync_folder(path.parent)
    except OSError as error:
        raise ConfigurationError(
            "secret_unwritable",
            f"{place} can't be written",
            remedy="create its folder, and let this user write there",
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_keyring(place: Place) -> str | None:
    keyring = _keyring(place)
    (text,) = _answer(place, lambda: keyring.get_password(SERVICE, place.name))
    return text


def _keep_keyring(place: Place, secret: Secret | None) -> None:
    keyring = _keyring(place)

    def keep() -> None:
        if secret is not None:
            keyring.set_password(SERVICE, place.name, secret.reveal())
        elif keyring.get_password(SERVICE, place.name) is not None:
            keyring.delete_password(SERVICE, place.name)

    _answer(place, keep)


def _answer(place: Place, ask: Callable[[], T]) -> tuple[T]:
    """The answer of a backend. Its errors end here: they may contain the secret."""
    answer = _attempt(ask)
    if answer is None:
        raise ConfigurationError(
            "keyring_unusable",
            f"the keyring fails for {place}",
            remedy="unlock it, or use file:, env: or vault: instead",
        )
    return answer


def _attempt(ask: Callable[[], T]) -> tuple[T] | None:
    try:
        return (ask(),)
    except Exception:  # noqa: BLE001 - each backend has errors of its own
        return None


def _keyring(place: Place) -> _Backend:
    package = _keyring_package()
    if package is None:
        raise _keyring_missing("the package keyring isn't installed")
    answer = _attempt(lambda: _backend_of(package))
    backend, kinds = (None, []) if answer is None else answer[0]
    if backend is None or not kinds or "none" in kinds:
        raise _keyring_missing("this machine has no keyring")
    if "plaintext" in kinds and place.scheme != "keyring+plaintext":
        raise _keyring_missing("a keyring of this machine stores plain text")
    return backend


def _backend_of(package: ModuleType) -> tuple[_Backend, list[str]]:
    backend: _Backend = package.get_keyring()
    return backend, [_kind_of(member) for member in _members(backend)]


def _keyring_package() -> ModuleType | None:
    try:
        import keyring  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        return None
    return keyring


def _members(backend: _Backend) -> Sequence[object]:
    """The backends behind one, which may be a chain of several."""
    chained: Sequence[object] | None = getattr(backend, "backends", None)
    return [backend] if chained is None else chained


def _kind_of(backend: object) -> str:
    module, name = type(backend).__module__, type(backend).__name__
    if module in {"keyring.backends.fail", "keyring.backends.null"}:
        return "none"
    if module.startswith("keyrings.alt") or name.startswith("Plaintext"):
        return "plaintext"
    return "sound"


def _keyring_missing(what: str) -> ConfigurationError:
    return ConfigurationError(
        "keyring_missing",
        what,
        remedy=(
            "on a machine without a desktop use file:, env: or vault: instead; "
            "keyring+plaintext: allows plain text"
        ),
    )
