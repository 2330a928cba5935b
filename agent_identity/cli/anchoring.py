# SPDX-License-Identifier: Apache-2.0
"""`agent-identity authority jwks`: the public keys that a service needs to check first grants."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from agent_identity.assembly.configured import secrets_of, vault_signer
from agent_identity.assembly.keys import first_signer, uses_authority
from agent_identity.authority import Authority
from agent_identity.cli.looking import world_of
from agent_identity.config import read_configuration
from agent_identity.errors import ConfigurationError
from agent_identity.flow import run
from agent_identity.signers import public_keys_of

if TYPE_CHECKING:
    from pathlib import Path

    from agent_identity.config import Configuration
    from agent_identity.values import JSON

__all__ = ["anchor_keys"]


def anchor_keys(path: Path | None, directory: Path) -> dict[str, JSON]:
    """The JWK set of whatever signs first grants by a configuration, without one by the authority of a state directory.

    Raises:
        ConfigurationError: `anchor_keys`, an issuer elsewhere signs them and publishes its keys itself.
        CredentialError: the signer refused, or could not be reached.
    """
    configuration = None if path is None else read_configuration(path, needs_policy=False)
    if configuration is not None and not uses_authority(configuration):
        return {"keys": [*_signers_keys(configuration, directory)]}
    authority = Authority(directory / "authority")
    try:
        return authority.jwks()
    finally:
        authority.close()


def _signers_keys(configuration: Configuration, directory: Path) -> list[dict[str, JSON]]:
    secrets = secrets_of(configuration, time.time)
    signer = first_signer(configuration, directory) or vault_signer(configuration, secrets)
    if signer is None:
        raise ConfigurationError(
            "anchor_keys",
            "an issuer signs first grants, and publishes its keys itself",
            remedy="take them from where that issuer's metadata says",
        )
    world = world_of(configuration)
    try:
        return run(public_keys_of(signer), world.answer)
    finally:
        world.close()
