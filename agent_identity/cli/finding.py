# SPDX-License-Identifier: Apache-2.0
"""Which configuration, which ledger and which session a command uses.

`--config` names the configuration, otherwise `AGENT_IDENTITY_CONFIG`. A file in the working directory is mentioned in an
error, but never opened: another user may have put it there.
"""

from __future__ import annotations

import os
import time
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
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.provenance.trace import visible
from agent_identity.values import can_be_signed

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.config import Configuration
    from agent_identity.provenance.ledger import Ledger

NAME: Final = "agent-identity.toml"


def named_configuration(option: Path | None) -> Path | None:
    """The file that `--config` or the environment names, or None.

    Raises:
        ConfigurationError: `config_relative`, the environment has a relative path.
    """
    return configuration_file() if option is None else option


def needed_configuration(option: Path | None) -> Path:
    """The same for commands that need a configuration.

    Raises:
        ConfigurationError: `not_configured`.
    """
    path = named_configuration(option)
    if path is not None:
        return path
    if os.path.lexists(NAME):
        raise ConfigurationError(
            "not_configured",
            f"no configuration is named, and ./{NAME} is not used: another user may have put it there",
            remedy=f"if it is yours, pass --config ./{NAME}, or export {CONFIG}={Path(NAME).absolute()}",
        )
    raise ConfigurationError(
        "not_configured",
        "no configuration is named",
        remedy=f"pass --config PATH, or set {CONFIG}; `agent-identity init` writes a configuration",
    )


def opened_ledger(state_dir: Path | None, config: Path | None) -> Ledger:
    """The ledger of `--state-dir`, else of `--config`, else of their variables, else of the default state directory.

    Raises:
        LedgerError: `no_ledger`.
    """
    from agent_identity.config import read_configuration  # noqa: PLC0415 - loads pydantic, which most users don't need

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
    """The file of a ledger, None for a ledger in memory or in a server."""
    if url == "sqlite:":
        return directory / "ledger.db"
    scheme, slashes, rest = url.partition(":///")
    return Path(unquote(rest)) if scheme == "sqlite" and slashes else None


def _check_there(file: Path | None) -> None:
    if file is None:
        raise LedgerError(
            "no_ledger",
            "the configured ledger was in the memory of the process that wrote it",
            remedy='set url = "sqlite:" in [ledger]',
        )
    if not file.exists():
        raise LedgerError(
            "no_ledger",
            f"there is no ledger in {file.parent}",
            remedy="name the folder with --state-dir or the file with --config; the demo prints the folder of its own ledger",
        )


def world_of(configuration: Configuration, clock: Callable[[], float] = time.time) -> World:
    """The driver of a command's flows; the caller closes it."""
    settings = Settings.of(configuration)
    return World(
        lambda: transport_of(settings),
        MemoryLedger(),  # these commands call no tool, so they record nothing
        surroundings=Surroundings(svids=svids_of(configuration)),
        clock=clock,
        deadline=settings.deadline,
    )


_LISTED: Final = 5


def whole_reference(ledger: Ledger, ref: str) -> str:
    """The id that begins with `ref`; `ref` itself if it is an id, or if no id begins with it.

    Raises:
        LedgerError: `ambiguous_reference`, several ids begin with it.
    """
    if not ref or not can_be_signed(ref):
        return ref
    ids = ledger.references(ref, limit=_LISTED + 1)
    if not ids or ref in ids:
        return ref
    if len(ids) == 1:
        return ids[0]
    more = ", …" if len(ids) > _LISTED else ""
    raise LedgerError(
        "ambiguous_reference",
        f"several ids begin with {visible(ref)}: {', '.join(map(visible, ids[:_LISTED]))}{more}",
        remedy="give more characters of the id",
    )


def newest_session(ledger: Ledger) -> str:
    """The session that was opened last and has no parent.

    Raises:
        LedgerError: `unknown_reference`.
    """
    for opened in ledger.sessions():
        if opened.body.get("parent") is None and opened.session_id is not None:
            return opened.session_id
    raise LedgerError("unknown_reference", "the ledger has no session yet")
