# SPDX-License-Identifier: Apache-2.0
"""Rows for adapters: what the wrapper costs beside the framework's own work. They need the framework."""

from __future__ import annotations

import random
import statistics
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from agent_identity import AgentIdentity, Decision
from agent_identity.authority import Authority
from agent_identity.provenance.memory import MemoryLedger
from benchmarks.measure import ROUNDS, Figure, reference, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

INSTALLED = all(map(find_spec, ("agent_identity_langchain", "langchain")))
NAMES = ("langchain_tool", "langchain_agent") if INSTALLED else ()
PERMIT = Decision.permit(policy_id="bench")


def langchain_tool() -> Figure:
    from agent_identity_langchain import protect

    tool = _tool()
    guarded = protect(tool)
    call: Any = {"name": "look", "args": {"customer": "ACME"}, "id": "1", "type": "tool_call"}
    return _beside(
        "LangChain: protect, over a tool of its own",
        lambda: guarded.invoke(call),
        lambda: tool.invoke(call),
        calls=50,
    )


def langchain_agent() -> Figure:
    from langchain.agents import create_agent
    from langchain_core.messages import AIMessage

    from agent_identity_langchain import IdentityMiddleware
    from agent_identity_langchain.demo.agents import FakeModel

    call: Any = {"name": "look", "args": {"customer": "ACME"}, "id": "1", "type": "tool_call"}
    model = FakeModel(turns=[AIMessage("", tool_calls=[call]), AIMessage("done")])
    identity = _identity()
    guard = IdentityMiddleware(identity, rules={"look": {}})
    guarded = create_agent(model, [_tool()], middleware=[guard])
    plain = create_agent(model, [_tool()])
    state: Any = {"messages": [("user", "go")]}
    return _beside(
        "LangChain: IdentityMiddleware, over an agent's run with one call",
        lambda: guarded.invoke(state),
        lambda: plain.invoke(state),
        calls=5,
        identity=identity,
    )


def _tool() -> Any:
    from langchain_core.tools import StructuredTool

    def look(customer: str) -> str:
        """Look something up."""
        return customer

    return StructuredTool.from_function(look)


def _identity() -> AgentIdentity:
    return AgentIdentity(
        "bot", authority=Authority(), ledger=MemoryLedger(), policy=lambda request: PERMIT
    )


def _beside(
    path: str,
    wrapped: Callable[[], object],
    bare: Callable[[], object],
    calls: int,
    identity: AgentIdentity | None = None,
) -> Figure:
    """What the wrapper adds, in multiples of what the framework takes without it: medians over shuffled rounds."""
    r = reference()
    times: dict[str, list[float]] = {"r": [], "bare": [], "wrapped": []}
    turns = [("r", r, 200), ("bare", bare, calls), ("wrapped", wrapped, calls)]
    with identity or _identity() as made, made.on_behalf_of("user:alice", purpose="measure"):
        wrapped()
        for _ in range(ROUNDS):
            random.shuffle(turns)
            for name, function, count in turns:
                times[name].append(seconds(function, count))
    own = statistics.median(times["bare"])
    pairs = zip(times["wrapped"], times["bare"], strict=True)
    added = statistics.median(guarded - plain for guarded, plain in pairs)
    unit = statistics.median(times["r"])
    note = f"{added * 1e6:.0f} µs ({added / unit:.1f} r) over {own * 1e6:.0f} µs"
    return Figure(path, added / own, "x", None, note)


ROWS = (langchain_tool, langchain_agent)
