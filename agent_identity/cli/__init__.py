# SPDX-License-Identifier: Apache-2.0
"""The command line: `agent-identity init | doctor | token | exec | config | demo | why | ledger | authority`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say which packages it needs."""
    try:
        from agent_identity.cli.app import app  # noqa: PLC0415 - an extra may be missing

        app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.stderr.write("the command line needs two more packages: pip install rich typer\n")
        raise SystemExit(2) from None
