# SPDX-License-Identifier: Apache-2.0
"""The commands, and how a failure of the library becomes an exit code.

Exit codes: 0 done, 1 the answer is no (an unsound ledger, an unknown reference), 2 it could not be asked.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

from agent_identity.config import state_directory
from agent_identity.errors import AgentIdentityError, LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.provenance.ledger import Ledger

__all__ = ["app"]

P = ParamSpec("P")
R = TypeVar("R")

app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Credentials, delegation and provenance for every tool call of an AI agent.",
)
ledger_app: typer.Typer = typer.Typer(no_args_is_help=True, help="Look after the ledger.")
authority_app: typer.Typer = typer.Typer(no_args_is_help=True, help="The embedded authority.")
app.add_typer(ledger_app, name="ledger")
app.add_typer(authority_app, name="authority")

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", help="Folder of keys and ledger; default: AGENT_IDENTITY_STATE_DIR."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

UNSOUND = 1
UNREADABLE = 2


def _reported(command: Callable[P, R]) -> Callable[P, R]:
    """Print an error of the library with its remedy, and leave with 2 (1 for a reference that nobody knows)."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except AgentIdentityError as error:
            typer.secho(f"{error.code}: {error}", err=True, fg=typer.colors.RED)
            if error.remedy:
                typer.echo(f"what to do: {error.remedy}", err=True)
            code = UNSOUND if error.code == "unknown_reference" else UNREADABLE
            raise typer.Exit(code) from None

    return run


def _ledger(state_dir: Path | None) -> Ledger:
    from agent_identity.provenance.ledger import open_ledger  # noqa: PLC0415 - loads what the command needs

    directory = state_directory(state_dir)
    if not (directory / "ledger.db").exists():
        raise LedgerError(
            "no_ledger",
            f"there is no ledger in {directory}",
            remedy="name the folder with --state-dir, or run `agent-identity demo` first",
        )
    return open_ledger("sqlite:", state_dir=directory)


@app.command()
@_reported
def demo(state_dir: StateDir = None, as_json: Json = False) -> None:
    """Close the October books for Alice, over real HTTP, in a few seconds: no account, no network."""
    from agent_identity.cli.demo import run_demo  # noqa: PLC0415 - loads what the command needs

    raise typer.Exit(run_demo(state_dir, as_json=as_json))


@app.command()
@_reported
def why(
    ref: Annotated[
        str,
        typer.Argument(help="Id of a call, session, trace or span, a tool call id, or any jti."),
    ],
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Who triggered this: for whom, through which agents, allowed by which rule, and how it ended."""
    from agent_identity.provenance.trace import trace_of  # noqa: PLC0415 - loads what the command needs
    from agent_identity.verify.records import SignatureCheck  # noqa: PLC0415 - loads what the command needs

    with _ledger(state_dir) as ledger:
        trace = trace_of(ledger, ref, check=SignatureCheck(ledger))
    typer.echo(json.dumps(trace.to_dict(), indent=2) if as_json else str(trace))


@ledger_app.command("verify")
@_reported
def ledger_verify(state_dir: StateDir = None, as_json: Json = False) -> None:
    """Recompute every hash, link and signature. Exit 0 sound, 1 unsound, 2 unreadable."""
    from agent_identity.verify.records import SignatureCheck  # noqa: PLC0415 - loads what the command needs

    with _ledger(state_dir) as ledger:
        report = ledger.verify(SignatureCheck(ledger))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    elif report.ok:
        typer.echo(f"sound: {report.records} records of {report.writers} writers, every link holds")
        typer.echo("a tail that was cut off shows only against a checkpoint kept elsewhere")
    else:
        bad = report.first_bad
        typer.secho(f"unsound: {bad}", fg=typer.colors.RED)
    raise typer.Exit(0 if report.ok else UNSOUND)


@authority_app.command("serve")
@_reported
def authority_serve(
    state_dir: StateDir = None,
    port: Annotated[int, typer.Option(help="Port on the loopback interface; 0 picks one.")] = 8700,
) -> None:
    """Serve the embedded authority on loopback, for agents in other processes. Stops with Ctrl-C."""
    from agent_identity.cli.serve import serve_authority  # noqa: PLC0415 - loads what the command needs

    serve_authority(state_directory(state_dir), port)


@authority_app.command("jwks")
@_reported
def authority_jwks(state_dir: StateDir = None) -> None:
    """Print the authority's public keys, as a JWK set."""
    from agent_identity.authority import Authority  # noqa: PLC0415 - loads what the command needs

    authority = Authority(state_directory(state_dir) / "authority")
    sys.stdout.write(json.dumps(authority.jwks(), indent=2) + "\n")
    authority.close()
