# SPDX-License-Identifier: Apache-2.0
"""The page that specifies the format says what the code does: its codes are those raised, its example is a published one."""

from __future__ import annotations

import ast
import json
import re
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import pytest

from agent_identity.delegation import carriers
from agent_identity.delegation.details import details_from
from agent_identity.verify.verifier import Verifier

from .independent import ASSERTION, ASSERTION_MAY, GRANT, GRANT_MAY
from .test_conformance import ACCEPTED, CASES, REFUSED

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "delegation.md").read_text(encoding="utf-8")
SOURCE = [
    *sorted((ROOT / "agent_identity" / "delegation").glob("*.py")),
    *sorted((ROOT / "agent_identity" / "jose").glob("*.py")),
    *(
        ROOT / "agent_identity" / "verify" / f"{name}.py"
        for name in (
            "verifier",
            "judge",
            "rules",
            "request",
            "token",
            "dpop",
            "replay",
            "revocations",
        )
    ),
    ROOT / "agent_identity" / "canonical.py",
    ROOT / "agent_identity" / "values.py",
]
ELSEWHERE = {
    *("resource_not_granted", "scope_not_granted", "scope_not_configured"),  # a session's limits
    "dpop_nonce",  # a server that asks for nonces; the verifier doesn't
    "token_missing",  # a service that requires a token with each message, which is no step
}
"""What is raised in the same files, and to nobody who sends a call."""
CODE = re.compile(r"`([a-z][a-z0-9_]*)`")


def section(title: str) -> str:
    _, _, after = PAGE.partition(f"\n## {title}\n")
    return after.partition("\n## ")[0]


def raised() -> set[str]:
    """The codes of all errors but those of a configuration."""
    found = set()
    for path in SOURCE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and is_error(ast.unparse(node.func)):
                code = node.args[0]
                if isinstance(code, ast.Constant) and CODE.fullmatch(f"`{code.value}`"):
                    found.add(code.value)
    return found


def is_error(name: str) -> bool:
    if name in {"ConfigurationError", "_UndigestibleError"}:
        return False
    return name.endswith("Error") or name in {"error", "self._error"}


def steps() -> list[list[str]]:
    rows = [line.strip("| ").split(" | ") for line in section("Verification").splitlines()]
    return [row for row in rows if len(row) == 3 and re.fullmatch(r"[RCAT]\d+", row[0])]


def test_the_page_names_the_codes_that_the_source_raises_and_no_others() -> None:
    named = {code for row in steps() for code in CODE.findall(row[2])}
    assert named - raised() == set()
    assert raised() - named == ELSEWHERE
    assert "`issuer_mismatch`" in section("Revocation list")


def test_every_step_has_a_number_of_its_own() -> None:
    numbers = [row[0] for row in steps()]
    assert len(numbers) == len(set(numbers)) > 50


def test_every_refused_case_has_a_code_of_the_page() -> None:
    named = {*CODE.findall(section("Verification")), *CODE.findall(section("Revocation list"))}
    for case in REFUSED:
        assert case["expect"]["refused"] in named, case["id"]


UNTRIED = {
    "args_malformed",
    "header_malformed",
    "token_malformed",
    "before_start",
    "replay_store_full",
}
"""What no case can say."""


def test_every_code_of_the_page_has_a_case() -> None:
    tried = {case["expect"]["refused"] for case in REFUSED}
    named = {code for row in steps() for code in CODE.findall(row[2])}
    assert named - tried == UNTRIED


@pytest.mark.parametrize(
    ("title", "claims"), [("Grant", GRANT | GRANT_MAY), ("Assertion", ASSERTION | ASSERTION_MAY)]
)
def test_the_tables_name_every_claim(title: str, claims: dict[str, Any]) -> None:
    _, _, table = section(title).partition("| claim |")
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    assert claims.keys() <= named


def test_relaxations_and_carriers_are_those_of_the_source() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \|", section("Verification").partition("### Relax")[2], re.MULTILINE
    )
    assert Verifier([], audience="x", allow=rows)
    from agent_identity.verify import verifier

    assert set(rows) == verifier._RELAXATIONS
    for name in (carriers.ASSERTION, carriers.DELEGATION, carriers.HANDOVER):
        assert f"`{name}`" in section("Private names")
    for name in ("assertion", "delegation", "handover"):
        assert f"`{carriers.META}{name}`" in section("Private names")


def test_the_words_of_a_constraint_are_those_of_the_source() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (?:any|list,|number|text)", section("Authorization details"), re.MULTILINE
    )
    words = {"const": 1, "enum": [1], "minimum": 1, "maximum": 1, "prefix": "x"}
    assert set(rows) >= words.keys()
    for word, value in words.items():
        detail = {"type": "urn:agent-identity:tool", "arguments": {"x": {word: value}}}
        assert len(details_from([detail])) == 1


def part(compact: str, index: int) -> Any:
    text = compact.split(".")[index]
    return json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def example(name: str) -> str:
    found = re.search(rf"<!-- vector: hops-2 {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_is_a_published_call() -> None:
    case = CASES["hops-2"]
    leaf, root = case["chain"]
    for name, compact in (("leaf", leaf), ("assertion", case["assertion"])):
        assert json.loads(example(name)) == {"header": part(compact, 0), "claims": part(compact, 1)}
    assert example("root").replace("\n", "") == root
    assert "hops-2" in {each["id"] for each in ACCEPTED}
