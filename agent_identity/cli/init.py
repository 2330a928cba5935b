# SPDX-License-Identifier: Apache-2.0
"""`agent-identity init`: a first `agent-identity.toml`, with comments, that nobody but its owner can read."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Final

from agent_identity.cli.templates import CLIENT_KEY, KINDS
from agent_identity.config.environment import CONFIG, STATE_DIR
from agent_identity.errors import ConfigurationError
from agent_identity.keys.private_files import create_private, write_private
from agent_identity.uris import is_safe_link
from agent_identity.values import agent_uri

if TYPE_CHECKING:
    from pathlib import Path

    from agent_identity.cli.templates import Template

__all__ = ["ISSUER", "chosen_kind", "text_of", "write_configuration"]

ISSUER: Final = "https://idp.example"


def chosen_kind(kind: str | None) -> str:
    """The kind that was said, else asked for where a person can answer.

    Raises:
        ConfigurationError: `unknown_kind`, `kind_missing`.
    """
    if kind is None:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise ConfigurationError(
                "kind_missing", "nobody said which kind of issuer", remedy=_SAY_ONE
            )
        return _asked_kind()
    if kind not in KINDS:
        raise ConfigurationError("unknown_kind", "there is no such kind", remedy=_SAY_ONE)
    return kind


_SAY_ONE: Final = f"say --kind and one of {', '.join(KINDS)}"


def _asked_kind() -> str:
    from rich.console import Console  # noqa: PLC0415 - loads what the command needs
    from rich.prompt import Prompt  # noqa: PLC0415 - see above

    console = Console(stderr=True, highlight=False)
    for name, template in KINDS.items():
        console.print(f"  [bold]{name:<15}[/bold] {template.summary}")
    return Prompt.ask(
        "Which kind of issuer",
        choices=[*KINDS],
        console=console,
        show_choices=False,
        default="oidc",
    )


def text_of(kind: str, *, name: str, issuer: str | None) -> str:
    """The file of a kind.

    Raises:
        ConfigurationError: the name or the issuer can't stand in it.
    """
    template = KINDS[kind]
    agent_uri(name)
    if issuer is not None:
        _check_issuer(issuer, kind, template)
    return template.text.replace("@NAME@", _toml(name)).replace("@ISSUER@", _toml(issuer or ISSUER))


def _check_issuer(issuer: str, kind: str, template: Template) -> None:
    if not template.has_issuer:
        raise ConfigurationError(
            "issuer_unused", f"{kind} has no issuer elsewhere", remedy="leave --issuer out"
        )
    if not is_safe_link(issuer) or "?" in issuer or "#" in issuer:
        raise ConfigurationError(
            "issuer_malformed",
            "--issuer takes an https URL without query and fragment",
            remedy="write it letter by letter as the issuer's metadata has it",
        )


def _toml(text: str) -> str:
    return json.dumps(
        text
    )  # both are printable ASCII by now, where JSON and TOML spell texts alike


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
    """Write it, and say what comes next, with `state_dir` where keys and ledger are not to be kept in the default place.

    Raises:
        ConfigurationError: there is a file already, or it can't be written.
    """
    text = text_of(kind, name=name, issuer=issuer)
    path = output.absolute()
    _write(path, text, force=force)
    steps = _next_steps(path, KINDS[kind], state_dir)
    if as_json:
        document = {"kind": kind, "path": str(path), "next": steps}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    sys.stdout.write(f"wrote {path}\n\nnext, once its addresses and names are yours:\n")
    sys.stdout.writelines(f"  {step}\n" for step in steps)


def _next_steps(path: Path, template: Template, state_dir: Path | None) -> list[str]:
    steps = [f"export {CONFIG}={shlex.quote(str(path))}", "agent-identity doctor"]
    if state_dir is not None:
        steps.insert(1, f"export {STATE_DIR}={shlex.quote(str(state_dir.absolute()))}")
    if template.key is not None:
        key = shlex.quote(str(path.with_name(CLIENT_KEY)))
        make = f"(umask 077; openssl genpkey {template.key} -out {key})"
        steps.insert(0, make)
    return steps


def _write(path: Path, text: str, *, force: bool) -> None:
    try:
        (write_private if force else create_private)(path, text.encode())
    except FileExistsError:
        raise ConfigurationError(
            "config_exists",
            f"{path} is there already",
            remedy="choose another --output, or say --force",
        ) from None
    except OSError as error:
        raise ConfigurationError(
            "config_unwritable",
            f"{path} can't be written",
            remedy="make its folder, and let this user write there",
        ) from error
