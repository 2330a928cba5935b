# SPDX-License-Identifier: Apache-2.0
"""Where secrets are: a reference names the place, and this reads it there, and puts there what has to be kept.

    env:NAME        a variable of this process; never written
    file:PATH       an absolute path; one trailing line end is not part of the secret
    keyring:NAME    the desktop's keyring, entry NAME of `agent-identity`; never one that keeps plain text
    vault:PATH      Vault or OpenBao, where the file has a [vault] table; the key that signs first grants is vault:MOUNT/NAME

None is a place where nothing is. A place that is there and can't be read, or holds something else than text, is an error.
An error names the place, never what was found there; a text that is no proper reference may be a secret, so it isn't named.
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

__all__ = [
    "Named",
    "References",
    "TransitKey",
    "Vault",
    "is_in_vault",
    "is_reference",
    "named",
    "transit_key",
]

T = TypeVar("T")

LIMIT: Final = 64 * 1024
SERVICE: Final = "agent-identity"
SCHEMES: Final = ("env", "file", "keyring", "keyring+plaintext", "vault")

_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SEGMENT: Final = r"(?!\.\.?(?:/|\Z))[A-Za-z0-9._~@-]+"  # none is "." or ".."
_TRANSIT: Final = re.compile(rf"vault:({_SEGMENT}(?:/{_SEGMENT})*)/({_SEGMENT})")
_FOREIGN: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_NOTHING_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_READING: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class Vault(Protocol):
    """Reads and keeps what `vault:` references name."""

    def read(self, path: str, /) -> Secret | None: ...

    def keep(self, path: str, secret: Secret | None, /) -> None: ...


class _Backend(Protocol):
    """What is used of a keyring."""

    def get_password(self, service: str, username: str, /) -> str | None: ...

    def set_password(self, service: str, username: str, password: str, /) -> None: ...

    def delete_password(self, service: str, username: str, /) -> None: ...


class Named(NamedTuple):
    """A reference in its two halves."""

    scheme: str
    name: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}"


def is_reference(text: str) -> bool:
    """Whether a text begins as a reference does; what doesn't may be a secret itself."""
    return text.partition(":")[0] in SCHEMES and ":" in text


def is_in_vault(reference: str) -> bool:
    """Whether what a reference names is in a vault."""
    return reference.startswith("vault:")


class TransitKey(NamedTuple):
    """A key that a vault signs with: where its transit engine is mounted, and what the key is called there."""

    mount: str
    name: str


def transit_key(reference: str) -> TransitKey:
    """Read `vault:MOUNT/NAME`, for instance `vault:transit/invoice-bot`; a mount may have several segments.

    Raises:
        ConfigurationError: `reference_malformed`: no mount, an empty or relative segment, a field, foreign characters.
    """
    found = _TRANSIT.fullmatch(reference)
    if found is None:
        raise ConfigurationError(
            "reference_malformed",
            "a key that signs in the vault is written vault:MOUNT/NAME",
            remedy="name the mount of the transit engine and the key there, for instance vault:transit/invoice-bot",
        )
    return TransitKey(found[1], found[2])


def named(reference: str) -> Named:
    """A reference, read.

    Raises:
        ConfigurationError: `reference_malformed`.
    """
    scheme, _, name = reference.partition(":")
    if not is_reference(reference):
        raise ConfigurationError(
            "reference_malformed",
            "a reference has no scheme that is known here",
            remedy="write env:NAME, file:PATH, keyring:NAME or vault:PATH",
        )
    if not name or not name.isprintable() or (scheme == "env" and not _VARIABLE.fullmatch(name)):
        raise ConfigurationError(
            "reference_malformed",
            f"what follows {scheme}: in a reference names nothing",
            remedy=f"write {scheme}: and the name of the place, not the secret itself",
        )
    if scheme == "file" and not Path(name).is_absolute():
        raise ConfigurationError(
            "reference_malformed",
            "a file: reference outside the configuration has no absolute path",
            remedy="write the whole path",
        )
    return Named(scheme, name)


class References:
    """The places of secrets as this process reaches them. `vault` is asked for `vault:` references."""

    def __init__(self, *, vault: Vault | None = None) -> None:
        self._vault = vault

    def read(self, reference: str) -> Secret | None:
        """The secret in a place, None where nothing is. An empty file is an empty secret: it may be half-written.

        Raises:
            ConfigurationError: the reference is malformed, or its place can't be read or holds no text.
        """
        place = named(reference)
        match place.scheme:
            case "env":
                return _secret(os.environ.get(place.name) or None, place)
            case "file":
                return _read_file(place)
            case "vault":
                return self._in_vault().read(place.name)
            case _:
                return _read_keyring(place)

    def keep(self, reference: str, secret: Secret | None) -> None:
        """Put a secret in its place, whole and durable; None empties the place.

        Raises:
            ConfigurationError: the reference is malformed, or its place can't be written.
        """
        place = named(reference)
        _check_keepable(place, secret)
        match place.scheme:
            case "env":
                raise ConfigurationError(
                    "reference_read_only",
                    "a variable can't keep a secret",
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
                "a vault: reference needs a Vault",
                remedy="add a [vault] table with its address",
            )
        return self._vault


