# SPDX-License-Identifier: Apache-2.0
"""The processes of a hand-over, one role each: `python roles.py ROLE STATE_DIR [SETTINGS]`. They share nothing but URLs and public keys.

alpha    acts for Alice, hands work to beta, and prints what it was told, one JSON line an order
beta     an agent behind HTTP: takes work over and calls the archive
gamma    another agent behind HTTP, that gets what isn't for it
archive  a FastAPI service that believes alpha's anchor, and no clock but its own
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import time
from typing import Annotated, Any

import httpx
import uvicorn
from fastapi import Depends, FastAPI

from agent_identity import AgentIdentity, current_credential, tool
from agent_identity.delegation.assertion import CallFacts, RequestBinding, Statement
from agent_identity.errors import AgentIdentityError
from agent_identity.values import b64url
from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, VerifiedCall, Verifier
from agent_identity.verify.asgi import VerifyMiddleware, require


def say(what: dict[str, Any]) -> None:
    """One line for whoever started this process."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def verifier_of(settings: dict[str, Any], audience: str) -> Verifier:
    anchor = TrustAnchor(
        settings["issuer"],
        jwks=settings["jwks"],
        evidence="issuer",
        revocations=UnsafeNoRevocations(),
    )
    return Verifier([anchor], audience=audience, skew=settings.get("skew", 0))


def serve(app: FastAPI, listener: socket.socket, settings: dict[str, Any], **said: Any) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app.add_middleware(
        VerifyMiddleware, verifier=verifier_of(settings, url), public={"/key", "/healthz"}
    )
    say({"url": url} | said)
    uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none")).run([listener])


def archive(settings: dict[str, Any]) -> None:
    app = FastAPI()

    @app.post("/archive/{customer}")
    def store(
        customer: str,
        call: Annotated[VerifiedCall, Depends(require("archive", scopes=["archive:write"]))],
    ) -> dict[str, Any]:
        return {
            "archived": customer,
            "for": call.principal.sub,
            "purpose": call.purpose,
            "txn": call.txn,
            "chain": [actor.agent for actor in call.chain],
            "token_verified": call.token_verified,
        }

    serve(app, socket.create_server(("127.0.0.1", 0)), settings)


def agent(name: str, state_dir: str, settings: dict[str, Any]) -> None:
    """Beta, and gamma: an agent that works for whoever hands it work."""
    identity = AgentIdentity.embedded(name, state_dir=state_dir)
    there = settings["archive"]
    app = FastAPI()

    @tool(resource=there, scopes=["archive:write"], name="archive")
    def archived(customer: str) -> dict[str, Any]:
        url = f"{there}/archive/{customer}"
        answer = httpx.post(url, auth=current_credential(), trust_env=False)
        return {"status": answer.status_code, "said": answer.json()}

    def by_hand(call: VerifiedCall) -> dict[str, Any]:
        """What is sent by somebody who doesn't ask their own library: the chain as it came, an assertion of their own."""
        assert call.handover is not None
        chain = call.handover.grants
        url = f"{there}/archive/ACME"
        statement = Statement(identity._agent.key, chain[0], there)
        facts = CallFacts("call_forged", '"archive"', "sha-256:x", "0" * 32, "0" * 16)
        binding = RequestBinding("POST", url, None, b64url(hashlib.sha256(b"").digest()), None)
        headers = {
            "Agent-Assertion": statement.for_request(facts, int(time.time()), 1, binding),
            "Agent-Delegation": ", ".join(grant.compact for grant in chain),
        }
        answer = httpx.post(url, headers=headers, trust_env=False)
        return {"status": answer.status_code, "said": answer.json()}

    @app.get("/key")
    def key() -> dict[str, str]:
        return identity.public_jwk

    @app.post("/tasks")
    def tasks(
        task: dict[str, Any], call: Annotated[VerifiedCall, Depends(require(scopes=["ask"]))]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        try:
            if task.get("alone"):
                session = identity.on_behalf_of(f"user:{call.principal.sub}", purpose=call.purpose)
            else:
                session = identity.accept(call)
            with session:
                found["session"] = session.id
                found["first"] = archived(task["customer"])
                if task.get("wait"):
                    time.sleep(max(0.0, session.expires_at - time.time()) + 0.2)
                    found["late"] = by_hand(call)
                    archived(task["customer"])
        except AgentIdentityError as error:
            found["code"] = error.code
        if task.get("forge"):
            found["forged"] = by_hand(call)
        return found

    serve(app, socket.create_server(("127.0.0.1", 0)), settings, name=name)


def alpha(state_dir: str) -> None:
    """Reads orders from its standard input: `{"settings"}` first, then one task a line."""
    with AgentIdentity.embedded("alpha", state_dir=state_dir) as identity:
        say({"issuer": identity.authority.issuer, "jwks": identity.authority.jwks()})
        settings = json.loads(sys.stdin.readline())
        beta, there = settings["beta"], settings["archive"]
        jwk = httpx.get(f"{beta}/key", trust_env=False).json()
        for line in sys.stdin:
            order = json.loads(line)
            to = settings[order.get("to", "beta")]

            @tool(resource=to, scopes=["ask"], opaque=["child"])
            def ask(task: dict[str, Any], child: Any) -> Any:
                body = json.dumps(task).encode()
                headers = current_credential().headers("POST", f"{to}/tasks", body)  # noqa: B023 - called in this turn
                if child is not None:
                    child.inject(headers)
                answer = httpx.post(
                    f"{to}/tasks",  # noqa: B023 - see above
                    content=body,
                    headers=headers | {"content-type": "application/json"},
                    trust_env=False,
                    timeout=30,
                )
                return answer.json()

            with identity.on_behalf_of("user:alice", purpose="close the October books") as session:
                child = None
                if order.get("hand_over", True):
                    child = session.delegate(
                        "beta",
                        key=jwk,
                        task="archive what is done",
                        resources=[there],
                        scopes=["archive:write"],
                        expires_in=order.get("expires_in"),
                    )
                answer = ask(order["task"], child)
            said = {"txn": session.txn, "child": None if child is None else child.id}
            say(said | {"answer": answer})


def main() -> None:
    role, state_dir = sys.argv[1:3]
    if role == "alpha":
        alpha(state_dir)
        return
    settings = json.loads(sys.argv[3])
    if role == "archive":
        archive(settings)
    else:
        agent(role, state_dir, settings)


if __name__ == "__main__":
    main()
