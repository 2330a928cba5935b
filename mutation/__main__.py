# SPDX-License-Identifier: Apache-2.0
"""`python mutation [--list] [module …]`: are the tests hollow? Each mutant lives in a forked process, which tests it and dies.

The parent imports what tests need, but nothing of the library. A child is given the mutant's tree in place of the module's
source and runs the tests that passed the changed lines before, quickest first, until one fails.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import forked
from guards import GUARDS, USUAL
from mutants import Mutant, mutants

HERE = Path(__file__).parent
WANTED = 0.9
SURVIVED, KILLED, LATE, BROKEN = "survived", "killed", "late", "broken"


class Running(NamedTuple):
    mutant: Mutant
    ends: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutation", description=__doc__)
    parser.add_argument("--list", action="store_true", help="only say what would be changed")
    parser.add_argument(
        "modules", nargs="*", default=USUAL, help="agent_identity.<module>, or a package"
    )
    chosen = parser.parse_args()
    files = [
        found for name in chosen.modules for found in modules_of(name) if any(mutants_of(*found))
    ]
    if chosen.list:
        for name, path in files:
            for mutant, _ in mutants_of(name, path):
                print(f"{name}:{mutant.first} {mutant.where}: {mutant.change}")
        return 0
    forked.warm()
    explained = (HERE / "survivors.md").read_text()
    totals: Counter[str] = Counter()
    for name, path in files:
        totals += tested(name, path, explained)
    return report(totals)


def modules_of(name: str) -> list[tuple[str, Path]]:
    spec = importlib.util.find_spec("agent_identity")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    path = root / name.replace(".", "/")
    paths = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    if not paths[0].is_file():
        raise SystemExit(f"there is no module agent_identity.{name}")
    return [(dotted(found.relative_to(root.parent)), found) for found in paths]


def mutants_of(name: str, path: Path) -> Iterator[tuple[Mutant, ast.Module]]:
    return mutants(name, path.read_text())


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def tested(name: str, path: Path, explained: str) -> Counter[str]:
    """Run all mutants of one module, as many at a time as there are processors."""
    begun = time.monotonic()
    row = max((row for row in GUARDS if f"{name}.".startswith(f"agent_identity.{row}.")), key=len)
    seen = forked.watched(name, path, GUARDS[row])
    verdicts: Counter[str] = Counter()
    lost: list[str] = []
    running: dict[int, Running] = {}

    def reap() -> None:
        for pid in [*running]:
            verdict = ended(pid, running[pid].ends)
            if verdict is None:
                continue
            mutant = running.pop(pid).mutant
            verdicts[verdict] += 1
            if verdict in {SURVIVED, BROKEN}:
                lost.append(row_of(mutant, verdict))

    for mutant, tree in mutants_of(name, path):
        chosen = seen.tests_of(mutant.first, mutant.last)
        if not chosen:
            verdicts[SURVIVED] += 1
            lost.append(row_of(mutant, "no test gets there"))
            continue
        while len(running) >= (os.cpu_count() or 1):
            reap()
            time.sleep(0.005)
        allowed = 10 + 5 * sum(seen.seconds[test] for test in chosen)
        running[forked.start(name, path, tree, chosen, GUARDS[row][0])] = Running(
            mutant, time.monotonic() + allowed
        )
    while running:
        reap()
        time.sleep(0.005)
    killed, count = verdicts[KILLED] + verdicts[LATE], verdicts.total()
    took = time.monotonic() - begun
    print(
        f"{name}: {killed} of {count} killed, {verdicts[LATE]} of them by time, {took:.0f} s",
        flush=True,
    )
    for line in lost:
        known = "explained" if line.split(" | ", 1)[1].rsplit(" | ", 1)[0] in explained else "NEW"
        print(f"  {known}: {line}", flush=True)
        verdicts["unexplained"] += known == "NEW"
    return verdicts


def row_of(mutant: Mutant, verdict: str) -> str:
    """As a row of survivors.md begins."""
    cells = (mutant.module.removeprefix("agent_identity."), mutant.where, mutant.change)
    place, where, change = (cell.replace("|", "\\|") for cell in cells)
    return f"{mutant.first} | {place} | `{where}` | `{change}` | {verdict}"


def ended(pid: int, ends: float) -> str | None:
    """What became of a child; None while it runs and may."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        if time.monotonic() < ends:
            return None
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return LATE
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return SURVIVED
    # 1: a test failed; 2: tests couldn't be imported; below 0: it crashed. What is left says nothing of the tests.
    return KILLED if code in {1, 2} or code < 0 else BROKEN


def report(totals: Counter[str]) -> int:
    killed = totals[KILLED] + totals[LATE]
    count = sum(totals[verdict] for verdict in (SURVIVED, KILLED, LATE, BROKEN))
    share = killed / count if count else 0
    print(f"all: {killed} of {count} killed, {share:.1%}; {WANTED:.0%} are wanted")
    print(f"survivors that survivors.md doesn't explain: {totals['unexplained']}")
    return 0 if share >= WANTED and not totals[BROKEN] else 1


if __name__ == "__main__":
    sys.exit(main())
