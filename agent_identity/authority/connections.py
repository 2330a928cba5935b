# SPDX-License-Identifier: Apache-2.0
"""uvicorn's HTTP/1.1, which says in each request's scope what TLS knows of its connection (ASGI TLS extension, version 0.2).

By itself uvicorn keeps a client's certificate from the application. Here it comes from the connection, and from nothing that
was sent in it. Needs uvicorn, so only a server imports this.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from agent_identity.keys.certificates import subject_of

if TYPE_CHECKING:
    import asyncio

    from agent_identity.authority.asgi import Message, Receive, Send

__all__ = ["TlsProtocol"]

_VERSIONS: Final = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


class TlsProtocol(H11Protocol):
    """One connection of TLS; `uvicorn.Config(http=TlsProtocol)`.

    One that is idle, and has nothing more to send, ends without waiting for the other end's goodbye, as TLS would for half a
    minute: it may be idle too.
    """

    # As uvicorn narrows it: its server makes connections of no other kind.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        app, tls = self.app, _said_of(transport.get_extra_info("ssl_object"))

        async def told(scope: Message, receive: Receive, send: Send) -> None:
            scope["extensions"] = {**(scope.get("extensions") or {}), "tls": tls}
            await app(scope, receive, send)

        self.app = told

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_at_once()

    def shutdown(self) -> None:
        super().shutdown()
        self._end_at_once()

    def _end_at_once(self) -> None:
        if self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self.transport.abort()


def _said_of(connection: ssl.SSLObject) -> dict[str, Any]:
    return {
        **_said_of_client(connection.getpeercert(binary_form=True)),
        "server_cert": None,
        "tls_version": _VERSIONS.get(connection.version() or ""),
        "cipher_suite": _suite(connection),
    }


def _said_of_client(shown: bytes | None) -> dict[str, Any]:
    name = None if shown is None else subject_of(shown)
    if shown is None or name is None:
        error = None if shown is None else "unreadable"
        return {"client_cert_chain": [], "client_cert_name": None, "client_cert_error": error}
    chain = [ssl.DER_cert_to_PEM_cert(shown)]
    return {"client_cert_chain": chain, "client_cert_name": name, "client_cert_error": None}


def _suite(connection: ssl.SSLObject) -> int | None:
    """The number that RFCs give to the suite; OpenSSL has names of its own."""
    used, *_ = connection.cipher() or (None,)
    ids = (each["id"] for each in connection.context.get_ciphers() if each["name"] == used)
    return next((number & 0xFFFF for number in ids), None)
