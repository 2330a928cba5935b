# SPDX-License-Identifier: Apache-2.0
"""A stdio server of the installed generation of mcp that verifies its calls: `… ANCHOR LOG`, with `fastmcp` as third word of FastMCP."""

from __future__ import annotations

import json
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, Verifier
from agent_identity_mcp.server import tool_meta, verified_call, verify_calls

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    if "fastmcp" in sys.argv[3:]:
        from fastmcp import FastMCP as Server
    elif find_spec("mcp_types"):
        from mcp.server import MCPServer as Server
    else:
        from mcp.server.fastmcp import FastMCP as Server
    server = Server("files")

anchor = json.loads(Path(sys.argv[1]).read_text())
log = Path(sys.argv[2])


@server.tool(meta=tool_meta(scopes=["files:write"]))
def write(path: str) -> str:
    """Write a file."""
    call = verified_call()
    with log.open("a") as file:
        file.write(f"{path} for {call.principal.sub}\n")
    return "written"


@server.tool(meta=tool_meta(scopes=["admin"]))
def wipe() -> str:
    """Wipe everything."""
    log.write_text("wiped")
    return "wiped"


verify_calls(
    server,
    Verifier(
        [
            TrustAnchor(
                anchor["issuer"],
                jwks=anchor["jwks"],
                revocations=UnsafeNoRevocations(),
                evidence="issuer",
            )
        ],
        audience="urn:example:files",
    ),
)

if __name__ == "__main__":
    server.run("stdio")
