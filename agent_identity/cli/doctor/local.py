# SPDX-License-Identifier: Apache-2.0
"""What `doctor` looks at on this machine: secrets by their references, keys, certificates, state, ledger, policy.

Secrets are read, since only so it shows whether they can be, and shown to nobody.
"""

from __future__ import annotations

import glob
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from agent_identity.cli.finding import ledger_file
from agent_identity.config.model import Kind, values_of
from agent_identity.config.problems import key_text
from agent_identity.config.references import is_in_vault
from agent_identity.errors import AgentIdentityError
from agent_identity.flow import run
from agent_identity.keys.certificates import read_authorities
from agent_identity.keys.signing import SigningKey, read_certificate
from agent_identity.provenance.ledger import open_ledger
from agent_identity.signers import probed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_identity.assembly.secrets import Secrets
    from agent_identity.config import Configuration
    from agent_identity.http.world import World
    from agent_identity.values import Secret

__all__ = [
    "FAILED",
    "OK",
    "WARNING",
    "Finding",
    "Looked",
    "check_ledger",
    "check_policy",
    "check_secret",
    "check_state",
    "failed_by",
    "lasting",
    "secret_places",
]

_OPEN_TO_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class Looked(NamedTuple):
    """What checks look with."""

    configuration: Configuration
    secrets: Secrets
    world: World
    clock: Callable[[], float]


# -- secrets ----------------------------------------------------------------------------------------------------------


def secret_places(configuration: Configuration) -> list[tuple[tuple[str, ...], str]]:
    """Every reference of a configuration, with its key."""
    return list(values_of(configuration, Kind.REFERENCE))


def check_secret(path: tuple[str, ...], reference: str, looked: Looked) -> list[Finding]:
    """Whether a secret is there, can be read, and is what its key needs; a key that stays in a vault is to sign there."""
    name = key_text(path)
    try:
        if path == ("agent", "signer") and is_in_vault(reference):
            return [_signing(name, reference, looked)]
        found = run(looked.secrets.read(reference), looked.world.answer)
        if found is None and path[-1] == "refresh_token":
            return [Finding(name, OK, "nothing kept yet, the first sign-in puts it there")]
        if found is None or not found.reveal():
            what = "there is nothing" if found is None else "what is there is empty"
            return [Finding(name, FAILED, f"{what} at {reference}", _wanted(path, looked))]
        return [_usable(path, reference, found, looked), *_mode(name, reference)]
    except AgentIdentityError as error:
        return [failed_by(name, error)]


def _signing(name: str, reference: str, looked: Looked) -> Finding:
    key = run(probed(looked.secrets.signer(reference)), looked.world.answer)
    return Finding(name, OK, f"a key for {key['alg']} signs there ({reference}), kid {key['kid']}")


def _wanted(path: tuple[str, ...], looked: Looked) -> str:
    if _is_signing_key(path, looked.configuration):
        return "make a key there, in PEM: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"
    return "put the secret there, or name another place"


def _usable(path: tuple[str, ...], reference: str, found: Secret, looked: Looked) -> Finding:
    name = key_text(path)
    pair = _key_of_certificate(path, looked.configuration)
    if pair is not None:
        return _certificate(name, found, reference if pair == "" else pair, looked)
    if path == ("authority", "tls", "client_ca"):
        ends = read_authorities(found.reveal()).expires_at
        return lasting(name, "the first to end of these authorities", ends, looked.clock())
    if _is_signing_key(path, looked.configuration):
        key = SigningKey.from_pem(found.reveal().encode())
        return Finding(name, OK, f"a private key for {key.alg} is there ({reference})")
    return Finding(name, OK, f"is there ({reference})")


def _key_of_certificate(path: tuple[str, ...], configuration: Configuration) -> str | None:
    """For a certificate the reference of its key, empty where that stands in the same place; None for all else."""
    match path:
        case ("issuers", name, "client_certificate"):
            return configuration.issuers[name].client_key or ""
        case ("resources", uri, "certificate"):
            return configuration.resources[uri].key or ""
        case ("authority", "tls", "certificate"):
            return _key_of_authority(configuration)
        case _:
            return None


def _key_of_authority(configuration: Configuration) -> str | None:
    authority = configuration.authority
    return None if authority is None or authority.tls is None else authority.tls.key


def _is_signing_key(path: tuple[str, ...], configuration: Configuration) -> bool:
    match path:
        case ("agent", "signer" | "key"):
            return True
        case ("issuers", name, "client_key"):
            table = configuration.issuers[name]
            return table.client_certificate is None or table.client_auth == "private_key_jwt"
        case _:
            return False


