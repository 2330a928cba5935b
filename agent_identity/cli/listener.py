# SPDX-License-Identifier: Apache-2.0
"""TLS at the authority's port: its certificate, and the certificate authorities of its clients.

A client is asked for a certificate but need not have one. No TLS session is resumed, so each certificate is verified.
"""

from __future__ import annotations

import ssl
import time
from contextlib import closing
from typing import TYPE_CHECKING

from agent_identity.assembly.configured import secrets_of
from agent_identity.cli.finding import world_of
from agent_identity.errors import ConfigurationError
from agent_identity.flow import run
from agent_identity.http.seams import shows
from agent_identity.keys.certificates import read_authorities

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.config import Configuration
    from agent_identity.values import Certificate

__all__ = ["listener_context"]


def listener_context(
    configuration: Configuration, clock: Callable[[], float] = time.time
) -> ssl.SSLContext | None:
    """The TLS context of `[authority.tls]`, None if there is no such table.

    Raises:
        ConfigurationError: a certificate or key is missing, or can't be used.
    """
    authority = configuration.authority
    if authority is None or authority.tls is None:
        return None
    table = authority.tls
    secrets = secrets_of(configuration, clock)
    pair = secrets.certificate(table.certificate, table.key, "certificate of the authority")
    trusted = secrets.required(table.client_ca, "authorities of client certificates")
    with closing(world_of(configuration, clock)) as world:
        certificate = run(pair(), world.answer)
        authorities = read_authorities(run(trusted(), world.answer).reveal()).pem
    _context(certificate, authorities)  # fails now, and not with each connection
    context = _ContextPerConnection(ssl.PROTOCOL_TLS_SERVER)
    context.make = lambda: _context(certificate, authorities)
    return context


class _ContextPerConnection(ssl.SSLContext):
    """Gives each connection a context of its own.

    OpenSSL keeps TLS 1.2 sessions in the context, which Python can't switch off, and verifies no certificate when a session is
    resumed. Making a context takes a fraction of the time of a handshake.
    """

    make: Callable[[], ssl.SSLContext]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 - the signature of the base class
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return self.make().wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def _context(certificate: Certificate, authorities: str) -> ssl.SSLContext:
    # A new context trusts no certificate authority, not even those of the system.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    # An intermediate authority can be trusted without its root, which also signs for others.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    if not (shows(context, certificate) and _trusts(context, authorities)):
        raise ConfigurationError(
            "certificate_unusable",
            "the authority's certificate, its key and the authorities of clients can't be used together",
            remedy="give the chain, leaf first, and the key of that leaf, unencrypted, all as PEM",
        )
    return context


def _trusts(context: ssl.SSLContext, authorities: str) -> bool:
    try:
        context.load_verify_locations(cadata=authorities)
    except ssl.SSLError:
        return False
    return True
