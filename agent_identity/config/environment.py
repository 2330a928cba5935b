# SPDX-License-Identifier: Apache-2.0
"""Where files are kept, as environment variables say. The working directory is never used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from agent_identity.errors import ConfigurationError

STATE_DIR: Final = "AGENT_IDENTITY_STATE_DIR"
CONFIG: Final = "AGENT_IDENTITY_CONFIG"
SPIFFE_SOCKET: Final = "SPIFFE_ENDPOINT_SOCKET"


def state_directory(explicit: str | Path | None = None) -> Path:
    """The folder of keys and ledger: `explicit`, otherwise `AGENT_IDENTITY_STATE_DIR`, otherwise a folder of the user."""
    if explicit is not None:
        return Path(explicit).absolute()
    if (path := os.environ.get(STATE_DIR)) is not None:
        if not Path(path).is_absolute():
            raise ConfigurationError("state_dir_relative", f"{STATE_DIR} must be an absolute path")
        return Path(path)
    import platformdirs  # noqa: PLC0415 - needed for the default only

    return platformdirs.user_state_path("agent-identity")


def configuration_file() -> Path | None:
    """The file that `AGENT_IDENTITY_CONFIG` names, or None.

    Raises:
        ConfigurationError: `config_relative`, the path depends on where the program was started.
    """
    path = os.environ.get(CONFIG)
    if not path:
        return None
    if not Path(path).is_absolute():
        raise ConfigurationError(
            "config_relative",
            f"{CONFIG} must be an absolute path: a relative one is another file in every folder",
            remedy=f"export {CONFIG} with the whole path",
        )
    return Path(path)


def workload_api(explicit: str | None = None) -> str | None:
    """The socket of the SPIFFE Workload API: `explicit`, otherwise `SPIFFE_ENDPOINT_SOCKET`, otherwise None."""
    return explicit or os.environ.get(SPIFFE_SOCKET) or None
