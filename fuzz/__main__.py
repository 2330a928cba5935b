# SPDX-License-Identifier: Apache-2.0
"""`python fuzz [--seconds N] [target …]`: each target for so long, one row each, and a failure for any finding."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = sorted(path.stem.removeprefix("target_") for path in HERE.glob("target_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="how long each target runs")
    parser.add_argument("targets", nargs="*", default=TARGETS, help=f"of {', '.join(TARGETS)}")
    chosen = parser.parse_args()
    if unknown := {*chosen.targets} - {*TARGETS}:
        parser.error(f"no target is called {min(unknown)}")
    print(
        f"{'target':<12}{'executions':>12}{'seconds':>9}{'corpus':>8}{'taken':>10}  found",
        flush=True,
    )
    return 1 if [name for name in chosen.targets if not ran(name, chosen.seconds)] else 0


def ran(name: str, seconds: int) -> bool:
    """Run one target in a process of its own and print its row; False where there is a finding."""
    script = HERE / f"target_{name}.py"
    (HERE / "corpus" / f"{name}.taken").unlink(missing_ok=True)
    command = [sys.executable, str(script), f"-max_total_time={seconds}"]
    answer = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = answer.stdout + answer.stderr
    row = (
        number(said, r"stat::number_of_executed_units: (\d+)"),
        number(said, r"Done \d+ runs in (\d+) second"),
        number(said, r"corp: (\d+)/"),
        number(taken(name), r"(\d+)"),
    )
    good = answer.returncode == 0 and row[0] > 0
    verdict = "nothing" if good else "see below"
    print(f"{name:<12}{row[0]:>12,}{row[1]:>9}{row[2]:>8,}{row[3]:>10,}  {verdict}", flush=True)
    if not good:
        explain(script, said)
    return good


def explain(script: Path, said: str) -> None:
    lines = [line for line in said.splitlines() if not re.match(r"#\d|INFO|WARNING|\[INFO\]", line)]
    print(*lines[-40:], sep="\n")
    written = re.search(r"Test unit written to (\S+)", said)
    if written is not None:
        where = [Path(path).relative_to(HERE.parent) for path in (script, written[1])]
        print(f"again: python {where[0]} {where[1]}", flush=True)


def taken(name: str) -> str:
    """How many inputs the library took, which tells whether a target gets anywhere; written every so often."""
    path = HERE / "corpus" / f"{name}.taken"
    return path.read_text() if path.exists() else ""


def number(text: str, pattern: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
