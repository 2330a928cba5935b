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
from agent_identity.verify.asgi import (
    BODY_TIMEOUT,
    GoneError,
    body_of,
    fix_headers,
    headers_of,
    respond,
    target_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent_identity.verify import VerifiedCall, Verifier

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
        fix_headers(scope)
        try:
            body = await body_of(scope, receive, _BODY_LIMIT, BODY_TIMEOUT)
            method, url = scope["method"], f"{self._url}{target_of(scope)}"
            scopes = _SCOPES.get(method, ("nothing",))
            call = self._verifier.verify_request(
                method, url, headers_of(scope), body, scopes=scopes
            )
        except GoneError:
            return
        except AgentIdentityError as error:
            self.refused.append(error.code)
            self._report(f"refused: {error.code}")
            problem = {"type": "about:blank", "title": "refused", "status": 403, "code": error.code}
            headers = {"content-type": "application/problem+json"}
            await respond(send, 403, headers, json.dumps(problem).encode())
            return
        self.seen.append(call)
        what, call_id = describe(call)
        self._report(f"{what}\n  {call_id}")
        document = self._work(method, scope["query_string"].decode("latin-1"), body)
        headers = {"content-type": "application/json"}
        await respond(send, 200, headers, json.dumps(document).encode())

    def _work(self, method: str, query: str, body: bytes) -> Any:
        if method == "GET":
            return _INVOICES.get(query.partition("=")[2], [])
        entry = jose.loads(body)
        return {"booked": entry}
