# SPDX-License-Identifier: Apache-2.0
"""A LangChain agent whose every tool call is credentialed, asserted and recorded; its model follows a script.

pip install . "./integrations/langchain[agents]"
python examples/langchain_agent.py
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from agent_identity import AgentIdentity, Decision, current_credential

try:
    from langchain.agents import create_agent
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage, ToolMessage
    from langchain_core.tools import tool

    from agent_identity_langchain import IdentityMiddleware
except ModuleNotFoundError as missing:
    print(f"skipped: {missing.name} isn't installed")
    sys.exit(0)

BILLING = "https://billing.example"
RULES: dict[str, dict[str, Any]] = {
    "list_invoices": {
        "resource": BILLING,
        "scopes": ["invoices:read"],
        "labels": {"reads:finance"},
    },
    "pay_invoice": {"labels": {"moves:money"}},
}


@tool
def list_invoices(customer: str) -> str:
    """List a customer's invoices."""
    headers = current_credential().headers("GET", f"{BILLING}/invoices")
    # A careless tool: it tells the model what it sent. The middleware takes the credential out.
    return f"2 invoices of {customer}; sent {headers['Authorization']}"


@tool
def pay_invoice(number: str) -> str:
    """Pay an invoice."""
    return f"paid {number}"


class Script(GenericFakeChatModel):
    """A model that makes the same tool calls each time."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Script:  # noqa: ARG002 - LangChain's own signature
        return self


def script() -> Script:
    calls = [("list_invoices", {"customer": "ACME"}), ("pay_invoice", {"number": "2026-1041"})]
    made = [
        {"name": name, "args": args, "id": f"toolu_{at}", "type": "tool_call"}
        for at, (name, args) in enumerate(calls)
    ]
    return Script(
        messages=iter([AIMessage("", tool_calls=made), AIMessage("The books are closed.")])
    )


def no_payments(request: Any) -> Decision:
    if "moves:money" in request.resource.properties["labels"]:
        return Decision.deny("closing the books doesn't include paying", policy_id="no-payments")
    return Decision.permit()


def main(state_dir: str) -> None:
    with AgentIdentity.embedded("invoice-bot", state_dir=state_dir, policy=no_payments) as identity:
        agent = create_agent(
            script(),
            [list_invoices, pay_invoice],
            middleware=[IdentityMiddleware(identity, rules=RULES)],
        )
        with identity.on_behalf_of("user:alice", purpose="close the October books"):
            state = agent.invoke({"messages": [("user", "close the books")]})
        for message in state["messages"]:
            if isinstance(message, ToolMessage):
                print(f"{message.name}, {message.status}: {message.content}")
        print(state["messages"][-1].content)
        print(identity.who_triggered("toolu_0"))  # the model's own id of the call finds it


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
