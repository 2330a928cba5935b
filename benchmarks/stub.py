# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.stub JWKS`: an authorization server on loopback that answers each token request at once.

It is a process of its own, so that its work is not measured. Its tokens are bound to the key of the DPoP proof, and their
signature is a constant: a client takes a token from its issuer without verifying it. It prints its URL first.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import sys
from urllib.parse import parse_qs

import orjson

from agent_identity.keys.signing import thumbprint
from agent_identity.values import b64url, unb64url

HEADER = b64url(b'{"alg":"ES256","typ":"at+jwt","kid":"stub"}')
LAST_SECOND = 253402300799
SIGNATURE = b64url(bytes(64))
TOKEN: dict[str, object] = {
    "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
    "token_type": "DPoP",
    "expires_in": 300,
}

_numbers = itertools.count()


@functools.cache
def key_of(header: str) -> str:
    """The thumbprint of the key in the header of a DPoP proof."""
    return thumbprint(orjson.loads(unb64url(header))["jwk"])


class Stub(asyncio.Protocol):
    """One connection, which is kept open."""

    def __init__(self, url: str, jwks: dict[str, object]) -> None:
        self._url = url
        self._documents: dict[str, object] = {
            "/.well-known/oauth-authorization-server": {
                "issuer": url,
                "token_endpoint": f"{url}/token",
                "jwks_uri": f"{url}/jwks",
            },
            "/jwks": jwks,
        }
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        request, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        if not end or len(body) < int(headers.get("content-length", "0")):
            return
        self._data = b""
        path = request.split(" ")[1]
        found = self._issue(headers, body) if path == "/token" else self._documents.get(path)
        answer = json.dumps(found).encode()
        status = "404 Not Found" if found is None else "200 OK"
        self._transport.write(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
            f"Content-Length: {len(answer)}\r\n\r\n".encode()
            + answer
        )

    def _issue(self, headers: dict[str, str], body: bytes) -> dict[str, object]:
        form = parse_qs(body.decode())
        claims = {
            "iss": self._url,
            "sub": "alice",
            "aud": form["resource"][0],
            "client_id": "bench",
            "exp": LAST_SECOND,
            "jti": f"token-{next(_numbers)}",
            "scope": form["scope"][0],
            "cnf": {"jkt": key_of(headers["dpop"].partition(".")[0])},
        }
        token = f"{HEADER}.{b64url(orjson.dumps(claims))}.{SIGNATURE}"
        return TOKEN | {"access_token": token, "scope": form["scope"][0]}


async def serve(jwks: dict[str, object]) -> None:
    urls: list[str] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stub(urls[0], jwks), "127.0.0.1", 0)
    urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    sys.stdout.write(f"{urls[0]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
