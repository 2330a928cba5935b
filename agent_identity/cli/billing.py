# SPDX-License-Identifier: Apache-2.0
"""The demo's billing API: a small web service that believes nothing it can't verify."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agent_identity import jose
from agent_identity.errors import AgentIdentityError

if TYPE_CHECKING:
    from agent_identity.verify import VerifiedCall, Verifier

__all__ = ["BillingApi"]

_INVOICES = {
    "ACME": [
        {"number": "2026-1041", "total": "1200.00"},
        {"number": "2026-1057", "total": "480.50"},
    ],
    "Globex": [{"number": "2026-1102", "total": "9900.00"}],
}
_BODY_LIMIT = 64 * 1024
_SCOPES = {"GET": ("invoices:read",), "POST": ("journal:write",)}


class BillingApi:
    """An ASGI app. `seen` is what it verified of each request that it let in, `refused` the codes of the others."""

    def __init__(self, verifier: Verifier, url: str) -> None:
        self._verifier = verifier
        self._url = url
        self.seen: list[VerifiedCall] = []
        self.refused: list[str] = []

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
            problem = {"type": "about:blank", "title": "refused", "status": 403, "code": error.code}
            await _answer(send, 403, problem, b"application/problem+json")
            return
        self.seen.append(call)
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
