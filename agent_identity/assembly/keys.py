# SPDX-License-Identifier: Apache-2.0
"""Private keys that outlive the process: named by a reference, or made in the state directory on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.config.references import References, is_in_vault
from agent_identity.errors import ConfigurationError
from agent_identity.keys.private_files import (
    locked_file,
    make_private_directory,
    read_secret,
    write_private,
)
from agent_identity.keys.signing import SigningKey
from agent_identity.signers import MemorySigner

if TYPE_CHECKING:
    from pathlib import Path

    from agent_identity.config import Configuration


def uses_authority(configuration: Configuration) -> bool:
    """Whether first grants come from an authority in this process, because nothing else is configured."""
    return not configuration.issuers and configuration.agent.signer is None


def first_signer(configuration: Configuration, directory: Path) -> MemorySigner | None:
    """The key in this process that signs first grants: the configured one, or one in the state directory.

    None if something else signs them: an issuer, the authority of this process, or a key in a vault.

    Raises:
        ConfigurationError: the configured key doesn't exist, or can't be used.
    """
    table = configuration.agent
    if uses_authority(configuration) or table.grants is not None:
        return None
    if table.signer is None:
        return MemorySigner(state_key(directory, "signer"))
    if is_in_vault(table.signer):
        return None
    return MemorySigner(referenced_key(References(), table.signer, "agent.signer"))


def referenced_key(references: References, reference: str, what: str) -> SigningKey:
    """The private key (PEM) that a reference names. `what` is the setting with the reference.

    Raises:
        ConfigurationError: it doesn't exist, or can't be used.
    """
    pem = references.read(reference)
    if pem is None:
        raise ConfigurationError(
            "secret_missing",
            f"there is no key at the place that {what} names",
            remedy="put a private key (PEM) there, or name another place",
        )
    return SigningKey.from_pem(pem.reveal().encode())


def state_key(directory: Path, name: str) -> SigningKey:
    """The private key `name` of a state directory. Processes that start at once agree on one.

    Raises:
        ConfigurationError: the directory or the key can't be used, or isn't private.
    """
    path = make_private_directory(directory) / f"{name}.pem"
    try:
        with locked_file(directory / f"{name}.lock"):
            if not path.exists():
                write_private(path, SigningKey.generate().to_pem())
            return SigningKey.from_pem(read_secret(path))
    except OSError as error:
        raise ConfigurationError(
            "state_unusable",
            f"the key {path} can't be kept or read",
            remedy="check what is at this path, or choose another state directory",
        ) from error
