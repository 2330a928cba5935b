# SPDX-License-Identifier: Apache-2.0
"""The main job on real input: an agent closes the October books for Alice, over real HTTP on loopback.

Everything in it is what users get: an embedded identity, decorated tools, a session, a sub-agent, a policy that refuses, a
service that verifies what reaches it, and the ledger that answers who triggered it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
from rich.console import Console
from rich.markup import escape

from agent_identity.cli.billing import BillingApi
from agent_identity.cli.serve import listening, serving
from agent_identity.config import state_directory
from agent_identity.current import current_credential
from agent_identity.decorators import tool
from agent_identity.errors import DeniedError
from agent_identity.identity import AgentIdentity
from agent_identity.values import Decision

if TYPE_CHECKING:
    from pathlib import Path

    from agent_identity.policy import Request
    from agent_identity.provenance.trace import Trace
    from agent_identity.session import Session

__all__ = ["run_demo"]

PURPOSE = "close the October books"


def no_payments(request: Request) -> Decision:
    """The demo's policy: an agent that closes books pays nobody."""
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
            found: list[dict[str, Any]] = answer.raise_for_status().json()
            return found

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
    """Tells what happens while it happens, for people or, in the end, for programs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.calls: list[dict[str, str]] = []

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def done(self, what: str, result: str) -> None:
        self.calls.append({"call": what.strip(), "outcome": "permitted"})
        self.say(f"  [green]✔[/green] {escape(what)}  [dim]{escape(result)}[/dim]")

    def refused(self, what: str, error: DeniedError) -> None:
        self.calls.append({"call": what.strip(), "outcome": "denied", "code": error.code})
        self.say(
            f"  [red]✘[/red] {escape(what)}  [red]{escape(error.code)}[/red]: {escape(str(error))}"
        )


async def close_books(session: Session, books: Books, story: Story) -> None:
    """The story itself: sync and async calls mixed, one refusal, one sub-agent."""
    invoices = await asyncio.to_thread(books.list_invoices, "ACME")
    story.done('list_invoices("ACME")', f"{len(invoices)} invoices over HTTP")
    total = books.add_up([invoice["total"] for invoice in invoices])
    story.done("add_up([…])", f"{total}, a local tool")
    await asyncio.gather(books.book_total("ACME", total), books.book_total("Initech", "0.00"))
    story.done("book_total(…) twice at once", "booked over HTTP, async")
    try:
        books.pay_invoice("2026-1041")
    except DeniedError as error:
        story.refused('pay_invoice("2026-1041")', error)
    story.say("  [cyan]↳[/cyan] delegates to archive-bot: invoices:read alone, for a minute")
    async with session.delegate(
        "archive-bot", task="archive Globex", scopes=["invoices:read"], expires_in=60
    ):
        found = await asyncio.to_thread(books.list_invoices, "Globex")
        story.done('    list_invoices("Globex")', f"{len(found)} invoice, as archive-bot")
        try:
            await books.book_total("Globex", "9900.00")
        except DeniedError as error:
            story.refused('    book_total("Globex", …)', error)


def run_demo(state_dir: Path | None, *, as_json: bool) -> int:
    """Run the story, and tell it; 0 when everything came out as it should."""
    started = time.perf_counter()
    console = Console(file=sys.stderr if as_json else sys.stdout, soft_wrap=True)
    story = Story(console)
    server = listening()
    billing = f"http://127.0.0.1:{server.getsockname()[1]}"
    directory = state_directory(state_dir)
    with AgentIdentity.embedded("invoice-bot", state_dir=directory, policy=no_payments) as identity:
        api = BillingApi(identity.verifier(audience=billing), billing)
        story.say(f"[bold]invoice-bot acts for user:alice[/bold] to {PURPOSE}, at {billing}")
        with serving(api, server):
            session = asyncio.run(_in_session(identity, Books(billing), story))
        trace = identity.who_triggered(session)
        report = identity.ledger.verify()
        sound = _told(story, api, trace, report.ok, directory)
        story.say(f"[dim]{time.perf_counter() - started:.1f} s[/dim]")
        if as_json:
            document = {"calls": story.calls, "trace": trace.to_dict(), "ledger_ok": report.ok}
            sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return 0 if sound else 1


async def _in_session(identity: AgentIdentity, books: Books, story: Story) -> Session:
    async with identity.on_behalf_of("user:alice", purpose=PURPOSE) as session:
        await close_books(session, books, story)
    return session


def _told(story: Story, api: BillingApi, trace: Trace, sound: bool, directory: Path) -> bool:  # noqa: FBT001 - one caller
    story.say("\n[bold]What the billing API verified, request by request[/bold]")
    for call in api.seen:
        said = call.call
        if said is None:
            continue
        actor = call.agent.rpartition(":")[2]
        bound = "bound token" if call.token_verified else "no token"
        story.say(
            f"  {escape(said.tool)}  for {escape(call.principal.sub)} by {escape(actor)},"
            f" depth {len(call.chain) - 1}, {bound}  [dim]{said.id}[/dim]"
        )
    story.say("\n[bold]Who triggered this?[/bold]")
    story.say(escape(str(trace)))
    denied = [entry for entry in trace.calls if entry["decision"] == "deny"]
    for entry in denied[:1]:
        command = shutil.which("agent-identity") or sys.argv[0]
        story.say(f"\nOne call alone: [bold]{escape(command)} why {entry['call_id']}[/bold]")
    where = "every link of the ledger holds" if sound else "the ledger is unsound"
    story.say(f"{where}; it lies in {escape(str(directory))}")
    return sound and not api.refused and len(denied) == 2 and len(api.seen) == 4  # noqa: PLR2004 - the story's own figures
