# SPDX-License-Identifier: Apache-2.0
"""Which definition of a server's tool is accepted: the digest of the first one that was seen, or of one that a person accepted.

A server can change a tool and its description after a person has looked at them. A tool is therefore known by its
server, its name and the digest of its definition. Another digest than the pinned one is kept as offered, until `accept` pins it.

The pins are in the state directory, one file a server, written in one step under a lock, so that several processes share them.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from agent_identity.delegation.carriers import DECLARED_LABELS, DECLARED_SCOPES
from agent_identity.errors import ConfigurationError, DeniedError, VerificationError
from agent_identity.forks import StillLock
from agent_identity.jose import loads_object
from agent_identity.keys.private_files import (
    locked_file,
    make_private_directory,
    read_private,
    write_private,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from agent_identity.values import JSON

Verdict: TypeAlias = Literal["pinned", "changed", "unpinned"]

PINS: Final = "mcp"
"""The folder of the pins in a state directory."""
_LARGEST: Final = 8 * 1024 * 1024
_LONGEST_DESCRIPTION: Final = 2000
_LONGEST_WORD: Final = 100
_MOST_WORDS: Final = 50


class Definition(NamedTuple):
    """A tool's definition as a server lists it: its digest, and what a person who accepts it is shown.

    `scopes` and `labels` are those that the server declares; no policy sees them.
    """

    digest: str
    description: str
    scopes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        server: str,
        name: str,
        description: str | None,
        schema: Mapping[str, JSON],
        meta: Mapping[str, JSON] | None = None,
    ) -> Definition:
        """The digest over server, name, description and input schema, as JSON with sorted keys. `meta` is the tool's `_meta`."""
        members = {
            "description": description,
            "inputSchema": schema,
            "name": name,
            "server": server,
        }
        # Not RFC 8785: schemas contain limits beyond its integers, and the digest is compared in this library alone.
        text = json.dumps(members, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode("ascii")).hexdigest()
        declared: Mapping[str, JSON] = {} if meta is None else meta
        return cls(
            f"sha-256:{digest}",
            (description or "")[:_LONGEST_DESCRIPTION],
            _declared(declared.get(DECLARED_SCOPES)),
            _declared(declared.get(DECLARED_LABELS)),
        )


class Pin(NamedTuple):
    """What is known of one tool: the accepted definition, and another one that the server has offered since."""

    server: str
    tool: str
    accepted: Definition | None
    accepted_at: int | None
    accepted_by: str | None
    offered: Definition | None
    offered_at: int | None

    def to_dict(self) -> dict[str, JSON]:
        """The pin as JSON."""
        return {
            "server": self.server,
            "tool": self.tool,
            "accepted": _to_json(self.accepted),
            "accepted_at": self.accepted_at,
            "accepted_by": self.accepted_by,
            "offered": _to_json(self.offered),
            "offered_at": self.offered_at,
        }


class Seen(NamedTuple):
    """The verdict on each tool of a listing, and the tools that were pinned by it."""

    verdicts: dict[str, Verdict]
    pinned: dict[str, Definition]


