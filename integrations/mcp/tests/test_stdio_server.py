# SPDX-License-Identifier: Apache-2.0
"""Stdio servers that know who is asking: their calls are verified by their `_meta` alone."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from agent_identity import AgentIdentity
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger
from agent_identity_mcp import generations as mcp
from agent_identity_mcp import guard
from agent_identity_mcp.generations import is_error

FILES = "urn:example:files"
PROGRAM = Path(__file__).with_name("verifying_stdio_server.py")
PURPOSE = "tidy up"
META = "dev.agent-identity/"
KINDS = ["mcp", *(["fastmcp"] if find_spec("fastmcp") else [])]


@pytest.fixture
def agent() -> Iterator[AgentIdentity]:
    resources = {FILES: ["files:write"]}
    with AgentIdentity(
        "file-bot", authority=Authority(), ledger=MemoryLedger(), resources=resources
    ) as made:
        yield made


@pytest.fixture(params=KINDS)
def server(request: Any, agent: AgentIdentity, tmp_path: Path) -> StdioServerParameters:
    anchor = {"issuer": agent.authority.issuer, "jwks": agent.authority.jwks()}
    (tmp_path / "anchor.json").write_text(json.dumps(anchor))
    args = [str(PROGRAM), str(tmp_path / "anchor.json"), str(tmp_path / "log"), request.param]
    env = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return StdioServerParameters(command=sys.executable, args=args, env=env)


@contextlib.asynccontextmanager
async def connected(server: StdioServerParameters) -> AsyncIterator[ClientSession]:
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        await session.initialize()
        yield session


def log_of(tmp_path: Path) -> str:
    log = tmp_path / "log"
    return log.read_text() if log.exists() else ""


async def refusal_of(session: Any, name: str, arguments: Any, meta: Any = None) -> Any:
    with pytest.raises(Exception) as caught:
        await session.call_tool(name, arguments, meta=meta)
    return caught.value.error


async def test_a_guarded_client_is_known(
    agent: AgentIdentity, server: StdioServerParameters, tmp_path: Path
) -> None:
    async with (
        connected(server) as session,
        agent.on_behalf_of("user:alice", purpose=PURPOSE),
    ):
        guard(session, agent, server=FILES)
        result = await session.call_tool("write", {"path": "notes"})
        assert not is_error(result)
        assert log_of(tmp_path) == "notes for alice\n"


async def test_a_call_without_statements_does_not_run(
    server: StdioServerParameters, tmp_path: Path
) -> None:
    async with connected(server) as session:
        assert {tool.name for tool in (await session.list_tools()).tools} == {"write", "wipe"}
        error = await refusal_of(session, "write", {"path": "notes"})
        assert (error.code, error.message) == (401, "Credentials are required")
        assert error.data["type"] == "urn:agent-identity:problem:credentials_required"
    assert log_of(tmp_path) == ""


async def test_statements_are_used_once_and_for_their_own_call(
    agent: AgentIdentity, server: StdioServerParameters, tmp_path: Path
) -> None:
    async with (
        connected(server) as session,
        connected(server) as attacker,
        agent.on_behalf_of("user:alice", purpose=PURPOSE),
    ):
        caught: list[Any] = []
        send = session.send_request

        async def watch(request: Any, *args: Any, **kwargs: Any) -> Any:
            if mcp.method_of(request) == "tools/call":
                caught.append(mcp.meta_of(mcp.called(request)))
                return mcp.refusal("caught")
            return await send(request, *args, **kwargs)

        session.send_request = watch  # type: ignore[method-assign]  # below the guard
        guard(session, agent, server=FILES)
        await session.call_tool("write", {"path": "notes"})
        meta = {key: value for key, value in caught[-1].items() if key.startswith(META)}
        for name, arguments, code in [
            ("write", {"path": "secrets"}, 401),
            ("write", {}, 401),
            ("wipe", {"path": "notes"}, 403),
        ]:
            assert (await refusal_of(attacker, name, arguments, meta)).code == code
        for gone in ("assertion", "delegation"):
            part = {key: value for key, value in meta.items() if key != f"{META}{gone}"}
            assert (await refusal_of(attacker, "write", {"path": "notes"}, part)).code == 401
        assert not is_error(await attacker.call_tool("write", {"path": "notes"}, meta=meta))
        replayed = await refusal_of(attacker, "write", {"path": "notes"}, meta)
        assert replayed.message == "The credentials were refused"
    assert log_of(tmp_path) == "notes for alice\n"


async def test_a_tool_whose_scopes_are_missing_does_not_run(
    agent: AgentIdentity, server: StdioServerParameters, tmp_path: Path
) -> None:
    async with (
        connected(server) as session,
        agent.on_behalf_of("user:alice", purpose=PURPOSE),
    ):
        guard(session, agent, server=FILES)
        error = await refusal_of(session, "wipe", {})
        assert (error.code, error.data["scope"]) == (403, "admin")
    assert log_of(tmp_path) == ""
