# SPDX-License-Identifier: Apache-2.0
"""A stdio server of the installed generation of mcp that writes down the `_meta` of each call. A result would be scrubbed of it."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("mcp_types"):
    from mcp.server import MCPServer as Server
    from mcp.server.mcpserver import Context
else:
    from mcp.server.fastmcp import Context
    from mcp.server.fastmcp import FastMCP as Server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    server = Server("files")


async def write(path: str, ctx: Any) -> str:
    """Write a file."""
    meta: Any = ctx.request_context.meta
    if hasattr(meta, "model_dump"):
        meta = meta.model_dump(by_alias=True, exclude_none=True)
    Path(path).write_text(json.dumps(dict(meta or {}), default=str))  # noqa: ASYNC240 - a test's small file
    return "written"


write.__annotations__["ctx"] = Context
server.tool()(write)

if __name__ == "__main__":
    server.run("stdio")