class Pins:
    """The pins of one state directory; None keeps them in memory.

    `required` refuses tools that nobody has accepted; without it the first definition is accepted.
    """

    def __init__(
        self, directory: Path | None, *, required: bool = False, clock: Callable[[], float]
    ) -> None:
        self._directory = directory
        self._required = required
        self._clock = clock
        self._in_memory: dict[str, dict[str, Pin]] = {}
        self._lock = StillLock()

    def see(self, server: str, tools: Mapping[str, Definition]) -> Seen:
        """Compare a server's tools with their pins. A new tool is pinned, unless pins are required.

        Raises:
            ConfigurationError: the pins can't be read or written.
        """
        seen, is_same = self._compare(server, self._read(server), tools)
        if is_same:
            return seen
        with self._locked(server):
            pins = self._read(server)
            seen, is_same = self._compare(server, pins, tools)
            if not is_same:
                self._write(server, pins)
        return seen

    def accept(self, server: str, tool: str) -> Pin:
        """Accept the definition that the server offered.

        Raises:
            DeniedError: `pin_missing`, there is none to accept.
            ConfigurationError: the pins can't be read or written.
        """
        with self._locked(server):
            pins = self._read(server)
            pin = pins.get(tool)
            if pin is None or pin.offered is None:
                raise DeniedError(
                    "pin_missing",
                    f"{server} has offered no other definition of {ascii(tool)[:80]}",
                    remedy="run `agent-identity mcp pins` for what is known; an agent that lists the server's tools adds to it",
                )
            pins[tool] = pin._replace(
                accepted=pin.offered,
                accepted_at=int(self._clock()),
                accepted_by="operator",
                offered=None,
                offered_at=None,
            )
            self._write(server, pins)
            return pins[tool]

    def all(self) -> Iterator[Pin]:
        """All pins, by server and tool.

        Raises:
            ConfigurationError: a file can't be read.
        """
        if self._directory is None:
            servers = dict(self._in_memory)
        else:
            paths = sorted(self._directory.glob("*.json"))
            servers = {document[0]: document[1] for path in paths for document in _read_file(path)}
        for server in sorted(servers):
            yield from (servers[server][tool] for tool in sorted(servers[server]))

    def _compare(
        self, server: str, pins: dict[str, Pin], tools: Mapping[str, Definition]
    ) -> tuple[Seen, bool]:
        """The verdicts, after changing `pins` to what has to be stored; True if nothing has changed."""
        seen, is_same = Seen({}, {}), True
        now = int(self._clock())
        for name, tool in tools.items():
            pin = pins.get(name)
            accepted = None if pin is None else pin.accepted
            if accepted is None and not self._required:
                pins[name] = Pin(server, name, tool, now, "first-use", None, None)
                seen.verdicts[name] = "pinned"
                seen.pinned[name] = tool
                is_same = False
            elif pin is not None and accepted is not None and accepted.digest == tool.digest:
                seen.verdicts[name] = "pinned"
                if accepted != tool:
                    pins[name] = pin._replace(accepted=tool)
                    is_same = False
            else:
                seen.verdicts[name] = "unpinned" if accepted is None else "changed"
                if pin is None or pin.offered is None or pin.offered.digest != tool.digest:
                    empty = Pin(server, name, None, None, None, None, None)
                    pins[name] = (pin or empty)._replace(offered=tool, offered_at=now)
                    is_same = False
        return seen, is_same

    def _read(self, server: str) -> dict[str, Pin]:
        if self._directory is None:
            return dict(self._in_memory.get(server, {}))
        path = self._path(server)
        for name, pins in _read_file(path):
            if name != server:
                raise _damaged(path)
            return pins
        return {}

    def _write(self, server: str, pins: dict[str, Pin]) -> None:
        if self._directory is None:
            self._in_memory[server] = pins
            return
        path = self._path(server)
        document = {"server": server, "tools": [pin.to_dict() for pin in pins.values()]}
        data = json.dumps(document).encode("ascii")
        if len(data) > _LARGEST:
            raise ConfigurationError(
                "state_unusable",
                f"the tools of {server} don't fit into a file of pins",
                remedy="connect to a server with fewer tools",
            )
        try:
            write_private(path, data)
        except OSError as error:
            raise ConfigurationError("state_unusable", f"{path} can't be written") from error

    def _path(self, server: str) -> Path:
        assert self._directory is not None  # noqa: S101 - both callers have checked it
        return self._directory / f"{hashlib.sha256(server.encode()).hexdigest()[:32]}.json"

    def _locked(self, server: str) -> AbstractContextManager[object]:
        if self._directory is None:
            return self._lock.lock
        make_private_directory(self._directory)
        return locked_file(self._path(server).with_suffix(".lock"))


def _read_file(path: Path) -> Iterator[tuple[str, dict[str, Pin]]]:
    """The server of a file and its pins by tool; nothing if there is no file."""
    try:
        data = read_private(path, largest=_LARGEST)
    except FileNotFoundError:
        return
    try:
        server, pins = _read_document(loads_object(data))
    except (VerificationError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    yield server, pins


def _read_document(document: Any) -> tuple[str, dict[str, Pin]]:
    server: str = document["server"]
    return server, {tool["tool"]: _read_pin(server, tool) for tool in document["tools"]}


def _read_pin(server: str, members: Mapping[str, Any]) -> Pin:
    return Pin(
        server,
        members["tool"],
        _from_json(members["accepted"]),
        members["accepted_at"],
        members["accepted_by"],
        _from_json(members["offered"]),
        members["offered_at"],
    )


def _to_json(definition: Definition | None) -> dict[str, JSON] | None:
    if definition is None:
        return None
    return {
        "digest": definition.digest,
        "description": definition.description,
        "scopes": [*definition.scopes],
        "labels": [*definition.labels],
    }


def _from_json(members: Mapping[str, Any] | None) -> Definition | None:
    if members is None:
        return None
    scopes, labels = tuple(members.get("scopes", ())), tuple(members.get("labels", ()))
    return Definition(members["digest"], members["description"], scopes, labels)


def _declared(words: JSON) -> tuple[str, ...]:
    """The words that a server declares, as far as they can be shown."""
    if not isinstance(words, list):
        return ()
    texts = [word[:_LONGEST_WORD] for word in words[:_MOST_WORDS] if isinstance(word, str)]
    return tuple(text.encode("utf-8", "replace").decode() for text in texts)


def _damaged(path: Path) -> ConfigurationError:
    return ConfigurationError(
        "state_unusable",
        f"{path} isn't a file of pins",
        remedy="restore it from a backup; without it, the next definitions of its server's tools are pinned",
    )
