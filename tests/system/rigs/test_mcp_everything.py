# SPDX-License-Identifier: Apache-2.0
"""The MCP project's own example server, in TypeScript: our client's guard over streamable HTTP and stdio, on both majors of mcp."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from . import servers

HERE: Final = Path(__file__).parent
CHECKOUT: Final = HERE.parents[2]
SERVER: Final = "@modelcontextprotocol/server-everything/dist/index.js"

ON_EACH: Final = pytest.mark.parametrize("generation", ["mcp-1.24", "mcp-1.x", "mcp"])


def call(generation: str, folder: Path, *place: str | Path) -> dict[str, Any]:
    proxies = {"http_proxy", "https_proxy", "all_proxy"}
    env = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    env["PYTHONPATH"] = f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'integrations/mcp/src'}"
    command: Sequence[Any] = [servers.python(generation), HERE / "everything_client.py"]
    done = subprocess.run(
        [str(part) for part in (*command, folder, *place)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def check(answer: dict[str, Any]) -> None:
    assert "echo" in answer["tools"]
    assert answer["text"] == "Echo: hello"
    assert "tool_unknown" in answer["unknown"]
    assert answer["calls"] == [["echo", "completed"], ["no-such-tool", "denied"]]
    assert answer["verified"] is True


@ON_EACH
def test_calls_over_http(generation: str, tmp_path: Path) -> None:
    port = servers.free_port()
    command = [
        *(servers.node(), "--require", HERE / "loopback-listen.cjs"),
        *(servers.node_modules() / SERVER, "streamableHttp"),
    ]
    with servers.process(
        command,
        ready=servers.answers(f"http://127.0.0.1:{port}/mcp"),
        log=tmp_path / "log",
        env={"PORT": str(port)},
    ):
        check(call(generation, tmp_path / "state", f"http://127.0.0.1:{port}/mcp"))


@ON_EACH
def test_calls_over_stdio(generation: str, tmp_path: Path) -> None:
    check(call(generation, tmp_path, servers.node(), servers.node_modules() / SERVER, "stdio"))
