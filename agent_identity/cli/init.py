# SPDX-License-Identifier: Apache-2.0
"""`agent-identity init`: write a first, commented `agent-identity.toml` that only its owner can read.

The files are in `templates/`, one for each kind of issuer. Each is valid as it is; `init` puts in the agent's name and the issuer.
"""

from __future__ import annotations

import json
import shlex
import sys
from importlib.resources import files
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.config.environment import CONFIG, STATE_DIR
from agent_identity.errors import ConfigurationError
from agent_identity.keys.private_files import create_private, write_private
from agent_identity.uris import is_safe_link
from agent_identity.values import agent_uri

if TYPE_CHECKING:
    from pathlib import Path

_NAME: Final = '"my-agent"'
_ISSUER: Final = '"https://idp.example"'
"""What a template has in place of the agent's name and of the issuer."""

_CLIENT_KEY: Final = "client.pem"
_EC: Final = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256"
_RSA: Final = "-algorithm RSA -pkeyopt rsa_keygen_bits:2048"


class Kind(NamedTuple):
    """One kind of issuer; `key` is what `openssl genpkey` needs to make the client's key."""

    summary: str
    key: str | None = None


KINDS: Final[dict[str, Kind]] = {
    "embedded": Kind("an authority in this process, no account"),
    "oidc": Kind("one standard issuer, token exchange with DPoP", _EC),
    "sign-in": Kind("one standard issuer where a person signs in in a browser"),
    "keycloak": Kind("a Keycloak realm", _EC),
    "okta": Kind("Okta with cross-app access (ID-JAG)", _EC),
    "entra": Kind("Microsoft Entra ID"),
    "auth0": Kind("an Auth0 tenant", _RSA),
    "spiffe": Kind("a SPIFFE workload and an issuer that accepts its SVID"),
    "github-actions": Kind("a job's own token, no stored secret"),
    "kubernetes": Kind("a pod's own token, no stored secret"),
}


def template_text(kind: str) -> str:
    """The template of a kind, with its placeholders."""
    return (files("agent_identity.cli") / "templates" / f"{kind}.toml").read_text("utf-8")


def choose_kind(kind: str | None) -> str:
    """Check the kind, or ask for it on a terminal.

    Raises:
        ConfigurationError: `unknown_kind`, `kind_missing`.
    """
    if kind in KINDS:
        return kind
    remedy = f"pass --kind with one of {', '.join(KINDS)}"
    if kind is not None:
        raise ConfigurationError("unknown_kind", "unknown kind of issuer", remedy=remedy)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigurationError("kind_missing", "no kind of issuer is given", remedy=remedy)
    return _ask_kind()


def _ask_kind() -> str:
    from rich.console import Console  # noqa: PLC0415 - loads what the command needs
    from rich.prompt import Prompt  # noqa: PLC0415 - see above

    console = Console(stderr=True, highlight=False)
    for name, kind in KINDS.items():
        console.print(f"  [bold]{name:<15}[/bold] {kind.summary}")
    return Prompt.ask(
        "Which kind of issuer",
        choices=[*KINDS],
        console=console,
        show_choices=False,
        default="oidc",
    )


def _filled_template(kind: str, name: str, issuer: str | None) -> str:
    text = template_text(kind)
    agent_uri(name)
    if issuer is not None:
        _check_issuer(issuer, kind, text)
        text = text.replace(_ISSUER, json.dumps(issuer))
    # Both are printable ASCII, which JSON and TOML quote alike. No issuer contains the placeholder of the name.
    return text.replace(_NAME, json.dumps(name))


def _check_issuer(issuer: str, kind: str, template: str) -> None:
    if _ISSUER not in template:
        raise ConfigurationError(
            "issuer_unused", f"{kind} has no external issuer", remedy="leave --issuer out"
        )
    if not is_safe_link(issuer) or "?" in issuer or "#" in issuer:
        raise ConfigurationError(
            "issuer_malformed",
            "--issuer takes an https URL without query and fragment",
            remedy="copy the `issuer` of the issuer's metadata",
        )


def write_configuration(
    kind: str,
    output: Path,
    *,
    name: str,
    issuer: str | None,
    force: bool,
    state_dir: Path | None,
    as_json: bool,
) -> None:
    """Write the file and print the next steps; `state_dir` is only for these.

    Raises:
        ConfigurationError: the name or the issuer is malformed, or the file exists or can't be written.
    """
    text = _filled_template(kind, name, issuer)
    path = output.absolute()
    _write(path, text, force=force)
    steps = _next_steps(path, KINDS[kind], state_dir)
    if as_json:
        document = {"kind": kind, "path": str(path), "next": steps}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    sys.stdout.write(f"wrote {path}\n\nnext, after you have put in your addresses and names:\n")
    sys.stdout.writelines(f"  {step}\n" for step in steps)


def _next_steps(path: Path, kind: Kind, state_dir: Path | None) -> list[str]:
    steps = [f"export {CONFIG}={shlex.quote(str(path))}", "agent-identity doctor"]
    if state_dir is not None:
        steps.insert(1, f"export {STATE_DIR}={shlex.quote(str(state_dir.absolute()))}")
    if kind.key is not None:
        key = shlex.quote(str(path.with_name(_CLIENT_KEY)))
        steps.insert(0, f"(umask 077; openssl genpkey {kind.key} -out {key})")
    return steps


def _write(path: Path, text: str, *, force: bool) -> None:
    """Create the file (0600), or replace it with `force`; a link is never followed."""
    try:
        (write_private if force else create_private)(path, text.encode())
    except FileExistsError:
        raise ConfigurationError(
            "config_exists",
            f"{path} already exists",
            remedy="choose another --output, or pass --force",
        ) from None
    except OSError as error:
        raise ConfigurationError(
            "config_unwritable",
            f"{path} can't be written",
            remedy="create its folder, and let this user write there",
        ) from error
