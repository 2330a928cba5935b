# SPDX-License-Identifier: Apache-2.0
"""Serving on loopback: the authority for other processes, or any ASGI app for as long as a block lasts."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

from agent_identity.authority import Authority
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    import uvicorn

__all__ = ["listening", "serve_authority", "serving"]

_STOP = 10.0
"""Seconds that requests under way get when the block ends."""


def listening(port: int = 0) -> socket.socket:
    """A socket that listens on loopback, and on nothing else."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(("127.0.0.1", port))
    except OSError as error:
        server.close()
        raise ConfigurationError(
            "port_in_use", f"port {port} on loopback can't be used", remedy="choose another --port"
        ) from error
    server.listen(128)
    return server


@contextlib.contextmanager
def serving(app: Callable[..., Any], server: socket.socket) -> Generator[None]:
    """Serve an ASGI app in a thread for as long as the block lasts."""
    runner = _runner(app)
    # The socket listens already, so a client that comes before the server is up waits in its queue.
    thread = threading.Thread(
        target=runner.run, args=([server],), name="agent-identity-server", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        runner.should_exit = True
        thread.join(_STOP)
        server.close()


def serve_authority(state_dir: Path, port: int) -> None:
    """Serve the authority that lives in a state directory until interrupted."""
    server = listening(port)
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    authority = Authority(state_dir / "authority", issuer=url)
    print(f"authority {url} (stop with Ctrl-C)", flush=True)  # noqa: T201 - this is the command's output
    print(f"metadata  {url}/.well-known/oauth-authorization-server", flush=True)  # noqa: T201 - see above
    authority.registration_token()  # made now, since agents need it before they first ask
    print(f"register  with the token in {state_dir / 'authority'}", flush=True)  # noqa: T201 - see above
    try:
        _runner(authority.asgi()).run(sockets=[server])
    finally:
        authority.close()


def _runner(app: Callable[..., Any]) -> uvicorn.Server:
    try:
        import uvicorn  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise ConfigurationError(
            "extra_missing",
            "serving needs uvicorn",
            remedy='pip install "agent-identity-sdk[server]"',
        ) from None
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none")
    )
