# SPDX-License-Identifier: Apache-2.0
"""What the authority keeps in its state directory, made once however many processes start on it together."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from agent_identity.errors import ConfigurationError
from agent_identity.keys.signing import write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

__all__ = ["one_at_a_time", "read_private", "settle", "settled"]

_LARGEST: Final = 64 * 1024


def read_private(path: Path) -> bytes:
    """Read a small file of ours.

    Raises:
        FileNotFoundError: there is none.
        ConfigurationError: it can't be read, is a link, or is larger than any that we write.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(
            "state_unusable", f"{path} can't be read", remedy="check who owns the state directory"
        ) from error
    if len(data) > _LARGEST:
        raise ConfigurationError("state_unusable", f"{path} is none of the authority's files")
    return data


def settle(path: Path, make: Callable[[], bytes]) -> None:
    """See to it that there is such a file (0600): who comes first makes it, whole, and theirs counts."""
    if path.exists():
        return
    ours = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    write_private(ours, make())
    try:
        os.link(ours, path)
    except FileExistsError:
        pass  # somebody was faster
    finally:
        ours.unlink()


def settled(path: Path, make: Callable[[], bytes]) -> bytes:
    """The file's content, made by whoever came first."""
    settle(path, make)
    return read_private(path)


@contextmanager
def one_at_a_time(path: Path) -> Generator[None, None, None]:
    """Let one process, and one thread of it, into the block at a time; `path` is the lock's own file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
