# SPDX-License-Identifier: Apache-2.0
"""The pages say what is so: their files are valid, their codes are the source's, and each page can be found."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_identity import AgentIdentity, errors
from agent_identity.cli.authority.configured import organisations_authority
from agent_identity.config import read_configuration

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
ERRORS = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
SOURCE = sorted([*ROOT.glob("agent_identity/**/*.py"), *ROOT.glob("integrations/*/src/**/*.py")])


def blocks(page: Path, language: str) -> list[str]:
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return fence.findall(page.read_text(encoding="utf-8"))


ALL = {
    f"{page.stem}-{number}": block
    for page in (ROOT / "README.md", *HOW_TO)
    for number, block in enumerate(blocks(page, "toml"), 1)
}
ANCHORS = {name: block for name, block in ALL.items() if "[authority]" in block}
FILES = {name: block for name, block in ALL.items() if name not in ANCHORS}


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "agent-identity.toml"
    path.touch(mode=0o600)
    path.write_text(ALL[request.param], encoding="utf-8")
    return path


@pytest.mark.parametrize("file", FILES, indirect=True)
def test_a_file_of_a_page_is_a_whole_configuration(file: Path) -> None:
    configuration = read_configuration(file)
    assert configuration.agent.name is not None
    assert configuration.resources


@pytest.mark.filterwarnings("ignore:client assertions for okta:UserWarning")  # the page says so
@pytest.mark.parametrize("file", FILES, indirect=True)
def test_an_identity_can_be_made_of_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    with AgentIdentity.from_config(file, ledger="memory:") as identity:
        session = identity.autonomous(trigger="cron:test", purpose="read a page")
        assert session.chain == (f"urn:agent-identity:agent:{identity.name}",)


@pytest.mark.parametrize("file", ANCHORS, indirect=True)
def test_an_authority_can_be_made_of_it(file: Path) -> None:
    configuration = read_configuration(file, needs_policy=False)
    authority = organisations_authority(configuration, None, "http://127.0.0.1:8700")
    assert authority.issuer == "https://agents.acme.example"
    authority.close()


def test_what_the_anchors_page_says_it_refuses_stands_in_the_source() -> None:
    page = (DOCS / "how-to" / "organisation-anchor.md").read_text(encoding="utf-8")
    _, _, after = page.partition("\n## What it refuses\n")
    rows = [line.split(" | ") for line in after.splitlines() if line.startswith("| `")]
    named = {code for row in rows if len(row) == 3 for code in CODE.findall(row[1])}
    assert len(named) > 40
    assert named - literals() == set()


def literals() -> set[object]:
    return {
        node.value
        for path in SOURCE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }


def test_there_are_files_and_every_page_that_has_one_says_whether_it_was_run() -> None:
    assert len(FILES) >= 13
    for page in HOW_TO:
        if blocks(page, "toml"):
            text = page.read_text(encoding="utf-8")
            boxes = re.findall(r'^!!! (?:note "Run here"|warning "Not run )', text, re.MULTILINE)
            assert len(boxes) == 1, page.name


# -- where pages are found --------------------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation_and_nothing_else_is() -> None:
    _, _, navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")
    named = re.findall(r"([\w/.-]+\.md)$", navigation, re.MULTILINE)
    assert sorted(named) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_the_list_of_pages_leads_to_every_page() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "how-to" / "index.md").read_text()))
    assert listed == {page.name for page in HOW_TO} - {"index.md"}


def test_no_page_loads_anything_from_another_host() -> None:
    """Offline the pages look the same. Material fetches Mermaid from another host, so diagrams are files here."""
    foreign = re.compile(
        r"^ *(?:```|~~~) *\{? *\.?mermaid|!\[[^\]]*\]\(\s*(?:https?:)?//|"
        r"<(?:audio|embed|iframe|img|link|object|script|source|video)\b[^>]*?(?:https?:)?//|"
        r"\burl\(\s*['\"]?(?:https?:)?//|@import",
        re.MULTILINE,
    )
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *DOCS.rglob("*.svg")]
    pages += ROOT.glob("integrations/*/README.md")
    found = [page.name for page in pages if foreign.search(page.read_text(encoding="utf-8"))]
    assert found == []
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "\n  font: false" in settings
    assert not re.search(r"https?://|mermaid|emoji|analytics|^extra", settings, re.MULTILINE)


# -- error codes ------------------------------------------------------------------------------------------------------

CODE = re.compile(r"`([a-z][a-z0-9_]*)`")
CLASSES = {name for name in errors.__all__ if name.endswith("Error")} | {"Fault", "Problem"}
"""`Fault` and `Problem` are what a configuration's errors are made of."""


def raised(source: str) -> Iterator[str]:
    """The literal codes of errors that are made in a source, `error(…)` of a class that was passed in included."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
        first = node.args[0]
        literal = first.value if isinstance(first, ast.Constant) else None
        if isinstance(literal, str) and name in CLASSES | {"error"}:
            yield literal


def codes_of(text: str) -> set[str]:
    """The codes in the first column of a page's tables."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return {code for row in rows for code in CODE.findall(row.split(" | ")[0])}


def test_every_code_that_is_raised_is_in_the_list_of_codes() -> None:
    missing = {
        f"{path.relative_to(ROOT)}: {code}"
        for path in SOURCE
        for code in raised(path.read_text(encoding="utf-8"))
        if code not in errors.CODES
    }
    assert missing == set()


def test_no_code_of_the_list_has_gone_from_the_source() -> None:
    assert errors.CODES - literals() == set()


def test_the_page_of_errors_has_the_codes_of_the_list() -> None:
    assert codes_of(ERRORS) == errors.CODES


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_what_goes_wrong_has_codes_of_the_page_of_errors(page: Path) -> None:
    _, _, after = page.read_text(encoding="utf-8").partition("\n## What goes wrong\n")
    named = codes_of(after.partition("\n## ")[0])
    assert named - codes_of(ERRORS) == set()
    assert bool(named) == bool(blocks(page, "toml")) or page.stem == "http-clients"


def test_codes_are_found_however_they_are_raised() -> None:
    found = raised(
        'raise DeniedError("a", "…")\n'
        'raise errors.LedgerError("b", "…") from None\n'
        'raise error("c", "…")\n'
        'yield Fault("d", (), "…")\n'
        'raise OtherError("e")\n'
        "raise DeniedError(code, text)\n"
    )
    assert list(found) == ["a", "b", "c", "d"]


# -- the code on pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_what_a_page_imports_of_the_library_is_there(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            # An integration's own tests run its pages.
            if not isinstance(node, ast.ImportFrom):
                continue
            if str(node.module).partition(".")[0] == "agent_identity":
                module = importlib.import_module(str(node.module))
                for name in node.names:
                    if not hasattr(module, name.name):
                        importlib.import_module(f"{node.module}.{name.name}")