def _certificate(name: str, chain: Secret, key: str, looked: Looked) -> Finding:
    private = run(looked.secrets.read(key), looked.world.answer)
    if private is None:
        return Finding(name, FAILED, f"its key isn't there ({key})", "put the key there, PEM")
    certificate = read_certificate(chain.reveal().encode(), private.reveal().encode())
    return lasting(name, "the certificate fits its key", certificate.expires_at, looked.clock())


def _mode(name: str, reference: str) -> Iterator[Finding]:
    scheme, _, place = reference.partition(":")
    if scheme != "file" or os.name != "posix":
        return
    if Path(place).stat().st_mode & _OPEN_TO_OTHERS:
        yield Finding(
            name, WARNING, f"others than its owner can open {place}", f"chmod 600 {place}"
        )


# -- the state directory and the ledger -------------------------------------------------------------------------------


def check_state(directory: Path) -> list[Finding]:
    """Whether the folder of keys and ledger is ours alone. Nothing is made or changed."""
    name = "state directory"
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return [_makeable(name, directory)]
    except OSError:
        return [
            Finding(
                name,
                FAILED,
                f"{directory} can't be looked at",
                "choose another AGENT_IDENTITY_STATE_DIR",
            )
        ]
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return [
            Finding(
                name,
                FAILED,
                f"{directory} is no folder of this user's own",
                "choose another AGENT_IDENTITY_STATE_DIR",
            )
        ]
    if not os.access(directory, os.W_OK | os.X_OK):
        return [Finding(name, FAILED, f"{directory} can't be written", f"chmod 700 {directory}")]
    if status.st_mode & _OPEN_TO_OTHERS:
        return [Finding(name, WARNING, f"{directory} is open to others", f"chmod 700 {directory}")]
    return [Finding(name, OK, f"{directory} is this user's alone")]


def _makeable(name: str, path: Path) -> Finding:
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if os.access(above, os.W_OK | os.X_OK):
        return Finding(name, OK, f"{path} will be made at first use")
    return Finding(
        name,
        FAILED,
        f"{path} isn't there, and this user can't make it",
        "make it, or name another place",
    )


def check_ledger(configuration: Configuration, directory: Path) -> list[Finding]:
    """Whether the ledger opens and takes what is written; one that isn't there yet isn't made."""
    name, table = "ledger", configuration.ledger
    if table.url == "memory:":
        remedy = 'say url = "sqlite:" where somebody has to answer for what was done'
        return [Finding(name, WARNING, "it is kept in memory and gone with the process", remedy)]
    file = ledger_file(table.url, directory)
    if file is not None and not file.exists():
        return [_makeable(name, file)]
    try:
        with open_ledger(table.url, state_dir=directory, durability=table.durability) as ledger:
            ledger.probe()
    except AgentIdentityError as error:
        return [failed_by(name, error)]
    return [Finding(name, OK, f"{file or table.url} opens and can be written")]


# -- policy -----------------------------------------------------------------------------------------------------------


def check_policy(configuration: Configuration) -> list[Finding]:
    """Whether somebody decides, and has the files to decide by."""
    table, name = configuration.policy, "policy"
    if table is None:
        return [
            Finding(
                name,
                WARNING,
                "nothing says who decides, so a program has to bring a policy, and token and exec do nothing",
                'add [policy] engine = "grants-only", or policy files',
            )
        ]
    empty = [pattern for pattern in table.files if not glob.glob(pattern, recursive=True)]  # noqa: PTH207 - a whole pattern, absolute
    if empty:
        return [
            Finding(
                name,
                FAILED,
                f"there is no policy file at {each}",
                "put policies there, or correct policy.files",
            )
            for each in empty
        ]
    return [Finding(name, OK, f"{table.engine} decides")]


OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"

_DAY: Final = 86_400.0
_SOON: Final = 14.0


class Finding(NamedTuple):
    """`check` is what was looked at."""

    check: str
    status: Literal["ok", "warning", "failed"]
    message: str
    remedy: str | None = None


def failed_by(check: str, error: AgentIdentityError) -> Finding:
    """An error of the library as a finding; its message holds no secret."""
    return Finding(check, FAILED, f"{error} ({error.code})", error.remedy)


def lasting(check: str, what: str, ends: float, now: float) -> Finding:
    """How long a certificate lasts; `ends` and `now` are Unix seconds."""
    left = (ends - now) / _DAY
    if left <= 0:
        return Finding(check, FAILED, f"{what} has expired", "put a new one there")
    message = (
        f"{what}, {left:.0f} days left" if left >= 1 else f"{what}, {left * 24:.0f} hours left"
    )
    if left < _SOON:
        return Finding(check, WARNING, message, "see that it is renewed in time")
    return Finding(check, OK, message)
