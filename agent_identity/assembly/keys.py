# SPDX-License-Identifier: Apache-2.0
"""Private keys that outlive the process: where a reference names one, or under the state directory, made at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.config.references import References, is_in_vault
from agent_identity.errors import ConfigurationError
from agent_identity.keys.private_files import (
    one_at_a_time,
    private_directory,
    read_secret,
    write_private,
)
from agent_identity.keys.signing import SigningKey
from agent_identity.signers import MemorySigner

if TYPE_CHECKING:
    from pathlib import Path

    from agent_identity.config import Configuration

__all__ = ["first_signer", "referenced_key", "state_key", "uses_authority"]


def uses_authority(configuration: Configuration) -> bool:
    """Whether first grants come from an authority in this process: nothing else is configured."""
    return not configuration.issuers and configuration.agent.signer is None


def first_signer(configuration: Configuration, directory: Path) -> MemorySigner | None:
    """The key in this process that signs first grants: the one that is named, or one of the state directory.

    None where another does: an issuer, the authority of this process, or a key that stays in a vault.

    Raises:
        ConfigurationError: there is none where the configuration says, or it can't be used.
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
        ConfigurationError: the directory or the key can't be used, or isn't private.
    """
    path = private_directory(directory) / f"{name}.pem"
    try:
        with one_at_a_time(directory / f"{name}.lock"):
            if not path.exists():
                write_private(path, SigningKey.generate().to_pem())
            return SigningKey.from_pem(read_secret(path))
    except OSError as error:
        raise ConfigurationError(
            "state_unusable",
            f"the key {path} can't be kept or read",
            remedy="look at what stands in its place, or choose another state directory",
        ) from error
