# SPDX-License-Identifier: Apache-2.0
"""`agent-identity mcp`: the definitions of MCP servers' tools that are accepted, and those that servers offer instead."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from agent_identity.cli.finding import opened_ledger
from agent_identity.config import state_directory
from agent_identity.errors import LedgerError
from agent_identity.flow import Draft
from agent_identity.lifecycle.pins import PINS, Pins
from agent_identity.provenance.records import TOOL_PINNED
from agent_identity.provenance.trace import visible

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent_identity.lifecycle.pins import Definition, Pin

__all__ = ["accept_pin", "list_pins"]


def list_pins(state_dir: Path | None, *, as_json: bool) -> str:
    """The list of all known tools, as text or JSON."""
    pins = [*_pins(state_dir).all()]
    if as_json:
        return json.dumps({"pins": [pin.to_dict() for pin in pins]}, indent=2)
    return "\n".join(line for pin in pins for line in _lines(pin)) or "no tool is known"


def accept_pin(
    server: str, tool: str, state_dir: Path | None, config: Path | None, *, as_json: bool
) -> str:
    """Accept what the server offers, record it if there is a ledger, and return the new pin.

    Raises:
        DeniedError: `pin_missing`.
    """
    pin = _pins(state_dir).accept(server, tool)
    _record(pin, state_dir, config)
    if as_json:
        return json.dumps(pin.to_dict(), indent=2)
    return "\n".join(["accepted", *_lines(pin)])


def _record(pin: Pin, state_dir: Path | None, config: Path | None) -> None:
    try:
        ledger = opened_ledger(state_dir, config)
    except LedgerError as error:
        if error.code != "no_ledger":
            raise
        return
    try:
        digest = None if pin.accepted is None else pin.accepted.digest
        public = {"server": pin.server, "tool": pin.tool, "digest": digest, "by": pin.accepted_by}
        ledger.append(Draft(TOOL_PINNED, {**public}))
    finally:
        ledger.close()


def _pins(state_dir: Path | None) -> Pins:
    return Pins(state_directory(state_dir) / PINS, clock=time.time)


def _lines(pin: Pin) -> Iterator[str]:
    yield f"{visible(pin.tool)} of {visible(pin.server)}"
    if pin.accepted is not None:
        yield f"  accepted ({pin.accepted_by}): {_show(pin.accepted)}"
        yield from _declared(pin.accepted)
    if pin.offered is not None:
        yield f"  offered: {_show(pin.offered)}"
        yield from _declared(pin.offered)


def _show(definition: Definition) -> str:
    return f"{definition.digest} {visible(definition.description)}".strip()


def _declared(definition: Definition) -> Iterator[str]:
    for name, words in (("scopes", definition.scopes), ("labels", definition.labels)):
        if words:
            yield f"    declared {name}: {visible(', '.join(words))}"
