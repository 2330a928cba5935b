# SPDX-License-Identifier: Apache-2.0
"""Which configuration and which ledger a command means.

A configuration is found where somebody named it: by `--config`, else by `AGENT_IDENTITY_CONFIG`. One that merely lies in the
working directory is seen, so that an error can say so, and never opened: somebody else may have put it there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from agent_identity.assembly.configured import Settings, svids_of, transport_of
from agent_identity.config import configuration_file, state_directory
from agent_identity.config.environment import CONFIG, STATE_DIR
from agent_identity.errors import ConfigurationError, LedgerError
from agent_identity.http.surroundings import Surroundings
from agent_identity.http.world import World
from agent_identity.provenance.ledger import open_ledger

if TYPE_CHECKING:
    from agent_identity.config import Configuration
    from agent_identity.provenance.ledger import Ledger

__all__ = [
    "NAME",
    "ledger_file",
    "named_configuration",
    "needed_configuration",
    "opened_ledger",
    "world_of",
]

NAME: Final = "agent-identity.toml"


def named_configuration(option: Path | None) -> Path | None:
    """The file that `--config` or the environment names, None where neither does.

    Raises:
        ConfigurationError: `config_relative`, the environment names another file in every folder.
    """
    return configuration_file() if option is None else option


def needed_configuration(option: Path | None) -> Path:
    """The same for commands that do nothing without one.

    Raises:
        ConfigurationError: `not_configured`, nobody named one.
    """
    found = named_configuration(option)
    if found is not None:
        return found
    if os.path.lexists(NAME):
        raise ConfigurationError(
            "not_configured",
            f"no configuration is named, and ./{NAME} is not used: somebody else may have put it there",
            remedy=f"if it is yours, say --config ./{NAME}, or export {CONFIG}={Path(NAME).absolute()}",
        )
    raise ConfigurationError(
        "not_configured",
        "no configuration is named",
        remedy=f"say --config PATH, or set {CONFIG}; `agent-identity init` writes one",
    )


def opened_ledger(state_dir: Path | None, config: Path | None) -> Ledger:
    """The ledger of `--state-dir`, else of `--config`, else of either's variable, else of the default state folder.

    Raises:
        LedgerError: `no_ledger`, there is none.
    """
    from agent_identity.config import read_configuration  # noqa: PLC0415 - pydantic, for those who have a file
    from agent_identity.provenance.ledger import open_ledger  # noqa: PLC0415 - loads what the command needs

    directory = state_directory(state_dir)
    url, durability = "sqlite:", "process"
    if state_dir is None and (config is not None or STATE_DIR not in os.environ):
        path = named_configuration(config)
        if path is not None:
            table = read_configuration(path, needs_policy=False).ledger
            url, durability = table.url, table.durability
    _check_there(ledger_file(url, directory))
    return open_ledger(url, state_dir=directory, durability=durability)


def ledger_file(url: str, directory: Path) -> Path | None:
    """The file of a ledger, None for one that lives in memory or elsewhere."""
    if url == "sqlite:":
        return directory / "ledger.db"
    scheme, slashes, rest = url.partition(":///")
    return Path(unquote(rest)) if scheme == "sqlite" and slashes else None


def _check_there(file: Path | None) -> None:
    if file is None:
        raise LedgerError(
            "no_ledger",
            "the configured ledger is gone with the process that wrote it",
            remedy='say url = "sqlite:" in [ledger]',
        )
    if not file.exists():
        raise LedgerError(
            "no_ledger",
            f"there is no ledger in {file.parent}",
            remedy="name the folder with --state-dir or the file with --config; the demo prints the folder of its own ledger",
        )


def world_of(configuration: Configuration) -> World:
    """What answers flows of these commands. Whoever made it closes it."""
    settings = Settings.of(configuration)
    return World(
        lambda: transport_of(settings, {}),
        open_ledger("memory:", state_dir=state_directory()),  # nothing is recorded: nothing is done
        surroundings=Surroundings(svids=svids_of(configuration)),
        deadline=settings.deadline,
    )
