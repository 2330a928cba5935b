# SPDX-License-Identifier: Apache-2.0
"""`agent-identity config`: the JSON Schema, the effective configuration, and the document of a client.

A configuration contains references only, so nothing here is a secret.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, TypeAlias

from agent_identity.assembly.configured import secrets_of
from agent_identity.assembly.issuers import client_document
from agent_identity.cli.finding import world_of
from agent_identity.config import configuration_schema, read_configuration
from agent_identity.config.model import Table, tables_in
from agent_identity.config.problems import key_text
from agent_identity.flow import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from agent_identity.config import Configuration
    from agent_identity.keys.signing import SigningKey

_Value: TypeAlias = (
    "Table | tuple[_Value, ...] | list[_Value] | dict[str, _Value] | str | float | None"
)


def show_schema() -> None:
    """Print the JSON Schema of the file."""
    sys.stdout.write(json.dumps(configuration_schema(), indent=2) + "\n")


def show_configuration(path: Path, directory: Path, *, as_json: bool) -> None:
    """Print the effective configuration, and mark the values that the file doesn't contain.

    Raises:
        ConfigurationError: the file can't be read, or is refused.
    """
    configuration = read_configuration(path, needs_policy=False)
    if as_json:
        document = {
            "config": str(path.absolute()),
            "state_dir": str(directory),
            "effective": configuration.model_dump(mode="json", exclude_none=True),
            "inferred": inferred_documents(configuration),
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    sys.stdout.write(f"# {path.absolute()}\n# state directory: {directory}\n")
    sys.stdout.writelines(f"{line}\n" for line in effective_lines(configuration))


def show_client_document(path: Path, label: str) -> None:
    """Print the document to publish at a client's `client_id`.

    Raises:
        ConfigurationError: the file or the client's key can't be read, or there is no such client.
    """
    configuration = read_configuration(path, needs_policy=False)
    table = configuration.issuers.get(label)
    key = None
    if table is not None and table.client_key is not None:
        key = _key(configuration, table.client_key, f"client key of {label}")
    document = client_document(configuration, label, key)
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def _key(configuration: Configuration, reference: str, what: str) -> SigningKey:
    with closing(world_of(configuration)) as world:
        return run(secrets_of(configuration, time.time).key(reference, what)(), world.answer)


def inferred_documents(configuration: Configuration) -> list[dict[str, str]]:
    """The inferred values as JSON objects."""
    return [each._asdict() for each in configuration.inferred]


def effective_lines(configuration: Configuration) -> Iterator[str]:
    """The configuration as TOML; values that the file doesn't contain have a comment with their origin."""
    reasons = {each.key: f"inferred: {each.reason}" for each in configuration.inferred}
    yield from _lines(configuration, (), reasons)


def _lines(table: Table, path: tuple[str, ...], reasons: Mapping[str, str]) -> Iterator[str]:
    below: list[tuple[tuple[str, ...], Table]] = []
    plain: list[str] = []
    for name in type(table).model_fields:
        value: _Value = getattr(table, name)
        tables = [((*path, *rest), one) for rest, one in tables_in(name, value)]
        below += tables
        if not tables and value is not None and value not in ((), {}):
            default = None if name in table.model_fields_set else "default"
            why = reasons.get(key_text((*path, name)), default)
            plain.append(f"{name} = {_toml(value)}" + (f"  # {why}" if why else ""))
    if plain:
        yield f"\n[{key_text(path)}]"
        yield from plain
    for where, one in below:
        yield from _lines(one, where, reasons)


def _toml(value: _Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, dict):
        members = (f"{key_text((key,))} = {_toml(item)}" for key, item in value.items())
        return f"{{ {', '.join(members)} }}"
    return _text(str(value))


def _text(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in quoted)
