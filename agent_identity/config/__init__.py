# SPDX-License-Identifier: Apache-2.0
"""From `agent-identity.toml` to checked values.

    environment       where the file and the state directory are
    model             every table and key, and the JSON Schema
    inference         the values of missing keys that follow from others
    checks            contradictions, secrets in the file, what this version doesn't support
    table_checks      `[resources]` and `[authority]`: the keys that each source needs and takes
    problems          faults and their lines
    reading           all of that in order: reads the file and returns a `Configuration`, or raises one error
    references        reads `env:`, `file:` and `keyring:` references to secrets

Each module is loaded on first use, because most programs never read a file.
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
