# SPDX-License-Identifier: Apache-2.0
"""An async agent: calls at once, a stream, a tool that is cancelled, sync tools in threads, two principals side by side.

python examples/async_agent.py
"""

from __future__ import annotations

import asyncio
import tempfile
from typing import TYPE_CHECKING

from agent_identity import AgentIdentity, current_session, tool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

BILLING = "https://billing.example"


@tool(resource=BILLING, scopes=["invoices:read"])
async def total(customer: str) -> int:
    await asyncio.sleep(0)
    return len(customer) * 100


@tool()
async def pages(count: int) -> AsyncGenerator[str, None]:
    """A stream stays one call, however many items it has."""
    for number in range(count):
        yield f"page {number + 1}"


@tool()
async def never_ends() -> None:
    await asyncio.Event().wait()


@tool()
def blocking(text: str) -> str:
    """A sync tool of an async agent belongs into a thread; `asyncio.to_thread` takes the session along."""
    return f"{text} for {current_session().principal.sub}"


async def work(identity: AgentIdentity, who: str) -> None:
    async with identity.on_behalf_of(f"user:{who}", purpose="close the October books") as session:
        totals = await asyncio.gather(
            *(total(customer) for customer in ("ACME", "Globex", "Hooli"))
        )
        streamed = [page async for page in pages(2)]
        threaded = await asyncio.to_thread(blocking, "done")
        try:
            async with asyncio.timeout(0.01):
                await never_ends()
        except TimeoutError:
            pass
    trace = await identity.awho_triggered(session)
    ended = ", ".join(f"{call['tool']} {call['outcome']}" for call in trace.calls)
    print(f"{who}: {sum(totals)}, {streamed}, {threaded}\n  {ended}")


async def main(state_dir: str) -> None:
    async with AgentIdentity.embedded("invoice-bot", state_dir=state_dir) as identity:
        await asyncio.gather(work(identity, "alice"), work(identity, "bob"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
