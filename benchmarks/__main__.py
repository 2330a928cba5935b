# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks [--json FILE]`: prints budget, figure and verdict. Each row runs in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.adapters import NAMES
from benchmarks.measure import Figure

ROWS = (
    *("memory", "traced", "sqlite", "outbound", "session", "session_with_token"),
    *("ephemeral", "verification"),
    *("exchange", "exchange_async"),
    *("herd", "revocation", "imports", "job"),
    *NAMES,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("rows", nargs="*", default=ROWS, help=f"which of {', '.join(ROWS)}")
    chosen = parser.parse_args()
    console = Console()
    figures: list[Figure] = []
    for row in track(chosen.rows, description="measuring", console=console, transient=True):
        command = [sys.executable, "-m", "benchmarks.rows", row]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if answer.returncode:
            console.print(answer.stderr)
            raise SystemExit(1)
        figures.append(Figure(*json.loads(answer.stdout)))
    table = Table("path", "figure", "budget", "verdict", "note")
    for figure in figures:
        colour = "red" if figure.verdict == "MISSED" else "green"
        budget = "none" if figure.budget is None else f"<= {figure.budget:g} {figure.unit}"
        table.add_row(
            figure.path,
            f"{figure.value:.2f} {figure.unit}",
            budget,
            f"[{colour}]{figure.verdict}[/{colour}]",
            figure.note,
        )
    console.print(table)
    if chosen.json:
        document = [figure._asdict() | {"verdict": figure.verdict} for figure in figures]
        chosen.json.write_text(json.dumps(document, indent=2) + "\n")


main()
