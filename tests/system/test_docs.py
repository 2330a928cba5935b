# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows is Python, and what it shows whole runs.

A `python` block that sets up an embedded identity and reaches no service is run, and so is the README's first one, beside the
billing API that it reaches; one with a test in it is run by pytest;
the others, which leave out what is the reader's own, are only compiled.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from agent_identity.cli.app import app

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "integrations").glob("*/README.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {
    f"{page.relative_to(ROOT)}:{text[: found.start()].count(chr(10)) + 1}": found[1]
    for page in PAGES
    for text in [page.read_text(encoding="utf-8")]
    for found in BLOCK.finditer(text)
}


COMMAND_LINE = "from agent_identity.cli import main; main()"


def is_program(block: str) -> bool:
    return (
        "AgentIdentity.embedded(" in block
        and "httpx." not in block
        and "langchain" not in block  # integrations/langchain/tests/test_pages.py runs these
        and "agent_identity_mcp" not in block  # and integrations/mcp/tests/test_pages.py these
    )


def is_test(block: str) -> bool:
    return "def test_" in block


PROGRAMS = [place for place, block in BLOCKS.items() if is_program(block)]
TESTS = [place for place, block in BLOCKS.items() if is_test(block)]


def environment(folder: Path) -> dict[str, str]:
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = os.pathsep.join(str(Path(path).resolve()) for path in paths if path)
    places = {"AGENT_IDENTITY_STATE_DIR": str(folder / "state"), "PYTHONPATH": absolute}
    return os.environ | places


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
        env=environment(folder),
    )


def test_there_are_blocks_of_every_kind() -> None:
    assert len(BLOCKS) >= 8
    assert len(PROGRAMS) >= 3
    assert len(TESTS) >= 1


@pytest.mark.parametrize("place", BLOCKS)
def test_a_block_is_python(place: str) -> None:
    compile(BLOCKS[place], place, "exec")


def done_in(place: str, folder: Path) -> Path:
    """Where a program keeps its ledger: the tutorial's in a folder of its own."""
    return folder / ("first-call" if "tutorial/first-call" in place else "state")


@pytest.fixture
def billing(tmp_path: Path) -> Iterator[str]:
    """The URL of `agent-identity billing`, which shares its state directory with the programs run here."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND_LINE, "billing", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(tmp_path),
    )
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["url"]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == ""


def test_the_first_program_of_the_readme_runs_as_pasted_beside_the_billing_api(
    tmp_path: Path, billing: str
) -> None:
    """On a port of its own, since somebody may use the usual one; which that is, the command says."""
    readme = (ROOT / "README.md").read_text()
    block = next(block for place, block in BLOCKS.items() if place.startswith("README.md:"))
    section = readme.partition("## In your program")[2].partition(block)[0]
    assert "```sh\nagent-identity billing\n```" in section
    (port,) = [
        option.default
        for option in typer.main.get_command(app).commands["billing"].params
        if option.name == "port"
    ]
    assert block.count(f"http://127.0.0.1:{port}") == 1
    (tmp_path / "first.py").write_text(block.replace(f"http://127.0.0.1:{port}", billing))
    done = run(["-W", "error::UserWarning", "first.py"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("user:alice: close the October books\n└─ invoice-bot\n")
    assert done.stdout.count(f"✔ list_invoices at {billing}, completed") == 2
    assert "archive-bot" in done.stdout
    asked = run(["-c", COMMAND_LINE, "why", "--last", "--json"], tmp_path)
    assert [call["outcome"] for call in json.loads(asked.stdout)["calls"]] == ["completed"] * 2


@pytest.mark.parametrize("place", PROGRAMS)
def test_a_block_that_is_a_program_runs(place: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(BLOCKS[place])
    done = run(["-W", "error", str(program)], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (done_in(place, tmp_path) / "ledger.db").exists()


def test_the_tutorial_prints_what_it_says(tmp_path: Path) -> None:
    place = next(place for place in PROGRAMS if "first-call" in place)
    (tmp_path / "first.py").write_text(BLOCKS[place])
    lines = run(["first.py"], tmp_path).stdout.splitlines()
    assert lines[:3] == ["3", "7", "user:alice: learn how it works"]
    assert any("helper-bot" in line for line in lines)
    asked = run(["-c", COMMAND_LINE, "why", "--last", "--state-dir", "first-call"], tmp_path)
    assert asked.stdout.splitlines() == lines[2:]
    assert not (tmp_path / "state").exists()
    outside = BLOCKS[place] + "\nadd(1, 2)\n"
    (tmp_path / "outside.py").write_text(outside)
    done = run(["outside.py"], tmp_path)
    assert "NoSessionError: there is no current session" in done.stderr


@pytest.mark.parametrize("place", TESTS)
def test_a_block_that_is_a_test_passes(place: str, tmp_path: Path) -> None:
    (tmp_path / "test_block.py").write_text(BLOCKS[place])
    installed = {point.name for point in importlib.metadata.entry_points(group="pytest11")}
    plugin = [] if "agent_identity" in installed else ["-p", "agent_identity.testing.plugin"]
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, "test_block.py"], tmp_path)
    assert done.returncode == 0, done.stdout
    assert f"{BLOCKS[place].count('def test_')} passed" in done.stdout


@pytest.mark.parametrize(
    ("block", "program", "test"),
    [
        ('identity = AgentIdentity.embedded("x")\n', True, False),
        ('identity = AgentIdentity.embedded("x")\nhttpx.get(url)\n', False, False),
        ("def test_it(identity): ...\n", False, True),
        ("call = verifier.verify_request(method, url)\n", False, False),
    ],
)
def test_which_blocks_run_follows_from_their_text(block: str, program: bool, test: bool) -> None:
    assert (is_program(block), is_test(block)) == (program, test)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests/system/rigs/issuers").glob("*.toml")), ids=lambda path: path.stem
)
def test_the_file_of_an_issuer_on_its_page_is_the_one_that_ran(path: Path) -> None:
    text = path.read_text()
    page = (ROOT / "docs/reference/issuers.md").read_text()
    assert f"```toml\n{text}```" in page
    assert sum(1 for line in text.splitlines() if line) <= 10
