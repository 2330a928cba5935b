# SPDX-License-Identifier: Apache-2.0
"""The children: one that watches which lines each test passes, and one for each mutant."""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.machinery
import os
import pickle
import sys
import tempfile
import threading
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

WARM = (
    "pytest",
    "hypothesis",
    "cryptography.hazmat.primitives.asymmetric.rsa",
    "joserfc.jws",
    "jwt",
)
WARM += (
    "httpx",
    "opentelemetry.sdk.trace",
    "orjson",
    "platformdirs",
    "pydantic",
    "respx",
    "rfc8785",
)
WARM += ("pytest_asyncio", "joserfc.jwk", "cryptography.x509", "typer", "asyncio", "sqlite3")
OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", "--no-header")
OPTIONS += (
    "-p",
    "no:anyio",
    "--assert=plain",
)  # an assertion that only fails is enough, and quicker
NO_MODULE, MISSED = 2, 9
"""Exit codes of a child whose mutant can't be imported, and of one whose tests had another."""


def warm() -> None:
    """Import once what every child needs; nothing of the library, which each child imports anew."""
    sys.dont_write_bytecode = False  # tests are compiled once, not once a child
    for name in WARM:
        importlib.import_module(name)
    from hypothesis import Phase, settings

    phases = (Phase.explicit, Phase.generate)
    settings.register_profile(
        "mutation", derandomize=True, database=None, phases=phases, deadline=None
    )
    os.environ["HYPOTHESIS_PROFILE"] = "mutation"  # which the tests load
    _draw_rsa_keys()
    assert "agent_identity" not in sys.modules


def _draw_rsa_keys() -> None:
    """Tests make RSA keys when they are imported, which takes longer than many of them: each child draws the same ones."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    usual = (65537, 2048)
    drawn = [rsa.generate_private_key(*usual) for _ in range(8)]
    make = rsa.generate_private_key

    def generate_private_key(public_exponent: int, key_size: int, backend: Any = None) -> Any:
        if drawn and (public_exponent, key_size) == usual:
            return drawn.pop()
        return make(public_exponent, key_size, backend)

    rsa.generate_private_key = generate_private_key


class Given(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module from the code that it was given, and all others as usual."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        self._name, self._path, self._code = name, path, code

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            self._path,
            loader=self,
            submodule_search_locations=[str(self._path.parent)]
            if self._path.name == "__init__.py"
            else None,
        )

    def get_source(self, fullname: str) -> str:
        return self._path.read_text()

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, vars(module))


class Seen:
    """Which tests passed which lines of a module, and how long each took."""

    def __init__(self, lines: dict[int, set[str]], seconds: dict[str, float]) -> None:
        self._lines, self.seconds = lines, seconds

    def tests_of(self, first: int, last: int) -> list[str]:
        """Those that passed one of these lines, quickest first; all of them for lines that importing passes."""
        tests: set[str] = set().union(*(self._lines.get(at, ()) for at in range(first, last + 1)))
        return sorted(self.seconds if "" in tests else tests, key=self.seconds.__getitem__)


class Watch:
    """A pytest plugin that notes lines; "" is the name of what runs outside of any test."""

    def __init__(self, path: Path) -> None:
        self._path, self._test = str(path), ""
        self.lines: defaultdict[int, set[str]] = defaultdict(set)
        self.seconds: dict[str, float] = {}

    def trace(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != self._path:
            return None
        self.lines[frame.f_lineno].add(self._test)
        return self.trace

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test = nodeid

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.passed:
            self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration

    def pytest_runtest_logfinish(self) -> None:
        self._test = ""


class Chosen:
    """A pytest plugin that keeps some of the tests, in their order."""

    def __init__(self, tests: list[str]) -> None:
        self._order = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._order),
            key=lambda item: self._order[item.nodeid],
        )


def watched(name: str, path: Path, tests: Iterable[str]) -> Seen:
    """Run a module's tests unchanged, in a child; they have to pass."""
    with tempfile.TemporaryDirectory() as folder:
        answer, said = Path(folder, "seen"), Path(folder, "said")
        said.touch()
        pid = os.fork()
        if pid == 0:
            _watch(name, path, tests, answer, said)
        _, status = os.waitpid(pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            print(said.read_text()[-2000:])
            raise SystemExit(f"the tests of {name} fail without any change (pytest says {code})")
        return Seen(*pickle.loads(answer.read_bytes()))


def _watch(name: str, path: Path, tests: Iterable[str], answer: Path, said: Path) -> None:
    watch = Watch(path)
    code = 1
    try:
        threading.settrace(watch.trace)
        sys.settrace(watch.trace)
        code = _pytest(name, path, ast.parse(path.read_text()), tests, watch, said)
        sys.settrace(None)
        answer.write_bytes(pickle.dumps((dict(watch.lines), watch.seconds)))
    except BaseException:
        said.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def start(name: str, path: Path, tree: ast.Module, tests: list[str], first: str) -> int:
    """Run tests against a mutant, in a child whose process id this is; its exit code is pytest's.

    Those of the file or folder `first` run alone at first: most mutants need no other, and to collect costs more than to run.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        os.setsid()
        near = [test for test in tests if test.startswith(first)]
        for stage in (near, [test for test in tests if test not in near]):
            if stage:
                files = dict.fromkeys(test.partition("::")[0] for test in stage)
                code = _pytest(name, path, tree, files, Chosen(stage))
            if stage and code:
                break
    finally:
        os._exit(code)


def _pytest(
    name: str,
    path: Path,
    tree: ast.Module,
    tests: Iterable[str],
    plugin: object,
    said: Path = Path(os.devnull),
) -> int:
    import pytest

    nowhere = os.open(said, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        if name not in sys.modules:  # before pytest, which has an importer of its own for plugins
            code = compile(ast.fix_missing_locations(tree), str(path), "exec")
            sys.meta_path.insert(0, Given(name, path, code))
            importlib.import_module(name)
    except Exception:  # no module any more: what a test would have found, had there been one
        return NO_MODULE
    ended = pytest.main([*OPTIONS, *tests], plugins=[plugin])
    return int(ended) if isinstance(sys.modules[name].__loader__, Given) else MISSED
