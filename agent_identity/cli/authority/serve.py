# SPDX-License-Identifier: Apache-2.0
"""`agent-identity authority` and `revoke`: serve an authority on loopback, rotate its key, revoke and reinstate."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import socket
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from agent_identity.assembly.configured import secrets_of, vault_signer
from agent_identity.assembly.keys import first_signer, referenced_key, uses_authority
from agent_identity.authority import Authority
from agent_identity.cli.authority.configured import organisations_authority
from agent_identity.cli.finding import named_configuration, world_of
from agent_identity.config import References, read_configuration, state_directory
from agent_identity.errors import ConfigurationError, DeniedError
from agent_identity.flow import run
from agent_identity.keys.private_files import make_private_directory
from agent_identity.lifecycle import Revocations
from agent_identity.provenance.ledger import open_ledger
from agent_identity.provenance.records import REINSTATED, REVOKED
from agent_identity.signers import public_keys_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    import uvicorn

    from agent_identity.config import Configuration
    from agent_identity.config.model import AuthorityTable
    from agent_identity.lifecycle import Revocation
    from agent_identity.provenance.ledger import Ledger
    from agent_identity.values import JSON

_STOP: Final = 10.0
"""Seconds that running requests have to finish when the block ends."""

_AT_ONCE: Final = 256
"""Simultaneous connections and requests; further ones are refused with 503."""


def listening(port: int = 0) -> socket.socket:
    """A socket that listens on loopback only."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # asyncio sets this for sockets that it makes; without it, an answer in two parts waits 40 ms for the client's ACK.
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
    """Serve an ASGI app in a thread while the block runs."""
    runner = server_of(app)
    # The socket listens already: a client that connects before the server is up waits in its queue.
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
    """Serve the authority of a state directory until interrupted; `config` may make it an organisation's anchor.

    Its URL, metadata and clients are printed before it serves, as lines or as one line of JSON.
    """
    configuration = None if config is None else read_configuration(config, needs_policy=False)
    server = listening(port)
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    folder = state_dir / "authority"
    if configuration is None or configuration.authority is None:
        authority, table = Authority(folder, issuer=url), None
    else:
        authority = organisations_authority(configuration, folder, url)
        table = configuration.authority
    registration = folder if table is None or table.registration else None
    if registration is not None:
        authority.registration_token()  # agents need its file before their first request
    summary = _summary(authority, table, url, registration, as_json=as_json)
    try:
        runner = server_of(authority.asgi())
        print(summary, flush=True)  # noqa: T201 - this is the command's output
        runner.run(sockets=[server])
    finally:
        authority.close()


def _summary(
    authority: Authority,
    table: AuthorityTable | None,
    url: str,
    registration: Path | None,
    *,
    as_json: bool,
) -> str:
    """What users need to know of the authority; nothing of it is secret."""
    issuer, metadata = authority.issuer, authority.endpoints.metadata
    clients = {} if table is None else {name: one.auth for name, one in table.clients.items()}
    if as_json:
        document = {"issuer": issuer, "url": url, "metadata": metadata, "clients": clients}
        folder = None if registration is None else str(registration)
        return json.dumps(document | {"registration": folder})
    place = issuer if table is None or issuer == url else f"{issuer}, behind {url}"
    lines = [f"authority {place} (stop with Ctrl-C)", f"metadata  {metadata}"]
    lines += [f"client    {name} ({auth})" for name, auth in sorted(clients.items())]
    if registration is not None:
        lines.append(f"register  with the token in {registration}")
    return "\n".join(lines)


