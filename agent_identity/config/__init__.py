# SPDX-License-Identifier: Apache-2.0
"""From `agent-identity.toml` to checked values: where the file is, what it may say, what it leaves to be inferred.

    places      where things are kept, by what the environment says
    model       every table and key
    inference   what a short file means in full
    checks      what can't be, all of it at once, and `unsupported` what this version can't do yet
    reading     all of that in order: the file in, a `Configuration` or one error out
    references  `env:`, `file:` and `keyring:`, the places of secrets that the file only names

Nothing here is loaded before it is asked for: most programs never read a file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from agent_identity.config.environment import configuration_file, state_directory, workload_api

if TYPE_CHECKING:
    from agent_identity.config.model import Configuration, configuration_schema
    from agent_identity.config.reading import read_configuration
    from agent_identity.config.references import References

__all__ = [
    "Configuration",
    "References",
    "configuration_file",
    "configuration_schema",
    "read_configuration",
    "state_directory",
    "workload_api",
]

_HOMES: Final = {
    "Configuration": "model",
    "References": "references",
    "configuration_schema": "model",
    "read_configuration": "reading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
