# SPDX-License-Identifier: Apache-2.0
"""`agent-identity demo`: an agent closes the October books for Alice, over real HTTP on loopback.

It uses the public API only: an embedded identity, decorated tools, a session, a sub-agent, a policy that denies, a service that
verifies requests, and the ledger that shows who triggered a call.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
from rich.console import Console

from agent_identity.cli.authority.serve import listening, serving
from agent_identity.cli.demo.billing import BillingApi, describe
from agent_identity.cli.demo.mcp import MISSING, serving_statements
from agent_identity.config import state_directory
from agent_identity.decorators import tool
from agent_identity.errors import DeniedError
from agent_identity.identity import AgentIdentity
from agent_identity.provenance.trace import wrap_text
from agent_identity.session import current_credential
from agent_identity.values import Decision

if TYPE_CHECKING:
    from agent_identity.cli.demo.mcp import Statements
    from agent_identity.policy import Request
    from agent_identity.provenance.trace import Trace
    from agent_identity.session import Session

PURPOSE = "close the October books"


def no_payments(request: Request) -> Decision:
    """The demo's policy: an agent that closes books may not pay."""
    if "moves:money" in request.resource.properties["labels"]:
        return Decision.deny("closing the books doesn't include paying", policy_id="no-payments")
    return Decision.permit(policy_id="books")


class Books:
    """The agent's tools, for one billing API."""

    def __init__(self, billing: str) -> None:
        @tool(resource=billing, scopes=["invoices:read"], labels={"reads:finance"})
        def list_invoices(customer: str) -> list[dict[str, Any]]:
            answer = httpx.get(
                f"{billing}/invoices", params={"customer": customer}, auth=current_credential()
            )
            invoices: list[dict[str, Any]] = answer.raise_for_status().json()
            return invoices

        @tool(resource=billing, scopes=["journal:write"], labels={"writes:finance"})
        async def book_total(customer: str, total: str) -> dict[str, Any]:
            async with httpx.AsyncClient(auth=current_credential()) as client:
                entry = {"customer": customer, "total": total}
                answer = await client.post(f"{billing}/journal", json=entry)
            booked: dict[str, Any] = answer.raise_for_status().json()
            return booked

        @tool(resource=billing, scopes=["payments:write"], labels={"moves:money"})
        def pay_invoice(number: str) -> None:
            httpx.post(f"{billing}/payments", json={"number": number}, auth=current_credential())

        @tool(labels={"computes"})
        def add_up(totals: list[str]) -> str:
            return f"{sum(float(total) for total in totals):.2f}"

        self.list_invoices = list_invoices
        self.book_total = book_total
        self.pay_invoice = pay_invoice
        self.add_up = add_up


