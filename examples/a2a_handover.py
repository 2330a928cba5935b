# SPDX-License-Identifier: Apache-2.0
"""An agent hands work to another over A2A: an interceptor of its client writes the hand-over beside every message.

    python examples/a2a_handover.py

Both agents run here, the recipient behind a real A2A server on loopback. All that it knows of the sender's side is an issuer's
name and its public keys; all that the sender knows of it is its agent card and the key that it publishes.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn

from agent_identity import (
    AgentIdentity,
    AgentIdentityError,
    current_credential,
    current_session,
    tool,
)
from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, Verifier
from agent_identity.verify.asgi import VerifyMiddleware, verified_call

try:
    from a2a.client import ClientCallContext, ClientCallInterceptor, ClientConfig, create_client
    from a2a.helpers.proto_helpers import get_stream_response_text, new_text_message
    from a2a.server.agent_execution import AgentExecutor, RequestContext
    from a2a.server.request_handlers import DefaultRequestHandler
    from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
    from a2a.server.routes.common import DefaultServerCallContextBuilder
    from a2a.server.tasks import InMemoryTaskStore
    from a2a.types import (
        AgentCapabilities,
        AgentCard,
        AgentInterface,
        AgentSkill,
        Role,
        SendMessageRequest,
    )
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route
except ModuleNotFoundError as missing:
    print(f"skipped: {missing.name} isn't installed")
    sys.exit(0)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from a2a.client.interceptors import AfterArgs, BeforeArgs
    from a2a.server.context import ServerCallContext
    from a2a.server.events import EventQueue
    from starlette.requests import Request

ARCHIVE = "https://archive.example"
CARD = "/.well-known/agent-card.json"


class HandOver(ClientCallInterceptor):
    """Hands work over with every message: the grant is for the recipient's key, and for nothing but these limits."""

    def __init__(self, agent: str, key: dict[str, str], **limits: Any) -> None:
        self._agent, self._key, self._limits = agent, key, limits

    async def before(self, args: BeforeArgs) -> None:
        child = await current_session().adelegate(self._agent, key=self._key, **self._limits)
        args.context = args.context or ClientCallContext()
        headers = dict(args.context.service_parameters or {})
        child.inject(headers)
        args.context.service_parameters = headers

    async def after(self, args: AfterArgs) -> None:
        """Nothing is to be done."""


# -- the recipient ----------------------------------------------------------------------------------------------------


class KeepsCall(DefaultServerCallContextBuilder):
    """Carries what the middleware verified to where the agent works."""

    def build(self, request: Request) -> ServerCallContext:
        context = super().build(request)
        context.state["verified_call"] = verified_call(request)
        return context


class Archivist(AgentExecutor):
    def __init__(self, identity: AgentIdentity) -> None:
        self._identity = identity

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        @tool(resource=ARCHIVE, scopes=["archive:write"])
        async def archive(customer: str) -> str:
            headers = current_credential().headers("PUT", f"{ARCHIVE}/{customer}", b"")
            return f"archived {customer} by {', '.join(sorted(headers))}"

        call = context.call_context.state["verified_call"]
        try:
            async with self._identity.accept(call) as session:
                done = await archive(context.get_user_input())
                agents = " < ".join(agent.rpartition(":")[2] for agent in session.chain)
                told = f"{done}, for {session.principal.sub}, {agents}, to {session.purpose}"
        except AgentIdentityError as error:
            told = f"refused: {error.code}"
        await event_queue.enqueue_event(new_text_message(told, role=Role.ROLE_AGENT))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """It is done before anybody could."""


@asynccontextmanager
async def served(identity: AgentIdentity, issuer: str, jwks: dict[str, Any]) -> AsyncIterator[str]:
    """Serve the recipient until the block ends; gives its URL, which is its audience too."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    card = AgentCard(
        name="beta",
        description="archives what is done",
        version="1",
        supported_interfaces=[
            AgentInterface(url=f"{url}/rpc", protocol_binding="JSONRPC", protocol_version="1.0")
        ],
        capabilities=AgentCapabilities(streaming=False),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="archive", name="archive", description="archives", tags=["books"])],
    )
    handler = DefaultRequestHandler(Archivist(identity), InMemoryTaskStore(), card)
    app = Starlette(
        routes=[
            Route("/key", lambda _: JSONResponse(identity.public_jwk)),
            *create_agent_card_routes(card),
            *create_jsonrpc_routes(handler, "/rpc", context_builder=KeepsCall()),
        ]
    )
    anchor = TrustAnchor(issuer, jwks=jwks, evidence="issuer", revocations=UnsafeNoRevocations())
    verifier = Verifier([anchor], audience=url)
    app.add_middleware(VerifyMiddleware, verifier=verifier, public={CARD, "/key"})
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield url
    finally:
        server.should_exit = True
        await serving
        listener.close()


# -- the sender -------------------------------------------------------------------------------------------------------


async def main(folder: Path) -> None:
    with (
        AgentIdentity.embedded("alpha", state_dir=folder / "alpha") as alpha,
        AgentIdentity.embedded("beta", state_dir=folder / "beta") as beta,
    ):
        authority = alpha.authority
        async with served(beta, authority.issuer, authority.jwks()) as url:
            async with httpx.AsyncClient(trust_env=False) as client:
                key = (await client.get(f"{url}/key")).json()

            @tool(resource=url, scopes=["ask"])
            async def ask_beta(customer: str, *, hand_over: bool = True) -> str:
                over = HandOver("beta", key, resources=[ARCHIVE], scopes=["archive:write"])
                async with httpx.AsyncClient(auth=current_credential(), trust_env=False) as signed:
                    config = ClientConfig(httpx_client=signed, streaming=False)
                    client = await create_client(url, config, [over] if hand_over else [])
                    message = new_text_message(customer, role=Role.ROLE_USER)
                    request = SendMessageRequest(message=message)
                    return "".join(
                        [
                            get_stream_response_text(each)
                            async for each in client.send_message(request)
                        ]
                    )

            async with alpha.on_behalf_of("user:alice", purpose="close the books") as session:
                print(await ask_beta("ACME"))
                print("without a hand-over", await ask_beta("ACME", hand_over=False), sep=", ")
        print(beta.who_triggered(session.txn))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
