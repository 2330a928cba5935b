# SPDX-License-Identifier: Apache-2.0
"""Makes, replaces, reads and locks files and folders that only their owner can open.

No other module makes files with mode 0600. A symbolic link is refused when a file is made, read or locked.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

_log: Final = logging.getLogger("agent_identity")

_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_LARGEST: Final = 64 * 1024


def make_private_directory(path: Path) -> Path:
    """Make a folder that only its owner can enter (0700), or check that it is one.

    Raises:
        ConfigurationError: it is a link, another user owns it, or its mode can't be restricted.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        if path.is_symlink() or status.st_uid != os.getuid():
            raise ConfigurationError(
                "state_not_private", f"{path} is a link, or another user owns it"
            )
        if status.st_mode & _OTHERS:
            path.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(
            "state_unusable",
            f"{path} can't be used as a state directory",
            remedy="choose another state_dir",
        ) from error
    return path


def make_private_file(path: Path) -> None:
    """Make an empty private file (0600). If there is a file already, restrict its mode.

    An existing file isn't opened: closing it would drop the locks that SQLite holds on it in this process.

    Raises:
        ConfigurationError: it is a link or not a regular file, or another user owns it.
    """
    try:
        create_private(path, b"")
    except FileExistsError:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
            raise ConfigurationError(
                "state_not_private", f"{path} is not a regular file, or another user owns it"
            ) from None
        if status.st_mode & _OTHERS:
            path.chmod(0o600)
            _log.warning("%s was readable or writable by others; it is now private", path)
    except OSError as error:
        raise ConfigurationError("state_unusable", f"{path} can't be made") from error


def create_private(path: Path, data: bytes) -> None:
    """Write a new file, or no file at all if writing fails.

    Raises:
        FileExistsError: there is a file or a link of that name.
    """
    descriptor = os.open(path, _NEW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_private(path: Path, data: bytes) -> None:
    """Write or replace a file in one step."""
    temporary = _temporary_path(path)
    create_private(temporary, data)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_once(path: Path, make: Callable[[], bytes]) -> None:
    """Make a file in one step unless it exists. If several processes do so at once, the first one's file is kept."""
    if path.exists():
        return
    ours = _temporary_path(path)
    create_private(ours, make())
    try:
        os.link(ours, path)
    except FileExistsError:
        pass  # another process was faster
    finally:
        ours.unlink()


def read_or_make(path: Path, make: Callable[[], bytes]) -> bytes:
    """Read a file, after making it with `make_once`."""
    make_once(path, make)
    return read_private(path)


def _temporary_path(path: Path) -> Path:
    # A new name each time: a killed process may have left a file with an old one.
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def read_private(path: Path, *, largest: int = _LARGEST) -> bytes:
    """Read a small file that this library wrote, of at most `largest` bytes.

    Raises:
        FileNotFoundError: it doesn't exist.
        ConfigurationError: it can't be read, is a link, or is too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_LINK)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(largest + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(
            "state_unusable", f"{path} can't be read", remedy="check who owns the state directory"
        ) from error
    if len(data) > largest:
        raise ConfigurationError(
            "state_unusable", f"{path} is larger than any file that this library writes"
        )
    return data


def read_secret(path: Path) -> bytes:
    """Read a file, but refuse it if others may have read it before. Its mode isn't repaired.

    Raises:
        ConfigurationError: `state_not_private`, other users can open it, or another user owns it.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.getuid() or status.st_mode & _OTHERS:
            raise ConfigurationError(
                "state_not_private",
                f"other users can open {path}, or another user owns it",
                remedy=f"run chmod 600 {path} if nobody else has read it, otherwise delete it to get a new key",
            )
        return file.read()


@contextmanager
def locked_file(path: Path) -> Generator[None, None, None]:
    """Run the block in one thread of one process at a time. `path` is the lock file."""
    import fcntl  # noqa: PLC0415 - Windows has none

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