def server_of(app: Callable[..., Any]) -> uvicorn.Server:
    """A server of an ASGI app; `run(sockets=[…])` serves until interrupted.

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
    return uvicorn.Server(config)


def rotate_key(state_dir: Path) -> tuple[str, str]:
    """Rotate the signing key of a state directory's authority; returns its issuer and the `kid` of the new key.

    Raises:
        ConfigurationError: `no_authority`, the state directory has none.
    """
    folder = state_dir / "authority"
    if not folder.is_dir():  # a misspelt folder must not look like a rotation
        raise ConfigurationError(
            "no_authority",
            f"there is no authority in {state_dir}",
            remedy="pass the --state-dir that it is served with",
        )
    with closing(Authority(folder)) as authority:
        before = _kids(authority)
        authority.rotate()
        new = [kid for kid in _kids(authority) if kid not in before]
        return authority.issuer, new[0]


def _kids(authority: Authority) -> list[str]:
    keys = authority.jwks()["keys"]
    return (
        [str(key["kid"]) for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []
    )


def revoke(ref: str, reason: str, state_dir: Path | None, config: Path | None) -> Revocation:
    """Revoke a reference, in every process that shares the state directory.

    Raises:
        ConfigurationError: `no_state`; what `Revocations.revoke` raises.
        DeniedError: `operator_required`.
    """
    with _revocations(state_dir, config) as (revocations, by):
        return revocations.revoke(ref, reason=reason, by=by)


def reinstate(
    ref: str, reason: str | None, state_dir: Path | None, config: Path | None
) -> Revocation:
    """Let a revoked reference begin new work.

    Raises:
        ConfigurationError: `no_state`; what `Revocations.reinstate` raises.
        DeniedError: `operator_required`.
    """
    with _revocations(state_dir, config) as (revocations, by):
        return revocations.reinstate(ref, reason=reason, by=by)


@contextlib.contextmanager
def _revocations(state_dir: Path | None, config: Path | None) -> Generator[tuple[Revocations, str]]:
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
                "revoking and reinstating needs the operator's key",
                remedy='set key = "file:…" in [operator]',
            )
        url, durability = configuration.ledger.url, configuration.ledger.durability
    if not ((directory / "authority").is_dir() or (directory / "ledger.db").exists()):
        # a misspelt folder must not look like a revocation
        raise ConfigurationError(
            "no_state",
            f"{directory} has neither a ledger nor an authority",
            remedy="pass the --state-dir of the agents, or their --config",
        )
    had_ledger = (directory / "ledger.db").exists() or url != "sqlite:"
    with (
        closing(Authority(make_private_directory(directory / "authority"))) as authority,
        open_ledger(url, state_dir=directory, durability=durability) as ledger,
    ):
        revocations = Revocations(
            authority.store,
            ledger,
            has_sessions=had_ledger and not _has_only_revocations(ledger),
            own_issuer=authority.issuer,
        )
        yield revocations, f"os:{_user()}"


def _has_only_revocations(ledger: Ledger) -> bool:
    """Whether the agents of the authority keep their records in other ledgers."""
    kinds = {record.kind for record in itertools.islice(ledger.records(), 1000)}
    return bool(kinds) and kinds <= {REVOKED, REINSTATED}


def _user() -> str:
    """The user that runs this process; the environment can't change it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container with an arbitrary user id
        return f"uid:{os.getuid()}"


def anchor_keys(path: Path | None, directory: Path) -> dict[str, JSON]:
    """The JWK set of the configured signer of first grants; without one, of the authority of a state directory.

    Raises:
        ConfigurationError: `anchor_keys`, another issuer signs first grants and publishes its own keys.
        CredentialError: the signer refused, or could not be reached.
    """
    configuration = None if path is None else read_configuration(path, needs_policy=False)
    if configuration is not None and not uses_authority(configuration):
        return {"keys": [*_signers_keys(configuration, directory)]}
    with closing(Authority(directory / "authority")) as authority:
        return authority.jwks()


def _signers_keys(configuration: Configuration, directory: Path) -> list[dict[str, JSON]]:
    secrets = secrets_of(configuration, time.time)
    signer = first_signer(configuration, directory) or vault_signer(configuration, secrets)
    if signer is None:
        raise ConfigurationError(
            "anchor_keys",
            "an issuer signs first grants, and publishes its own keys",
            remedy="take them from the `jwks_uri` of that issuer's metadata",
        )
    with closing(world_of(configuration)) as world:
        return run(public_keys_of(signer), world.answer)
