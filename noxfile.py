# SPDX-License-Identifier: Apache-2.0
"""Every check of the project, one session each. `nox -l` lists them, `nox -s tests` runs one.

Environments are installed from the host-free constraint files in requirements/ (with hashes), and the project from a wheel
built here, so that tests see what users install.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_external_run = True
nox.options.sessions = ["tests", "lint", "typing", "imports"]

HERE = Path(__file__).parent
CODE = (
    "agent_identity",
    "tests",
    "integrations",
    "benchmarks",
    "fuzz",
    "mutation",
    "examples",
    "noxfile.py",
)
INTEGRATIONS = ("langchain", "mcp")
BESIDE = {"langchain": ("./integrations/mcp",)}
"""The integrations that another one uses in its tests."""
ADAPTER_ROWS = {
    "langchain": ("langchain_tool", "langchain_agent"),
    "mcp": ("mcp_client", "mcp_server"),
}
LANGCHAIN_MINORS = ("1.0", "1.1", "1.2", "1.3", "1.4")
"""Those before the newest, which `integrations` has."""
MINOR_TESTS = (
    "test_contract",
    "test_agent",
    "test_tool_nodes",
    "test_carried_sessions",
    "test_interrupts",
)
MCP_GENERATIONS = ("1.24", "1.x")
"""Those before 2.x, which `integrations` has: the oldest and the newest of 1.x."""


def _others() -> list[str]:
    """The supported Pythons that this machine has, apart from the one that runs nox."""
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    found: list[str] = []
    for version in ("3.11", "3.12", "3.13", "3.14"):
        binary = shutil.which(f"python{version}")
        if version == mine or binary is None:
            continue
        # A version manager's shim is found, and fails when asked to run anything.
        if subprocess.run([binary, "-c", ""], capture_output=True, check=False).returncode == 0:  # noqa: S603
            found.append(version)
    return found


def _install(session: nox.Session, environment: str, *extra: str) -> None:
    session.install("--require-hashes", "-r", f"requirements/{environment}.txt")
    session.install("--no-deps", "--no-build-isolation", ".", *extra)


def _test(session: nox.Session) -> None:
    _install(session, "tests")
    ends = ("-o", "faulthandler_exit_on_timeout=true")  # a test that hangs ends the run
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *ends, *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """The main job in a minute: no account, no network."""
    _install(session, "demo", "./integrations/mcp")
    session.run("agent-identity", "demo", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Unit, driver, vector and adversarial tests against the built wheel."""
    _test(session)


@nox.session(python=_others())
def pythons(session: nox.Session) -> None:
    """The same tests under every other Python that the machine has."""
    _test(session)


@nox.session
def soak(session: nox.Session) -> None:
    """The large counts in full: mixed calls, alarms, forks, revocations, sessions, interrupts at every place.

    `AGENT_IDENTITY_SOAK=tenth` runs a tenth of them, as CI does.
    """
    _install(session, "tests")
    share = os.environ.get("AGENT_IDENTITY_SOAK", "full")
    session.env["AGENT_IDENTITY_SOAK"] = share
    tests = ["tests/system/test_soak.py", "tests/system/test_scale.py"]
    if share == "full":
        tests.append("tests/drivers/test_interrupted_calls.py")
    limit = 0 if share == "full" else 1800  # seconds for one test, then every stack and the end
    ends = ("-o", f"faulthandler_timeout={limit}", "-o", "faulthandler_exit_on_timeout=true")
    session.run("pytest", *tests, "-s", *ends, "-p", "no:cacheprovider", *session.posargs)


@nox.session
def rigs(session: nox.Session) -> None:
    """Tests against real servers that this machine has to install first; one that isn't there is a failure."""
    _install(session, "rigs")
    session.env["AGENT_IDENTITY_RIGS"] = "1"
    session.run("pytest", "tests/system/rigs", "-p", "no:cacheprovider", *session.posargs)


@nox.session
@nox.parametrize("name", INTEGRATIONS)
def integrations(session: nox.Session, name: str) -> None:
    """One framework, in an environment of its own."""
    _install(session, name, f"./integrations/{name}", *BESIDE.get(name, ()))
    session.run("pytest", f"integrations/{name}/tests", *session.posargs)


@nox.session
@nox.parametrize("minor", LANGCHAIN_MINORS)
def langchain(session: nox.Session, minor: str) -> None:
    """The adapter contract, agents, nodes and interrupts under an older minor of LangChain, with the langgraph of its time."""
    _install(session, f"langchain-{minor}", "./integrations/langchain")
    tests = [f"integrations/langchain/tests/{name}.py" for name in MINOR_TESTS]
    session.run("pytest", *tests, *session.posargs)


