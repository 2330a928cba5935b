# SPDX-License-Identifier: Apache-2.0
"""The checks of `doctor` on this machine: secrets, keys, certificates, state directory, ledger, policy.

Secrets are read, to check that they can be, and never shown.
"""

from __future__ import annotations

import glob
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from agent_identity.cli.finding import ledger_file
from agent_identity.config.problems import key_text
from agent_identity.config.references import is_in_vault
from agent_identity.errors import AgentIdentityError
from agent_identity.flow import run
from agent_identity.keys.signing import SigningKey, read_certificate
from agent_identity.provenance.ledger import open_ledger
from agent_identity.signers import probe_signer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_identity.assembly.secrets import Secrets
    from agent_identity.config import Configuration
    from agent_identity.http.world import World
    from agent_identity.values import JSON, Secret

_OPEN_TO_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
FAILED: Final = "failed"

_DAY: Final = 86_400.0
_SOON: Final = 14.0


class Finding(NamedTuple):
    """The result of one check; `check` names it, `detail` is what an issuer said about it."""

    check: str
    status: Literal["ok", "warning", "failed"]
    message: str
    remedy: str | None = None
    detail: str | None = None

    def to_dict(self) -> dict[str, JSON]:
        """The finding as JSON; without `detail` where the issuer said nothing."""
        return {name: value for name, value in self._asdict().items() if name != "detail" or value}


def ok(check: str, message: str) -> Finding:
    return Finding(check, "ok", message)


def warning(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, "warning", message, remedy)


def failure(check: str, message: str, remedy: str | None) -> Finding:
    return Finding(check, FAILED, message, remedy)


def failure_of(check: str, error: AgentIdentityError) -> Finding:
    """An error of the library as a finding; its message contains no secret."""
    found = failure(check, f"{error} ({error.code})", error.remedy)
    return found._replace(detail=error.detail)


def check_expiry(check: str, what: str, ends: float, now: float) -> Finding:
    """Whether a certificate is valid, and for how long; `ends` and `now` are Unix seconds."""
    left = (ends - now) / _DAY
    if left <= 0:
        return failure(check, f"{what}, but has expired", "replace it")
    message = (
        f"{what}, {left:.0f} days left" if left >= 1 else f"{what}, {left * 24:.0f} hours left"
    )
    if left < _SOON:
        return warning(check, message, "renew it in time")
    return ok(check, message)


class Setup(NamedTuple):
    """A configuration, and what checks of it need."""

    configuration: Configuration
    secrets: Secrets
    world: World
    clock: Callable[[], float]


def check_secret(path: tuple[str, ...], reference: str, setup: Setup) -> list[Finding]:
    """Whether a secret can be read and used; a key that stays in a vault must sign there."""
    name = key_text(path)
    try:
        if path == ("agent", "signer") and is_in_vault(reference):
            return [_check_vault_key(name, reference, setup)]
        secret = run(setup.secrets.read(reference), setup.world.answer)
        if secret is None and path[-1] == "refresh_token":
            return [ok(name, "no token is stored yet; the first sign-in stores one")]
        if secret is None or not secret.reveal():
            what = "there is nothing" if secret is None else "there is an empty file or entry"
            return [failure(name, f"{what} at {reference}", _remedy(path, setup))]
        return [_check_use(path, reference, secret, setup), *_check_mode(name, reference)]
    except AgentIdentityError as error:
        return [failure_of(name, error)]


def _check_vault_key(name: str, reference: str, setup: Setup) -> Finding:
    key = run(probe_signer(setup.secrets.signer(reference)), setup.world.answer)
    return ok(name, f"{reference} signs with {key['alg']}, kid {key['kid']}")


def _remedy(path: tuple[str, ...], setup: Setup) -> str:
    if _is_signing_key(path, setup.configuration):
        return "create a key there (PEM): openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"
    return "put the secret there, or change the reference"


def _check_use(path: tuple[str, ...], reference: str, secret: Secret, setup: Setup) -> Finding:
    name = key_text(path)
    pair = _key_of_certificate(path, setup.configuration)
    if pair is not None:
        return _check_certificate(name, secret, reference if pair == "" else pair, setup)
    if _is_signing_key(path, setup.configuration):
        key = SigningKey.from_pem(secret.reveal().encode())
        return ok(name, f"{reference} has a private key for {key.alg}")
    return ok(name, f"{reference} can be read")


