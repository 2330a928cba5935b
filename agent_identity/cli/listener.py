# SPDX-License-Identifier: Apache-2.0
"""TLS at the authority's port: the certificate that it shows, and the authorities whose client certificates count.

A client is asked for a certificate and need not have one. Each connection begins anew, with a certificate that is verified.
"""

from __future__ import annotations

import ssl
import time
from contextlib import closing
from typing import TYPE_CHECKING

from agent_identity.assembly.configured import secrets_of
from agent_identity.cli.authority.configured import world_of
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
    """What `[authority.tls]` says, read from its places; None where there is no such table.

    Raises:
        ConfigurationError: something isn't there, or can't be used.
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
    _context(certificate, authorities)  # what can't be used shows now, not with each connection
    found = _EachAnew(ssl.PROTOCOL_TLS_SERVER)
    found.make = lambda: _context(certificate, authorities)
    return found


class _EachAnew(ssl.SSLContext):
    """Gives each connection a context of its own.

    OpenSSL keeps the sessions of TLS 1.2 in the context, where Python can't switch that off, and verifies no certificate when
    one is taken up again. Making a context takes a fraction of what a handshake does.
    """

    make: Callable[[], ssl.SSLContext]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 - as it is there
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return self.make().wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def _context(certificate: Certificate, authorities: str) -> ssl.SSLContext:
    # It trusts nobody yet, the system's authorities included.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    # Whoever is named counts, and not only with all that are above: an intermediate needs no root, which signs for others too.
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