class Story:
    """Prints what happens while it happens, and collects it for `--json`.

    A long line is wrapped between words and keeps its indentation.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self.calls: list[dict[str, str]] = []

    @classmethod
    def on_terminal(cls, *, as_json: bool) -> Self:
        """A story on standard output; with `as_json` it prints nothing."""
        return cls(
            Console(quiet=as_json, soft_wrap=True, markup=False, emoji=False, highlight=False)
        )

    @property
    def width(self) -> int:
        return self._console.width

    def say(self, text: str, style: str | None = None, *, indent: int = 0) -> None:
        for line in wrap_text(text, self.width - indent):
            self._console.print(f"{' ' * indent}{line}".rstrip(), style=style)

    def done(self, what: str, result: str, *, indent: int = 2) -> None:
        self.calls.append({"call": what, "outcome": "permitted"})
        self.say(f"✔ {what}", "green", indent=indent)
        self.say(result, "dim", indent=indent + 2)

    def refused(self, what: str, error: DeniedError, *, indent: int = 2) -> None:
        self.calls.append({"call": what, "outcome": "denied", "code": error.code})
        self.say(f"✘ {what}", "red", indent=indent)
        self.say(f"{error.code}: {error}", "red", indent=indent + 2)

    def show(self, text: str) -> None:
        """Print a text that is wrapped already."""
        self._console.print(text)

    def command(self, *words: str) -> None:
        """Print a command to paste; if it is too long, its last two words are on a second line."""
        quoted = [shlex.quote(word) for word in words]
        line = f"  {' '.join(quoted)}"
        if len(line) > self.width:
            line = f"  {' '.join(quoted[:-2])} \\\n      {' '.join(quoted[-2:])}"
        self._console.print(line, style="bold")


async def close_books(
    session: Session, books: Books, statements: Statements | None, story: Story
) -> None:
    """Sync and async calls mixed, one over MCP, denied calls, one sub-agent."""
    invoices = await asyncio.to_thread(books.list_invoices, "ACME")
    story.done('list_invoices("ACME")', f"{len(invoices)} invoices over HTTP")
    total = books.add_up([invoice["total"] for invoice in invoices])
    story.done("add_up([…])", f"{total}, a local tool")
    await asyncio.gather(books.book_total("ACME", total), books.book_total("Initech", "0.00"))
    story.done("book_total(…) twice at once", "booked over HTTP, async")
    if statements is not None:
        answer = await statements.send("ACME", total)
        story.done('send_statement("ACME", …)', f"over MCP: {answer}")
    try:
        books.pay_invoice("2026-1041")
    except DeniedError as error:
        story.refused('pay_invoice("2026-1041")', error)
    story.say("↳ delegates to archive-bot: invoices:read alone, for a minute", "cyan", indent=2)
    async with session.delegate(
        "archive-bot", task="archive Globex", scopes=["invoices:read"], expires_in=60
    ):
        invoices = await asyncio.to_thread(books.list_invoices, "Globex")
        story.done('list_invoices("Globex")', f"{len(invoices)} invoice, as archive-bot", indent=4)
        try:
            await books.book_total("Globex", "9900.00")
        except DeniedError as error:
            story.refused('book_total("Globex", …)', error, indent=4)


def run_demo(state_dir: Path | None, *, as_json: bool) -> int:
    """Run the demo and print it; returns 0 if everything happened as expected."""
    started = time.perf_counter()
    story = Story.on_terminal(as_json=as_json)
    server = listening()
    billing = f"http://127.0.0.1:{server.getsockname()[1]}"
    directory = demo_directory(state_dir)
    with AgentIdentity.embedded("invoice-bot", state_dir=directory, policy=no_payments) as identity:
        api = BillingApi(identity.verifier(audience=billing), billing)
        story.say(f"invoice-bot acts for user:alice to {PURPOSE}", "bold")
        story.say(f"at {billing}", indent=2)
        with serving(api, server), serving_statements(identity) as statements:
            if statements is not None:
                story.say(f"and at {statements.url}", indent=2)
            session = asyncio.run(_in_session(identity, Books(billing), statements, story))
        trace = identity.who_triggered(session)
        report = identity.ledger.verify()
        is_as_expected = _print_results(story, api, trace, directory, sound=report.ok)
        if statements is None:
            story.say(MISSING, "dim")
        story.say(f"{time.perf_counter() - started:.1f} s", "dim")
        if as_json:
            document = {
                "state_dir": str(directory),
                "calls": story.calls,
                "trace": trace.to_dict(),
                "ledger_ok": report.ok,
            }
            sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return 0 if is_as_expected else 1


def demo_directory(state_dir: Path | None) -> Path:
    """The state directory of a demo; without `state_dir`, keys and ledger are kept apart from those of the user's own agents."""
    return state_directory() / "demo" if state_dir is None else state_directory(state_dir)


async def _in_session(
    identity: AgentIdentity, books: Books, statements: Statements | None, story: Story
) -> Session:
    async with identity.on_behalf_of("user:alice", purpose=PURPOSE) as session:
        await close_books(session, books, statements, story)
    return session


def _print_results(
    story: Story, api: BillingApi, trace: Trace, directory: Path, *, sound: bool
) -> bool:
    story.say("")
    story.say("What the billing API verified, request by request", "bold")
    for call in api.seen:
        what, call_id = describe(call)
        story.say(what, indent=2)
        story.say(call_id, "dim", indent=4)
    story.say("")
    story.say("Who triggered this?", "bold")
    story.show(trace.to_text(story.width))
    denied = [entry for entry in trace.calls if entry["decision"] == "deny"]
    story.say("")
    story.say("Ask for one call alone, or for all of it")
    for entry in denied[:1]:
        story.command(program(), "why", str(entry["call_id"]), "--state-dir", str(directory))
    story.command(program(), "why", "--last", "--state-dir", str(directory))
    story.say("every link of the ledger is intact" if sound else "the ledger is unsound")
    return sound and not api.refused and len(denied) == 2 and len(api.seen) == 4  # noqa: PLR2004 - the numbers of this story


def program() -> str:
    """The name of the command line that works in the shell that started it."""
    program = shutil.which("agent-identity")
    is_this = program is not None and Path(program).resolve() == Path(sys.argv[0]).resolve()
    return "agent-identity" if is_this else sys.argv[0]
