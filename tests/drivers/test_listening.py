# SPDX-License-Identifier: Apache-2.0
"""The sockets that the commands serve on."""

from __future__ import annotations

import socket

from agent_identity.cli.authority.serve import listening


def test_an_accepted_connection_sends_each_part_at_once() -> None:
    """asyncio sets TCP_NODELAY for sockets of its own alone; connections take it over from the one that listens."""
    with (
        listening() as server,
        socket.create_connection(server.getsockname()),
        server.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