def _key_of_certificate(path: tuple[str, ...], configuration: Configuration) -> str | None:
    """The reference of a certificate's key, empty if it is in the same file; None for anything but a certificate."""
    match path:
        case ("issuers", name, "client_certificate"):
            return configuration.issuers[name].client_key or ""
        case ("resources", uri, "certificate"):
            return configuration.resources[uri].key or ""
        case _:
            return None


def _is_signing_key(path: tuple[str, ...], configuration: Configuration) -> bool:
    match path:
        case ("agent", "signer" | "key"):
            return True
        case ("issuers", name, "client_key"):
            table = configuration.issuers[name]
            return table.client_certificate is None or table.client_auth == "private_key_jwt"
        case _:
            return False


def _check_certificate(name: str, chain: Secret, key: str, setup: Setup) -> Finding:
    private = run(setup.secrets.read(key), setup.world.answer)
    if private is None:
        return failure(name, f"there is no key at {key}", "put the certificate's key there (PEM)")
    certificate = read_certificate(chain.reveal().encode(), private.reveal().encode())
    return check_expiry(name, "the certificate fits its key", certificate.expires_at, setup.clock())


def _check_mode(name: str, reference: str) -> Iterator[Finding]:
    scheme, _, place = reference.partition(":")
    if scheme != "file" or os.name != "posix":
        return
    if Path(place).stat().st_mode & _OPEN_TO_OTHERS:
        yield warning(name, f"other users can open {place}", f"chmod 600 {place}")


def check_state(directory: Path) -> list[Finding]:
    """Whether the state directory is private. Nothing is created or changed."""
    name, elsewhere = "state directory", "choose another AGENT_IDENTITY_STATE_DIR"
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return [_check_parent(name, directory)]
    except OSError:
        return [failure(name, f"{directory} can't be accessed", elsewhere)]
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return [failure(name, f"{directory} is not a folder of this user", elsewhere)]
    if not os.access(directory, os.W_OK | os.X_OK):
        return [failure(name, f"{directory} can't be written", f"chmod 700 {directory}")]
    if status.st_mode & _OPEN_TO_OTHERS:
        return [warning(name, f"{directory} is open to other users", f"chmod 700 {directory}")]
    return [ok(name, f"{directory} is private")]


def _check_parent(name: str, path: Path) -> Finding:
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if os.access(above, os.W_OK | os.X_OK):
        return ok(name, f"{path} will be created at first use")
    what = f"{path} doesn't exist, and this user can't create it"
    return failure(name, what, "create it, or choose another place")


def check_ledger(configuration: Configuration, directory: Path) -> list[Finding]:
    """Whether the ledger opens and can be written; a missing ledger isn't created."""
    name, table = "ledger", configuration.ledger
    if table.url == "memory:":
        remedy = 'set url = "sqlite:" to keep the records'
        return [warning(name, "the ledger is in memory and lost at the end of the process", remedy)]
    file = ledger_file(table.url, directory)
    if file is not None and not file.exists():
        return [_check_parent(name, file)]
    try:
        with open_ledger(table.url, state_dir=directory, durability=table.durability) as ledger:
            ledger.probe()
    except AgentIdentityError as error:
        return [failure_of(name, error)]
    return [ok(name, f"{file or table.url} opens and can be written")]


def check_policy(configuration: Configuration) -> list[Finding]:
    """Whether a policy is configured, and its files exist."""
    table, name = configuration.policy, "policy"
    if table is None:
        what = "no policy is configured: programs must pass one, and token and exec don't work"
        return [warning(name, what, 'add [policy] engine = "grants-only", or policy files')]
    empty = [pattern for pattern in table.files if not glob.glob(pattern, recursive=True)]  # noqa: PTH207 - a whole pattern, absolute
    remedy = "put policies there, or change policy.files"
    missing = [failure(name, f"there is no policy file at {each}", remedy) for each in empty]
    return missing or [ok(name, f"{table.engine} decides")]
