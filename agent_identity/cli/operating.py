# SPDX-License-Identifier: Apache-2.0
"""What an operator does to a state directory that agents and an authority may use at the same time."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
from typing import TYPE_CHECKING

from agent_identity.authority import Authority
from agent_identity.cli.finding import named_configuration
from agent_identity.config import state_directory
from agent_identity.errors import ConfigurationError, DeniedError
from agent_identity.keys.signing import private_directory
from agent_identity.lifecycle import Revocations
from agent_identity.provenance.ledger import open_ledger
from agent_identity.provenance.records import REINSTATED, REVOKED

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from agent_identity.lifecycle import Revocation
    from agent_identity.provenance.ledger import Ledger

__all__ = ["operated", "reinstated", "revoked", "rotated"]


@contextlib.contextmanager
def operated(state_dir: Path) -> Generator[Authority]:
    """The authority of a state directory, for as long as the block lasts.

    Raises:
        ConfigurationError: `no_authority`, none was ever served there.
    """
    folder = state_dir / "authority"
    if not folder.is_dir():  # a slip in the folder's name must not look like a rotation
        raise ConfigurationError(
            "no_authority",
            f"there is no authority in {state_dir}",
            remedy="name the --state-dir that it is served with",
        )
    authority = Authority(folder)
    try:
        yield authority
    finally:
        authority.close()


def rotated(state_dir: Path) -> tuple[str, str]:
    """Let a new key of a state directory's authority sign; its issuer, and the `kid` of that key.

    Raises:
        ConfigurationError: see `operated`.
    """
    with operated(state_dir) as authority:
        before = _kids(authority)
        authority.rotate()
        new = [kid for kid in _kids(authority) if kid not in before]
        return authority.issuer, new[0]


def _kids(authority: Authority) -> list[str]:
    keys = authority.jwks()["keys"]
    return (
        [str(key["kid"]) for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []
    )


def revoked(ref: str, reason: str, state_dir: Path | None, config: Path | None) -> Revocation:
    """End what a reference names, in every process that shares the state directory.

    Raises:
        ConfigurationError: `no_state`; what `Revocations.revoke` raises.
        DeniedError: `operator_required`.
    """
    with _revocations(state_dir, config) as (revocations, by):
        return revocations.revoke(ref, reason=reason, by=by)


def reinstated(
    ref: str, reason: str | None, state_dir: Path | None, config: Path | None
) -> Revocation:
    """Let new work begin for a reference that was revoked.

    Raises:
        ConfigurationError: `no_state`; what `Revocations.reinstate` raises.
        DeniedError: `operator_required`.
    """
    with _revocations(state_dir, config) as (revocations, by):
        return revocations.reinstate(ref, reason=reason, by=by)


@contextlib.contextmanager
def _revocations(state_dir: Path | None, config: Path | None) -> Generator[tuple[Revocations, str]]:
    from agent_identity.assembly.keys import referenced_key, uses_authority  # noqa: PLC0415 - for those who have a file
    from agent_identity.config import References, read_configuration  # noqa: PLC0415 - see above

    directory = state_directory(state_dir)
    url, durability = "sqlite:", "process"
    path = named_configuration(config) if state_dir is None else config
    if path is not None:
        configuration = read_configuration(path, needs_policy=False)
        key = configuration.operator.key
        if key is not None:
            referenced_key(References(), key, "operator.key")
        elif not uses_authority(configuration):
            raise DeniedError(
                "operator_required",
                "revoking and reinstating takes the operator's key",
                remedy='configure [operator] key = "file:…"',
            )
        url, durability = configuration.ledger.url, configuration.ledger.durability
    if not ((directory / "authority").is_dir() or (directory / "ledger.db").exists()):
        # a slip in the folder's name must not look like a revocation
        raise ConfigurationError(
            "no_state",
            f"no agent and no authority has used {directory}",
            remedy="name the --state-dir of the agents, or the --config that they run with",
        )
    had_ledger = (directory / "ledger.db").exists() or url != "sqlite:"
    authority = Authority(private_directory(directory / "authority"))
    try:
        with open_ledger(url, state_dir=directory, durability=durability) as ledger:
            revocations = Revocations(
                authority.store,
                ledger,
                has_sessions=had_ledger and not _is_of_operators(ledger),
                own_issuer=authority.issuer,
            )
            yield revocations, f"os:{_user()}"
    finally:
        authority.close()


def _is_of_operators(ledger: Ledger) -> bool:
    """Whether a ledger has nothing but revocations: the agents of that authority run, and keep their records, elsewhere."""
    kinds = {record.kind for record in itertools.islice(ledger.records(), 1000)}
    return bool(kinds) and kinds <= {REVOKED, REINSTATED}


def _user() -> str:
    """The user that runs this process, whatever the environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container that runs under any number
        return f"uid:{os.getuid()}"
