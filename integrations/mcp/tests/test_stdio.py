# SPDX-License-Identifier: Apache-2.0
"""A stdio server gets chain and assertion in `_meta`, and no token."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from agent_identity import AgentIdentity
from agent_identity.jose import loads_object, unverified
from agent_identity_mcp import guard
from agent_identity_mcp.generations import IS_SECOND, is_error

FILES = "urn:example:files"
SERVER = StdioServerParameters(
    command=sys.executable, args=[str(Path(__file__).with_name("stdio_server.py"))]
)


@contextlib.asynccontextmanager
async def connected(identity: AgentIdentity) -> AsyncGenerator[Any]:
    if IS_SECOND:
        from mcp import Client

        async with Client(SERVER) as client:
            yield guard(client, identity, server=FILES)
        return
    async with stdio_client(SERVER) as streams, ClientSession(*streams) as session:
        await session.initialize()
        yield guard(session, identity, server=FILES)


async def test_a_stdio_server_verifies_the_call_without_a_token(
    identity: AgentIdentity, tmp_path: Path
) -> None:
    arguments = {"path": str(tmp_path / "meta")}
    async with (
        connected(identity) as client,
        identity.on_behalf_of("user:alice", purpose="read") as session,
    ):
        result = await client.call_tool("write", arguments)
        assert not is_error(result)
        issued = session.credential(FILES).reveal()
    meta = json.loads((tmp_path / "meta").read_text())
    assertion = meta["dev.agent-identity/assertion"]
    verified = identity.verifier(audience=FILES).verify_call(
        assertion,
        meta["dev.agent-identity/delegation"],
        tool="write",
        args=arguments,
        scopes=(),
    )
    assert verified.principal.sub == "alice"
    assert "ath" not in loads_object(unverified(assertion).payload)
    assert issued not in json.dumps(meta)
    assert "bearer" not in json.dumps(meta).lower()


async def test_a_configuration_describes_a_server_that_takes_no_token(tmp_path: Path) -> None:
    file = tmp_path / "agent-identity.toml"
    file.write_text(
        '[agent]\nname = "bot"\n[policy]\nengine = "grants-only"\n'
        f'[resources."{FILES}"]\nsource = "chain"\n'
    )
    file.chmod(0o600)
    with AgentIdentity.from_config(file, state_dir=tmp_path / "state") as identity:
        async with (
            connected(identity) as client,
            identity.on_behalf_of("user:alice", purpose="read") as session,
        ):
            assert not is_error(await client.call_tool("write", {"path": str(tmp_path / "meta")}))
            assert "credential.acquired" not in [each.kind for each in session.records()]


async def test_a_stdio_connection_belongs_to_its_first_principal(
    identity: AgentIdentity, tmp_path: Path
) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    async with connected(identity) as client:
        async with identity.on_behalf_of("user:alice", purpose="read"):
            assert not is_error(await client.call_tool("write", {"path": str(mine)}))
        async with identity.on_behalf_of("user:bob", purpose="read"):
            refused = await client.call_tool("write", {"path": str(theirs)})
        async with identity.on_behalf_of("user:alice", purpose="read"):
            assert not is_error(await client.call_tool("write", {"path": str(mine)}))
    assert not theirs.exists()
    assert is_error(refused)
    assert "connection_owned" in refused.content[0].text
