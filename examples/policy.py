# SPDX-License-Identifier: Apache-2.0
"""A policy in Python: a limit on an argument, and a combination of harmless tools that isn't harmless.

python examples/policy.py
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

from agent_identity import AgentIdentity, Decision, DeniedError, tool

if TYPE_CHECKING:
    from collections.abc import Callable


def books(request: Any) -> Decision:
    """Labels say what a tool does; `session` says what was permitted before, sub-agents' calls included."""
    labels = request.resource.properties["labels"]
    past = request.context["session"]["labels"]
    if "moves:money" in labels and request.context["args"]["amount"] > 500:
        return Decision.deny("too much at once", policy_id="amount-limit")
    if "sends:external" in labels and "reads:finance" in past:
        return Decision.deny("what was read here doesn't leave", policy_id="no-exfiltration")
    return Decision.permit(policy_id="books")


@tool(labels={"moves:money"})
def pay(number: str, amount: int) -> str:
    return f"paid {amount} for {number}"


@tool(labels={"reads:finance"})
def read_ledger() -> str:
    return "the ledger"


@tool(labels={"sends:external"})
def send_mail(text: str) -> str:
    return f"sent {len(text)} characters"


def attempt(call: Callable[[], str]) -> None:
    try:
        print(f"  permitted: {call()}")
    except DeniedError as error:
        print(f"  denied by {error.policy_id}: {error}")


def main(state_dir: str) -> None:
    with AgentIdentity.embedded("invoice-bot", state_dir=state_dir, policy=books) as identity:
        print("an amount:")
        with identity.on_behalf_of("user:alice", purpose="pay what is due"):
            attempt(lambda: pay("2026-1041", 480))
            attempt(lambda: pay("2026-1102", 9900))

        print("a combination:")
        with identity.on_behalf_of("user:alice", purpose="close the October books") as session:
            attempt(lambda: send_mail("good morning"))
            with session.delegate("reader-bot"):
                attempt(read_ledger)
            attempt(lambda: send_mail("and here is the ledger"))

        denied = [
            call for call in identity.who_triggered(session).calls if call["decision"] == "deny"
        ]
        print(
            f"on record: {denied[0]['tool']} was {denied[0]['outcome']} by {denied[0]['policy_id']}"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
