# SPDX-License-Identifier: Apache-2.0
"""The demo's billing API: a small web service that verifies every request.

`agent-identity billing` serves it alone, for agents in other processes that share its state directory.
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

from agent_identity import jose
from agent_identity.cli.authority.serve import listening, server_of
from agent_identity.errors import AgentIdentityError
from agent_identity.identity import AgentIdentity
from agent_identity.provenance.trace import visible

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent_identity.verify import VerifiedCall, Verifier

__all__ = ["BillingApi", "describe", "serve_billing"]

_INVOICES = {
    "ACME": [
        {"number": "2026-1041", "total": "1200.00"},
        {"number": "2026-1057", "total": "480.50"},
    ],
    "Globex": [{"number": "2026-1102", "total": "9900.00"}],
}
_BODY_LIMIT = 64 * 1024
_KEPT = 100
_SCOPES = {"GET": ("invoices:read",), "POST": ("journal:write",)}


def serve_billing(state_dir: Path, port: int, *, as_json: bool) -> None:
    """Serve the API on loopback until interrupted; it trusts the authority of a state directory.

    Prints its URL and then each request; with `as_json` only the URL, as one line of JSON.

    Raises:
        ConfigurationError: the port is in use, the state directory can't be used, or an extra is missing.
    """
    server = listening(port)
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    # It only verifies; the agents record their calls in their own ledger.
    with AgentIdentity.embedded("billing", state_dir=state_dir, ledger="memory:") as identity:
        report = _ignore if as_json else _print
        api = BillingApi(identity.verifier(audience=url), url, report)
        runner = server_of(api)
        if as_json:
            _print(json.dumps({"url": url, "state_dir": str(state_dir)}))
        else:
            _print(f"billing API at {url} (stop with Ctrl-C)")
            _print(f"trusts the authority in {state_dir}")
        runner.run(sockets=[server])


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - this is the command's output


def _ignore(line: str) -> None:
    """Print nothing."""


def describe(call: VerifiedCall) -> tuple[str, str]:
    """A line about a verified call, and the call's id."""
    actor = call.agent.rpartition(":")[2]
    bound = "bound token" if call.token_verified else "no token"
    tool, call_id = ("", "") if call.call is None else (call.call.tool, call.call.id)
    who = f"for {call.principal.sub} by {actor}, depth {len(call.chain) - 1}, {bound}"
    return visible(f"{tool} {who}"), call_id


class BillingApi:
    """An ASGI app that reports each request in a line.

    `seen` has the calls of the last accepted requests, `refused` the error codes of the last refused ones.
    """

    def __init__(
        self, verifier: Verifier, url: str, report: Callable[[str], None] = _ignore
    ) -> None:
        self._verifier = verifier
        self._url = url
        self._report = report
        self.seen: deque[VerifiedCall] = deque(maxlen=_KEPT)
        self.refused: deque[str] = deque(maxlen=_KEPT)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = await _body(receive)
        query = scope["query_string"].decode("latin-1")
        url = f"{self._url}{scope['raw_path'].decode('latin-1')}" + (f"?{query}" if query else "")
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        method = scope["method"]
        try:
            call = self._verifier.verify_request(
                method, url, headers, body, scopes=_SCOPES.get(method, ("nothing",))
            )
        except AgentIdentityError as error:
            self.refused.append(error.code)
            self._report(f"refused: {error.code}")
            problem = {"type": "about:blank", "title": "refused", "status": 403, "code": error.code}
            await _answer(send, 403, problem, b"application/problem+json")
            return
        self.seen.append(call)
        what, call_id = describe(call)
        self._report(f"{what}\n  {call_id}")
        await _answer(send, 200, self._work(method, query, body), b"application/json")

    def _work(self, method: str, query: str, body: bytes) -> Any:
        if method == "GET":
            return _INVOICES.get(query.partition("=")[2], [])
        entry = jose.loads(body)
        return {"booked": entry}


async def _body(receive: Any) -> bytes:
    body = b""
    more = True
    while more and len(body) <= _BODY_LIMIT:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _answer(send: Any, status: int, document: Any, kind: bytes) -> None:
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(document).encode()})
