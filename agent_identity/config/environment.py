# SPDX-License-Identifier: Apache-2.0
"""Where things are kept, by what the environment says. The working directory is never looked at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from agent_identity.errors import ConfigurationError

__all__ = ["configuration_file", "state_directory", "workload_api"]

STATE_DIR: Final = "AGENT_IDENTITY_STATE_DIR"
CONFIG: Final = "AGENT_IDENTITY_CONFIG"
SPIFFE_SOCKET: Final = "SPIFFE_ENDPOINT_SOCKET"


def state_directory(explicit: str | Path | None = None) -> Path:
    """The folder of keys and ledger: what the caller says, else `AGENT_IDENTITY_STATE_DIR`, else the user's own."""
    if explicit is not None:
        return Path(explicit).absolute()
    if (found := os.environ.get(STATE_DIR)) is not None:
        if not Path(found).is_absolute():
            raise ConfigurationError(
                "state_dir_relative", f"{STATE_DIR} has to be an absolute path"
            )
        return Path(found)
    import platformdirs  # noqa: PLC0415 - only where nobody said anything

    return platformdirs.user_state_path("agent-identity")


def configuration_file() -> Path | None:
    """The file that `AGENT_IDENTITY_CONFIG` names, None where it names none.

    Raises:
        ConfigurationError: `config_relative`: what it names depends on where the program was started.
    """
    found = os.environ.get(CONFIG)
    if not found:
        return None
    if not Path(found).is_absolute():
        raise ConfigurationError(
            "config_relative",
            f"{CONFIG} has to be an absolute path: a relative one is another file in every folder",
            remedy=f"export {CONFIG} with the whole path",
        )
    return Path(found)


def workload_api(explicit: str | None = None) -> str | None:
    """The socket of the SPIFFE Workload API: what the configuration says, else `SPIFFE_ENDPOINT_SOCKET`, else None."""
    return explicit or os.environ.get(SPIFFE_SOCKET) or None
