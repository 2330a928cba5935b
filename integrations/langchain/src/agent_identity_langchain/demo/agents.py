# SPDX-License-Identifier: Apache-2.0
"""The agents of the demo. Their models follow a script; everything else is real."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langchain_mcp_adapters.client import MultiServerMCPClient
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import interrupt

from agent_identity import Decision
from agent_identity_langchain.middleware import IdentityMiddleware

if TYPE_CHECKING:
    from pathlib import Path

    from langchain_core.messages import BaseMessage

    from agent_identity import AgentIdentity

__all__ = ["AGENT", "CHECKPOINTS", "PURPOSE", "Step", "no_payments", "run_agent"]

AGENT: Final = "invoice-bot"
PURPOSE: Final = "close the October books"
CHECKPOINTS: Final = "langchain-checkpoints"

Step = dict[str, str]
"""A tool's answer: `tool`, `status` and `text`; for a question to a person, `question` alone."""


class FakeModel(BaseChatModel):
    """Says what its script says, one turn after the other, also in another process."""

    turns: list[AIMessage]

    @property
    def _llm_type(self) -> str:
        return "fake"

    def bind_tools(self, *_: Any, **__: Any) -> FakeModel:
        """Nothing: the script says which tools are called."""
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        said = sum(isinstance(message, AIMessage) for message in messages)
        return ChatResult(generations=[ChatGeneration(message=self.turns[said])])


class FileSaver(InMemorySaver):
    """Keeps its checkpoints in a file, so that another process can go on; like any checkpointer, it is the user's own."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if not path.exists():
            return
        kind, _, data = path.read_bytes().partition(b"\n")
        for config, checkpoint, metadata, above, writes in self.serde.loads_typed(
            (kind.decode(), data)
        ):
            place = {**config["configurable"], "checkpoint_id": None}
            before: Any = above or {"configurable": place}
            self.put(before, checkpoint, metadata, checkpoint["channel_versions"])
            by_task: dict[str, list[tuple[str, Any]]] = {}
            for task, channel, value in writes or ():
                by_task.setdefault(task, []).append((channel, value))
            for task, made in by_task.items():
                self.put_writes(config, made, task)

    def close(self) -> None:
        """Write the file."""
        kept = [
            [each.config, each.checkpoint, each.metadata, each.parent_config, each.pending_writes]
            for each in self.list(None)
        ]
        kind, data = self.serde.dumps_typed(kept)
        self._path.write_bytes(kind.encode() + b"\n" + data)


def no_payments(request: Any) -> Decision:
    """The demo's policy: an agent that closes books may not pay."""
    if "moves:money" in request.resource.properties["labels"]:
        return Decision.deny("closing the books doesn't include paying", policy_id="no-payments")
    return Decision.permit(policy_id="books")


@tool
def add_up(totals: list[str]) -> str:
    """Add up totals."""
    return f"{sum(map(float, totals)):.2f}"


@tool
def book_total(customer: str, total: str) -> str:
    """Book a customer's total, if a person agrees."""
    if interrupt(f"book {total} for {customer}?") != "yes":
        return "not booked"
    return f"booked {total} for {customer}"


@tool
def pay_invoice(number: str) -> str:
    """Pay an invoice."""
    return f"paid {number}"


def turn(run: str, *calls: tuple[str, dict[str, Any]]) -> AIMessage:
    """A turn of a model with these calls."""
    made = [
        {"name": name, "args": arguments, "id": f"{run}_{name}", "type": "tool_call"}
        for name, arguments in calls
    ]
    return AIMessage("", tool_calls=made)


async def run_agent(
    identity: AgentIdentity, folder: Path, url: str, run: str, given: Any
) -> tuple[str, list[Step]]:
    """Run the agent in a session of its own, from the start or from where a person was asked; returns the session and what happened.

    `url` is that of the MCP server, `run` makes the ids of this run's tool calls its own.
    """
    connection: Any = {"transport": "http", "url": url}
    (list_invoices,) = await MultiServerMCPClient({"billing": connection}).get_tools()
    billing = {"resource": url, "scopes": ["invoices:read"], "labels": ["reads:finance"]}
    archivist = create_agent(
        FakeModel(
            turns=[
                turn(f"{run}_archive", ("list_invoices", {"customer": "Globex"})),
                AIMessage("Globex has 1 invoice"),
            ]
        ),
        [list_invoices],
        middleware=[IdentityMiddleware(identity, rules={"list_invoices": billing})],
        name="archive-bot",
    )

    @tool
    async def ask_archivist(question: str) -> str:
        """Ask the archivist, an agent of its own."""
        state = await archivist.ainvoke({"messages": [HumanMessage(question)]})
        return str(state["messages"][-1].content)

    totals = ["1200.00", "480.50"]
    model = FakeModel(
        turns=[
            turn(run, ("list_invoices", {"customer": "ACME"}), ("add_up", {"totals": totals})),
            turn(run, ("book_total", {"customer": "ACME", "total": "1680.50"})),
            turn(run, ("ask_archivist", {"question": "What about Globex?"})),
            turn(run, ("pay_invoice", {"number": "2026-1041"})),
            AIMessage("The books are closed."),
        ]
    )
    rules: dict[str, dict[str, Any]] = {
        "list_invoices": billing,
        "add_up": {},
        "book_total": {"labels": ["writes:finance"]},
        "ask_archivist": {},
        "pay_invoice": {"labels": ["moves:money"]},
    }
    saver = FileSaver(folder / CHECKPOINTS)
    agent = create_agent(
        model,
        [list_invoices, add_up, book_total, ask_archivist, pay_invoice],
        middleware=[IdentityMiddleware(identity, rules=rules)],
        checkpointer=saver,
    )
    thread: Any = {"configurable": {"thread_id": run}}
    before = len((await agent.aget_state(thread)).values.get("messages", []))
    async with identity.on_behalf_of("user:alice", purpose=PURPOSE) as session:
        state = await agent.ainvoke(given, thread)
    saver.close()
    steps = [
        {"tool": str(each.name), "status": each.status, "text": _text(each)}
        for each in state["messages"][before:]
        if isinstance(each, ToolMessage)
    ]
    steps += [{"question": str(each.value)} for each in state.get("__interrupt__", ())]
    return session.id, steps


def _text(message: ToolMessage) -> str:
    """What a tool said; an MCP tool says it in blocks."""
    blocks = [message.content] if isinstance(message.content, str) else message.content
    return " ".join(each if isinstance(each, str) else str(each.get("text")) for each in blocks)
