# SPDX-License-Identifier: Apache-2.0
"""A first call: two tools under one session, a narrower sub-agent, and the answer to who triggered what.

    python examples/first_call.py

Nothing leaves this process: the authority lives in it, and the credential signs headers that nobody sends.
"""

from __future__ import annotations

import tempfile

from agent_identity import (
    AgentIdentity,
    DeniedError,
    NoSessionError,
    current_credential,
    current_session,
    tool,
)

BILLING = "https://billing.example"


@tool(resource=BILLING, scopes=["invoices:read"], labels={"reads:finance"})
def list_invoices(customer: str) -> list[str]:
    """A tool that reaches a service signs its request with a credential of its own."""
    signed = current_credential().headers("GET", f"{BILLING}/invoices?customer={customer}")
    print(f"  {current_session().agent} would send {', '.join(sorted(signed))}")
    return ["2026-1041", "2026-1057"]


@tool(labels={"computes"})
def count(items: list[str]) -> int:
    """A local tool has no credential; it is permitted and recorded all the same."""
    return len(items)


def main(state_dir: str) -> None:
    with AgentIdentity.embedded("invoice-bot", state_dir=state_dir) as identity:
        try:
            count(["outside every session"])
        except NoSessionError as error:
            print(f"outside a session: {error.code}")

        with identity.on_behalf_of(
            "user:alice", purpose="close the October books", scopes=["invoices:read"]
        ) as session:
            print(f"ACME has {count(list_invoices('ACME'))} invoices")
            with session.delegate("archive-bot", task="archive Globex", expires_in=60):
                list_invoices("Globex")
            with session.delegate("counting-bot", scopes=()):
                try:
                    list_invoices("Initech")
                except DeniedError as error:
                    print(f"a sub-agent without scopes: {error.code}")

        trace = identity.who_triggered(session)
        print(trace)
        assert trace.verified


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
