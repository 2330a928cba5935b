# SPDX-License-Identifier: Apache-2.0
"""What no other linter looks at: one line for each finding, and an exit code. `nox -s lint` runs it from the checkout."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPDX = "# SPDX-License-Identifier: Apache-2.0\n"
MACHINES = re.compile("(?<![\\w.~])/" + "(?:work|root|farm)/")
URL = re.compile(r"https?://")
PLAIN_BEGIN = re.compile(r"\s*BEGIN(?:\s+(?:DEFERRED|TRANSACTION))*\s*(?:;.*)?", re.DOTALL)
CONSTANT_TIME = frozenset({"token", "secret", "nonce", "ath", "password"})
PUBLIC = frozenset({"chain[0] != actor_token"})  # the caller sent both
TAKEN = re.compile(r"\b(?:monotonic|perf_counter|time)\(\) - |\b(?:elapsed|took)\b")
DEMO = "agent_identity/cli/demo/story.py"
Finding = tuple[int, str]


def main(root: Path = ROOT) -> int:
    """Check every file that git knows of, or would add."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, check=True, capture_output=True).stdout
    found = 0
    for name in sorted(set(names.decode().split("\0")) - {""}):
        path = root / name
        if not path.is_file():
            continue
        for line, what in findings(name, path.read_bytes()):
            print(f"{name}:{line}: {what}")  # noqa: T201 - this is what it is for
            found += 1
    return 1 if found else 0


def findings(name: str, data: bytes) -> Iterator[Finding]:
    text = data.decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        if MACHINES.search(line):
            yield number, "a path of one machine"
        if name.startswith("requirements/") and URL.search(line):
            yield number, "a host in a lock file"
    if name.endswith(".py"):
        if not text.startswith(SPDX):
            yield 1, "the first line is no SPDX line"
        shipped = name.startswith(("agent_identity/", "integrations/")) and "/tests/" not in name
        for node in running(ast.parse(text)):
            yield from json_doors(name, node)
            if (
                isinstance(node, ast.Assert)
                and "tests/" in name
                and TAKEN.search(ast.unparse(node))
            ):
                yield node.lineno, "a test asserts how long something took"
            if shipped:
                yield from doors(name, node)


def running(node: ast.AST) -> Iterator[ast.AST]:
    """A tree's nodes, less the imports that only a type checker sees."""
    yield node
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    for child in ast.iter_child_nodes(node):
        yield from running(child)


def json_doors(name: str, node: ast.AST) -> Iterator[Finding]:
    allowed = (
        name.startswith(("agent_identity/jose/", "benchmarks/", "fuzz/", "tests/"))
        or "/tests/" in name
    )
    if isinstance(node, ast.Attribute) and ast.unparse(node) == "json.loads" and not allowed:
        yield node.lineno, "JSON is read by jose.loads alone"


def doors(name: str, node: ast.AST) -> Iterator[Finding]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if PLAIN_BEGIN.fullmatch(node.value):
            yield node.lineno, "a transaction that writes begins with BEGIN IMMEDIATE"
    elif isinstance(node, ast.Compare):
        if any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops) and compares_secret(node):
            yield node.lineno, "a secret is compared by hmac.compare_digest"
    elif isinstance(node, ast.Import | ast.ImportFrom):
        within = isinstance(node, ast.ImportFrom)
        modules = [node.module or ""] if within else [alias.name for alias in node.names]
        elsewhere = not name.startswith(("agent_identity/http/", "integrations/")) and name != DEMO
        if elsewhere and any(module.partition(".")[0] == "httpx" for module in modules):
            yield node.lineno, "httpx is imported in http/ alone"


def compares_secret(node: ast.Compare) -> bool:
    """Whether a name that sounds like a secret is compared with something other than a constant."""
    sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
    names = [side.rpartition(".")[2] for side in sides]
    constant = any(isinstance(side, ast.Constant) for side in (node.left, *node.comparators))
    if constant or any(name.isupper() for name in names) or ast.unparse(node) in PUBLIC:
        return False
    return any(name.lower().rpartition("_")[2] in CONSTANT_TIME for name in names)


if __name__ == "__main__":
    sys.exit(main())