@nox.session
@nox.parametrize("generation", MCP_GENERATIONS)
def mcp(session: nox.Session, generation: str) -> None:
    """The tests of the MCP integration under an older generation of mcp, with the HTTP client of its time."""
    _install(session, f"mcp-{generation}", "./integrations/mcp")
    session.run("pytest", "integrations/mcp/tests", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """The oldest dependencies that we say we work with."""
    _install(session, "lowest")
    session.run("pytest", "tests/unit", "tests/vectors", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, spelling, licence lines, and lock files that name no host."""
    session.install("--require-hashes", "-r", "requirements/lint.txt")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run(
        "codespell",
        "--skip",
        "requirements,*.lock,*-lock.json,*/corpus/*,*/findings/*",
        *CODE,
        "docs",
        "README.md",
    )
    session.run("python", "tests/lint/check_tree.py")


@nox.session
def typing(session: nox.Session) -> None:
    """Mypy and pyright, both strict, and the public types as a test subject."""
    _install(session, "typing", *(f"./integrations/{name}" for name in INTEGRATIONS))
    session.run("mypy")
    for name in INTEGRATIONS:
        session.run("mypy", f"integrations/{name}/src")
    session.run("pyright")
    session.run("mypy", "tests/typing")
    session.run("pyright", "--verifytypes", "agent_identity", "--ignoreexternal")


@nox.session
def imports(session: nox.Session) -> None:
    """The layers of the house."""
    _install(session, "lint")
    session.run("lint-imports")


@nox.session
def examples(session: nox.Session) -> None:
    """Every example runs."""
    _install(session, "examples")
    for script in sorted((HERE / "examples").glob("*.py")):
        session.run("python", str(script))


@nox.session
def install(session: nox.Session) -> None:
    """What the pages say on installing, as a newcomer does it: in an empty folder, with an empty home."""
    session.install("--require-hashes", "-r", "requirements/install.txt")
    cache = session.create_tmp()
    pages = [HERE / "docs/how-to/install.md", *sorted(HERE.glob("integrations/*/README.md"))]
    for page in pages:
        for lines in _commands(page):
            with (
                tempfile.TemporaryDirectory() as place
            ):  # outside of the checkout, whose workspace uv would join
                (Path(place) / "home").mkdir()
                (Path(place) / "project").mkdir()
                where = {"HOME": f"{place}/home", "CHECKOUT": str(HERE), "VIRTUAL_ENV": ""}
                where |= {"PIP_CACHE_DIR": f"{cache}/pip", "UV_CACHE_DIR": f"{cache}/uv"}
                with session.chdir(f"{place}/project"):
                    if lines.startswith("uv "):
                        session.run("uv", "init", "--bare", env=where)
                    session.run("bash", "-euxc", lines, env=where, external=True)


def _commands(page: Path) -> list[str]:
    """The shell blocks of a page, one text each."""
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@nox.session
def docs(session: nox.Session) -> None:
    """A strict build of the documentation."""
    _install(session, "docs")
    session.run("mkdocs", "build", "--strict")


@nox.session
def bench(session: nox.Session) -> None:
    """What a call costs, against its budgets."""
    _install(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
@nox.parametrize("name", INTEGRATIONS)
def bench_adapters(session: nox.Session, name: str) -> None:
    """What an adapter costs beside its framework's own work."""
    _install(session, name, f"./integrations/{name}")
    session.run("python", "-m", "benchmarks", *session.posargs or ADAPTER_ROWS[name])


@nox.session(python="3.11")
def fuzz(session: nox.Session) -> None:
    """Parsers under inputs that a fuzzer makes up, 60 s each; `-- --seconds 600 chain` takes longer over one."""
    _install(session, "fuzz")
    session.run("python", "fuzz", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """Are the tests hollow? Small changes to the code that each have to turn one red; `-- delegation` for a part."""
    _install(session, "tests")
    session.run("python", "mutation", *session.posargs)


@nox.session(venv_backend="none")
def lock(session: nox.Session) -> None:
    """Write the constraint files anew; needs uv on the PATH."""
    for source in sorted((HERE / "requirements").glob("*.in")):
        resolution = ("--resolution=lowest-direct",) if source.stem == "lowest" else ()
        session.run(
            "uv",
            "pip",
            "compile",
            "--universal",
            "--generate-hashes",
            "--no-emit-index-url",
            "--no-header",
            "--python-version=3.11",
            "--quiet",
            *resolution,
            str(source.relative_to(HERE)),
            "-o",
            str(source.with_suffix(".txt").relative_to(HERE)),
            external=True,
        )
