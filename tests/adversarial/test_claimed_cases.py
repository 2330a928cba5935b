# SPDX-License-Identifier: Apache-2.0
"""Which cases of the adversarial catalogue this release claims, held against the tests that exist."""

from __future__ import annotations

import ast
from pathlib import Path

CLAIMED = (
    *(f"A{number:02}" for number in range(1, 27)),
    *(f"B{number:02}" for number in (*range(1, 11), 13, 15, *range(17, 21), *range(22, 31))),
    *("C01", "C02", "C03", "C04", "C05", "C06", "C07", "C08", "C09", "C10", "C11", "C12", "C13"),
    *("C14", "C15", "C16", "C17", "C18", "C20", "C21", "C22"),
    *("D01", "D02", "D03", "D04", "D05", "D06", "D07", "D08", "D09", "D10", "D11", "D12", "D13"),
    *("D14", "D15", "D16", "D17", "D18", "D19", "D20", "D21", "D22", "D23", "D24"),
    *(
        "E01",
        "E02",
        "E03",
        "E04",
        "E05",
        "E06",
        "E07",
        "E08",
        "E09",
        "E10",
        "E11",
        "E12",
        "E13",
        "E14",
        "E15",
    ),
    *("E16", "F01", "F02", "F03", "F12", "F13", "G09", "G17"),
    *("H01", "H02", "H03", "H04", "H05", "H07", "H09", "I06", "I07"),
)
TESTS = Path(__file__).parents[1]


def cases_with_a_test() -> set[str]:
    """The ids in the names of test functions: `A06` of `test_A06_duplicate_claim_is_refused`."""
    return {
        node.name.split("_")[1]
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def test_every_claimed_case_has_a_test_of_its_number():
    assert sorted(set(CLAIMED) - cases_with_a_test()) == []
