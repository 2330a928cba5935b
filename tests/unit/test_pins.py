# SPDX-License-Identifier: Apache-2.0
"""Which definition of a server's tool is accepted, in one process and in several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent_identity import ConfigurationError, DeniedError
from agent_identity.lifecycle.pins import Definition, Pins

SERVER = "https://billing.example/mcp"
SCHEMA = {"type": "object", "properties": {"n": {"maximum": 2**64}}}


def clock() -> float:
    return 1_790_000_000.5


def definition(
    description: str | None = "List.", name: str = "list", server: str = SERVER
) -> Definition:
    return Definition.of(server, name, description, SCHEMA)


@pytest.fixture(params=["memory", "folder"])
def pins(request: pytest.FixtureRequest, tmp_path: Path) -> Pins:
    return Pins(tmp_path / "mcp" if request.param == "folder" else None, clock=clock)


def test_the_digest_is_over_server_name_description_and_schema() -> None:
    digests = {
        definition().digest,
        definition("Another.").digest,
        definition(None).digest,
        definition("").digest,
        definition(name="other").digest,
        definition(server="https://other.example").digest,
        Definition.of(SERVER, "list", "List.", {}).digest,
    }
    assert len(digests) == 7
    turned = {"properties": SCHEMA["properties"], "type": "object"}
    assert Definition.of(SERVER, "list", "List.", turned).digest == definition().digest


def test_the_first_definition_is_pinned_and_another_one_is_not(pins: Pins) -> None:
    first = pins.see(SERVER, {"list": definition()})
    assert (first.verdicts, first.pinned) == ({"list": "pinned"}, {"list": definition()})
    assert pins.see(SERVER, {"list": definition()}).pinned == {}
    changed = pins.see(SERVER, {"list": definition("Another."), "pay": definition(name="pay")})
    assert changed.verdicts == {"list": "changed", "pay": "pinned"}
    assert pins.see(SERVER, {"list": definition()}).verdicts == {"list": "pinned"}
    assert pins.see("https://other.example", {"list": definition("Another.")}).pinned


def test_what_is_offered_is_pinned_when_a_person_accepts_it(pins: Pins) -> None:
    pins.see(SERVER, {"list": definition()})
    with pytest.raises(DeniedError) as raised:
        pins.accept(SERVER, "list")
    assert raised.value.code == "pin_missing"
    pins.see(SERVER, {"list": definition("Another.")})
    (before,) = pins.all()
    assert (before.accepted, before.offered) == (definition(), definition("Another."))
    accepted = pins.accept(SERVER, "list")
    assert accepted.to_dict() == {
        "server": SERVER,
        "tool": "list",
        "accepted": {
            "digest": definition("Another.").digest,
            "description": "Another.",
            "scopes": [],
            "labels": [],
        },
        "accepted_at": 1_790_000_000,
        "accepted_by": "operator",
        "offered": None,
        "offered_at": None,
    }
    assert [*pins.all()] == [accepted]
    assert pins.see(SERVER, {"list": definition("Another.")}).verdicts == {"list": "pinned"}
    assert pins.see(SERVER, {"list": definition()}).verdicts == {"list": "changed"}


def test_declared_scopes_and_labels_are_shown_as_last_listed_and_are_no_definition(
    pins: Pins,
) -> None:
    def declaring(scopes: object, labels: object = None) -> Definition:
        meta = {"dev.agent-identity/scopes": scopes, "dev.agent-identity/labels": labels}
        return Definition.of(SERVER, "list", "List.", SCHEMA, meta)

    pins.see(SERVER, {"list": declaring(["pay"], ["moves:money", 7, "x" * 200])})
    (pin,) = pins.all()
    assert pin.accepted is not None
    assert pin.accepted.scopes == ("pay",)
    assert pin.accepted.labels == ("moves:money", "x" * 100)
    assert pins.see(SERVER, {"list": declaring(["read"])}).verdicts == {"list": "pinned"}
    (pin,) = pins.all()
    assert (pin.accepted, pin.accepted_by) == (declaring(["read"]), "first-use")
    for malformed in ("pay", 1, None, {"pay": 1}):
        assert declaring(malformed).scopes == ()


def test_required_pins_accept_nothing_by_themselves(tmp_path: Path) -> None:
    pins = Pins(tmp_path, required=True, clock=clock)
    seen = pins.see(SERVER, {"list": definition()})
    assert (seen.verdicts, seen.pinned) == ({"list": "unpinned"}, {})
    pins.accept(SERVER, "list")
    assert pins.see(SERVER, {"list": definition()}).verdicts == {"list": "pinned"}


def test_the_files_are_private_and_read_by_others(tmp_path: Path) -> None:
    folder = tmp_path / "mcp"
    Pins(folder, clock=clock).see(SERVER, {"list": definition("Größe \u2028")})
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in folder.iterdir()} == {0o600}
    (pin,) = Pins(folder, clock=clock).all()
    assert pin.accepted == definition("Größe \u2028")


SEE_MANY = """
import sys
from pathlib import Path
from agent_identity.lifecycle.pins import Definition, Pins

folder, server, number = sys.argv[1:]
pins = Pins(Path(folder), clock=lambda: 1_790_000_000.5)
names = [f"tool{n}" for n in range(20)]
seen = [pins.see(server, {name: Definition.of(server, name, f"by {number}", {})}) for name in names]
print(sum(len(each.pinned) for each in seen))
"""


def test_of_several_processes_one_pins_each_tool(tmp_path: Path) -> None:
    folder = tmp_path / "mcp"
    commands = [
        [sys.executable, "-c", SEE_MANY, folder, SERVER, str(number)] for number in range(4)
    ]
    processes = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True) for each in commands]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert sum(map(int, printed)) == 20
    assert len([*Pins(folder, clock=clock).all()]) == 20


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"server": "s"}', '{"server": "s", "tools": [{}]}']
)
def test_a_damaged_file_is_an_error(tmp_path: Path, text: str) -> None:
    pins = Pins(tmp_path, clock=clock)
    pins.see(SERVER, {"list": definition()})
    (file,) = tmp_path.glob("*.json")
    file.write_text(text)
    for read in (lambda: pins.see(SERVER, {"list": definition()}), lambda: [*pins.all()]):
        with pytest.raises(ConfigurationError, match="file of pins") as raised:
            read()
        assert raised.value.code == "state_unusable"


def test_a_file_of_another_server_is_an_error(tmp_path: Path) -> None:
    pins = Pins(tmp_path, clock=clock)
    pins.see(SERVER, {"list": definition()})
    (file,) = tmp_path.glob("*.json")
    file.write_text('{"server": "https://other.example", "tools": []}')
    with pytest.raises(ConfigurationError):
        pins.see(SERVER, {"list": definition()})


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "mcp", clock=clock)
    pins.see(SERVER, {"list": definition()})
    (file,) = (tmp_path / "mcp").glob("*.json")
    file.replace(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError):
        pins.see(SERVER, {"list": definition()})
