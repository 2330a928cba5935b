# SPDX-License-Identifier: Apache-2.0
"""An agent and a FastAPI service that knows who called, through which agent, and for what.

    python examples/fastapi_service.py

Both run here, the service on loopback in a thread; all it knows of the agent's side is an issuer's name and its public keys.
"""

from __future__ import annotations

import logging
import socket
import sys
import tempfile
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import uvicorn
from fastapi import Depends, FastAPI

from agent_identity import AgentIdentity, current_credential, tool
from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, VerifiedCall, Verifier
from agent_identity.verify.asgi import VerifyMiddleware, require

if TYPE_CHECKING:
    from collections.abc import Iterator


def billing_app(verifier: Verifier) -> FastAPI:
    app = FastAPI()

    @app.get("/healthz")
    def healthz() -> str:
        return "well"

    @app.get("/invoices")
    def invoices(
        customer: str, call: Annotated[VerifiedCall, Depends(require(scopes=["invoices:read"]))]
    ) -> str:
        return f"2 invoices of {customer} for {call.principal.sub}, to {call.purpose}"

    @app.post("/payments")
    def payments(
        payment: dict[str, str],
        call: Annotated[VerifiedCall, Depends(require("pay", scopes=["payments:write"]))],
    ) -> str:
        agent = call.agent.rpartition(":")[2]
        return f"paid {payment['invoice']} for {call.principal.sub} through {agent}"

    app.add_middleware(VerifyMiddleware, verifier=verifier, public={"/healthz"})
    return app


@contextmanager
def billing_service(issuer: str, jwks: dict[str, Any]) -> Iterator[str]:
    """Serve until the block ends; gives the service's URL, which is its audience too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        anchor = TrustAnchor(
            issuer, jwks=jwks, evidence="issuer", revocations=UnsafeNoRevocations()
        )
        app = billing_app(Verifier([anchor], audience=url))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()


def show(what: str, answer: httpx.Response) -> None:
    said = answer.json()
    print(f"{what}: {answer.status_code} {said['title'] if isinstance(said, dict) else said}")


def main(state_dir: str) -> None:
    # The service's own log has the rule that was broken, under the id that the answer has as its `instance`.
    logging.basicConfig(stream=sys.stdout, format="  (service's log: %(message)s)")
    with (
        AgentIdentity.embedded("invoice-bot", state_dir=state_dir) as identity,
        billing_service(identity.authority.issuer, identity.authority.jwks()) as billing,
        httpx.Client(base_url=billing, trust_env=False) as client,
    ):

        @tool(resource=billing, scopes=["invoices:read"])
        def list_invoices(customer: str) -> None:
            url = f"{billing}/invoices?customer={customer}"
            headers = current_credential().headers("GET", url, b"")
            show("as signed", client.get(url, headers=headers))
            show("the same once more", client.get(url, headers=headers))

        @tool(resource=billing, scopes=["invoices:read"])
        def pay(invoice: str) -> None:
            body = {"invoice": invoice}
            # Refused for a lack of scopes, the client gets what the answer names, within the session's limits.
            show("a payment", client.post("/payments", json=body, auth=current_credential()))

        @tool(resource=billing, scopes=["payments:write"])
        def refund(invoice: str) -> None:
            body = {"invoice": invoice}
            show("by another tool", client.post("/payments", json=body, auth=current_credential()))

        show("is it there", client.get("/healthz"))
        show("by nobody", client.get("/invoices?customer=ACME"))
        scopes = ["invoices:read", "payments:write"]
        with identity.on_behalf_of("user:alice", purpose="close the October books", scopes=scopes):
            list_invoices("ACME")
            pay("2026-1041")
            refund("2026-1041")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
