# SPDX-License-Identifier: Apache-2.0
"""An MCP server with FastMCP's authorization server on loopback, in an environment of its own. `PORT` is a variable."""

import os

from fastmcp import FastMCP
from fastmcp.server.auth.auth import ClientRegistrationOptions, RevocationOptions
from fastmcp.server.auth.providers.in_memory import InMemoryOAuthProvider

PORT = int(os.environ["PORT"])

auth = InMemoryOAuthProvider(
    base_url=f"http://127.0.0.1:{PORT}",
    client_registration_options=ClientRegistrationOptions(
        enabled=True, valid_scopes=["invoices:read"]
    ),
    revocation_options=RevocationOptions(enabled=True),
    required_scopes=["invoices:read"],
)
mcp = FastMCP("billing", auth=auth)
mcp.run("http", host="127.0.0.1", port=PORT, show_banner=False, log_level="warning")
