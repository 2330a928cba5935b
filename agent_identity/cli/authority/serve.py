# SPDX-License-Identifier: Apache-2.0
"""Serving on loopback: the authority for other processes, or any ASGI app for as long as a block lasts."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

from agent_identity.authority import Authority
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    import uvicorn

    from agent_identity.config import Configuration
    from agent_identity.config.model import AuthorityTable
    from agent_identity.values import JSON

__all__ = ["listening", "serve_authority", "server_of", "serving"]

_STOP: Final = 10.0
"""Seconds that requests under way get when the block ends."""

_AT_ONCE: Final = 256
"""Connections and requests at once; whoever comes then is told to come again."""


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
def serving(
    app: Callable[..., Any], server: socket.socket, tls: ssl.SSLContext | None = None
) -> Generator[None]:
    """Serve an ASGI app in a thread for as long as the block lasts; with `tls` its scopes say who showed a certificate."""
    runner = server_of(app, tls)
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


def serve_authority(
    state_dir: Path, port: int, config: Path | None = None, *, as_json: bool = False
) -> None:
    """Serve the authority that lives in a state directory until interrupted; `config` may make it an organisation's.

    What there is to know of it is printed before it serves: as lines, or as one line of JSON.
    """
    configuration = None if config is None else _read(config)
    tls = None if configuration is None else _tls(configuration)
    server = listening(port)
    url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.getsockname()[1]}"
    folder = state_dir / "authority"
    if configuration is None or configuration.authority is None:
        authority, table = Authority(folder, issuer=url), None
    else:
        authority, table = _of_organisation(configuration, folder, url), configuration.authority
    registers = table is None or table.registration
    if registers:
        authority.registration_token()  # made now, since agents need it before they first ask
    lines = _told(authority, table, url, folder if registers else None)
    if as_json:
        lines = iter([json.dumps(_document(authority, table, url, folder if registers else None))])
    try:
        runner = server_of(authority.asgi(), tls)
        for line in lines:
            print(line, flush=True)  # noqa: T201 - this is the command's output
        runner.run(sockets=[server])
    finally:
        authority.close()


def _read(config: Path) -> Configuration:
    from agent_identity.config import read_configuration  # noqa: PLC0415 - pydantic, for those who have a file

    return read_configuration(config, needs_policy=False)


def _of_organisation(configuration: Configuration, folder: Path, url: str) -> Authority:
    from agent_identity.cli.authority.configured import organisations_authority  # noqa: PLC0415 - for those who have one

    return organisations_authority(configuration, folder, url)


def _tls(configuration: Configuration) -> ssl.SSLContext | None:
    from agent_identity.cli.listener import listener_context  # noqa: PLC0415 - for those who have a file

    return listener_context(configuration)


def _told(
    authority: Authority, table: AuthorityTable | None, url: str, registration: Path | None
) -> Iterator[str]:
    """What whoever started it has to know; nothing of it is secret."""
    if table is None or authority.issuer == url:
        yield f"authority {authority.issuer} (stop with Ctrl-C)"
    else:
        yield f"authority {authority.issuer}, behind {url} (stop with Ctrl-C)"
    yield f"metadata  {authority.endpoints.metadata}"
    for name, client in sorted(table.clients.items() if table else ()):
        yield f"client    {name} ({client.auth})"
    if registration is not None:
        yield f"register  with the token in {registration}"


def _document(
    authority: Authority, table: AuthorityTable | None, url: str, registration: Path | None
) -> dict[str, JSON]:
    """The same for programs."""
    clients = table.clients.items() if table else ()
    return {
        "issuer": authority.issuer,
        "url": url,
        "metadata": authority.endpoints.metadata,
        "clients": {name: client.auth for name, client in clients},
        "registration": None if registration is None else str(registration),
    }


def server_of(app: Callable[..., Any], tls: ssl.SSLContext | None = None) -> uvicorn.Server:
    """What serves an ASGI app; `run(sockets=[…])` does so until interrupted.

    Raises:
        ConfigurationError: `extra_missing`.
    """
    try:
        import uvicorn  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise ConfigurationError(
            "extra_missing",
            "serving needs uvicorn",
            remedy="install it: pip install uvicorn",
        ) from None
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        limit_concurrency=_AT_ONCE,
    )
    if tls is not None:
        _secure(config, tls)
    return uvicorn.Server(config)


def _secure(config: uvicorn.Config, tls: ssl.SSLContext) -> None:
    from agent_identity.authority.connections import TlsProtocol  # noqa: PLC0415 - needs uvicorn

    config.http = TlsProtocol
    config.load()
    config.ssl = tls  # its own parameters name files, and know nothing of sessions
