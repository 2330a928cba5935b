# SPDX-License-Identifier: Apache-2.0
"""Private keys that outlive the process: where a reference names one, or under the state directory, made at first use."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

from agent_identity.errors import ConfigurationError
from agent_identity.keys import SigningKey, private_directory, write_private

if TYPE_CHECKING:
    from pathlib import Path

    from agent_identity.config import References

__all__ = ["referenced_key", "state_key"]


def referenced_key(references: References, reference: str, what: str) -> SigningKey:
    """The private key (PEM) that a reference names; `what` is the key of the configuration that it stands in.

    Raises:
        ConfigurationError: there is none, or it can't be used.
    """
    found = references.read(reference)
    if found is None:
        raise ConfigurationError(
            "secret_missing",
            f"there is no key where {what} says",
            remedy="put a private key there, PEM, or name another place",
        )
    return SigningKey.from_pem(found.reveal().encode())


def state_key(directory: Path, name: str) -> SigningKey:
    """The private key `name` of a state directory. Processes that start at once agree on one.

    Raises:
        ConfigurationError: the directory can't be used, or isn't private.
    """
    path = private_directory(directory) / f"{name}.pem"
    with (directory / f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file closes
        if not path.exists():
            write_private(path, SigningKey.generate().to_pem())
        return SigningKey.from_pem(path.read_bytes())
