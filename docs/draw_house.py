# SPDX-License-Identifier: Apache-2.0
"""Draws the package from its imports: `python docs/draw_house.py > docs/house.svg`.

A box is a folder or a file of the top level, as wide as it has lines. It stands one floor above the highest of what it imports,
type imports included, so everything leads down. A test holds the picture equal to the code.
"""

from __future__ import annotations

import ast
import sys
from html import escape
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "agent_identity"
WIDTH, ROW, GAP = 960, 44, 6


def rooms() -> dict[str, list[Path]]:
    """The files of each room; the package's own `__init__` only hands names on."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if parts != ("__init__.py",):
            found.setdefault(parts[0].removesuffix(".py"), []).append(path)
    return found


def imports_of(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            package, _, rest = node.module.partition(".")
            if package == PACKAGE.name:
                names.add(rest.partition(".")[0])
    return names


def floors(files: dict[str, list[Path]]) -> list[list[str]]:
    """The rooms by floor, ground floor first."""
    needs = {
        room: {each for path in paths for each in imports_of(path)} & files.keys() - {room}
        for room, paths in files.items()
    }
    placed: list[list[str]] = []
    standing: set[str] = set()
    while len(standing) < len(files):
        floor = sorted(room for room in files.keys() - standing if needs[room] <= standing)
        if not floor:
            raise SystemExit(f"a circle: {sorted(files.keys() - standing)}")
        placed.append(floor)
        standing.update(floor)
    return placed


def svg() -> str:
    """The picture; it follows the reader's light or dark mode."""
    files = rooms()
    lines = {
        room: sum(path.read_text(encoding="utf-8").count("\n") for path in paths)
        for room, paths in files.items()
    }
    stack = floors(files)[::-1]
    height = len(stack) * (ROW + GAP) + GAP
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="The package by its imports">',
        (
            "<style>rect{fill:#e8eef7;stroke:#5b7aa8}text{font:13px sans-serif;fill:#1b2a41}.n{font-size:10px;fill:#52617a}"
            "@media(prefers-color-scheme:dark){rect{fill:#22304a;stroke:#8fa9d3}text{fill:#e6edf8}.n{fill:#a9b8d2}}</style>"
        ),
    ]
    for number, floor in enumerate(stack):
        top = GAP + number * (ROW + GAP)
        weights = [max(90.0, lines[room] ** 0.5 * 3) for room in floor]
        scale = min(1.0, (WIDTH - GAP * (len(floor) + 1)) / sum(weights))
        left = (WIDTH - sum(weights) * scale - GAP * (len(floor) - 1)) / 2
        for room, weight in zip(floor, weights, strict=True):
            width = weight * scale
            middle = left + width / 2
            drawn += [
                f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{ROW}" rx="4"/>',
                f'<text x="{middle:.0f}" y="{top + 19}" text-anchor="middle">{escape(room)}</text>',
                f'<text class="n" x="{middle:.0f}" y="{top + 34}" text-anchor="middle">{_rounded(lines[room])} lines</text>',
            ]
            left += width + GAP
    return "\n".join([*drawn, "</svg>", ""])


def _rounded(lines: int) -> int:
    """To the hundred, so that the picture doesn't change with every line."""
    return max(100, round(lines, -2))


if __name__ == "__main__":
    sys.stdout.write(svg())