def _secret(text: str | None, place: Named) -> Secret | None:
    if text is None:
        return None
    if _FOREIGN.search(text):
        raise _unreadable(place, "holds characters that no secret has")
    return Secret(text)


def _check_keepable(place: Named, secret: Secret | None) -> None:
    """What could not be read back is not kept; what can't be encoded would end in an error that holds it."""
    if secret is None:
        return
    if _FOREIGN.search(secret.reveal()) or len(secret.reveal().encode()) >= LIMIT:
        raise ConfigurationError(
            "secret_unwritable",
            f"what is to be kept in {place} is no text that could be read again",
            remedy="look at where it came from",
        )


def _unreadable(place: Named, what: str) -> ConfigurationError:
    return ConfigurationError(
        "secret_unreadable",
        f"{place} {what}",
        remedy="look at what that reference names, and who may read it",
    )


# -- files ------------------------------------------------------------------------------------------------------------


def _read_file(place: Named) -> Secret | None:
    data = _bytes_of(place)
    if data is None:
        return None
    text = _decoded(data)
    if text is None:
        raise _unreadable(place, "holds no text")
    return _secret(text.removesuffix("\n").removesuffix("\r"), place)


def _bytes_of(place: Named) -> bytes | None:
    try:
        descriptor = os.open(place.name, _READING)
        with os.fdopen(descriptor, "rb") as file:
            _check_file(place, os.fstat(file.fileno()))
            data = file.read(LIMIT + 1)
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return None
        raise _unreadable(place, "can't be read") from error
    if len(data) > LIMIT:
        raise _unreadable(place, "holds more than 64 KiB")
    return data


def _check_file(place: Named, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(place, "is no file")
    if os.name == "posix" and status.st_mode & _WRITABLE_BY_OTHERS:
        raise ConfigurationError(
            "secret_unsafe",
            f"{place} may be written by its group or by everybody",
            remedy="chmod go-w that file",
        )


def _decoded(data: bytes) -> str | None:
    """The text of some bytes; an error of the codec would carry them."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _keep_file(place: Named, secret: Secret | None) -> None:
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
            remedy="make its folder, and let this user write there",
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- the keyring ------------------------------------------------------------------------------------------------------


def _read_keyring(place: Named) -> Secret | None:
    keyring = _keyring(place)
    (text,) = _answer(place, lambda: keyring.get_password(SERVICE, place.name))
    return _secret(text, place)


def _keep_keyring(place: Named, secret: Secret | None) -> None:
    keyring = _keyring(place)

    def keep() -> None:
        if secret is not None:
            keyring.set_password(SERVICE, place.name, secret.reveal())
        elif keyring.get_password(SERVICE, place.name) is not None:
            keyring.delete_password(SERVICE, place.name)

    _answer(place, keep)


def _answer(place: Named, ask: Callable[[], T]) -> tuple[T]:
    """What a backend answers. Its own error ends here: it may hold the secret."""
    answer = _attempt(ask)
    if answer is None:
        raise ConfigurationError(
            "keyring_unusable",
            f"the keyring doesn't answer for {place}",
            remedy="unlock it, or name another place by file:, env: or vault:",
        )
    return answer


def _attempt(ask: Callable[[], T]) -> tuple[T] | None:
    try:
        return (ask(),)
    except Exception:  # noqa: BLE001 - each backend has errors of its own
        return None


def _keyring(place: Named) -> _Backend:
    package = _keyring_package()
    if package is None:
        raise _keyring_missing("the package keyring isn't installed")
    found = _attempt(lambda: _backend_of(package))
    backend, kinds = (None, []) if found is None else found[0]
    if backend is None or not kinds or "none" in kinds:
        raise _keyring_missing("this machine has no keyring")
    if "plaintext" in kinds and place.scheme != "keyring+plaintext":
        raise _keyring_missing("a keyring of this machine keeps plain text")
    return backend


def _backend_of(package: ModuleType) -> tuple[_Backend, list[str]]:
    backend: _Backend = package.get_keyring()
    return backend, [_kind_of(member) for member in _members(backend)]


def _keyring_package() -> ModuleType | None:
    try:
        import keyring  # noqa: PLC0415 - an extra, and slow to look around
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
            "on a machine without a desktop name the secret by file:, env: or vault: instead; "
            "keyring+plaintext: says that plain text will do"
        ),
    )
