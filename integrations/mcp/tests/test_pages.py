# SPDX-License-Identifier: Apache-2.0
"""The programs of the page and of the README run as they are, against a server of the installed generation."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from agent_identity import AgentIdentity
from agent_identity_mcp import connect, guard
from agent_identity_mcp.generations import IS_SECOND

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "how-to" / "mcp.md"
SERVER_PAGE = PAGE.with_name("mcp-server.md")
README = Path(__file__).parents[1] / "README.md"
HERE = Path(__file__).parent


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def run(block: str, **replaced: str) -> dict[str, Any]:
    for old, new in replaced.values():
        assert old in block
        block = block.replace(old, new)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102 - the page's own block
    return names


def test_the_page_connects_over_http(billing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    billing.verifier = None  # of another identity
    run(blocks(PAGE)[0], url=("https://billing.example/mcp", billing.url))
    told = capsys.readouterr().out
    assert told.startswith("['fail', 'list_invoices', 'wait']\n10 invoices of ACME\n")
    assert "alice" in told
    (call,) = billing.calls()
    assert call.token


def test_the_page_guards_a_stdio_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(HERE / "stdio_server.py", tmp_path / "server.py")
    run(blocks(PAGE)[1], python=('command="python"', f'command="{sys.executable}"'))
    assert capsys.readouterr().out == "written\n"
    assert "dev.agent-identity/assertion" in (tmp_path / "notes.txt").read_text()


async def test_the_rules_of_the_page_are_rules(identity: AgentIdentity, billing: Any) -> None:
    rules = run(blocks(PAGE)[2])["rules"]
    async with connect(billing.url, identity=identity, rules=rules):
        pass


@pytest.fixture
def anchor(identity: AgentIdentity) -> tuple[str, str]:
    """The page's anchor, and the identity's own one instead."""
    made = f"TrustAnchor({identity.authority.issuer!r}, jwks={identity.authority.jwks()!r}"
    none = "__import__('agent_identity.verify').verify.UnsafeNoRevocations()"
    return 'TrustAnchor("https://agents.acme.example"', f"{made}, revocations={none}"


SERVER = (
    ("from mcp.server import MCPServer",) * 2
    if IS_SECOND
    else ("from mcp.server import MCPServer", "from mcp.server.fastmcp import FastMCP as MCPServer")
)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
async def test_the_page_verifies_calls_over_http(
    identity: AgentIdentity, anchor: tuple[str, str], start: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/mcp"
    audience = ("https://billing.example/mcp", url)
    names = run(blocks(SERVER_PAGE)[0], server=SERVER, anchor=anchor, audience=audience)
    watched = start(names["app"], port)
    rules: Any = {"list_invoices": {"scopes": ["invoices:read"]}}
    async with (
        connect(watched.url, identity=identity, rules=rules) as client,
        identity.on_behalf_of("user:alice", purpose="close the books"),
    ):
        result = await client.call_tool("list_invoices", {"customer": "ACME"})
        assert result.content[0].text == "ACME's invoices for alice, to close the books"


async def test_the_page_verifies_calls_over_stdio(
    identity: AgentIdentity, anchor: tuple[str, str], tmp_path: Path
) -> None:
    program = blocks(SERVER_PAGE)[1]
    for old, new in (SERVER, anchor):
        assert old in program
        program = program.replace(old, new)
    (tmp_path / "server.py").write_text(program)
    env = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    server = StdioServerParameters(
        command=sys.executable, args=["-W", "ignore", str(tmp_path / "server.py")], env=env
    )
    async with (
        stdio_client(server) as streams,
        ClientSession(*streams) as session,
        identity.on_behalf_of("user:alice", purpose="tidy up"),
    ):
        await session.initialize()
        guard(session, identity, server="urn:example:files")
        result = await session.call_tool("write", {"path": "notes"})
        assert result.content[0].text == "notes written for alice"


def test_the_readmes_program_calls_a_tool(billing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    billing.verifier = None
    (block,) = blocks(README)
    assert len([line for line in block.splitlines() if line]) == 10
    run(block, url=("https://billing.example/mcp", billing.url))
    assert "10 invoices of ACME" in capsys.readouterr().out
