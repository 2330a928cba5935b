# SPDX-License-Identifier: Apache-2.0
"""A service that believes nothing it can't verify: who asked, through which agent, for what, with this very request.

    python examples/verify_in_a_service.py

The service runs on loopback in a thread; all it knows of the agent's side is an issuer's name and its public keys.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx

from agent_identity import (
    AgentIdentity,
    DeniedError,
    VerificationError,
    current_credential,
    tool,
)
from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, Verifier, problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextmanager
def billing_service(issuer: str, jwks: dict[str, Any]) -> Iterator[str]:
    """Serve until the block ends; gives the service's URL, which is its audience too."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    anchor = TrustAnchor(issuer, jwks=jwks, evidence="issuer", revocations=UnsafeNoRevocations())
    verifier = Verifier([anchor], audience=url)

    class Billing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            needed = ["journal:write"]
            body = self.rfile.read(int(self.headers["content-length"]))
            try:
                call = verifier.verify_request(
                    "POST", url + self.path, self.headers.items(), body, scopes=needed
                )
            except (VerificationError, DeniedError) as error:
                self.answer(*problem(error, scopes=needed))
            else:
                who = f"{call.principal.sub} through {call.agent.rpartition(':')[2]}"
                text = f"{call.call.tool} for {who}, to {call.purpose}".encode()
                self.answer(200, {"Content-Length": str(len(text))}, text)

        def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing on the terminal."""

    server.RequestHandlerClass = Billing
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(url: str, headers: Mapping[str, str], body: bytes, what: str) -> None:
    answer = httpx.post(url, headers=headers, content=body, trust_env=False)
    is_problem = answer.headers.get("content-type") == "application/problem+json"
    print(f"{what}: {answer.status_code} {answer.json()['title'] if is_problem else answer.text}")


def main(state_dir: str) -> None:
    # The service's own log has the rule that was broken, under the id that the answer has as its `instance`.
    logging.basicConfig(stream=sys.stdout, format="  (service's log: %(message)s)")
    with (
        AgentIdentity.embedded("invoice-bot", state_dir=state_dir) as identity,
        billing_service(identity.authority.issuer, identity.authority.jwks()) as billing,
    ):

        @tool(resource=billing, scopes=["journal:write"])
        def book(customer: str, total: str) -> None:
            url, body = f"{billing}/journal", f"{customer}: {total}".encode()
            headers = current_credential().headers("POST", url, body)
            send(url, headers, body, "as signed")
            send(url, headers, body, "the same once more")
            headers = current_credential().headers("POST", url, body)
            send(url, headers, body.replace(b"ACME", b"EVIL"), "another body")
            headers = current_credential().headers("POST", url, body)
            send(f"{billing}/payments", headers, body, "another path")
            del headers["Agent-Delegation"]
            send(url, headers, body, "without its chain")

        with identity.on_behalf_of("user:alice", purpose="close the October books"):
            book("ACME", "1680.50")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
