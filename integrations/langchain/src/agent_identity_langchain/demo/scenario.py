# SPDX-License-Identifier: Apache-2.0
"""The story of the demo: an agent in one process, a person's answer, and the same agent in another process."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from langgraph.types import Command

from agent_identity import AgentIdentity
from agent_identity.jose import loads
from agent_identity_langchain.demo.agents import AGENT, PURPOSE, no_payments, run_agent
from agent_identity_langchain.demo.service import serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["SUMMARY", "play"]

SUMMARY: Final = f"a LangChain agent acts for user:alice to {PURPOSE}"
_CALLS: Final = 2
"""The calls that the MCP server gets: one before the restart, one of the sub-agent after it."""


def play(folder: Path, say: Callable[[str], None]) -> str:
    """Run the scenario, with its keys, ledger and checkpoints in `folder`; `say` gets a line for each step.

    Returns the id of the last session.

    Raises:
        RuntimeError: the first process failed, or the MCP server didn't get the calls that it should.
    """
    run = f"toolu_{secrets.token_hex(4)}"
    with AgentIdentity.embedded(AGENT, state_dir=folder, policy=no_payments) as identity:
        with serving(identity) as (url, seen):
            say(f"process {_begin(folder, url, run, say)} asked, and ended")
            say(f"process {os.getpid()} resumes with the answer yes")
            answer: Command[None] = Command(resume="yes")
            session, steps = asyncio.run(run_agent(identity, folder, url, run, answer))
            _tell(steps, say)
        who = sorted(call.agent.rpartition(":")[2] for call in seen)
        say(f"the MCP server verified {len(who)} calls: by {' and '.join(who)}")
        if len(who) != _CALLS:
            raise RuntimeError("the MCP server didn't get the calls of the demo")
    return session


def _begin(folder: Path, url: str, run: str, say: Callable[[str], None]) -> int:
    """Run the first process to its end, and return its id."""
    arguments = [
        sys.executable,
        "-m",
        "agent_identity_langchain.demo",
        str(folder),
        url,
        run,
    ]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:  # noqa: S603 - this program itself
        said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the first process ended with status {process.returncode}")
    _tell(loads(said), say)
    return process.pid


def _tell(steps: Any, say: Callable[[str], None]) -> None:
    for step in steps:
        if "question" in step:
            say(f"? {step['question']}")
        else:
            say(f"{'✔' if step['status'] == 'success' else '✘'} {step['tool']}: {step['text']}")
