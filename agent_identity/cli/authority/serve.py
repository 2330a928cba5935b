# SPDX-License-Identifier: Apache-2.0
"""Serving on loopback: the authority for other processes, or any ASGI app for as long as a block lasts."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from agent_identity.assembly.configured import secrets_of, vault_signer
from agent_identity.assembly.keys import first_signer, uses_authority
from agent_identity.authority import Authority
from agent_identity.cli.finding import named_configuration, world_of
from agent_identity.config import read_configuration, state_directory
from agent_identity.errors import ConfigurationError, DeniedError
from agent_identity.flow import run
from agent_identity.keys.private_files import private_directory
from agent_identity.lifecycle import Revocations
from agent_identity.provenance.ledger import open_ledger
from agent_identity.provenance.records import REINSTATED, REVOKED
from agent_identity.signers import public_keys_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    import uvicorn

    from agent_identity.config import Configuration
    from agent_identity.config.model import AuthorityTable
    from agent_identity.lifecycle import Revocation
    from agent_identity.provenance.ledger import Ledger
    from agent_identity.values import JSON

__all__ = [
    "anchor_keys",
    "listening",
    "operated",
    "reinstated",
    "revoked",
    "rotated",
    "serve_authority",
    "server_of",
    "serving",
]

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


@contextlib.contextmanager
def operated(state_dir: Path) -> Generator[Authority]:
    """The authority of a state directory, for as long as the block lasts.

    Raises:
        ConfigurationError: `no_authority`, none was ever served there.
    """
    folder = state_dir / "authority"
    if not folder.is_dir():  # a slip in the folder's name must not look like a rotation
        raise ConfigurationError(
            "no_authority",
            f"there is no authority in {state_dir}",
            remedy="name the --state-dir that it is served with",
        )
    authority = Authority(folder)
    try:
        yield authority
    finally:
        authority.close()


def rotated(state_dir: Path) -> tuple[str, str]:
    """Let a new key of a state directory's authority sign; its issuer, and the `kid` of that key.

    Raises:
        ConfigurationError: see `operated`.
    """
    with operated(state_dir) as authority:
        before = _kids(authority)
        authority.rotate()
        new = [kid for kid in _kids(authority) if kid not in before]
        return authority.issuer, new[0]


def _kids(authority: Authority) -> list[str]:
    keys = authority.jwks()["keys"]
    return (
        [str(key["kid"]) for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []
    )


def revoked(ref: str, reason: str, state_dir: Path | None, config: Path | None) -> Revocation:
    """End what a reference names, in every process that shares the state directory.

    Raises:
        ConfigurationError: `no_state`; what `Revocations.revoke` raises.
        DeniedError: `operator_required`.
    """
    with _revocations(state_dir, config) as (revocations, by):
        return revocations.revoke(ref, reason=reason, by=by)


def reinstated(
    ref: str, reason: str | None, state_dir: Path | None, config: Path | None
) -> Revocation:
    """Let new work begin for a reference that was revoked.

    Raises:
        ConfigurationError: `no_state`; what `Revocations.reinstate` raises.
        DeniedError: `operator_required`.
    """
    with _revocations(state_dir, config) as (revocations, by):
        return revocations.reinstate(ref, reason=reason, by=by)


@contextlib.contextmanager
def _revocations(state_dir: Path | None, config: Path | None) -> Generator[tuple[Revocations, str]]:
    from agent_identity.assembly.keys import referenced_key, uses_authority  # noqa: PLC0415 - for those who have a file
    from agent_identity.config import References, read_configuration  # noqa: PLC0415 - see above

    directory = state_directory(state_dir)
    url, durability = "sqlite:", "process"
    path = named_configuration(config) if state_dir is None else config
    if path is not None:
        configuration = read_configuration(path, needs_policy=False)
        key = configuration.operator.key
        if key is not None:
            referenced_key(References(), key, "operator.key")
        elif not uses_authority(configuration):
            raise DeniedError(
                "operator_required",
                "revoking and reinstating takes the operator's key",
                remedy='configure [operator] key = "file:…"',
            )
        url, durability = configuration.ledger.url, configuration.ledger.durability
    if not ((directory / "authority").is_dir() or (directory / "ledger.db").exists()):
        # a slip in the folder's name must not look like a revocation
        raise ConfigurationError(
            "no_state",
            f"no agent and no authority has used {directory}",
            remedy="name the --state-dir of the agents, or the --config that they run with",
        )
    had_ledger = (directory / "ledger.db").exists() or url != "sqlite:"
    authority = Authority(private_directory(directory / "authority"))
    try:
        with open_ledger(url, state_dir=directory, durability=durability) as ledger:
            revocations = Revocations(
                authority.store,
                ledger,
                has_sessions=had_ledger and not _is_of_operators(ledger),
                own_issuer=authority.issuer,
            )
            yield revocations, f"os:{_user()}"
    finally:
        authority.close()


def _is_of_operators(ledger: Ledger) -> bool:
    """Whether a ledger has nothing but revocations: the agents of that authority run, and keep their records, elsewhere."""
    kinds = {record.kind for record in itertools.islice(ledger.records(), 1000)}
    return bool(kinds) and kinds <= {REVOKED, REINSTATED}


def _user() -> str:
    """The user that runs this process, whatever the environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container that runs under any number
        return f"uid:{os.getuid()}"


def anchor_keys(path: Path | None, directory: Path) -> dict[str, JSON]:
    """The JWK set of whatever signs first grants by a configuration, without one by the authority of a state directory.

    Raises:
        ConfigurationError: `anchor_keys`, an issuer elsewhere signs them and publishes its keys itself.
        CredentialError: the signer refused, or could not be reached.
    """
    configuration = None if path is None else read_configuration(path, needs_policy=False)
    if configuration is not None and not uses_authority(configuration):
        return {"keys": [*_signers_keys(configuration, directory)]}
    authority = Authority(directory / "authority")
    try:
        return authority.jwks()
    finally:
        authority.close()


def _signers_keys(configuration: Configuration, directory: Path) -> list[dict[str, JSON]]:
    secrets = secrets_of(configuration, time.time)
    signer = first_signer(configuration, directory) or vault_signer(configuration, secrets)
    if signer is None:
        raise ConfigurationError(
            "anchor_keys",
            "an issuer signs first grants, and publishes its keys itself",
            remedy="take them from where that issuer's metadata says",
        )
    world = world_of(configuration)
    try:
        return run(public_keys_of(signer), world.answer)
    finally:
        world.close()
