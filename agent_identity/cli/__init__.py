# SPDX-License-Identifier: Apache-2.0
"""The command line: `agent-identity demo | billing | init | doctor | why | token | exec | …`."""

from __future__ import annotations

import json
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or print which packages are missing."""
    try:
        from agent_identity.cli.app import app  # noqa: PLC0415 - an extra may be missing

        app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.stderr.write(f"{_missing(as_json='--json' in sys.argv)}\n")
        raise SystemExit(2) from None


def _missing(*, as_json: bool) -> str:
    message, remedy = "the command line needs two more packages", "pip install rich typer"
    if as_json:
        return json.dumps({"code": "extra_missing", "message": message, "remedy": remedy})
    return f"{message}: {remedy}"
