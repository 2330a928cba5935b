# SPDX-License-Identifier: Apache-2.0
"""The first process of the demo: it runs the agent until a person is asked, prints the steps as JSON, and ends."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from agent_identity import AgentIdentity
from agent_identity_langchain.demo.agents import (
    AGENT,
    CHECKPOINTS,
    PURPOSE,
    no_payments,
    run_agent,
)


def main(state_dir: str, url: str, run: str) -> None:
    """Begin the run `run` with the MCP server at `url`."""
    folder = Path(state_dir)
    (folder / CHECKPOINTS).unlink(missing_ok=True)
    with AgentIdentity.embedded(AGENT, state_dir=folder, policy=no_payments) as identity:
        given = {"messages": [("user", PURPOSE)]}
        _, steps = asyncio.run(run_agent(identity, folder, url, run, given))
    sys.stdout.write(json.dumps(steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
