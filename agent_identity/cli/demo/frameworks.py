# SPDX-License-Identifier: Apache-2.0
"""`agent-identity demo --langchain`: the demo that an adapter brings, and the tree of what it did."""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from agent_identity.cli.adapters import GROUP
from agent_identity.cli.demo.story import Story, demo_directory, program
from agent_identity.errors import ConfigurationError
from agent_identity.identity import AgentIdentity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["run_framework_demo"]


class FrameworkDemo(Protocol):
    """The module `demo` of an adapter."""

    SUMMARY: str

    def play(self, folder: Path, say: Callable[[str], None], /) -> str:
        """Run the demo with its state in `folder`, and tell each step; returns the reference of what it did."""
        ...


def run_framework_demo(adapter: str, state_dir: Path | None, *, as_json: bool) -> int:
    """Run the demo of an adapter and print it; returns 0 if the ledger is sound.

    Raises:
        ConfigurationError: `extra_missing`, the adapter or what its demo needs isn't installed.
    """
    demo = _load(adapter)
    story = Story.on_terminal(as_json=as_json)
    directory = demo_directory(state_dir)
    steps: list[str] = []

    def say(step: str) -> None:
        steps.append(step)
        story.say(step, indent=2)

    story.say(demo.SUMMARY, "bold")
    ref = demo.play(directory, say)
    with AgentIdentity.embedded("demo", state_dir=directory) as identity:
        trace = identity.who_triggered(ref)
        is_sound = identity.ledger.verify().ok and trace.verified
    story.say("")
    story.say("Who triggered this?", "bold")
    story.show(trace.to_text(story.width))
    story.say("")
    story.say("Ask again")
    story.command(program(), "why", ref, "--state-dir", str(directory))
    story.say("every link of the ledger is intact" if is_sound else "the ledger is unsound")
    if as_json:
        document = {
            "state_dir": str(directory),
            "steps": steps,
            "trace": trace.to_dict(),
            "ledger_ok": is_sound,
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return 0 if is_sound else 1


def _load(adapter: str) -> FrameworkDemo:
    entries = entry_points(group=GROUP, name=adapter)
    try:
        for entry in entries:
            found: Any = importlib.import_module(f"{entry.module}.demo")
            demo: FrameworkDemo = found
            return demo
    except ModuleNotFoundError as error:
        missing = str(error.name)
    else:
        missing = f"the adapter {adapter!r}"
    raise ConfigurationError(
        "extra_missing",
        f"this demo needs {missing}, which isn't installed",
        remedy=f"in a checkout: pip install . ./integrations/mcp './integrations/{adapter}[demo]'",
    ) from None
